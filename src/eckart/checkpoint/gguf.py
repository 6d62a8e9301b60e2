"""GGUF checkpoints of the llama family, under Hugging Face names and dequantized when they are read.

Only architectures whose tensors equal what transformers loads from the same file, bit for bit, are opened.
Dequantization is the `gguf` package's; a quantization block never crosses a row, so rows can be read alone.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eckart.checkpoint import dtypes
from eckart.checkpoint.checkpoint import TensorInfo, check_rows
from eckart.checkpoint.gguf_header import GgufTensor, read_gguf_header
from eckart.checkpoint.gguf_names import config_of, hf_name
from eckart.checkpoint.inputs import files_digest
from eckart.checkpoint.reader import read_into, read_range
from eckart.checkpoint.tying import tied_weights
from eckart.errors import FileFormatError, MissingExtraError

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


class GgufCheckpoint:
    """One GGUF file; see `Checkpoint` for the attributes.

    `config` has the sizes and flags that the metadata states; rope scaling is not among them.

    Raises:
        MissingExtraError: the `gguf` package is not installed.
        FileFormatError: the file is malformed, or of an architecture that is not supported.
    """

    def __init__(self, source: str, path: Path) -> None:
        self._types = _storage_types()
        self._header = header = read_gguf_header(path)
        self.source = source
        self.folder: Path | None = path.parent
        self.files: tuple[Path, ...] = (path,)
        self.kinds: Mapping[str, str] = {}
        self.config = config_of(header)
        faults = [fault for tensor in header.tensors if (fault := self._tensor_fault(tensor))]
        if faults:
            msg = f"{path}: not a usable GGUF checkpoint"
            raise FileFormatError.listing(msg, faults)
        self._stored = {hf_name(tensor.name): tensor for tensor in header.tensors}
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(name, tensor) for name, tensor in self._stored.items()
        }
        self.tied: Mapping[str, str] = tied_weights(self.tensors, self.config)

    def read(self, name: str) -> "Tensor":
        """The complete tensor: float32 if quantized, otherwise as stored."""
        shape = self.tensors[name].shape
        return self.rows(name, 0, shape[0]) if shape else self._stored_rows(name, 0, 1).reshape(())

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor: blocks if it is quantized."""
        tensor, header = self._stored[name], self._header
        buffer = bytearray(self._nbytes(tensor))
        read_into(memoryview(buffer), header.path, tensor.offset, stamp=header.stamp)
        return bytes(buffer)

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension: float32 if quantized, otherwise as stored."""
        info = self.tensors[name]
        check_rows(info, start, stop)
        heads = self._rotary_heads(name)
        if not heads:
            return self._stored_rows(name, start, stop)
        # Rows of a head can only be reordered together: read complete heads, then slice.
        head_rows = info.shape[0] // heads
        first, last = start // head_rows, -(-stop // head_rows)
        stored = self._stored_rows(name, first * head_rows, last * head_rows)
        pairs = stored.reshape(last - first, head_rows // 2, 2, *info.shape[1:])
        ordered = pairs.transpose(1, 2).reshape(stored.shape)
        return ordered[start - first * head_rows : stop - first * head_rows]

    def fingerprint(self) -> str:
        """Digest of the file as it is now."""
        return files_digest(self.files)

    def _stored_rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries of the first dimension in the file's own order."""
        tensor = self._stored[name]
        if len(tensor.shape) < 2:
            return self._blocks(tensor, 0, 1).reshape(-1)[start:stop]
        rows = math.prod(tensor.shape[1:-1])
        return self._blocks(tensor, start * rows, stop * rows).reshape(stop - start, *tensor.shape[1:])

    def _blocks(self, tensor: GgufTensor, start: int, stop: int) -> "Tensor":
        """Rows of the tensor flattened to two dimensions, dequantized a chunk at a time."""
        import torch
        from gguf.quants import dequantize

        kind, *_ = self._types[tensor.type_id]
        dtype, row_bytes = _PLAIN.get(kind.name, dtypes.FLOAT32).torch, self._row_bytes(tensor)
        columns = tensor.shape[-1] if tensor.shape else 1
        result = torch.empty(stop - start, columns, dtype=dtype)
        step = max(1, _CHUNK_BYTES // max(1, 4 * columns))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            data = self._range(tensor.offset + first * row_bytes, (last - first) * row_bytes)
            if kind.name in _PLAIN:
                rows = data.view(dtype).reshape(last - first, columns)
            else:
                blocks = data.numpy().reshape(last - first, row_bytes)
                # A scale that is NaN gives values that are NaN; whoever uses them counts and refuses them.
                with np.errstate(all="ignore"):
                    rows = torch.from_numpy(dequantize(blocks, kind))
            result[first - start : last - start] = rows
        return result

    def _range(self, offset: int, nbytes: int) -> "Tensor":
        header = self._header
        return read_range(header.path, offset, nbytes, stamp=header.stamp)

    def _tensor_fault(self, tensor: GgufTensor) -> str | None:
        what, name = f"tensor {tensor.name!r}", hf_name(tensor.name)
        stored = self._types.get(tensor.type_id)
        if not name:
            return f"{what} does not belong to a dense model of type {self.config['model_type']}"
        if stored is None:
            return f"{what} has type {tensor.type_id}, which the installed gguf package cannot dequantize"
        kind, block, _ = stored
        if tensor.shape and tensor.shape[-1] % block:
            return f"{what}: rows of {tensor.shape[-1]} do not divide into {kind.name} blocks of {block}"
        heads = self._rotary_heads(name)
        if heads and (not tensor.shape or not tensor.shape[0] or tensor.shape[0] % (2 * heads)):
            return f"{what}: shape {tensor.shape} does not divide into {heads} heads"
        if tensor.offset + self._nbytes(tensor) > self._header.stamp.size:
            return f"{what} extends beyond the end of the file: it is truncated"
        return None

    def _info(self, name: str, tensor: GgufTensor) -> TensorInfo:
        kind = self._types[tensor.type_id][0].name
        dtype, quantization = _PLAIN.get(kind, dtypes.FLOAT32), None if kind in _PLAIN else kind
        return TensorInfo(name, tensor.shape, dtype, self._nbytes(tensor), self._header.path, quantization)

    def _nbytes(self, tensor: GgufTensor) -> int:
        return self._row_bytes(tensor) * math.prod(tensor.shape[:-1])

    def _row_bytes(self, tensor: GgufTensor) -> int:
        _, block, block_bytes = self._types[tensor.type_id]
        return (tensor.shape[-1] if tensor.shape else 1) // block * block_bytes

    def _rotary_heads(self, name: str) -> int:
        """Heads whose rows llama.cpp interleaved for its rotary embedding; 0 for every other tensor."""
        if self.config["model_type"] != "llama":
            return 0
        if ".q_proj." in name:
            return self.config["num_attention_heads"]
        return self.config["num_key_value_heads"] if ".k_proj." in name else 0


def _storage_types() -> "dict[int, tuple[GGMLQuantizationType, int, int]]":
    """Storage types by their number in files, with the values and bytes of a block.

    They are the plain ones and those that the gguf package dequantizes.
    """
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        extra, purpose = "gguf", "reading a GGUF file"
        raise MissingExtraError.for_extra(extra, purpose) from None
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
