"""Codes in FP8 or INT8 times a scale: per tensor, per row, or per block.

DeepSeek-V3 stores the factor of each 128×128 block as `weight_scale_inv` (it multiplies, whatever its name says),
compressed-tensors and ModelOpt store `weight_scale`, ComfyUI `scale_weight`, fused experts `gate_up_proj_scale_inv`.
LLM.int8 of bitsandbytes stores the largest absolute value of each row as `SCB`; its codes reach 127.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
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
)
from eckart.checkpoint.encodings.encoded import Encoded
from eckart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor

FP8 = (FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT8_E4M3FNUZ, FLOAT8_E5M2FNUZ)
_SCALE_DTYPES = (FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E8M0FNU)
_OF_NAME = ("_scale", "_scale_inv")  # appended to the tensor's name
_OF_MODULE = ("scale_weight", "scale", "qscale_weight", "SCB")
_UNUSED = ("input_scale", "scale_input", "weight_format", "output_scale")  # of activations, and of the layout in memory
_USUAL_BLOCK = 128
_LARGEST_INT8 = 127


def scale_of(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str | None:
    """The name of the scale next to a tensor of codes; None if there is none."""
    if info.dtype not in (*FP8, INT8):
        return None
    module, _, leaf = info.name.rpartition(".")
    names = [f"{info.name}{ending}" for ending in _OF_NAME]
    names += [f"{module}.{part}" for part in _OF_MODULE] if leaf == "weight" else []
    return next((name for name in names if name in tensors), None)


def read_scaled(stored: Checkpoint) -> tuple[list[Encoded], dict[str, str]]:
    """The weights that are codes times a scale, and by name the codes whose scale cannot be used, with the reason."""
    found, faults = [], {}
    for info in stored.tensors.values():
        scale = scale_of(info, stored.tensors)
        if scale is None:
            continue
        module = info.name.rpartition(".")[0]
        blocks = _block_shape(info, stored.tensors[scale], stored.config)
        if f"{info.name}_zero_point" in stored.tensors or f"{info.name}_scale_2" in stored.tensors:
            faults[info.name] = "codes with a zero point or a second scale"
        elif blocks is None:
            shape = list(stored.tensors[scale].shape)
            faults[info.name] = f"codes of shape {list(info.shape)} do not fit the shape {shape} of {scale}"
        else:
            unused = [name for part in _UNUSED if (name := f"{module}.{part}") in stored.tensors]
            parts = (info.name, scale, *unused)
            kind = "int8" if info.dtype == INT8 else "fp8"
            nbytes = sum(stored.tensors[part].nbytes for part in parts)
            weight = TensorInfo(info.name, info.shape, FLOAT32, nbytes, info.file, kind)
            found.append(Encoded(weight, parts, partial(_rows, stored, parts, blocks)))
    return found, faults


def _block_shape(codes: TensorInfo, scale: TensorInfo, config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """How many entries along each dimension of the codes share a scale; None if the shapes or data types do not fit."""
    if scale.dtype not in _SCALE_DTYPES or not codes.shape or 0 in (*codes.shape, *scale.shape):
        return None
    if math.prod(scale.shape) == 1:
        return codes.shape
    sizes = scale.shape if len(scale.shape) > 1 else (*scale.shape, *(1 for _ in codes.shape[1:]))
    if len(sizes) != len(codes.shape):
        return None
    if len(sizes) == 1 or len(scale.shape) == 1:
        return (1, *codes.shape[1:]) if sizes[0] == codes.shape[0] else None
    quantization = config.get("quantization_config")
    stated = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    usual = stated if isinstance(stated, list) and len(stated) == 2 else [_USUAL_BLOCK, _USUAL_BLOCK]
    blocks = []
    for entries, count, block in zip(codes.shape, sizes, [1] * (len(sizes) - 2) + usual, strict=True):
        if count in (1, entries):
            blocks.append(entries // count)
        elif type(block) is int and block > 0 and -(-entries // block) == count:
            blocks.append(block)
        else:
            return None
    return tuple(blocks)


def _rows(stored: Checkpoint, parts: tuple[str, ...], blocks: tuple[int, ...], start: int, stop: int) -> "Tensor":
    """Entries `start` to `stop`, each code times its scale, in float32."""
    import torch

    codes, scale, *_ = parts
    values = stored.rows(codes, start, stop).to(torch.float32)
    factors = stored.read(scale).to(torch.float32)
    if not bool(torch.isfinite(factors).all()) or not bool((factors > 0).all()):
        msg = f"{stored.source}: {scale} has scales that are zero, negative or not finite"
        raise FileFormatError(msg)
    if scale.endswith(".SCB"):
        factors = factors / _LARGEST_INT8
    factors = factors.reshape(factors.shape if factors.ndim == values.ndim else (-1, *(1 for _ in values.shape[1:])))
    if factors.shape[0] > 1:
        factors = factors[torch.arange(start, stop) // blocks[0]]
    for dimension, block in enumerate(blocks[1:], start=1):
        if 1 < factors.shape[dimension] < values.shape[dimension]:
            factors = factors.repeat_interleave(block, dimension).narrow(dimension, 0, values.shape[dimension])
    return values.mul_(factors)
