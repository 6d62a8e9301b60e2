"""Adapters put into a model, switched, and taken out again."""

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
from eckart.nn.targets import Target, find_targets, sizes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_RECORD = "_eckart_record"


@dataclass(frozen=True)
class Injection:
    """What was put into a model.

    Attributes:
        name: of the adapter.
        modules: paths of the adapted modules, in the model's order.
        trainable_params: numbers that train now, in the whole model.
        total_params: of the model, adapters included.
    """

    name: str
    modules: tuple[str, ...]
    trainable_params: int
    total_params: int


@dataclass
class Record:
    """What a model was like before the first adapter, so that it can be so again.

    Attributes:
        trained: paths of the parameters that required a gradient.
        biases: the model's own biases that an adapter trains, as they were.
        bias: which of them train.
        bias_owner: name of the adapter that they belong to.
    """

    trained: frozenset[str]
    biases: dict[str, Tensor] = field(default_factory=dict)
    bias: Bias = "none"
    bias_owner: str | None = None


def inject(model: nn.Module, config: LoRAConfig | None = None, *, name: str = "default", seed: int = 0) -> Injection:
    """Put a new adapter into a model, in place: it alone trains, and it changes nothing yet.

    A is drawn Kaiming-uniform (a = √5: bounds ±1/√in_features), B is zero, in float32 or wider; of an embedding A is
    zero and B normal, as in PEFT. Initial values from weights or data: `eckart.nn.initialize`.

    Args:
        model: any module; the targeted ones in it are wrapped.
        config: what to make; by default rank 16 on all linear layers.
        name: of the adapter, for models with several.
        seed: of A.

    Returns:
        What trains now.

    Raises:
        MismatchError: the config does not fit the model (every fault is listed), or the name is taken.
        OptionError: the name is no identifier.

    Hu et al. (2021), "LoRA: Low-rank adaptation of large language models".
    """
    config = config or LoRAConfig()
    check_name(model, name)
    if config.bias != "none":
        check_biases_are_free(model)
    targets = find_targets(model, config)
    generator = torch.Generator().manual_seed(seed)
    layers = {target.path: _new_layer(target, config, generator) for target in targets}
    put_in(model, targets, layers, name=name, dropout=config.dropout)
    if config.bias != "none":
        inside = tuple(f"{target.path}." for target in targets)
        biases = [path for path in own_parameters(model) if path.rpartition(".")[2] == "bias"]
        chosen = [path for path in biases if config.bias == "all" or path.startswith(inside)]
        give_biases(model, chosen, config.bias, name)
    return report(model, name)


def adapted_modules(model: nn.Module) -> dict[str, AdaptedModule]:
    """The modules with adapters, by path, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdaptedModule)}


def set_adapters(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Switch adapters on with these weights and all others off; what is off does not train.

    Raises:
        MismatchError: the model has no such adapter, or they are merged.
        OptionError: a weight is not finite.
    """
    modules = adapted_modules(model)
    known = {name for module in modules.values() for name in module.adapters}
    faults = [
        f"no adapter {name!r}; there are {', '.join(sorted(known)) or 'none'}" for name in weights if name not in known
    ]
    if faults:
        msg = "adapters that the model does not have"
        raise MismatchError.listing(msg, faults)
    if bad := [f"{name}: {weight}" for name, weight in weights.items() if not math.isfinite(weight)]:
        msg = "weights of adapters must be finite numbers"
        raise OptionError.listing(msg, bad)
    if merged := next((path for path, module in modules.items() if module.merged), None):
        raise merged_already(merged)
    for module in modules.values():
        module.weights = {name: float(weight) for name, weight in weights.items() if name in module.adapters}
        for name in module.adapters:
            factors = module.factors(name)
            for parameter in factors.parameters():
                parameter.requires_grad_(factors.trainable and bool(module.weights.get(name)))
    record = record_of(model)
    if record is not None and record.bias_owner is not None:
        owners = (m.factors(record.bias_owner) for m in modules.values() if record.bias_owner in m.adapters)
        train = bool(weights.get(record.bias_owner)) and any(factors.trainable for factors in owners)
        own = own_parameters(model)
        for path in record.biases:
            own[path].requires_grad_(train)


