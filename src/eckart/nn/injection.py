"""Adapters inserted into a live model, switched on and off, and removed again."""

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eckart.adapter import AdapterLayer
from eckart.errors import MismatchError, OptionError
from eckart.nn.adapted import AdaptedModule, merged_already
from eckart.nn.config import Bias, LoRAConfig
from eckart.nn.frozen import PackedLinear
from eckart.nn.linear4bit import is_linear4bit
from eckart.nn.targets import Target, find_targets, sizes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_ORIGINAL = "_eckart_original"


@dataclass(frozen=True)
class Injection:
    """What was inserted into a model.

    Attributes:
        name: name of the adapter.
        modules: paths of the adapted modules, in the model's order.
        trainable_params: parameters of the whole model that train now.
        total_params: parameters of the model, adapters included; see `count_params`.
    """

    name: str
    modules: tuple[str, ...]
    trainable_params: int
    total_params: int


@dataclass
class OriginalState:
    """What `eject` needs to restore a model to its state before the first adapter.

    Attributes:
        trained: paths of the parameters that required a gradient.
        biases: original values of the model's biases that an adapter trains.
        bias: which biases train.
        bias_owner: name of the adapter that trains them.
    """

    trained: frozenset[str]
    biases: dict[str, Tensor] = field(default_factory=dict)
    bias: Bias = "none"
    bias_owner: str | None = None


def inject(model: nn.Module, config: LoRAConfig | None = None, *, name: str = "default", seed: int = 0) -> Injection:
    """Insert a new adapter into a model, in place. Only the adapter trains; the model's outputs do not change yet.

    A is drawn Kaiming-uniform (a = √5: bounds ±1/√in_features) and B is zero, in float32 or wider; for an embedding A
    is zero and B normal, as in PEFT. For initial values from weights or data see `eckart.nn.initialize`.

    Args:
        model: any module; its targeted submodules are wrapped.
        config: the adapter; by default rank 16 on all linear layers.
        name: name of the adapter, for models with several.
        seed: seed of A.

    Returns:
        The adapted modules, and how many parameters train.

    Raises:
        MismatchError: the config does not fit the model (all faults are listed), or the name is taken.
        OptionError: the name is not an identifier.

    Hu et al. (2021), "LoRA: Low-rank adaptation of large language models".
    """
    config = config or LoRAConfig()
    check_name(model, name)
    if config.bias != "none":
        check_biases_are_free(model)
    targets = find_targets(model, config)
    generator = torch.Generator().manual_seed(seed)
    layers = {target.path: _new_layer(target, config, generator) for target in targets}
    insert(model, targets, layers, name=name, dropout=config.dropout)
    if config.bias != "none":
        inside = tuple(f"{target.path}." for target in targets)
        biases = [path for path in base_parameters(model) if path.rpartition(".")[2] == "bias"]
        chosen = [path for path in biases if config.bias == "all" or path.startswith(inside)]
        assign_biases(model, chosen, config.bias, name)
    return report(model, name)


def adapted_modules(model: nn.Module) -> dict[str, AdaptedModule]:
    """The modules with adapters, by path, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdaptedModule)}


def count_params(model: nn.Module) -> int:
    """Number of a model's parameters; weights in four bits count as the parameters that they encode."""
    packed = [m for m in model.modules() if isinstance(m, PackedLinear) or is_linear4bit(m)]
    encoded = {id(p) for m in packed for name, p in m._parameters.items() if name != "bias"}
    dense = sum(p.numel() for p in model.parameters() if id(p) not in encoded)
    return dense + sum(m.in_features * m.out_features for m in packed)  # type: ignore[operator]


