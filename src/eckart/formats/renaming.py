"""Adapters under other names: layer by layer, each computed when it is looked up.

A format with names of its own has a module that renames (`formats.table`); PEFT's names are those of the modules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import AdapterFormat, Layer, LayerOutline
from eckart.checkpoint import MatrixView
from eckart.formats.model_names import Model
from eckart.formats.table import FORMATS
from eckart.result import Skipped

if TYPE_CHECKING:
    from torch import Tensor

AnyLayer = TypeVar("AnyLayer", bound=Layer[Any])


@dataclass(frozen=True)
class Move:
    """One layer of a renamed adapter.

    Attributes:
        new: its name.
        old: the layers that it is computed from.
        make: computes it from those layers.
        outline: the same for their outlines.
    """

    new: str
    old: tuple[str, ...]
    make: Callable[..., AdapterLayer]
    outline: Callable[..., LayerOutline]


@dataclass(frozen=True)
class Renaming:
    """How the layers of an adapter are renamed.

    Attributes:
        moves: every layer of the result.
        faults: reasons why the adapter cannot be renamed.
        skipped: parts of fused layers that the adapter does not change.
        is_pipeline: whether the new names begin with a pipeline's components.
        saved: tensors that the adapter replaces, under their new names; None if those do not change.
        added: old names of the tensors that the adapter adds, by their new names; None if those do not change.
        config: what the names say that the files of the new format state.
    """

    moves: Sequence[Move]
    faults: Sequence[str]
    skipped: Sequence[Skipped] = ()
    is_pipeline: bool = False
    saved: "Mapping[str, Tensor] | None" = None
    added: Mapping[str, str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def of(self, adapter: Adapter, **changes: object) -> Adapter:
        """The adapter under its new names; a layer is computed when it is looked up, an outline from shapes alone."""
        before = adapter.outline()
        moves = {move.new: move for move in self.moves}
        outlines = {new: move.outline(*(before[name] for name in move.old)) for new, move in moves.items()}
        layers = Deferred(outlines, lambda new: moves[new].make(*(adapter[name] for name in moves[new].old)))
        saved = adapter.modules_to_save if self.saved is None else self.saved
        new: dict[str, Any] = {"layers": layers, "modules_to_save": saved, "config": dict(self.config)}
        if self.added is not None:
            olds = self.added
            shapes = {name: before.added[old] for name, old in olds.items()}
            new["added"] = Deferred(shapes, lambda name: adapter.added[olds[name]])
        return replace(adapter, **(new | changes))


class Names(Protocol):
    """What the module of a format's names provides; both functions return the faults with the names."""

    def to_modules(self, adapter: Adapter, model: Model | None) -> Renaming:
        """From the format's names to those of the model's modules."""
        ...

    def from_modules(self, adapter: Adapter, model: Model | None) -> Renaming:
        """From the names of the model's modules to the format's."""
        ...


def names_of(name: AdapterFormat) -> Names | None:
    """The module of a format's own names; None if they are those of the model's modules."""
    module = FORMATS[name][1]
    return cast("Names", import_module(f"eckart.formats.{module}")) if module else None


def to_component(adapter: Adapter, part: str) -> Renaming:
    """From a component's module names to those of the pipeline."""
    return Renaming([Move(f"{part}.{name}", (name,), shaped, shaped) for name in adapter], [], is_pipeline=True)


def shaped(layer: AnyLayer, view: MatrixView | None = None) -> AnyLayer:
    """The layer in its module's kind and shape: a file may have a Conv1D or a 1×1 convolution as a linear layer."""
    if view is None:
        return layer
    A, B, dimensions = layer.lora_A, layer.lora_B, len(view.tensor_shape)
    if view.kind == "conv1d":
        return replace(layer, kind="conv1d")
    if dimensions == 2 and A.ndim > 2 and prod(A.shape[1:]) == A.shape[1]:
        return replace(layer, lora_A=A.flatten(1), lora_B=B.flatten(1), kind="linear")
    if dimensions > 2 and A.ndim == 2 and prod(view.tensor_shape[2:]) == 1:
        ones = [1] * (dimensions - 2)
        return replace(layer, lora_A=A.reshape(*A.shape, *ones), lora_B=B.reshape(*B.shape, *ones), kind="conv")
    return layer


def rescaled(move: Move) -> Move:
    """The move to a format whose readers divide every alpha by the rank."""

    def plain(layer: AnyLayer) -> AnyLayer:
        return replace(layer, alpha=layer.scaling * layer.rank, rslora=False)

    return replace(
        move, make=lambda *layers: plain(move.make(*layers)), outline=lambda *layers: plain(move.outline(*layers))
    )


def twice(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Faults for new names that several old ones would get."""
    olds: dict[str, list[str]] = {}
    for new, old in pairs:
        olds.setdefault(new, []).append(old)
    return [f"{' and '.join(old)} would both be named {new}" for new, old in olds.items() if len(old) > 1]
