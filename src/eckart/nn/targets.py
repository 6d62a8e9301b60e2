"""Which modules of a live model a configuration targets, and which of them cannot be adapted."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from eckart.adapter.outline import LayerKind
from eckart.checkpoint import matches
from eckart.checkpoint.naming import PRESETS, nearest_patterns
from eckart.errors import MismatchError
from eckart.nn.adapted import AdaptedModule
from eckart.nn.config import LoRAConfig
from eckart.nn.conv import LoRAConv
from eckart.nn.embedding import LoRAEmbedding
from eckart.nn.linear import LoRALinear

WRAPPERS: tuple[type[AdaptedModule], ...] = (LoRALinear, LoRAEmbedding, LoRAConv)
ABSURD_SCALING = 64


@dataclass(frozen=True)
class Target:
    """A module to adapt, the class that wraps it, and the rank.

    Attributes:
        paths: all paths of the module; the first one is its name, and a shared module has several.
    """

    paths: tuple[str, ...]
    module: nn.Module
    wrapper: type[AdaptedModule]
    kind: LayerKind
    rank: int

    @property
    def path(self) -> str:
        """The module's name."""
        return self.paths[0]


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the base model by each of their paths: those inside adapted modules, and all others."""
    modules = dict(model.named_modules(remove_duplicate=False))
    adapted = {path: module for path, module in modules.items() if isinstance(module, AdaptedModule)}
    inside = tuple(f"{path}." for path in adapted)
    plain = {path: module for path, module in modules.items() if path and not path.startswith(inside)}
    return plain | {path: module.base_layer for path, module in adapted.items()} if adapted else plain


def paths_of(modules: Mapping[str, nn.Module]) -> dict[nn.Module, tuple[str, ...]]:
    """Each module with all its paths, both in the model's order."""
    paths: dict[nn.Module, tuple[str, ...]] = {}
    for path, module in modules.items():
        paths[module] = (*paths.get(module, ()), path)
    return paths


def wrapper_of(module: nn.Module) -> tuple[type[AdaptedModule], LayerKind] | None:
    """The class that wraps a module, and the module's kind; None if no adapter fits it."""
    for wrapper in WRAPPERS:
        kind = wrapper.kind_of(module)
        if kind:
            return wrapper, kind
    return None


def find_targets(model: nn.Module, config: LoRAConfig) -> list[Target]:
    """The modules that the configuration targets, in the model's order.

    Raises:
        MismatchError: patterns match nothing, modules cannot be adapted, or ranks are too high; all are listed.
    """
    modules = base_modules(model)
    faults = [fault for pattern in config.target if (fault := _pattern_fault(pattern, modules))]
    faults += [
        f"{what} {pattern!r} matches nothing; nearest: {_nearest(pattern, modules)}"
        for what, patterns in (("exclude", config.exclude), ("rank_pattern", config.rank_pattern))
        for pattern in patterns
        if not any(matches(pattern, path) for path in modules)
    ]
    targets = []
    for module, paths in paths_of(modules).items():
        found = wrapper_of(module)
        if found is None or not _targets(config, paths, found[1]):
            continue
        wrapper, kind = found
        rank = next((rank for pattern, rank in config.rank_pattern.items() if _fits(pattern, paths)), config.rank)
        fault = fault_of(model, paths[0], module) or _rank_fault(module, kind, rank)
        if fault:
            faults.append(f"{paths[0]}: {fault}")
        targets.append(Target(paths, module, wrapper, kind, rank))
    if not faults and not targets:
        faults.append(f"every module that {', '.join(config.target)} matches is excluded")
    if faults:
        msg = "the adapter does not fit the model"
        raise MismatchError.listing(msg, faults)
    _warn_of_scaling(config, targets)
    return targets


def _targets(config: LoRAConfig, paths: Sequence[str], kind: LayerKind) -> bool:
    def matched(patterns: Sequence[str]) -> bool:
        suitable = (pattern for pattern in patterns if pattern not in PRESETS or kind in LoRALinear.kinds)
        return any(_fits(pattern, paths) for pattern in suitable)

    return matched(config.target) and not matched(config.exclude)


def _fits(pattern: str, paths: Sequence[str]) -> bool:
    return any(matches(pattern, path) for path in paths)


def _pattern_fault(pattern: str, modules: Mapping[str, nn.Module]) -> str | None:
    try:
        named = [path for path in modules if matches(pattern, path)]
    except MismatchError as error:
        return str(error)
    kinds = {path: found[1] for path in named if (found := wrapper_of(modules[path]))}
    if kinds if pattern not in PRESETS else any(kind in LoRALinear.kinds for kind in kinds.values()):
        return None
    if named and pattern not in PRESETS:
        types = sorted({type(modules[path]).__name__ for path in named})
        return f"{pattern!r} matches only {', '.join(types)}, which no adapter fits: {', '.join(named[:3])}"
    return f"{pattern!r} matches nothing; nearest: {_nearest(pattern, modules)}"


def _nearest(pattern: str, modules: Mapping[str, nn.Module]) -> str:
    """The names nearest to the pattern among presets and the ends of paths of modules that can be adapted."""
    return ", ".join(nearest_patterns(pattern, (path for path, module in modules.items() if wrapper_of(module))))


def fault_of(model: nn.Module, path: str, module: nn.Module) -> str | None:
    """Why a module cannot be adapted: an adapter has no effect if the parent module reads the weight directly."""
    owner, wrapped = model.get_submodule(path.rpartition(".")[0]), wrapper_of(module)
    if isinstance(owner, nn.MultiheadAttention):
        return "nn.MultiheadAttention uses its weight without calling it: replace it with separate projections"
    if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer uses its weight without calling it in evaluation: "
            "torch.backends.mha.set_fastpath_enabled(False) prevents that"
        )
    return wrapped[0].fault_of(module) if wrapped else None


def _rank_fault(module: nn.Module, kind: LayerKind, rank: int) -> str | None:
    out, inner = sizes_of(module, kind)
    if rank > min(out, inner):
        return f"rank {rank} is above the dimensions of its {out}×{inner} weight: at most {min(out, inner)}"
    return None


def sizes_of(module: nn.Module, kind: LayerKind) -> tuple[int, int]:
    """(out, in) as the factors see them; (out, in·k·k) of a convolution, (dimension, vocabulary) of an embedding."""
    if kind == "linear":
        return module.out_features, module.in_features  # type: ignore[return-value]
    first, *rest = module.weight.shape  # type: ignore[union-attr]
    product = 1
    for size in rest:
        product *= size  # type: ignore[operator]
    return (product, first) if kind in ("conv1d", "embedding") else (first, product)  # type: ignore[return-value]


def _warn_of_scaling(config: LoRAConfig, targets: Sequence[Target]) -> None:
    lowest = min(target.rank for target in targets)
    scaling = config.alpha / (math.sqrt(lowest) if config.rslora else lowest)
    if scaling > ABSURD_SCALING:
        warnings.warn(
            f"alpha {config.alpha:g} at rank {lowest} multiplies the update by {scaling:g}; 1 to 4 are usual, "
            f"such as alpha {2 * lowest}",
            stacklevel=4,
        )
