"""Codes in FP8 or INT8 times a scale: per tensor, per row, per group of a row, or per block.

DeepSeek-V3 stores the factor of each 128×128 block as `weight_scale_inv` (it multiplies, whatever its name says),
compressed-tensors and ModelOpt store `weight_scale`, ComfyUI `scale_weight`, Mistral `qscale_weight`, DeepSeek-V4
`scale`, fused experts `gate_up_proj_scale_inv`, torchao `_weight_qdata` and `_weight_scale`, quanto `weight._data` and
`weight._scale`. LLM.int8 of bitsandbytes stores the largest absolute value of each row as `SCB`; its codes reach 127.
MXFP8 has a power of two for each 32 values, as a byte with a bias of 127.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.dtypes import (
    BFLOAT16,
    FLOAT8_E4M3FN,
    FLOAT8_E4M3FNUZ,
    FLOAT8_E5M2,
    FLOAT8_E5M2FNUZ,
    FLOAT8_E8M0FNU,
    FLOAT16,
    FLOAT32,
    INT8,
    UINT8,
    DType,
)
from eckart.checkpoint.encodings import torchao
from eckart.checkpoint.encodings.blocks import in_blocks
from eckart.checkpoint.encodings.encoded import Encoded, PartNames, StoredModule, Unreadable
from eckart.checkpoint.encodings.lookup import float8_values
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme
from eckart.checkpoint.encodings.scales import powers_of_two, times

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.scaled_codes import LevelKind

FP8 = (FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT8_E4M3FNUZ, FLOAT8_E5M2FNUZ)
_LEVELS: "dict[DType, LevelKind]" = {FLOAT8_E4M3FN: "e4m3", FLOAT8_E5M2: "e5m2", INT8: "int8"}  # that are written
_SCALE_DTYPES = (FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E8M0FNU)
_USUAL_BLOCK = 128
_MX_GROUP = 32
_LARGEST_INT8 = 127
_ROW_MAXIMA, _LAYOUT = "SCB", "weight_format"  # of LLM.int8; layout 0 is by rows


def scaled(module: StoredModule) -> Iterator[Encoded | Unreadable]:
    """The weights of a module that are codes times a scale."""
    leaves = module.leaves
    for codes, info in leaves.items():
        if info.dtype not in (*FP8, INT8) or not info.shape:
            continue
        names = next((names for names in _names(codes) if names.scale in leaves), None)
        if names is None or (info.dtype == INT8 and leaves[names.scale].dtype == FLOAT8_E8M0FNU):
            continue
        zero = leaves.get(names.second)
        if codes == torchao.CODES and info.dtype == INT8 and zero is not None and zero.dtype.is_floating_point:
            continue  # of 4 bits
        yield _weight(module, names)


def _names(codes: str) -> Iterator[PartNames]:
    """The names that the scale of a tensor of codes may have; those of the tensor itself come first."""
    yield PartNames(codes, codes, f"{codes}_scale", f"{codes}_zero_point")
    yield PartNames(codes, codes, f"{codes}_scale_inv")
    yield PartNames(codes, codes, f"{codes}_weight_scale")
    if codes == "weight":
        yield from (PartNames(codes, codes, scale) for scale in ("scale_weight", "scale", "qscale_weight", _ROW_MAXIMA))
    if codes == torchao.CODES:
        yield PartNames("weight", codes, torchao.SCALE, torchao.ZERO)
    if codes == "_data":
        yield PartNames("", codes, "_scale")


def _weight(module: StoredModule, names: PartNames) -> Encoded | Unreadable:
    leaves = module.leaves
    codes, scale, zero = leaves[names.codes], leaves[names.scale], leaves.get(names.second)
    blocks = _block_shape(codes, scale, module.quantization())
    kind = _kind(codes, scale, names)
    if blocks is None:
        of = f"{list(scale.shape)} of {scale.name}, {scale.dtype}"
        reason = f"{kind} codes of shape {list(codes.shape)} do not fit the shape {of}"
    elif _LAYOUT in leaves and module.numbers(_LAYOUT) != [0]:
        reason = f"{kind} codes in the layout of a GPU; dequantize it with transformers' model.dequantize()"
    elif zero is not None and (zero.shape != scale.shape or zero.dtype != codes.dtype):
        reason = f"zero points {list(zero.shape)}, {zero.dtype}, do not fit the scales {list(scale.shape)}"
    else:
        rows = in_blocks(partial(_rows, module, names, blocks), codes.shape)
        scheme = partial(_scheme, module, names, blocks) if _is_written(codes, names, zero) else None
        return module.weight(codes.shape, rows, encoding=kind, parts=names.stored, leaf=names.weight, scheme=scheme)
    return module.unreadable(names.stored, reason)


def _is_written(codes: TensorInfo, names: PartNames, zero: TensorInfo | None) -> bool:
    """Whether another matrix can be written in the same way."""
    return len(codes.shape) == 2 and codes.dtype in _LEVELS and zero is None and names.scale != _ROW_MAXIMA


def _scheme(module: StoredModule, names: PartNames, blocks: tuple[int, ...], weight: str) -> ScaledScheme:
    codes, scale = module.spec(names.codes), module.spec(names.scale)
    kind = _kind(module.leaves[names.codes], module.leaves[names.scale], names)
    (rows, columns), (outputs, inputs) = blocks, codes.shape
    # The relative error of FP8 does not depend on its scale, so that one that fits stays, and with it most codes.
    is_kept = codes.dtype in FP8 and scale.dtype.itemsize > 1
    least = partial(module.read, names.scale) if is_kept else None
    return ScaledScheme(weight, (outputs, inputs), FLOAT32, kind, names.weight, _LEVELS[codes.dtype], (rows, columns),
                        codes, scale, least=least)  # fmt: skip


def _kind(codes: TensorInfo, scale: TensorInfo, names: PartNames) -> str:
    if codes.dtype == INT8:
        return "llm.int8" if names.scale == _ROW_MAXIMA else "int8"
    return "mxfp8" if scale.dtype == UINT8 else "fp8"


def _block_shape(codes: TensorInfo, scale: TensorInfo, stated: Mapping[str, Any]) -> tuple[int, ...] | None:
    """How many entries along each dimension of the codes share a scale; None if the shapes or data types do not fit."""
    entries, counts = codes.shape, scale.shape
    is_mx = scale.dtype == UINT8 and codes.dtype in FP8
    if 0 in (*entries, *counts) or not (is_mx or scale.dtype in _SCALE_DTYPES):
        return None
    if len(counts) == 1 and counts[0] == entries[0]:
        counts = (*counts, *(1 for _ in entries[1:]))
    if math.prod(counts) == 1:
        counts = tuple(1 for _ in entries)
    if len(counts) != len(entries):
        return None
    sizes = [1, _MX_GROUP] if is_mx else _stated_blocks(stated)
    sizes = ([None] * len(entries) + sizes)[-len(entries) :]
    blocks = [_block(*each) for each in zip(entries, counts, sizes, strict=True)]
    if scale.dtype == FLOAT8_E8M0FNU and sizes[-1] is None and blocks[-1] not in (_MX_GROUP, _USUAL_BLOCK, entries[-1]):
        return None  # scales in the order of a kernel may have a shape that divides the codes' too
    return None if None in blocks else tuple(block for block in blocks if block is not None)


def _block(entries: int, count: int, stated: int | None) -> int | None:
    """How many of `entries` share one of `count` scales: those stated, 128 with a remainder, or as many in each."""
    if count in (1, entries):
        return entries // count
    sizes = [stated] if stated else [_USUAL_BLOCK, *([entries // count] if entries % count == 0 else [])]
    return next((size for size in sizes if -(-entries // size) == count), None)


def _stated_blocks(stated: Mapping[str, Any]) -> list[int | None]:
    """Rows and columns of a block, if a config states one for all weights."""
    blocks = [stated.get("weight_block_size")]
    groups = stated.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        weights = weights if isinstance(weights, dict) else {}
        size = weights.get("group_size")
        blocks.append(weights.get("block_structure") or ([None, size] if type(size) is int and size > 0 else None))
    given = [block for block in blocks if block]
    is_pair = len(given) == 1 and isinstance(given[0], list) and len(given[0]) == 2
    valid = is_pair and all(size is None or (type(size) is int and size > 0) for size in given[0])
    return given[0] if valid else [None, None]


def _rows(module: StoredModule, names: PartNames, blocks: tuple[int, ...], start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop`, each code times its scale, in float32."""
    import torch

    codes = module.rows(names.codes, start, stop)
    values = codes.to(torch.float32) if codes.dtype == torch.int8 else float8_values(codes)
    if names.second in module.leaves:
        zeros = _of_rows(module, names.second, blocks, start, stop).to(torch.float32)
        for part, each in _aligned(values, zeros, blocks):
            part.sub_(each)
    for part, each in _aligned(values, _factors(module, names.scale, blocks, start, stop), blocks):
        times(module, names.scale, part, each)
    return values.mul_(1 / _LARGEST_INT8) if names.scale == _ROW_MAXIMA else values


