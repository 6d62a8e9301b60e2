"""The layers of a renamed adapter: renamed, cut out of a fused layer, or joined to one; each computed on lookup."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.adapter.adapter import Adapter, AdapterLayer, with_tensors
from eckart.adapter.outline import AdapterOutline, LayerOutline
from eckart.checkpoint import MatrixView
from eckart.formats.families.family import Part
from eckart.formats.families.naming import Assignment
from eckart.formats.lora_file import without_keys
from eckart.formats.renaming import Move, Renaming, shaped, twice
from eckart.result import Skipped

if TYPE_CHECKING:
    from eckart.formats.fused import Runs


def renaming_of(
    adapter: Adapter, found: Sequence[Assignment], faults: Sequence[str], views: Mapping[str, MatrixView]
) -> Renaming:
    """The moves of an assignment. Of layers to cut lora_B is read: its zeros show the parts."""
    moves: list[Move] = []
    skipped: list[Skipped] = []
    problems = [*faults, *twice([(each.new, each.old[0]) for each in found])]
    outlines = adapter.outline()
    cuts: dict[str, Sequence[tuple[Runs, tuple[int, ...]]]] = {}
    for each in found:
        name = each.old[0]
        try:
            if not each.parts:
                fit = partial(shaped, view=views.get(each.new))
                move = Move(each.new, each.old, fit, fit)
                if each.transposed:
                    move = replace(move, make=_transposed, outline=_transposed_outline)
                    move.outline(outlines[name])  # refuses what cannot be transposed
                moves.append(move)
            elif each.cut is None:
                moves.append(_join(each, outlines))
            else:
                if name not in cuts:
                    cuts[name] = _cuts(adapter[name], each.parts)
                runs, columns = cuts[name][each.cut]
                if columns:
                    share: dict[str, Any] = {"runs": runs, "columns": columns}
                    moves.append(Move(each.new, each.old, partial(_cut, **share), partial(_cut_outline, **share)))
                else:
                    skipped.append(Skipped(each.new, "its part of the fused layer is zero"))
        except ValueError as fault:
            problems.append(f"{name}: {fault}")
    return Renaming(
        moves, list(dict.fromkeys(problems)), skipped, is_pipeline=True, config=without_keys(adapter.config)
    )


def _transposed(layer: AdapterLayer) -> AdapterLayer:
    """The update of a weight that is stored (inputs, outputs)."""
    if layer.magnitude is not None or layer.bias is not None:
        msg = "its weight is stored transposed, and DoRA and a bias are not"
        raise ValueError(msg)
    return replace(layer, lora_A=layer.lora_B.T.contiguous(), lora_B=layer.lora_A.T.contiguous())


def _transposed_outline(layer: LayerOutline) -> LayerOutline:
    return _transposed(_on_meta(layer)).outline()


def _join(each: Assignment, outlines: AdapterOutline) -> Move:
    options: dict[str, Any] = {"parts": each.parts, "present": each.present}
    move = Move(each.new, each.old, partial(_joined, **options), partial(_joined_outline, **options))
    move.outline(*(outlines[name] for name in each.old))  # refuses shapes that do not form one layer
    return move


def _cuts(layer: AdapterLayer, parts: Sequence[Part]) -> "Sequence[tuple[Runs, tuple[int, ...]]]":
    from eckart.formats.fused import cuts_of

    return cuts_of(layer, parts)


def _cut(layer: AdapterLayer, runs: "Runs", columns: tuple[int, ...]) -> AdapterLayer:
    from eckart.formats.fused import cut_out

    return cut_out(layer, runs, columns)


def _cut_outline(layer: LayerOutline, runs: "Runs", columns: tuple[int, ...]) -> LayerOutline:
    return _cut(_on_meta(layer), runs, columns).outline()


def _joined(*layers: AdapterLayer, parts: Sequence[Part], present: Sequence[int]) -> AdapterLayer:
    from eckart.formats.fused import fuse

    given = dict(zip(present, layers, strict=True))
    return fuse([given.get(index) for index in range(len(parts))], parts)


def _joined_outline(*layers: LayerOutline, parts: Sequence[Part], present: Sequence[int]) -> LayerOutline:
    return _joined(*map(_on_meta, layers), parts=parts, present=present).outline()


def _on_meta(layer: LayerOutline) -> AdapterLayer:
    """A layer without values, for computing the shapes of fused layers with torch."""
    return with_tensors(layer, {part: tensor.on_meta() for part, tensor in layer.tensors().items()})
