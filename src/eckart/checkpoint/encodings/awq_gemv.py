"""AWQ in the packing of its kernels for one token: 4-bit integers, in rows of the weight, with padded groups.

GEMV stores `qweight` int32 `(out, in/8)`, `qzeros` int32 `(out, n)` and `scales` `(out, 8·n)`, of which the first
in/group columns are used. GEMV-fast stores `qweight` int16 `(out/4, in)`, four codes of a row in a word and four rows
one after the other for every 64 inputs, and `scales` and `qzeros` `(8·n, out)`: the weight is code · scale + `qzeros`.
Source: AutoAWQ's `WQLinear_GEMV` and `WQLinear_GEMVFast`.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import INT16, INT32
from eckart.checkpoint.encodings.awq import awq_kernel
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.integers import dequantized, unpacked

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("qweight", "qzeros", "scales")
_PACKED = 8  # codes of an int32, and the unit in which groups are padded
_GROUPS = (128, 64, 32)
_ROWS, _COLUMNS = 4, 64  # of a tile of GEMV-fast


def awq_gemv(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in AWQ for GEMV or GEMV-fast."""
    leaves = module.leaves
    if not leaves.keys() >= {*_PARTS} or any(len(leaves[part].shape) != 2 for part in _PARTS):
        return
    qweight, qzeros, scales = (leaves[part] for part in _PARTS)
    rows, words = qweight.shape
    if qweight.dtype == INT16:
        kind, values = "gemv_fast", _fast
        outputs, inputs, padded = _ROWS * rows, words, scales.shape[0]
        fits = scales.shape == qzeros.shape == (padded, outputs) and inputs % _COLUMNS == 0
        fits = fits and qzeros.dtype.is_floating_point
    elif qweight.dtype == INT32 and (awq_kernel(module) == "gemv" or words != scales.shape[1] != _PACKED * words):
        kind, values = "gemv", _plain
        outputs, inputs, padded = rows, _PACKED * words, scales.shape[1]
        fits = scales.shape == (outputs, padded) and qzeros.shape == (outputs, padded // _PACKED)
        fits = fits and qzeros.dtype == INT32
    else:
        return
    groups = _groups(inputs, padded, module.quantization().get("group_size")) if fits and 0 not in (rows, words) else []
    if len(groups) == 1 and scales.dtype.is_floating_point:
        shape = (outputs, inputs)
        found = in_blocks(partial(values, module, groups[0]), shape)
        yield module.weight(shape, found, encoding=f"awq 4-bit, {kind}", parts=_PARTS)
        return
    reason = f"{module.shapes(*_PARTS)}, expected groups of 32, 64 or 128 inputs, and group_size in the config"
    yield module.unreadable(_PARTS, f"AWQ for {kind}: {reason}; dequantize it with GPTQModel")


def _groups(inputs: int, padded: int, stated: object) -> list[int]:
    """How many groups of inputs there may be, if they are padded to this number of columns."""
    sizes = [inputs if stated == -1 else stated] if isinstance(stated, int) else [*_GROUPS]
    found = []
    for size in sizes:
        if size < _GROUPS[-1] or inputs % size:
            continue
        together = max(1, _GROUPS[0] // size)  # words that are read at once
        if -(-inputs // size // (_PACKED * together)) * _PACKED * together == padded:
            found.append(inputs // size)
    return found


def _plain(module: StoredModule, groups: int, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop` of GEMV, `(outputs, in)`, in float32: the product is exact."""
    words, zeros, scales = (module.rows(part, start, stop) for part in _PARTS)
    codes = unpacked(words, 4, _PACKED * words.shape[1])
    return dequantized(module, _PARTS[2], codes, scales[:, :groups], unpacked(zeros, 4, groups))


def _fast(module: StoredModule, groups: int, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop` of GEMV-fast, `(outputs, in)`: code times scale, plus offset, in float32."""
    import torch

    first = start // _ROWS
    words = module.rows(_PARTS[0], first, -(-stop // _ROWS))
    codes = unpacked(words, 4, _ROWS * words.shape[1]).view(len(words), words.shape[1] // _COLUMNS, _ROWS, 2, 4, 2, 4)
    # Of 32 inputs, 8·a + 2·b + c is stored at 8·b + 4·c + a.
    codes = codes.permute(0, 2, 1, 3, 6, 4, 5).reshape(_ROWS * len(words), words.shape[1])[start - first * _ROWS :][
        : stop - start
    ]
    zeros, scales = (module.read(part)[:groups, start:stop].T for part in _PARTS[1:])
    values = dequantized(module, _PARTS[2], codes, scales, None).unflatten(1, (groups, -1))
    return values.add_(zeros.to(torch.float32)[..., None]).flatten(1)
