"""HQQ: integers of 1, 2, 3, 4 or 8 bits, (code - zero) · scale, in groups of consecutive values or of columns.

The weight is reshaped to `(groups, group)` for axis 1 and to `(group, groups)` for axis 0, and `W_q` contains its rows,
packed: the first part of them in the highest bits, the next one below, and so on, ten parts in an int32 for 3 bits.
`scale` and `zero` are `(groups, 1)` or `(1, groups)`. The layout is stored next to them as numbers. Source: hqq's
`HQQLinear`.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import INT32, UINT8
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.scales import times

if TYPE_CHECKING:
    from torch import Tensor

_NEEDED = ("W_q", "scale", "zero", "shape", "nbits", "axis")
_FIELDS = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}  # codes of a stored number, by bits
_QUANTIZED = ("quant_scale", "quant_zero", "view_as_float")


def hqq(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in HQQ."""
    leaves = module.leaves
    if "W_q" not in leaves or leaves["W_q"].dtype not in (UINT8, INT32):
        return
    parts = ("W_q", *(leaf for leaf in leaves if leaf not in ("W_q", "bias")))
    missing = [leaf for leaf in _NEEDED if leaf not in leaves]
    shape = tuple(int(size) for size in module.numbers("shape"))
    bits, axis = (int(next(iter(module.numbers(leaf)), -1)) for leaf in ("nbits", "axis"))
    if missing:
        reason = f"without {', '.join(missing)}"
    elif any(any(module.numbers(leaf)) for leaf in _QUANTIZED):
        reason = "with quantized scales, or codes stored as floating-point numbers"
    elif bits not in _FIELDS or axis not in (0, 1) or len(shape) != 2 or not _fits(module, shape, bits, axis):
        sizes = module.shapes(*_NEEDED[:3])
        reason = f"{sizes} do not fit a weight of shape {list(shape)} with {bits} bits along axis {axis}"
    else:
        rows = partial(_rows, module, shape, bits)
        yield module.weight(shape, rows, encoding=f"hqq {bits}-bit", parts=parts)
        return
    yield module.unreadable(parts, f"HQQ: {reason}; dequantize it with hqq")


def _fits(module: StoredModule, shape: tuple[int, ...], bits: int, axis: int) -> bool:
    """Whether codes, scales and zero points are those of a weight of this shape."""
    codes, scale, zero = (module.leaves[leaf] for leaf in _NEEDED[:3])
    groups, count = math.prod(scale.shape), math.prod(shape)
    if (
        scale.shape not in (((groups, 1),) if axis else ((1, groups),))
        or zero.shape != scale.shape
        or not groups
        or not count
    ):
        return False
    rows = groups if axis else count // groups
    dtype = INT32 if bits == 3 else UINT8
    return count % groups == 0 and (codes.dtype, codes.shape) == (dtype, (-(-rows // _FIELDS[bits]), count // rows))


def _rows(module: StoredModule, shape: tuple[int, ...], bits: int, start: int, stop: int) -> "Tensor":
    """Rows `start` to `stop` of the weight, computed in float32."""
    import torch

    width = module.leaves["W_q"].shape[1]
    first, last = start * shape[1] // width, -(-stop * shape[1] // width)  # rows that the codes are packed in
    is_by_row = module.leaves["scale"].shape[1] == 1
    scale, zero = (
        (module.rows(leaf, first, last) if is_by_row else module.read(leaf)).to(torch.float32)
        for leaf in ("scale", "zero")
    )
    values = times(module, "scale", _codes(module, bits, first, last).to(torch.float32) - zero, scale)
    begin = start * shape[1] - first * width
    return values.flatten()[begin : begin + (stop - start) * shape[1]].view(-1, shape[1])


def _codes(module: StoredModule, bits: int, first: int, last: int) -> "Tensor":
    """Rows of codes, unpacked."""
    import torch

    step, fields = module.leaves["W_q"].shape[0], _FIELDS[bits]
    parts = []
    for field in range(first // step, -(-last // step)):
        begin, end = max(first, field * step) - field * step, min(last, (field + 1) * step) - field * step
        shift = bits * (fields - 1 - field)
        parts.append((module.rows("W_q", begin, end) >> shift) & (2**bits - 1))
    return torch.cat(parts) if parts else module.rows("W_q", 0, 0)
