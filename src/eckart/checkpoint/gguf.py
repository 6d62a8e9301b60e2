"""GGUF checkpoints of the llama family, under Hugging Face names and dequantized when they are read.

Only architectures whose tensors equal what transformers loads from the same file, bit for bit, are opened. A model that
llama.cpp split into several files is read from all of them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import TensorInfo, check_rows
from eckart.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_headers
from eckart.checkpoint.gguf_names import config_of, hf_name
from eckart.checkpoint.gguf_tensors import read_rows, storage_types, tensor_bytes, tensor_fault, tensor_info
from eckart.checkpoint.inputs import FilesOnEveryNode, files_digest
from eckart.checkpoint.reader import read_into
from eckart.checkpoint.remote.table import remote_file
from eckart.checkpoint.tying import tied_weights
from eckart.errors import FileFormatError

if TYPE_CHECKING:
    from torch import Tensor


class GgufCheckpoint(FilesOnEveryNode):
    """A GGUF model; see `Checkpoint` for the attributes.

    `config` has the sizes and flags that the metadata states; rope scaling is not among them.

    Raises:
        MissingExtraError: the `gguf` package is not installed.
        FileFormatError: a file is malformed, of an architecture that is not supported, or a part is missing.
    """

    def __init__(self, source: str, path: Path) -> None:
        storage_types()
        headers = read_gguf_headers(path)
        self.source = source
        self.folder: Path | None = path.parent
        self.files: tuple[Path, ...] = tuple(header.path for header in headers)
        self.kinds: Mapping[str, str] = {}
        self.metadata: Mapping[str, Mapping[str, str]] = {}
        self.config = config_of(headers)
        tensors = [(header, tensor) for header in headers for tensor in header.tensors]
        faults = [fault for header, tensor in tensors if (fault := self._tensor_fault(header, tensor))]
        self._stored = {hf_name(tensor.name): (header, tensor) for header, tensor in tensors}
        if not faults and len(self._stored) < len(tensors):
            faults = ["two of its files have a tensor of the same name"]
        if faults:
            msg = f"{path}: not a usable GGUF checkpoint"
            raise FileFormatError.listing(msg, faults)
        self.tensors: Mapping[str, TensorInfo] = {
            name: tensor_info(header, tensor, name) for name, (header, tensor) in self._stored.items()
        }
        for header in headers:
            if remote := remote_file(header.path):
                remote.set_tensors((each.offset, each.offset + tensor_bytes(each)) for each in header.tensors)
        self.tied: Mapping[str, str] = tied_weights(self.tensors, self.config)

    def read(self, name: str) -> "Tensor":
        """The complete tensor: float32 if quantized, otherwise as stored."""
        shape = self.tensors[name].shape
        return self.rows(name, 0, shape[0]) if shape else self._stored_rows(name, 0, 1).reshape(())

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor: blocks if it is quantized."""
        header, tensor = self._stored[name]
        buffer = bytearray(tensor_bytes(tensor))
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
        header, tensor = self._stored[name]
        if len(tensor.shape) < 2:
            return read_rows(header, tensor, 0, 1).reshape(-1)[start:stop]
        rows = math.prod(tensor.shape[1:-1])
        return read_rows(header, tensor, start * rows, stop * rows).reshape(stop - start, *tensor.shape[1:])

    def _tensor_fault(self, header: GgufHeader, tensor: GgufTensor) -> str | None:
        what, name = f"tensor {tensor.name!r}", hf_name(tensor.name)
        if not name:
            return f"{what} does not belong to a dense model of type {self.config['model_type']}"
        heads = self._rotary_heads(name)
        if heads and (not tensor.shape or not tensor.shape[0] or tensor.shape[0] % (2 * heads)):
            return f"{what}: shape {tensor.shape} does not divide into {heads} heads"
        return tensor_fault(header, tensor)

    def _rotary_heads(self, name: str) -> int:
        """Heads whose rows llama.cpp interleaved for its rotary embedding; 0 for every other tensor."""
        if self.config["model_type"] != "llama":
            return 0
        if ".q_proj." in name:
            return self.config["num_attention_heads"]
        return self.config["num_key_value_heads"] if ".k_proj." in name else 0
