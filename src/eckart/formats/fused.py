"""Layers that one format fuses and another separates: FLUX's query, key and value are one layer in kohya's files.

Fusing stacks lora_A and builds a block-diagonal lora_B of rank Σrᵢ; separating takes rows of lora_B. Both are exact.
A block-diagonal fused layer is recognized, so that each part gets back no more than its own rank.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from eckart.adapter.adapter import AdapterLayer
from eckart.formats.families.family import Part, Rows

Runs = tuple[tuple[int, int], ...]  # of outputs: the first, and the one after the last
_BY_INPUT = "its DoRA has a norm for each input, of all outputs together: merge it into the model instead"
_SAME = 1e-14  # relative: alpha over rank, and back, is not the same to the last bit


def cuts_of(layer: AdapterLayer, parts: Sequence[Part]) -> list[tuple[Runs, tuple[int, ...]]]:
    """The share of each part in a fused layer: runs of outputs, and the columns of lora_B that are not zero there.

    A part that the layer does not change has no columns.

    Raises:
        ValueError: its outputs cannot be divided this way.
    """
    if layer.magnitude is not None and layer.magnitude.ndim > 1:
        raise ValueError(_BY_INPUT)
    runs = [_runs(part.rows, layer.lora_B.shape[0]) for part in parts]
    used = [_rows(layer.lora_B, part_runs).flatten(1).any(dim=0) for part_runs in runs]
    rank, count = layer.rank, len(parts)
    if rank % count == 0:
        blocks = torch.arange(rank) // (rank // count)
        if not any(bool(columns[blocks != part].any()) for part, columns in enumerate(used)):
            # kohya trained the parts separately: each has its share of the rank, even if a column is still zero.
            used = [blocks == part if bool(columns.any()) else columns for part, columns in enumerate(used)]
    if layer.magnitude is not None or layer.bias is not None:
        # DoRA rescales a module, or its bias changes, even where its update is zero: no part may be dropped.
        used = [columns if bool(columns.any()) else torch.arange(rank) == 0 for columns in used]
    return [(rows, tuple(columns.nonzero().flatten().tolist())) for rows, columns in zip(runs, used, strict=True)]


def cut_out(layer: AdapterLayer, runs: Runs, columns: tuple[int, ...]) -> AdapterLayer:
    """One part of a fused layer; see `cuts_of`."""
    chosen = torch.tensor(columns, device=layer.lora_A.device)
    return replace(
        layer,
        lora_A=layer.lora_A[chosen],
        lora_B=_rows(layer.lora_B, runs)[:, chosen],
        alpha=layer.scaling * len(columns),
        rslora=False,
        bias=None if layer.bias is None else _rows(layer.bias, runs),
        magnitude=None if layer.magnitude is None else _rows(layer.magnitude, runs),
    )


def fuse(layers: Sequence[AdapterLayer | None], parts: Sequence[Part]) -> AdapterLayer:
    """The parts as one layer; a part that is None is not changed.

    Where scales differ, the fused layer has the first one's, and the ratio is multiplied into the lora_B of the others,
    in float32 or wider.

    Raises:
        ValueError: their shapes do not form one layer, or only some have a magnitude.
    """
    present = [(layer, part.rows) for layer, part in zip(layers, parts, strict=True) if layer is not None]
    first = present[0][0]
    outputs = {Fraction(layer.lora_B.shape[0]) / _share(rows) for layer, rows in present}
    inputs = {layer.lora_A.shape[1:] for layer, _ in present}
    magnitudes = [layer.magnitude for layer, _ in present if layer.magnitude is not None]
    if len(outputs) > 1 or len(inputs) > 1 or any(layer.lora_A.ndim > 2 for layer, _ in present):
        msg = f"its parts are {', '.join(str((len(layer.lora_B), *layer.lora_A.shape[1:])) for layer, _ in present)}"
        raise ValueError(msg)
    if any(magnitude.ndim > 1 for magnitude in magnitudes):
        raise ValueError(_BY_INPUT)
    if magnitudes and len(magnitudes) < len(parts):
        msg = "DoRA on some of its parts and not on all"
        raise ValueError(msg)
    total, rank = int(outputs.pop()), sum(layer.rank for layer, _ in present)
    scale = next((layer.scaling for layer, _ in present if layer.scaling), 0.0)
    pieces = [_rescaled(layer, scale) for layer, _ in present]
    dtype = _common(pieces)
    B = torch.zeros(total, rank, dtype=dtype, device=first.lora_B.device)
    magnitude = torch.empty(total, dtype=_common(magnitudes), device=first.lora_B.device) if magnitudes else None
    column = 0
    for (layer, rows), piece in zip(present, pieces, strict=True):
        start = 0
        for begin, end in _runs(rows, total):
            stop = start + end - begin
            B[begin:end, column : column + layer.rank] = piece[start:stop]
            if magnitude is not None and layer.magnitude is not None:
                magnitude[begin:end] = layer.magnitude[start:stop]
            start = stop
        column += layer.rank
    A = torch.cat([layer.lora_A.to(_common([layer.lora_A for layer, _ in present])) for layer, _ in present])
    return AdapterLayer(A, B, scale * rank, magnitude=magnitude)


def _runs(rows: Rows, outputs: int) -> Runs:
    """Shares of the outputs as row numbers; ValueError if they are not integers."""
    ends = [(begin * outputs, end * outputs) for begin, end in rows]
    if any(end.denominator > 1 for pair in ends for end in pair):
        msg = f"{outputs} outputs cannot be divided among its parts"
        raise ValueError(msg)
    return tuple((int(begin), int(end)) for begin, end in ends)


def _rows(tensor: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    return torch.cat([tensor[begin:end] for begin, end in runs])


def _share(rows: Rows) -> Fraction:
    return sum((end - begin for begin, end in rows), Fraction(0))


def _rescaled(layer: AdapterLayer, scale: float) -> Tensor:
    """lora_B for a layer whose scale is `scale`."""
    if math.isclose(layer.scaling, scale, rel_tol=_SAME):
        return layer.lora_B
    wide = torch.promote_types(layer.lora_B.dtype, torch.float32)
    return (layer.lora_B.to(torch.float64) * (layer.scaling / scale)).to(wide)


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
