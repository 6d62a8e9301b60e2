"""NVFP4 and MXFP8 of ComfyUI, whose scales are in the order in which tensor cores of a GPU read them.

Scales are padded to 128 outputs and 4 groups. Of each 128×4 tile, the rows r, r+32, r+64 and r+96 are next to each
other. Codes of NVFP4 have the first value in the high half of a byte. Source: cuBLAS's layout of block scaling
factors, and comfy-kitchen.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT8_E8M0FNU, FLOAT32, UINT8
from eckart.checkpoint.encodings import e2m1
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.lookup import float8_values
from eckart.checkpoint.encodings.scales import positive_number, powers_of_two, times

if TYPE_CHECKING:
    from torch import Tensor

_CODES, _SCALE, _SECOND = "weight", "weight_scale", "weight_scale_2"
_ROWS, _COLUMNS = 128, 4  # of a tile
_GROUPS = {"nvfp4": 16, "mxfp8": 32}
TILED = tuple(_GROUPS)  # formats of ComfyUI
_DTYPES = {
    "nvfp4": ((UINT8,), (FLOAT8_E4M3FN,)),
    "mxfp8": ((FLOAT8_E4M3FN, FLOAT8_E5M2), (UINT8, FLOAT8_E8M0FNU)),
}


def tiled(module: StoredModule, form: str) -> Iterator[Encoded | Unreadable]:
    """The weight of a module whose format ComfyUI states."""
    leaves, parts = module.leaves, (_CODES, _SCALE, *([_SECOND] if form == "nvfp4" else []))
    if any(part not in leaves for part in parts):
        missing = ", ".join(part for part in parts if part not in leaves)
        yield module.unreadable(parts, f"{form} of ComfyUI without {missing}")
        return
    codes, scale, bias = leaves[_CODES], leaves[_SCALE], leaves.get("bias")
    rows, columns = codes.shape if len(codes.shape) == 2 else (0, 0)
    columns *= 2 if form == "nvfp4" else 1
    groups = columns // _GROUPS[form]
    expected = (-(-rows // _ROWS) * _ROWS, -(-groups // _COLUMNS) * _COLUMNS)
    if (codes.dtype not in _DTYPES[form][0] or scale.dtype not in _DTYPES[form][1] or scale.shape != expected
            or columns % _GROUPS[form] or not columns):  # fmt: skip
        reason = f"{module.shapes(_CODES, _SCALE)}, {scale.dtype}, expected scales {list(expected)}"
    elif form == "nvfp4" and (leaves[_SECOND].dtype != FLOAT32 or leaves[_SECOND].shape not in ((), (1,))):
        reason = f"{module.shapes(_SECOND)}, {leaves[_SECOND].dtype}, expected one number in float32"
    elif bias is not None and bias.shape != (rows,):
        reason = f"{module.shapes(_CODES, 'bias')}: the weight is padded, and its shape is not stated"
    else:
        values = in_blocks(partial(_rows, module, form), (rows, columns))
        yield module.weight((rows, columns), values, encoding=form, parts=parts)
        return
    yield module.unreadable(parts, f"{form} of ComfyUI: {reason}; dequantize it with comfy-kitchen")


def _rows(module: StoredModule, form: str, start: int, stop: int) -> "Tensor":
    """Rows `start` to `stop`, each code times its scale in float32."""
    import torch

    codes = module.rows(_CODES, start, stop)
    if form == "nvfp4":
        codes = codes << 4 | codes >> 4
    values = (e2m1.values(codes) if form == "nvfp4" else float8_values(codes)).unflatten(1, (-1, _GROUPS[form]))
    first, last = start // _ROWS * _ROWS, -(-stop // _ROWS) * _ROWS
    stored = module.rows(_SCALE, first, last).view(torch.uint8)
    scales = in_rows(stored)[start - first : stop - first, : values.shape[1]].contiguous()
    if form == "mxfp8":
        factors = powers_of_two(module, _SCALE, scales)
    else:
        factors = scales.view(torch.float8_e4m3fn).float() * positive_number(module, _SECOND)
    return times(module, _SCALE, values, factors[..., None]).flatten(1)


def in_rows(tiles: "Tensor") -> "Tensor":
    """Scales `(128·n, 4·m)` of tiles in the order of rows and columns."""
    rows, columns = tiles.shape
    ordered = tiles.reshape(rows // _ROWS, columns // _COLUMNS, 32, 4, _COLUMNS)
    return ordered.permute(0, 3, 2, 1, 4).reshape(rows, columns)
