"""From kohya's flattened names to a model's module names and back, by the model itself or by diffusers' converters.

Underscores are ambiguous: `to_out_0` may be `to_out.0` or `to.out.0`. So a model's names are flattened and compared;
without a model, diffusers' converters know Stable Diffusion and FLUX.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from eckart.adapter.adapter import Adapter, AdapterLayer, with_tensors
from eckart.adapter.deferred import Deferred
from eckart.adapter.outline import Layer, LayerOutline
from eckart.checkpoint import MatrixView
from eckart.errors import MismatchError
from eckart.formats.components import components
from eckart.formats.model_names import Base, Model, flattened
from eckart.formats.pipeline_names import Part, Table, is_whole, kohya_names, parts_of
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.formats.fused import Runs

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
    """

    moves: Sequence[Move]
    faults: Sequence[str]
    skipped: Sequence[Skipped] = ()
    is_pipeline: bool = False

    def of(self, adapter: Adapter, **changes: object) -> Adapter:
        """The adapter under its new names; a layer is computed when it is looked up, an outline from shapes alone."""
        before = adapter.outline()
        moves = {move.new: move for move in self.moves}
        outlines = {new: move.outline(*(before[name] for name in move.old)) for new, move in moves.items()}
        layers = Deferred(outlines, lambda new: moves[new].make(*(adapter[name] for name in moves[new].old)))
        return replace(adapter, layers=layers, **changes)


def named(adapter: Adapter, base: Base) -> Adapter:
    """An adapter in kohya's or diffusers' names under the module names of its base.

    If the base is a pipeline, names begin with the component, and the adapter stays in diffusers' format; under the
    names of a single model it is in PEFT's.

    Raises:
        MismatchError: names that the base does not have or that mean several modules, or shapes that differ.
        MissingExtraError: names that only diffusers knows, and it is not installed.
    """
    model = Model.of(base)
    faults: list[str] = []
    if adapter.format == "kohya":
        renaming = to_modules(adapter, model)
        faults += renaming.faults
        adapter = renaming.of(adapter, config={}, format="diffusers" if model.is_pipeline else "peft")
    faults += model.misfits(adapter.outline())
    if faults:
        msg = f"the adapter does not fit {model.source}"
        raise MismatchError.listing(msg, faults)
    return components(adapter)[model.component] if model.component else adapter


def rename_for_base(base: Base, adapter: Adapter) -> Adapter:
    """An adapter in kohya's or diffusers' format under the module names of its base; PEFT's format has them already.

    Raises:
        MismatchError: names that `base` does not have, or shapes that differ.
    """
    return adapter if adapter.format == "peft" else named(adapter, base)


