"""The model that is trained: loaded or live, fit for training, and left as it was but for its adapter."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from eckart.checkpoint import open_checkpoint
from eckart.errors import OptionError
from eckart.evaluation import load_model, load_tokenizer
from eckart.nn import LoRAConfig, quantize_model
from eckart.training.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINABLE = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Subject:
    """A model by its source, or live, with its tokenizer.

    Attributes:
        source: what the user named, or the class of a live model.
        tokenizer: a copy that training may change.
        window: tokens that the model can see at once, where its config tells.
        live: the model, if it was given as one.
    """

    source: str
    tokenizer: "PreTrainedTokenizerBase"
    window: int | None
    live: "PreTrainedModel | None" = None

    @classmethod
    def of(cls, model: "str | Path | nn.Module", tokenizer: "PreTrainedTokenizerBase | None") -> "Subject":
        """What `model` names; its weights are not read yet.

        Raises:
            SourceError: there is no such model, or no tokenizer beside it.
            OptionError: a live model that is not transformers', or has no tokenizer.
        """
        if not isinstance(model, nn.Module):
            window = open_checkpoint(model).config.get("max_position_embeddings")
            return cls(str(model), tokenizer or load_tokenizer(model), window if isinstance(window, int) else None)
        if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
            msg = f"a {type(model).__name__} is no causal language model of transformers, which is what train takes"
            raise OptionError(msg)
        live = cast("PreTrainedModel", model)
        if tokenizer is None and not live.config._name_or_path:
            msg = "a live model that was not loaded from a source needs its tokenizer: train(…, tokenizer=…)"
            raise OptionError(msg)
        window = getattr(live.config.get_text_config(), "max_position_embeddings", None)
        own = copy.deepcopy(tokenizer) if tokenizer is not None else load_tokenizer(live.config._name_or_path)
        return cls(type(model).__name__, own, window, live)

    def model(self, settings: TrainSettings, config: LoRAConfig | None) -> "PreTrainedModel":
        """The model in the dtype that the settings ask for, its linear layers in NF4 if they ask for that.

        Raises:
            OptionError: a live model is in another dtype, or not to be quantized; biases would train in bfloat16.
        """
        dtype = settings.torch_dtype
        if self.live is not None:
            dtype = next(parameter.dtype for parameter in self.live.parameters())
            wanted = settings.torch_dtype if settings.dtype != "auto" else dtype
            if dtype not in TRAINABLE or wanted != dtype:
                expected = wanted if wanted in TRAINABLE else "float32 or bfloat16"
                msg = f"the model is in {dtype}, and a live model trains in the dtype it has: expected {expected}"
                raise OptionError(msg)
            if settings.quantize is not None:
                msg = "a live model is quantized by whom it belongs to: eckart.quantize_model(model), then train"
                raise OptionError(msg)
        if settings.quantize is not None and config is not None and config.init == "loftq":
            msg = "init loftq puts the layers that it adapts into NF4 itself: leave --quantize away"
            raise OptionError(msg)
        if config is not None and config.bias != "none" and dtype != torch.float32:
            msg = (
                f"small steps of the model's own biases would be rounded away in {dtype}: --dtype float32, or no biases"
            )
            raise OptionError(msg)
        if self.live is not None:
            return self.live
        model = load_model(self.source, dtype=dtype)
        model.config._name_or_path = self.source
        if settings.quantize is not None:
            quantize_model(model)
        return model


@contextmanager
def left_as_it_was(model: "PreTrainedModel") -> Iterator[None]:
    """Undo what a trainer does to a model besides training it: its forward, its configs, its hooks, its mode."""
    forward = model.__dict__.get("forward")
    configs: list[Any] = [model.config, model.config.get_text_config(), getattr(model, "generation_config", None)]
    before = [(config, copy.deepcopy(vars(config))) for config in configs if config is not None]
    try:
        yield
    finally:
        model.__dict__.pop("forward", None)
        if forward is not None:
            model.__dict__["forward"] = forward
        for config, values in before:
            vars(config).clear()
            vars(config).update(values)
        if model.is_activation_checkpointing:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()
        model.zero_grad(set_to_none=True)
        model.eval()
