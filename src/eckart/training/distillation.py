"""Distillation of an adapter before it is written, from SOURCEs and a text."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import EckartError
from eckart.evaluation import load_model, load_tokenizer
from eckart.evaluation.model import opening_token, token_ids
from eckart.linalg import LowRank
from eckart.nn import AdaptedModule, adapted_modules, adapter_applied, inject_adapter
from eckart.training.distiller import (
    HELD_OUT_SHARE,
    LEAST_HELD_OUT_TOKENS,
    SHORT,
    STUDENT,
    DistillResult,
    distill,
)
from eckart.training.finetuning import FinetuneSettings

SEQUENCE_TOKENS = 256
TEACHER = "teacher"


class Distillation:
    """Called with an adapter, trains it towards a teacher on a text; a `refine` argument of `extract` and `resize`.

    Attributes:
        result: the result of the last call.
    """

    result: DistillResult | None = None

    def __init__(
        self,
        base: str | Path,
        teacher: str | Path | Adapter,
        text: str | Tensor,
        settings: FinetuneSettings = SHORT,
        *,
        device: torch.device | str = "cpu",
        progress: Progress = NoProgress(),
    ) -> None:
        """Tokenize the text; the models are loaded when this is called.

        Args:
            base: SOURCE of the base, with its tokenizer.
            teacher: SOURCE of the fine-tune, which is then in memory together with the base, or an adapter of the base.
            text: text to train on, or its token ids; its last 15 % are held out to evaluate the training.
            settings: see `distill`.
            device: device of the models.
            progress: receives the steps.

        Raises:
            EckartError: the text is too short.
            MissingExtraError, SourceError: transformers is not installed, or the base has no tokenizer.
        """
        self.base, self.teacher, self.settings = base, teacher, settings
        self.device, self.progress = device, progress
        tokenizer = load_tokenizer(base)
        self.ids = text.flatten().tolist() if isinstance(text, Tensor) else token_ids(text, tokenizer)
        self.opening = opening_token(tokenizer)
        least = math.ceil(LEAST_HELD_OUT_TOKENS / HELD_OUT_SHARE)
        if len(self.ids) < least:
            msg = (
                f"the text to distill on has {len(self.ids):,} tokens but needs {least:,}, of which "
                f"{HELD_OUT_SHARE:.0%} are held out to evaluate the training"
            )
            raise EckartError(msg)

    def __call__(self, adapter: Adapter) -> Adapter:
        """The adapter with trained factors, or the same object if training did not help.

        Raises:
            MismatchError: it does not fit the base, or none of its layers can be trained.
            SourceError: a model cannot be loaded.
        """
        model = cast("nn.Module", load_model(self.base)).to(self.device)
        changed, self.result = distilled(
            model,
            adapter,
            lambda: self._teacher(model),
            self._sequences(model),
            settings=self.settings,
            progress=self.progress,
        )
        return changed

    def _teacher(self, model: nn.Module) -> nn.Module | Mapping[str, float]:
        if not isinstance(self.teacher, Adapter):
            return cast("nn.Module", load_model(self.teacher)).to(self.device)
        inject_adapter(model, Adapter(self.teacher.layers), name=TEACHER, trainable=False)
        return {TEACHER: 1.0}

    def _sequences(self, model: nn.Module) -> Tensor:
        """The text in sequences of one length, each with the start token if the tokenizer has one."""
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or SEQUENCE_TOKENS
        length = min(SEQUENCE_TOKENS, limit) - len(self.opening)
        count = len(self.ids) // length
        ids = torch.tensor(self.ids[: count * length], dtype=torch.int64).view(count, length)
        opening = torch.tensor(self.opening, dtype=torch.int64).expand(count, len(self.opening))
        return torch.cat([opening, ids], dim=1)


def distilled(
    model: nn.Module,
    adapter: Adapter,
    teacher: Callable[[], nn.Module | Mapping[str, float]],
    sequences: Tensor,
    *,
    held_out: Tensor | None = None,
    settings: FinetuneSettings = SHORT,
    progress: Progress = NoProgress(),
) -> tuple[Adapter, DistillResult]:
    """Train an adapter's factors in a model towards a teacher.

    Args:
        model: without adapters; it has the adapter's afterwards.
        adapter: for the model.
        teacher: called once the adapter is in the model; other arguments as for `distill`.
        sequences: see `distill`.
        held_out: see `distill`.
        settings: see `distill`.
        progress: receives the steps.

    Returns:
        the adapter with trained factors, or the same object if training did not help, and the result.

    Raises:
        MismatchError: the adapter does not fit the model, or none of its layers can be trained.
    """
    tied = _tied_modules(model)
    # The tensors that the adapter replaces stay replaced while its factors train.
    with adapter_applied(model, replace(adapter, layers={})):
        inject_adapter(model, Adapter({name: _balanced(layer) for name, layer in adapter.items()}), name=STUDENT)
        paths, modules = _paths(model, adapter), adapted_modules(model)
        # Layers that share a weight do not train: trained separately, they would no longer fit any checkpoint.
        for path in tied & modules.keys():
            modules[path].factors(STUDENT).trainable = False
        result = distill(
            model,
            teacher(),
            sequences,
            settings,
            held_out=held_out,
            dtypes={path: adapter.layers[name].lora_A.dtype for name, path in paths.items()},
            progress=progress,
        )
        if not result.kept:
            return adapter, result
        trained = {name: _with_factors(layer, modules[paths[name]]) for name, layer in adapter.items()}
        return replace(adapter, layers=trained, files=()), result


def _balanced(layer: AdapterLayer) -> AdapterLayer:
    """The same update with factors of equal norm, U√S and √S·Vh, which suits AdamW's steps.

    Factors of a higher rank than their product, as in a padded adapter, are not changed: the rest would become zero
    and not train.
    """
    product = layer.unscaled()
    if layer.kind == "embedding" or layer.rank > min(product.shape):
        return layer
    U, S, Vh = product.svd()
    if S[-1] <= product.rounding_floor:
        return layer
    return layer.with_product(LowRank.from_svd(U, S, Vh), dtype=torch.float32)


def _tied_modules(model: nn.Module) -> set[str]:
    """Modules that share a parameter with another module."""
    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(id(parameter) for _, parameter in named)
    return {path.rpartition(".")[0] for path, parameter in named if uses[id(parameter)] > 1}


def _paths(model: nn.Module, adapter: Adapter) -> dict[str, str]:
    """The module path of each layer of an adapter in the model that it was inserted into."""
    modules, prefix = dict(model.named_modules(remove_duplicate=False)), getattr(model, "base_model_prefix", "")
    names = {module: path for path, module in adapted_modules(model).items()}
    paths = {}
    for name in adapter:
        module = modules.get(name)
        module = module if isinstance(module, AdaptedModule) else modules[f"{prefix}.{name}"]
        paths[name] = names[cast("AdaptedModule", module)]
    return paths


def _with_factors(layer: AdapterLayer, module: AdaptedModule) -> AdapterLayer:
    """The layer with the factors of a module, in the layer's dtypes; unchanged if they did not train."""
    factors = module.factors(STUDENT)
    if not factors.trainable:
        return layer
    A, B = (tensor.detach().cpu() for tensor in (factors.lora_A, factors.lora_B))
    return replace(layer, lora_A=A.to(layer.lora_A.dtype), lora_B=B.to(layer.lora_B.dtype))
