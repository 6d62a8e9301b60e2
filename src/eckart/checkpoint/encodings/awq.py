"""AWQ in the packing of its GEMM kernel: 4-bit integers, packed along the outputs, with scales and zero points.

`qweight` is int32 `(in, out/8)`, `qzeros` int32 `(groups, out/8)`, `scales` `(groups, out)`. The fields of a word,
least significant first, are its outputs 0, 2, 4, 6, 1, 3, 5, 7. Source: AutoAWQ.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import FLOAT32, INT32
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.integer_scheme import IntegerScheme
from eckart.checkpoint.encodings.integers import dequantized, unpacked

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("qweight", "qzeros", "scales")
_FIELD_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
_PACKED = 8  # codes of a word


def awq(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module in AWQ."""
    leaves = module.leaves
    if not leaves.keys() >= {*PARTS} or awq_kernel(module).startswith("gemv"):
        return
    qweight, qzeros, scales = (leaves[part] for part in PARTS)
    is_2d = all(len(info.shape) == 2 for info in (qweight, qzeros, scales))
    if not is_2d or qweight.dtype != INT32 or _PACKED * qweight.shape[1] != scales.shape[1]:
        return
    (inputs, _), (groups, outputs) = qweight.shape, scales.shape
    if qzeros.dtype != INT32 or qzeros.shape != (groups, outputs // _PACKED) or not groups or inputs % groups:
        reason = f"{inputs} inputs do not divide into the groups of {module.shapes('qzeros', 'scales')}"
    else:
        rows, parts = partial(_rows, module), tuple(map(module.spec, PARTS))

        def scheme(name: str) -> IntegerScheme:
            return IntegerScheme(name, (outputs, inputs), FLOAT32, "awq", 4, parts)

        yield module.weight((outputs, inputs), rows, encoding="awq 4-bit", parts=PARTS, scheme=scheme)
        return
    yield module.unreadable(PARTS, f"AWQ: {reason}; dequantize it with GPTQModel")


def awq_kernel(module: StoredModule) -> str:
    """The kernel whose packing the config states; empty if it states none."""
    stated = module.quantization()
    return str(stated.get("version") or stated.get("format") or "").lower()


def _rows(module: StoredModule, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop`, `(outputs, in)`, in float32: the product is exact."""
    scales = module.read("scales")[:, start:stop].T
    codes, zeros = (_unpacked(module.read(part), start, stop) for part in ("qweight", "qzeros"))
    return dequantized(module, "scales", codes, scales, zeros)


def _unpacked(words: "Tensor", start: int, stop: int) -> "Tensor":
    """Codes of outputs `start` to `stop`, `(outputs, rows of words)`."""
    first, last = start // _PACKED, -(-stop // _PACKED)
    fields = unpacked(words[:, first:last], 4, (last - first) * _PACKED).unflatten(1, (-1, _PACKED))
    return fields[..., list(_FIELD_OF_OUTPUT)].flatten(1)[:, start - first * _PACKED : stop - first * _PACKED].T
