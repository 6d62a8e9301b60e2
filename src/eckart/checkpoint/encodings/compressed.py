"""Integers of 1 to 8 bits that compressed-tensors packs into int32 along the inputs (`pack-quantized`).

`weight_packed` is `(..., out, in·bits/32)`, of codes plus 2^(bits-1), `weight_scale` `(..., out, groups)`, and
`weight_shape` contains the two sizes of the weight. Zero points, plus 2^(bits-1) too, are packed along the outputs in
`weight_zero_point` `(out·bits/32, groups)`. `weight_g_idx` is the group of each input. The encodings of
compressed-tensors that are not packed are FP8, INT8, MXFP4 and NVFP4.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.dtypes import FLOAT32, INT8, INT32
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.integers import dequantized, group_index, unpacked
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
_MOST_DIMENSIONS = 3


def compressed(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight of a module that compressed-tensors packed."""
    leaves = module.leaves
    packed, scale = (leaves.get(leaf) for leaf in ("weight_packed", "weight_scale"))
    if packed is None or scale is None or packed.dtype != INT32:
        return
    *outer, words = packed.shape or (0,)
    sizes = [int(size) for size in module.numbers("weight_shape")]
    inputs = sizes[-1] if sizes else 0
    bits = [b for b in range(1, 9) if inputs and -(-inputs * b // 32) == words]
    groups = scale.shape[-1] if len(scale.shape) == len(packed.shape) else 1
    is_grouped = scale.shape in ((*outer, groups), (1,), ()) and groups and inputs % groups == 0
    zero, index = leaves.get("weight_zero_point"), leaves.get("weight_g_idx")
    if not 2 <= len(packed.shape) <= _MOST_DIMENSIONS or tuple(sizes) not in ((*outer, inputs), (*outer[-1:], inputs)):
        reason = f"weight_shape {sizes} is not that of {module.shapes('weight_packed')}"
    elif len(bits) != 1:
        reason = f"{inputs} inputs in {words} words are not codes of 1 to 8 bits"
    elif not is_grouped or not scale.dtype.is_floating_point:
        reason = f"{inputs} inputs do not divide into the groups of {module.shapes('weight_scale')}"
    elif zero and not _zero_fits(zero, outer, groups, bits[0]):
        reason = f"{module.shapes('weight_zero_point', 'weight_scale')} do not fit together"
    elif index and index.shape != (inputs,):
        reason = f"weight_g_idx {list(index.shape)} is not one group for each of {inputs} inputs"
    else:
        shape = (*outer, inputs)
        rows = in_blocks(partial(_rows, module, bits[0], inputs), shape)
        is_plain = len(shape) == 2 and not zero and not index and inputs * bits[0] == 32 * words
        scheme = partial(_scheme, module, bits[0], (outer[-1], inputs)) if is_plain and bits[0] in (4, 8) else None
        yield module.weight(shape, rows, encoding=f"compressed {bits[0]}-bit", parts=_PARTS, scheme=scheme)
        return
    yield module.unreadable(_PARTS, f"compressed-tensors: {reason}; dequantize it with llm-compressor")


def _scheme(module: StoredModule, bits: int, shape: tuple[int, int], weight: str) -> ScaledScheme:
    codes, scale = module.spec("weight_packed"), module.spec("weight_scale")
    block = (1, shape[1] // scale.shape[1]) if len(scale.shape) > 1 else shape
    levels = "int4" if bits == 4 else "int8"
    return ScaledScheme(weight, shape, FLOAT32, levels, "weight", levels, block, codes, scale)


def _zero_fits(zero: TensorInfo, outer: list[int], groups: int, bits: int) -> bool:
    """Whether zero points are one for each scale, packed along the outputs, or as bytes."""
    if zero.dtype == INT8:
        return zero.shape == (*outer, groups)
    *experts, outputs = outer
    return zero.dtype == INT32 and zero.shape == (*experts, -(-outputs * bits // 32), groups)


def _rows(module: StoredModule, bits: int, inputs: int, start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop` of the first dimension, in float32: the product is exact."""
    words, scale = module.rows("weight_packed", start, stop), module.leaves["weight_scale"]
    if len(scale.shape) > 1:
        scales = module.rows("weight_scale", start, stop).flatten(0, -2)
    else:
        scales = module.read("weight_scale").reshape(1, 1)
    codes, zeros = unpacked(words.flatten(0, -2), bits, inputs), _zeros(module, bits, start, stop)
    index = group_index(module, "weight_g_idx", inputs, scales.shape[1])
    values = dequantized(module, "weight_scale", codes, scales, zeros.expand(scales.shape), index=index)
    return values.reshape(*words.shape[:-1], inputs)


def _zeros(module: StoredModule, bits: int, start: int, stop: int) -> "Tensor":
    """Zero points of entries `start` to `stop` as unsigned codes, `(rows, groups)`."""
    import torch

    leaf, middle, outer = "weight_zero_point", 2 ** (bits - 1), module.leaves["weight_packed"].shape[:-1]
    if leaf not in module.leaves:
        return torch.full((1, 1), middle)
    if module.leaves[leaf].dtype == INT8:
        return module.rows(leaf, start, stop).flatten(0, -2).to(torch.int16) + middle
    is_stack = len(outer) > 1  # of experts
    stored = (module.rows(leaf, start, stop) if is_stack else module.read(leaf)[None]).transpose(1, 2)
    codes = unpacked(stored.flatten(0, 1), bits, outer[-1]).unflatten(0, stored.shape[:2]).transpose(1, 2)
    return codes.flatten(0, 1) if is_stack else codes[0, start:stop]