@contextmanager
def adapters_off(model: nn.Module) -> "Iterator[None]":
    """Let the model compute as its base inside the block; biases that were trained stay."""
    modules = adapted_modules(model)
    before = {path: module.weights for path, module in modules.items()}
    if merged := next((path for path, module in modules.items() if module.merged), None):
        raise merged_already(merged)
    for module in modules.values():
        module.weights = {}
    try:
        yield
    finally:
        for path, module in modules.items():
            module.weights = before[path]


def eject(model: nn.Module) -> None:
    """Take all adapters out: modules, gradients and biases are what they were before the first came in, bit for bit.

    Raises:
        MismatchError: adapters are merged.
    """
    modules = adapted_modules(model)
    if merged := next((path for path, module in modules.items() if module.merged), None):
        raise merged_already(merged)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedModule):
            module.base_layer.train(module.training)
            _place(model, path, module.base_layer)
    record: Record | None = model.__dict__.pop(_RECORD, None)
    if record is None:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for path, parameter in parameters.items():
        parameter.requires_grad_(path in record.trained)
        if path in record.biases:
            with torch.no_grad():
                parameter.copy_(record.biases[path])


def check_name(model: nn.Module, name: str) -> None:
    """Refuse a name that no module can carry, or that the model has already."""
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        msg = f"the name of an adapter is a plain word that torch's modules have no use for, got {name!r}"
        raise OptionError(msg)
    if any(name in module.adapters for module in adapted_modules(model).values()):
        msg = f"the model has an adapter {name!r} already: eject takes it out, another name adds a second"
        raise MismatchError(msg)


def put_in(
    model: nn.Module,
    targets: "list[Target]",
    layers: Mapping[str, AdapterLayer],
    *,
    name: str,
    dropout: float = 0.0,
    trainable: bool = True,
) -> None:
    """Wrap the targets where they are not yet, freeze the model, and switch the new adapter on, alone."""
    present = adapted_modules(model)
    if merged := next((path for path, module in present.items() if module.merged), None):
        raise merged_already(merged)
    if record_of(model) is None:
        trained = {path for path, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        model.__dict__[_RECORD] = Record(frozenset(trained))
    model.requires_grad_(False)
    for target in targets:
        module = present.get(target.path)
        if module is None:
            module = target.wrapper(target.module)
            for path in target.paths:
                _place(model, path, module)
        module.add(name, layers[target.path], dropout=dropout, trainable=trainable)
    set_adapters(model, {name: 1.0})


def record_of(model: nn.Module) -> Record | None:
    """What the model was like before adapters, if it has some."""
    return model.__dict__.get(_RECORD)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by their paths in the bare model."""
    named = model.named_parameters()
    return {path.replace(".base_layer.", "."): parameter for path, parameter in named if ".adapters." not in path}


def check_biases_are_free(model: nn.Module) -> None:
    """Refuse biases that another adapter has."""
    record = record_of(model)
    if record is not None and record.bias_owner is not None:
        msg = f"the biases train with adapter {record.bias_owner!r} already: only one adapter can have them"
        raise MismatchError(msg)


def give_biases(model: nn.Module, paths: Iterable[str], which: Bias, name: str) -> None:
    """Let a new adapter have biases of the model: they train with it, and `eject` brings them back."""
    record, own = record_of(model), own_parameters(model)
    assert record is not None
    record.biases = {path: own[path].detach().clone() for path in paths}
    record.bias, record.bias_owner = which, name
    set_adapters(model, {name: 1.0})


def report(model: nn.Module, name: str) -> Injection:
    """What trains now, and where an adapter is."""
    modules = tuple(path for path, module in adapted_modules(model).items() if name in module.adapters)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Injection(name, modules, trainable, sum(p.numel() for p in model.parameters()))


def _place(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _new_layer(target: Target, config: LoRAConfig, generator: torch.Generator) -> AdapterLayer:
    """Factors that change nothing, on the CPU (on the meta device for a model that is there)."""
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
    magnitude = wrapped.squared_norms().sqrt() if config.method == "dora" else None
    return AdapterLayer(A, B, config.alpha, config.rslora, target.kind, magnitude=magnitude)
