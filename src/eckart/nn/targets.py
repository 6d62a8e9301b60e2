"""Which modules of a live model a config takes, and everything that keeps it from taking them."""

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from eckart.adapter.adapter import LayerKind
from eckart.checkpoint import matches
from eckart.checkpoint.naming import PRESETS
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
    """A module to adapt: where it is, what will stand in for it, and at which rank.

    Attributes:
        paths: every place of the module, the first of which names it; a module that is shared has several.
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
    """Modules by each of their paths as if no adapter were there: an adapted one is the module in it."""
    everywhere = dict(model.named_modules(remove_duplicate=False))
    adapted = {path: module for path, module in everywhere.items() if isinstance(module, AdaptedModule)}
    inside = tuple(f"{path}." for path in adapted)
    plain = {path: module for path, module in everywhere.items() if path and not path.startswith(inside)}
    return plain | {path: module.base_layer for path, module in adapted.items()} if adapted else plain


def paths_of(modules: Mapping[str, nn.Module]) -> dict[nn.Module, tuple[str, ...]]:
    """Each module with all its paths, both in the model's order."""
    paths: dict[nn.Module, tuple[str, ...]] = {}
    for path, module in modules.items():
        paths[module] = (*paths.get(module, ()), path)
    return paths


def wrapper_of(module: nn.Module) -> tuple[type[AdaptedModule], LayerKind] | None:
    """What can stand in for a module, and the kind that it is."""
    for wrapper in WRAPPERS:
        kind = wrapper.kind_of(module)
        if kind:
            return wrapper, kind
    return None


def find_targets(model: nn.Module, config: LoRAConfig) -> list[Target]:
    """The modules that the config takes, in the model's order.

    Raises:
        MismatchError: patterns that take nothing, modules that cannot be adapted, ranks that are too high; all at once.
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
        if found is None or not _takes(config, paths, found[1]):
            continue
        wrapper, kind = found
        rank = next((rank for pattern, rank in config.rank_pattern.items() if _fits(pattern, paths)), config.rank)
        fault = fault_of(model, paths[0], module) or _rank_fault(module, kind, rank)
        if fault:
            faults.append(f"{paths[0]}: {fault}")
        targets.append(Target(paths, module, wrapper, kind, rank))
    if not faults and not targets:
        faults.append(f"every module that {', '.join(config.target)} takes is excluded")
    if faults:
        msg = "the adapter does not fit the model"
        raise MismatchError.listing(msg, faults)
    _warn_of_scaling(config, targets)
    return targets


def _takes(config: LoRAConfig, paths: Sequence[str], kind: LayerKind) -> bool:
    def taken(patterns: Sequence[str]) -> bool:
        able = (pattern for pattern in patterns if pattern not in PRESETS or kind in LoRALinear.kinds)
        return any(_fits(pattern, paths) for pattern in able)

    return taken(config.target) and not taken(config.exclude)


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
        return f"{pattern!r} takes only {', '.join(types)}, which no adapter fits: {', '.join(named[:3])}"
    return f"{pattern!r} matches nothing; nearest: {_nearest(pattern, modules)}"


def _nearest(pattern: str, modules: Mapping[str, nn.Module]) -> str:
    """Names like the pattern among the ends of paths of modules that can be adapted."""
    parts = pattern.count(".") + 1
    able = [path for path, module in modules.items() if wrapper_of(module)]
    ends = dict.fromkeys(".".join(path.split(".")[-parts:]) for path in able)
    return ", ".join(difflib.get_close_matches(pattern, ends, n=3, cutoff=0.4) or list(ends)[:3]) or "none"


def fault_of(model: nn.Module, path: str, module: nn.Module) -> str | None:
    """Why a module of the right kind cannot be adapted; one whose owner takes its weight would be in vain."""
    owner, found = model.get_submodule(path.rpartition(".")[0]), wrapper_of(module)
    if isinstance(owner, nn.MultiheadAttention):
        return "nn.MultiheadAttention uses its weight without calling it: replace it by separate projections"
    if isinstance(owner, nn.TransformerEncoderLayer) and torch.backends.mha.get_fastpath_enabled():
        return (
            "nn.TransformerEncoderLayer uses its weight without calling it in evaluation: "
            "torch.backends.mha.set_fastpath_enabled(False) ends that"
        )
    return found[0].fault_of(module) if found else None


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
    scaling = config.alpha / (lowest**0.5 if config.rslora else lowest)
    if scaling > ABSURD_SCALING:
        warnings.warn(
            f"alpha {config.alpha:g} at rank {lowest} multiplies the update by {scaling:g}; usual are 1 to 4, "
            f"such as alpha {2 * lowest}",
            stacklevel=4,
        )