def _factors(module: StoredModule, leaf: str, blocks: tuple[int, ...], start: int, stop: int) -> "Tensor":
    """Scales of entries `start` to `stop` in float32."""
    import torch

    stored = _of_rows(module, leaf, blocks, start, stop)
    if module.leaves[leaf].dtype in (UINT8, FLOAT8_E8M0FNU):
        return powers_of_two(module, leaf, stored)
    factors = stored.to(torch.float32)
    if bool((factors < 0).any()):
        raise module.refuse(leaf, f"has {int((factors < 0).sum()):,} scales that are negative")
    return factors


def _of_rows(module: StoredModule, leaf: str, blocks: tuple[int, ...], start: int, stop: int) -> "Tensor":
    """What is stored for entries `start` to `stop`: one entry for each of them, or one for all."""
    import torch

    shape, ones = module.leaves[leaf].shape, (1,) * (len(blocks) - 1)
    if math.prod(shape) == 1:
        return module.read(leaf).reshape(1, *ones)
    if shape[0] == 1:
        return module.read(leaf)
    first = start // blocks[0]
    found = module.rows(leaf, first, -(-stop // blocks[0]))
    found = found if blocks[0] == 1 else found[torch.arange(start, stop) // blocks[0] - first]
    return found.reshape(-1, *ones) if len(shape) == 1 else found


def _aligned(values: "Tensor", factors: "Tensor", blocks: tuple[int, ...]) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Parts of the values, as views, with factors that are broadcast to them."""
    for dimension, block in enumerate(blocks[1:-1], start=1):
        if 1 < factors.shape[dimension] < values.shape[dimension]:
            factors = factors.repeat_interleave(block, dimension).narrow(dimension, 0, values.shape[dimension])
    columns, count = values.shape[-1], factors.shape[-1]
    if values.ndim == 1 or count in (1, columns):
        yield values, factors
        return
    whole = columns // blocks[-1]
    rest = whole * blocks[-1]
    yield values[..., :rest].unflatten(-1, (whole, blocks[-1])), factors[..., :whole, None]
    if rest < columns:
        yield values[..., rest:], factors[..., whole:]
