"""Integers of 2 or 4 bits of optimum-quanto: code · scale - shift, or (code - shift) · scale, in groups of a row.

The weight X is stored as `X._data._data`, `X._scale` and `X._shift`. It is reshaped to `(groups, group)`, and its rows
are packed into bytes, the first part of them in the lowest bits. A group is a whole row, or 128, 96, 64 or 32 inputs,
and its shape is not stored: a bias next to it or the config must tell its outputs or inputs. Integer shifts are
subtracted from the codes. Source: `PackedTensor`, `WeightQBitsTensor` and `QModuleMixin` of quanto.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import INT8, UINT8
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, StoredModule, Unreadable
from eckart.checkpoint.encodings.scales import times

if TYPE_CHECKING:
    from torch import Tensor

_CODES, _SCALE, _SHIFT = "_data._data", "_scale", "_shift"
_PARTS = (_CODES, _SCALE, _SHIFT)
_GROUPS = (128, 96, 64, 32)
# Of one language model's layers, by the last part of their names: which side is the model's width.
_INPUTS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "lm_head")
_OUTPUTS = ("o_proj", "down_proj")


def quanto(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weight that a module of quanto's packed codes is part of."""
    name, is_inner = module.name.removesuffix("._data"), module.name.endswith("._data")
    tensors = module.stored.tensors
    leaves = {part: tensors[f"{name}.{part}"] for part in _PARTS if f"{name}.{part}" in tensors}
    if not is_inner or leaves.keys() != {*_PARTS}:
        return
    module = replace(module, name=name, leaves=leaves)
    codes, scale, shift = leaves.values()
    groups = scale.shape[0] if scale.shape else 0
    bits = [each for each in (2, 4) if groups and codes.shape[:1] == (-(-groups * each // 8),)]
    is_shift = shift.dtype.is_floating_point or shift.dtype in (INT8, UINT8)
    if (codes.dtype != UINT8 or len(codes.shape) != 2 or not codes.shape[1] or scale.shape != (groups, 1)
            or not scale.dtype.is_floating_point or shift.shape != scale.shape or not is_shift):  # fmt: skip
        reason = f"{module.shapes(*_PARTS)} do not fit together"
    elif len(bits) != 1:
        reason = f"{module.shapes(*_PARTS)} are not of 2 or 4 bits"
    elif (outputs := _outputs(module, groups, codes.shape[1])) is None:
        reason = f"the shape of {groups:,} groups of {codes.shape[1]} is not stored, and no bias tells its outputs"
    else:
        shape = (outputs, groups * codes.shape[1] // outputs)
        rows = in_blocks(partial(_rows, module, bits[0], groups // outputs), shape)
        yield module.weight(shape, rows, encoding=f"quanto {bits[0]}-bit", parts=_PARTS, leaf="")
        return
    yield module.unreadable(_PARTS, f"quanto: {reason}; dequantize it with optimum-quanto")


def _outputs(module: StoredModule, groups: int, size: int) -> int | None:
    """The outputs of a weight in groups of this size; None if nothing states them."""
    if size not in _GROUPS:
        return groups  # whole rows
    layer, config = module.name.removesuffix(".weight"), module.stored.config
    bias, width = module.stored.tensors.get(f"{layer}.bias"), config.get("hidden_size")
    outputs, leaf = None, layer.rpartition(".")[2]
    if bias is not None and len(bias.shape) == 1:
        outputs = bias.shape[0]
    elif isinstance(width, int) and width > 0 and not any(key.endswith("_config") for key in _models(config)):
        outputs = width if leaf in _OUTPUTS else groups * size // width if leaf in _INPUTS else None
    if not outputs or groups % outputs or _group(groups * size // outputs) != size:
        return None
    return outputs


def _models(config: object) -> list[str]:
    """Entries of a config that may state the width of another model."""
    return [key for key in config if key != "quantization_config"] if isinstance(config, dict) else []


def _group(inputs: int) -> int:
    """How many inputs quanto groups: a whole row if nothing fits."""
    return next((size for size in _GROUPS if inputs > _GROUPS[0] and inputs % size == 0), inputs)


def _rows(module: StoredModule, bits: int, row: int, start: int, stop: int) -> "Tensor":
    """Outputs `start` to `stop`, computed in float32; each is so many groups."""
    import torch

    first, last, step = start * row, stop * row, module.leaves[_CODES].shape[0]
    parts = []
    for field in range(first // step, -(-last // step)):
        begin, end = max(first, field * step) - field * step, min(last, (field + 1) * step) - field * step
        parts.append(module.rows(_CODES, begin, end) >> bits * field & 2**bits - 1)
    codes = torch.cat(parts) if parts else module.rows(_CODES, 0, 0)
    values, shift = codes.to(torch.float32), module.rows(_SHIFT, first, last)
    if not shift.dtype.is_floating_point:
        values.sub_(shift.to(torch.int8))
    values = times(module, _SCALE, values, module.rows(_SCALE, first, last).to(torch.float32))
    if shift.dtype.is_floating_point:
        values.sub_(shift)
    return values.view(stop - start, row * values.shape[1])