def set_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Switch on these adapters with these weights and all others off; adapters that are off do not train.

    Raises:
        MismatchError: the model has no such adapter, or adapters are merged.
        OptionError: a weight is not finite.
    """
    modules = adapted_modules(model)
    _check_weights(modules, weights)
    for module in modules.values():
        module.switch(weights)
    original = original_state(model)
    if original is None or original.bias_owner is None:
        return
    owner = original.bias_owner
    trains = any(module.factors(owner).trainable for module in modules.values() if owner in module.adapters)
    parameters = base_parameters(model)
    for path in original.biases:
        parameters[path].requires_grad_(trains and bool(weights.get(owner)))


def _check_weights(modules: Mapping[str, AdaptedModule], weights: Mapping[str, float]) -> None:
    names = {name for module in modules.values() for name in module.adapters}
    if unknown := [name for name in weights if name not in names]:
        present = ", ".join(sorted(names)) or "none"
        msg = "adapters that the model does not have"
        raise MismatchError.listing(msg, [f"no adapter {name!r}; the model has {present}" for name in unknown])
    if faults := [f"{name}: {weight}" for name, weight in weights.items() if not math.isfinite(weight)]:
        msg = "weights of adapters must be finite numbers"
        raise OptionError.listing(msg, faults)
    _check_unmerged(modules)


def _check_unmerged(modules: Mapping[str, AdaptedModule]) -> None:
    if merged := next((path for path, module in modules.items() if module.merged), None):
        raise merged_already(merged)


@contextmanager
def adapters_off(model: nn.Module) -> "Iterator[None]":
    """Let the model compute without its adapters inside the block; trained biases keep their values."""
    modules = adapted_modules(model)
    _check_unmerged(modules)
    before = {path: module.weights for path, module in modules.items()}
    for module in modules.values():
        module.weights = {}
    try:
        yield
    finally:
        for path, module in modules.items():
            module.weights = before[path]


def eject(model: nn.Module) -> None:
    """Remove all adapters: modules, gradients and biases become what they were before the first one, bit for bit.

    Raises:
        MismatchError: adapters are merged.
    """
    _check_unmerged(adapted_modules(model))
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedModule):
            module.base_layer.train(module.training)
            _set_module(model, path, module.base_layer)
    original: OriginalState | None = model.__dict__.pop(_ORIGINAL, None)
    if original is None:
        return
    for path, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(path in original.trained)
        if path in original.biases:
            with torch.no_grad():
                parameter.copy_(original.biases[path])


def check_name(model: nn.Module, name: str) -> None:
    """Refuse a name that cannot be an attribute of a module, or that another adapter of the model has."""
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        msg = f"the name of an adapter must be an identifier that nn.ModuleDict does not use, got {name!r}"
        raise OptionError(msg)
    if any(name in module.adapters for module in adapted_modules(model).values()):
        msg = f"the model has an adapter {name!r} already: eject removes it, another name adds a second one"
        raise MismatchError(msg)


def insert(
    model: nn.Module,
    targets: "list[Target]",
    layers: Mapping[str, AdapterLayer],
    *,
    name: str,
    dropout: float = 0.0,
    trainable: bool = True,
) -> None:
    """Wrap the targets that are not wrapped yet, freeze the model, and switch on only the new adapter."""
    present = adapted_modules(model)
    _check_unmerged(present)
    if original_state(model) is None:
        trained = {path for path, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        model.__dict__[_ORIGINAL] = OriginalState(frozenset(trained))
    model.requires_grad_(False)
    for target in targets:
        module = present.get(target.path)
        if module is None:
            module = target.wrapper(target.module)
            for path in target.paths:
                _set_module(model, path, module)
        module.add(name, layers[target.path], dropout=dropout, trainable=trainable)
    set_adapters(model, {name: 1.0})


def original_state(model: nn.Module) -> OriginalState | None:
    """The model's state before its first adapter; None for a model without adapters."""
    return model.__dict__.get(_ORIGINAL)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the base model, by their paths in a model without adapters."""
    named = model.named_parameters()
    return {path.replace(".base_layer.", "."): parameter for path, parameter in named if ".adapters." not in path}


def check_biases_are_free(model: nn.Module) -> None:
    """Refuse to train biases that another adapter trains."""
    original = original_state(model)
    if original is not None and original.bias_owner is not None:
        msg = f"the biases already train with adapter {original.bias_owner!r}: only one adapter can train them"
        raise MismatchError(msg)


def assign_biases(model: nn.Module, paths: Iterable[str], which: Bias, name: str) -> None:
    """Let biases of the model train with a new adapter; `eject` restores them."""
    original, parameters = original_state(model), base_parameters(model)
    assert original is not None
    original.biases = {path: parameters[path].detach().clone() for path in paths}
    original.bias, original.bias_owner = which, name
    set_adapters(model, {name: 1.0})


def report(model: nn.Module, name: str) -> Injection:
    """Where an adapter is, and what trains now."""
    modules = tuple(path for path, module in adapted_modules(model).items() if name in module.adapters)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Injection(name, modules, trainable, count_params(model))


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _new_layer(target: Target, config: LoRAConfig, generator: torch.Generator) -> AdapterLayer:
    """Factors whose update is zero, on the default device."""
    (out, inner), rank = sizes_of(target.module, target.kind), target.rank
    wrapped = target.wrapper(target.module)
    dtype = torch.promote_types(wrapped.rows().dtype, torch.float32)
    A, B = torch.zeros(rank, inner, dtype=dtype), torch.zeros(out, rank, dtype=dtype)
    if target.kind == "embedding":
        B.normal_(generator=generator)
    else:
        A.uniform_(-(inner**-0.5), inner**-0.5, generator=generator)
    if target.kind == "conv":
        weight: Tensor = target.module.weight  # type: ignore[assignment]
        A, B = A.view(rank, *weight.shape[1:]), B.view(out, rank, *(1 for _ in weight.shape[2:]))
    magnitude = wrapped.squared_norms().sqrt().to(dtype) if config.method == "dora" else None
    return AdapterLayer(A, B, config.alpha, config.rslora, target.kind, magnitude=magnitude)