def to_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From kohya's names to module names. Of fused layers lora_B is read: its zeros show the parts.

    Raises:
        MissingExtraError: `model` does not have every name, and diffusers is not installed.
    """
    candidates = model.modules(adapter) if model else {}
    table: Table = {name: (Part(modules[0]),) for name, modules in candidates.items() if len(modules) == 1}
    faults = [
        f"{name}: may be {' or '.join(candidates[name])}" for name in adapter if len(candidates.get(name, ())) > 1
    ]
    rest = [name for name in adapter if name not in candidates]
    if rest and (model is None or model.is_pipeline):
        table |= parts_of(rest)
    unknown = "no such layer in Stable Diffusion or FLUX; give its model as `base`"
    where = f"no module of this name in {model.source}" if model else unknown
    faults += [f"{name}: {where}" for name in rest if name not in table]
    moves: list[Move] = []
    skipped = []
    for name in adapter:
        if name in table and is_whole(table[name]):
            module = table[name][0].module
            shape = partial(_shaped, view=model.views.get(module) if model else None)
            moves.append(Move(module, (name,), shape, shape))
        elif name in table:
            from eckart.formats.fused import cuts_of

            try:
                cuts = cuts_of(adapter[name], table[name])
            except ValueError as fault:
                faults.append(f"{name}: {fault}")
                continue
            for part, (runs, columns) in zip(table[name], cuts, strict=True):
                if columns:
                    options: dict[str, Any] = {"runs": runs, "columns": columns}
                    moves.append(Move(part.module, (name,), partial(_cut, **options), partial(_cut_outline, **options)))
                else:
                    skipped.append(Skipped(part.module, "its part of the fused layer is zero"))
    faults += _twice([(move.new, move.old[0]) for move in moves])
    return Renaming(moves, faults, skipped, is_pipeline=model.is_pipeline if model else True)


def to_kohya(adapter: Adapter) -> Renaming:
    """From module names to kohya's: sd-scripts' for a pipeline, those of a text encoder for a language model.

    A module of a language model is `lora_te_` and its name without the leading `model.`: sd-scripts names text encoders
    that are language models this way, and ComfyUI finds them.

    Raises:
        MissingExtraError: the names of this pipeline come from diffusers, and it is not installed.
    """
    if adapter.format == "diffusers":
        table, faults = kohya_names(adapter), []
        supported = {part.module for parts in table.values() for part in parts}
        unknown = "no such module in Stable Diffusion or FLUX, and only their kohya names are known"
        faults += [f"{name}: {unknown}" for name in adapter if name not in supported]
    else:
        pairs = [(f"lora_te_{flattened(name.removeprefix('model.'))}", name) for name in adapter]
        table, faults = {flat: (Part(name),) for flat, name in pairs}, _twice(pairs)
    outlines = adapter.outline()
    moves = []
    for flat, parts in table.items():
        old = tuple(part.module for part in parts if part.module in adapter)
        options: dict[str, Any] = {"parts": parts, "present": [part.module in adapter for part in parts]}
        move = Move(flat, old, partial(_joined, **options), partial(_joined_outline, **options))
        try:
            move.outline(*(outlines[name] for name in old))
            moves.append(move)
        except ValueError as fault:
            faults.append(f"{flat}: {fault}")
    return Renaming(moves, faults)


def to_component(adapter: Adapter, part: str) -> Renaming:
    """From a component's module names to those of the pipeline."""
    return Renaming([Move(f"{part}.{name}", (name,), _shaped, _shaped) for name in adapter], [], is_pipeline=True)


def _twice(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Faults for new names that several old ones would get."""
    olds: dict[str, list[str]] = {}
    for new, old in pairs:
        olds.setdefault(new, []).append(old)
    return [f"{' and '.join(old)} would both be named {new}" for new, old in olds.items() if len(old) > 1]


def _shaped(layer: AnyLayer, view: MatrixView | None = None) -> AnyLayer:
    """The layer in its module's kind and shape: kohya stores a Conv1D or a 1×1 convolution like a linear layer."""
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


def _cut(layer: AdapterLayer, runs: "Runs", columns: tuple[int, ...]) -> AdapterLayer:
    from eckart.formats.fused import cut_out

    return cut_out(layer, runs, columns)


def _cut_outline(layer: LayerOutline, runs: "Runs", columns: tuple[int, ...]) -> LayerOutline:
    return _cut(_on_meta(layer), runs, columns).outline()


def _joined(*layers: AdapterLayer, parts: Sequence[Part], present: Sequence[bool]) -> AdapterLayer:
    if is_whole(parts):
        return _rescaled(layers[0])
    from eckart.formats.fused import fuse

    given = iter(layers)
    return fuse([next(given) if is_present else None for is_present in present], parts)


def _joined_outline(*layers: LayerOutline, parts: Sequence[Part], present: Sequence[bool]) -> LayerOutline:
    if is_whole(parts):
        return _rescaled(layers[0])
    return _joined(*map(_on_meta, layers), parts=parts, present=present).outline()


def _rescaled(layer: AnyLayer) -> AnyLayer:
    """The layer with alpha over rank as its scale, which is kohya's rule."""
    return replace(layer, alpha=layer.scaling * layer.rank, rslora=False)


def _on_meta(layer: LayerOutline) -> AdapterLayer:
    """A layer without values, for computing the shapes of fused layers with torch."""
    return with_tensors(layer, {part: tensor.on_meta() for part, tensor in layer.tensors().items()})
