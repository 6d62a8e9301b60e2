"""The model that is trained: loaded or live, checked for training, and restored afterwards except for its adapter."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from eckart.checkpoint import locate, open_checkpoint
from eckart.checkpoint.model_config import context_length
from eckart.errors import OptionError
from eckart.evaluation import load_model, load_tokenizer
from eckart.evaluation.model import outline_model
from eckart.nn import LoRAConfig, quantize_model
from eckart.training.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINABLE = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class ModelToTrain:
    """A model by its source, or a live one, with its tokenizer.

    Attributes:
        source: the SOURCE, or the class of a live model.
        tokenizer: a copy that training may modify.
        window: tokens that the model can attend to, if its config states it.
        live: the model, if it was given as one.
        files: its files, unless it is live.
    """

    source: str
    tokenizer: "PreTrainedTokenizerBase"
    window: int | None
    live: "PreTrainedModel | None" = None
    files: tuple[Path, ...] = ()

    @classmethod
    def resolve(
        cls, model: "str | Path | nn.Module", tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> "ModelToTrain":
        """The model that `model` names; its weights are not read yet.

        Raises:
            SourceError: there is no such model, or it has no tokenizer.
            OptionError: a live model is not one of transformers, or has no tokenizer.
        """
        if not isinstance(model, nn.Module):
            opened = open_checkpoint(model)
            window = context_length(opened.config)
            return cls(str(model), tokenizer or load_tokenizer(model), window, files=opened.files)
        if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
            msg = f"train needs a causal language model of transformers, got a {type(model).__name__}"
            raise OptionError(msg)
        live = cast("PreTrainedModel", model)
        if tokenizer is None and not live.config._name_or_path:
            msg = "a live model that was not loaded from a source needs its tokenizer: pass `tokenizer`"
            raise OptionError(msg)
        window = getattr(live.config.get_text_config(), "max_position_embeddings", None)
        copied = copy.deepcopy(tokenizer) if tokenizer is not None else load_tokenizer(live.config._name_or_path)
        return cls(type(model).__name__, copied, window, live)

    def check(self, settings: TrainSettings, config: LoRAConfig | None) -> None:
        """Refuse settings that do not suit the model or the adapter.

        Raises:
            OptionError: a live model has another dtype, or should be quantized; biases would train in bfloat16.
        """
        dtype = settings.torch_dtype
        if self.live is not None:
            dtype = next(parameter.dtype for parameter in self.live.parameters())
            requested = settings.torch_dtype if settings.dtype != "auto" else dtype
            if dtype not in TRAINABLE or requested != dtype:
                expected = requested if requested in TRAINABLE else "float32 or bfloat16"
                msg = f"the model is in {dtype}, and a live model trains in its own dtype: expected {expected}"
                raise OptionError(msg)
            if settings.quantize is not None:
                msg = "train cannot quantize a live model; call eckart.quantize_model(model) instead of `quantize`"
                raise OptionError(msg)
        if settings.quantize is not None and config is not None and config.init == "loftq":
            msg = "`init=loftq` quantizes the layers that it adapts itself; use it without `quantize`"
            raise OptionError(msg)
        if config is not None and config.bias != "none" and dtype != torch.float32:
            msg = f"small steps of biases would be rounded away in {dtype}; use `dtype=float32` or `bias=none`"
            raise OptionError(msg)

    def can_be_received(self, settings: TrainSettings, config: LoRAConfig | None) -> bool:
        """Whether the weights can come from another process once adapters are there, as those start without them."""
        config = config or LoRAConfig()
        is_plain = (config.method, config.init, config.bias) == ("lora", "zero", "none")
        checkpoint = open_checkpoint(self.source)
        is_dense = settings.quantize is None and not checkpoint.config.get("quantization_config")
        return is_plain and is_dense and not locate(self.source).is_gguf

    def load(self, settings: TrainSettings, *, empty: bool = False) -> "PreTrainedModel":
        """The live model, or the loaded one in the requested dtype, with its linear layers in NF4 if requested.

        With `empty`, its parameters are on the meta device, unless it keeps some of them in float32.
        """
        if self.live is not None:
            return self.live
        model = outline_model(self.source, dtype=settings.torch_dtype, buffers=True).eval() if empty else None
        if model is None or _keeps_float32(model):
            model = load_model(self.source, dtype=settings.torch_dtype)
        model.config._name_or_path = self.source
        if settings.quantize is not None:
            quantize_model(model)
        return model


def _keeps_float32(model: nn.Module) -> bool:
    """Whether transformers loads some parameters in float32, whatever dtype is requested."""
    return any(getattr(model, f"_keep_in_fp32_modules{kind}", None) for kind in ("", "_strict"))


@contextmanager
def restored(model: "PreTrainedModel") -> Iterator[None]:
    """Undo, after the block, everything that a trainer changes except weights: `forward`, configs, hooks and mode."""
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
