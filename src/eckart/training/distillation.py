"""Distillation from names and a text: what an adapter goes through before it is written."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import EckartError
from eckart.evaluation import load_model, load_tokenizer
from eckart.linalg import LowRank
from eckart.nn import AdaptedModule, adapted_modules, adapter_applied, inject_adapter
from eckart.operations.rank_change import rounding_floor
from eckart.training.distiller import (
    HELD_OUT_SHARE,
    LEAST_HELD_OUT_TOKENS,
    SHORT,
    STUDENT,
    DistillResult,
    distill,
)
from eckart.training.finetuning import FinetuneSettings, StepCallback

SEQUENCE_TOKENS = 256
TEACHER = "teacher"


class Distillation:
    """Trains an adapter towards a teacher on a text when it is called with one: a `refine` of `extract` and `resize`.

    Attributes:
        result: what the last call did.
    """

    result: DistillResult | None = None

    def __init__(
        self,
        base: str | Path,
        teacher: str | Path | Adapter,
        text: str,
        settings: FinetuneSettings = SHORT,
        *,
        device: torch.device | str = "cpu",
        progress: StepCallback | None = None,
    ) -> None:
        """Prepare it; the text is read here, the models when an adapter comes.

        Args:
            base: SOURCE of the base, with its tokenizer.
            teacher: SOURCE of the fine-tune, which is then in memory beside the base, or an adapter of the base.
            text: to train on, but for its last 15 %, on which the training is judged.
            settings: see `distill`.
            device: of the models.
            progress: called after every step.

        Raises:
            EckartError: the text is too short.
            MissingExtraError, SourceError: transformers or the tokenizer is not there.
        """
        self.base, self.teacher, self.settings = base, teacher, settings
        self.device, self.progress = device, progress
        tokenizer = load_tokenizer(base)
        # verbose=False: a text longer than the model's window is cut into windows here, no reason to warn.
        self.ids: list[int] = cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        opening = cast("list[int]", tokenizer("")["input_ids"])[:1]
        self.opening = [token for token in opening if token == tokenizer.bos_token_id]
        least = math.ceil(LEAST_HELD_OUT_TOKENS / HELD_OUT_SHARE)
        if len(self.ids) < least:
            msg = (
                f"the text to distil on has {len(self.ids):,} tokens: it needs {least:,}, of which "
                f"{HELD_OUT_SHARE:.0%} judge what was trained on the others"
            )
            raise EckartError(msg)

    def __call__(self, adapter: Adapter) -> Adapter:
        """The adapter with trained factors, or the very same where the training did not help.

        Raises:
            MismatchError: it does not fit the base, or no layer of it can be trained.
            SourceError: a model cannot be loaded.
        """
        model = cast("nn.Module", load_model(self.base)).to(self.device)
        tied = _tied_modules(model)
        # The tensors that the adapter replaces stay replaced while its factors train.
        with adapter_applied(model, replace(adapter, layers={})):
            inject_adapter(model, Adapter({name: _balanced(layer) for name, layer in adapter.items()}), name=STUDENT)
            paths = _paths(model, adapter)
            modules = adapted_modules(model)
            # Layers that share a weight stay: trained apart, they would fit no checkpoint any more.
            for path in tied & modules.keys():
                modules[path].factors(STUDENT).trainable = False
            self.result = distill(
                model,
                self._teacher(model),
                self._sequences(model),
                self.settings,
                dtypes={path: adapter.layers[name].lora_A.dtype for name, path in paths.items()},
                progress=self.progress,
            )
            if not self.result.kept:
                return adapter
            trained = {name: _written(layer, modules[paths[name]]) for name, layer in adapter.items()}
            return replace(adapter, layers=trained, files=())

    def _teacher(self, model: nn.Module) -> nn.Module | Mapping[str, float]:
        if not isinstance(self.teacher, Adapter):
            return cast("nn.Module", load_model(self.teacher)).to(self.device)
        inject_adapter(model, Adapter(self.teacher.layers), name=TEACHER, trainable=False)
        return {TEACHER: 1.0}

    def _sequences(self, model: nn.Module) -> Tensor:
        """The text end to end in sequences of one length, each opened as the tokenizer opens a text."""
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or SEQUENCE_TOKENS
        length = min(SEQUENCE_TOKENS, limit) - len(self.opening)
        whole = len(self.ids) // length
        ids = torch.tensor(self.ids[: whole * length], dtype=torch.int64).view(whole, length)
        opening = torch.tensor(self.opening, dtype=torch.int64).expand(whole, len(self.opening))
        return torch.cat([opening, ids], dim=1)


def _balanced(layer: AdapterLayer) -> AdapterLayer:
    """The same update from factors of one norm, U√S and √S·Vh, since AdamW's steps know no other measure.

    Factors that have rank to spare, as a padded adapter's, stay: balanced, what is spare would be zero and not train.
    """
    product = layer.low_rank()
    if layer.kind == "embedding" or layer.rank > min(product.shape):
        return layer
    U, S, Vh = product.svd()
    if S[-1] <= rounding_floor(product):
        return layer
    best, half = LowRank.from_svd(U, S, Vh), abs(layer.scaling) ** 0.5
    return layer.with_update(LowRank(best.lora_B * half, best.lora_A / half), dtype=torch.float32)


def _tied_modules(model: nn.Module) -> set[str]:
    """Modules with a parameter that another module has too."""
    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in named)
    return {path.rpartition(".")[0] for path, parameter in named if uses[id(parameter)] > 1}


def _paths(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """Where each layer of an adapter is in the model that it was put into."""
    everywhere, prefix = dict(model.named_modules(remove_duplicate=False)), getattr(model, "base_model_prefix", "")
    names = {module: path for path, module in adapted_modules(model).items()}
    found = {}
    for name in adapter:
        module = everywhere.get(name)
        module = module if isinstance(module, AdaptedModule) else everywhere[f"{prefix}.{name}"]
        found[name] = names[cast("AdaptedModule", module)]
    return found


def _written(layer: AdapterLayer, module: AdaptedModule) -> AdapterLayer:
    """A layer with the factors of a module, in its own dtypes; the layer itself where they did not train."""
    factors = module.factors(STUDENT)
    if not factors.trainable:
        return layer
    A, B = (tensor.detach().cpu() for tensor in (factors.lora_A, factors.lora_B))
    return replace(layer, lora_A=A.to(layer.lora_A.dtype), lora_B=B.to(layer.lora_B.dtype))
