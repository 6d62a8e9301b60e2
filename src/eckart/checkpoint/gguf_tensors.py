"""Tensors of GGUF files as their header describes them: storage types, sizes, and rows, dequantized when they are read.

Dequantization is the `gguf` package's; a quantization block never crosses a row, so rows can be read alone.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from eckart.checkpoint import dtypes
from eckart.checkpoint.checkpoint import TensorInfo
from eckart.checkpoint.gguf_header import GgufHeader, GgufTensor
from eckart.checkpoint.reader import read_range
from eckart.errors import MissingExtraError

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType
    from torch import Tensor

_PLAIN = {
    "F32": dtypes.FLOAT32,
    "F16": dtypes.FLOAT16,
    "BF16": dtypes.BFLOAT16,
    "F64": dtypes.FLOAT64,
    "I8": dtypes.INT8,
    "I16": dtypes.INT16,
    "I32": dtypes.INT32,
    "I64": dtypes.INT64,
}
_CHUNK_BYTES = 32 * 2**20


def tensor_fault(header: GgufHeader, tensor: GgufTensor) -> str | None:
    """Why a tensor of the file cannot be read, or None if it can.

    Raises:
        MissingExtraError: the `gguf` package is not installed.
    """
    what, stored = f"tensor {tensor.name!r}", storage_types().get(tensor.type_id)
    if stored is None:
        return f"{what} has type {tensor.type_id}, which the installed gguf package cannot dequantize"
    kind, block, _ = stored
    if tensor.shape and tensor.shape[-1] % block:
        return f"{what}: rows of {tensor.shape[-1]} do not divide into {kind.name} blocks of {block}"
    if tensor.offset + tensor_bytes(tensor) > header.stamp.size:
        return f"{what} extends beyond the end of the file: it is truncated"
    return None


def tensor_info(header: GgufHeader, tensor: GgufTensor, name: str) -> TensorInfo:
    """Shape and storage of a tensor, under a name that may not be the file's; float32 if it is quantized."""
    kind = storage_types()[tensor.type_id][0].name
    dtype, quantization = _PLAIN.get(kind, dtypes.FLOAT32), None if kind in _PLAIN else kind
    return TensorInfo(name, tensor.shape, dtype, tensor_bytes(tensor), header.path, quantization)


def tensor_bytes(tensor: GgufTensor) -> int:
    """Stored bytes of a tensor."""
    return _row_bytes(tensor) * math.prod(tensor.shape[:-1])


def read_tensor(header: GgufHeader, tensor: GgufTensor) -> "Tensor":
    """A complete tensor: float32 if quantized, otherwise as stored."""
    rows = math.prod(tensor.shape[:-1])
    return read_rows(header, tensor, 0, rows).reshape(tensor.shape)


def read_rows(header: GgufHeader, tensor: GgufTensor, start: int, stop: int) -> "Tensor":
    """Rows of the tensor flattened to two dimensions, dequantized a chunk at a time."""
    import torch
    from gguf.quants import dequantize

    kind, *_ = storage_types()[tensor.type_id]
    dtype, row_bytes = _PLAIN.get(kind.name, dtypes.FLOAT32).torch, _row_bytes(tensor)
    columns = tensor.shape[-1] if tensor.shape else 1
    result = torch.empty(stop - start, columns, dtype=dtype)
    step = max(1, _CHUNK_BYTES // max(1, 4 * columns))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        begin, nbytes = tensor.offset + first * row_bytes, (last - first) * row_bytes
        data = read_range(header.path, begin, nbytes, stamp=header.stamp)
        if kind.name in _PLAIN:
            rows = data.view(dtype).reshape(last - first, columns)
        else:
            blocks = data.numpy().reshape(last - first, row_bytes)
            # A scale that is NaN gives values that are NaN; whoever uses them counts and refuses them.
            with np.errstate(all="ignore"):
                rows = torch.from_numpy(dequantize(blocks, kind))
        result[first - start : last - start] = rows
    return result


def storage_types() -> "dict[int, tuple[GGMLQuantizationType, int, int]]":
    """Storage types by their number in files, with the values and bytes of a block.

    They are the plain ones and those that the gguf package dequantizes.

    Raises:
        MissingExtraError: the `gguf` package is not installed.
    """
    try:
        import gguf.constants
        import gguf.quants  # noqa: F401
    except ImportError:
        extra, purpose = "gguf", "reading a GGUF file"
        raise MissingExtraError.for_extra(extra, purpose) from None
    return _storage_types()


@lru_cache(maxsize=1)
def _storage_types() -> "dict[int, tuple[GGMLQuantizationType, int, int]]":
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    types = {}
    for kind in GGMLQuantizationType:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        try:
            if kind.name not in _PLAIN:
                dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        types[kind.value] = (kind, block, block_bytes)
    return types


def _row_bytes(tensor: GgufTensor) -> int:
    _, block, block_bytes = storage_types()[tensor.type_id]
    return (tensor.shape[-1] if tensor.shape else 1) // block * block_bytes
