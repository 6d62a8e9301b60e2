"""Int4Tensor of torchao: signed codes of 4 bits, two in each byte along the inputs, code · scale + zero point.

`_weight_qdata` is int8 `(out, in/2)`, the first code in the low half; `_weight_scale` and `_weight_zero_point` are
floating-point numbers `(groups, out)`. Source: torchao's `Int4Tensor`, and `int4_row_quantize_zp` of FBGEMM.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import INT8
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.scales import times
from eckart.checkpoint.encodings.torchao import CODES, SCALE, ZERO

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = (CODES, SCALE, ZERO)


def torchao_int4(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in torchao's Int4Tensor."""
    leaves = module.leaves
    if not leaves.keys() >= {*_PARTS} or leaves[CODES].dtype != INT8 or not leaves[ZERO].dtype.is_floating_point:
        return
    codes, scale, zero = (leaves[part] for part in _PARTS)
    outputs, inputs = (codes.shape[0], 2 * codes.shape[1]) if len(codes.shape) == 2 else (0, 0)
    groups = scale.shape[0] if scale.shape else 0
    if not groups or not outputs or not inputs or scale.shape != (groups, outputs) or inputs % groups:
        reason = f"{module.shapes(CODES, SCALE)} do not have a scale for each group of inputs and each output"
    elif zero.shape != scale.shape or not scale.dtype.is_floating_point:
        reason = f"{module.shapes(SCALE, ZERO)}, {scale.dtype}, do not fit together"
    else:
        shape = (outputs, inputs)
        rows = in_blocks(partial(_rows, module, groups), shape)
        yield module.weight(shape, rows, encoding="torchao 4-bit", parts=_PARTS)
        return
    yield module.unreadable(_PARTS, f"Int4Tensor: {reason}; dequantize it with torchao")


def _rows(module: StoredModule, groups: int, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop`, `(outputs, in)`, computed in float32."""
    import torch

    codes = module.rows(CODES, start, stop)
    # Shifts of signed integers copy the sign.
    values = torch.stack((codes << 4 >> 4, codes >> 4), -1).to(torch.float32).flatten(1).unflatten(1, (groups, -1))
    scale, zero = (module.read(part)[:, start:stop].T.to(torch.float32)[..., None] for part in (SCALE, ZERO))
    return times(module, SCALE, values, scale).add_(zero).flatten(1)
