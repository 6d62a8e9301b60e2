"""From kohya's flattened names to a model's module names and back, by the model itself or by diffusers' converters.

Underscores are ambiguous: `to_out_0` may be `to_out.0` or `to.out.0`. So a model's names are flattened and compared;
without a model, diffusers' converters know Stable Diffusion and FLUX.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter, AdapterLayer, with_tensors
from eckart.adapter.outline import LayerOutline
from eckart.formats.model_names import Model, flattened
from eckart.formats.pipeline_names import Part, Table, is_whole, kohya_names, parts_of
from eckart.formats.renaming import AnyLayer, Move, Renaming, shaped, twice
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.formats.fused import Runs


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
            fit = partial(shaped, view=model.views.get(module) if model else None)
            moves.append(Move(module, (name,), fit, fit))
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
    faults += twice([(move.new, move.old[0]) for move in moves])
    return Renaming(moves, faults, skipped, is_pipeline=model.is_pipeline if model else True)


def from_modules(adapter: Adapter, _model: Model | None = None) -> Renaming:
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
        table, faults = {flat: (Part(name),) for flat, name in pairs}, twice(pairs)
    outlines = adapter.outline()
    bias = "it has a trained bias (lora_bias), which only ComfyUI would add, of all that read kohya's format"
    faults += [f"{name}: {bias}" for name, layer in outlines.items() if layer.bias is not None]
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
