"""A checkpoint with weights that bitsandbytes stores in NF4, read as the dense weights."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo, check_rows
from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme, read_schemes, state_of, stored_name
from eckart.checkpoint.layouts import conv1d_tensors
from eckart.linalg.nf4_constants import NESTED_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.nf4 import Nf4Blocks


class Nf4Checkpoint:
    """A checkpoint whose NF4 weights appear with their dense shape and dtype, and are dequantized when they are read.

    bitsandbytes stores the weight of a Conv1D as (out, in); it is read as (in, out), as in any other file of the model.

    Attributes:
        stored: the same checkpoint as it is stored, with codes and scales as tensors.
        schemes: how each quantized weight is stored, by its name.

    Raises:
        FileFormatError: parts of quantized weights are missing, damaged or disagree; every fault is listed.
    """

    def __init__(self, stored: Checkpoint) -> None:
        self.source, self.config, self.kinds = stored.source, stored.config, stored.kinds
        self.folder, self.files, self.metadata = stored.folder, stored.files, stored.metadata
        self.stored = stored
        self.schemes: Mapping[str, Nf4Scheme] = read_schemes(stored)
        self._transposed = conv1d_tensors(stored) & self.schemes.keys()
        parts = {name: [spec.name for spec in scheme.specs()] for name, scheme in self.schemes.items()}
        hidden = {part for names in parts.values() for part in names[1:]}
        self.tied: Mapping[str, str] = {absent: owner for absent, owner in stored.tied.items() if absent not in hidden}
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(self.schemes[name], parts[name]) if name in parts else info
            for name, info in stored.tensors.items()
            if name not in hidden
        }

    def read(self, name: str) -> "Tensor":
        """The complete tensor; a quantized one in the dtype that it was quantized from."""
        if name not in self.schemes:
            return self.stored.read(name)
        weight = self.blocks(name).dequantize()
        return weight.T.contiguous() if name in self._transposed else weight

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor: the codes if it is quantized."""
        return self.stored.read_bytes(name)

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension, reading only the blocks that contain them."""
        if name not in self.schemes:
            return self.stored.rows(name, start, stop)
        scheme, info = self.schemes[name], self.tensors[name]
        check_rows(info, start, stop)
        if name in self._transposed:
            return self.read(name)[start:stop]
        row, count = math.prod(info.shape[1:]), math.prod(info.shape)
        if start == stop:
            import torch

            return torch.empty((0, *info.shape[1:]), dtype=info.dtype.torch)
        # Scales quantized together are read together.
        group = scheme.block_size * (NESTED_BLOCK if scheme.double else 1)
        first, last = start * row // group * group, min(-(-stop * row // group) * group, count)
        values = self._blocks(scheme, first, last).dequantize()
        return values[start * row - first : stop * row - first].view(stop - start, *info.shape[1:])

    def blocks(self, name: str) -> "Nf4Blocks":
        """A quantized weight as it is stored."""
        scheme = self.schemes[name]
        return replace(self._blocks(scheme, 0, math.prod(scheme.shape)), shape=scheme.shape)

    def fingerprint(self) -> str:
        """That of the stored checkpoint."""
        return self.stored.fingerprint()

    def _info(self, scheme: Nf4Scheme, parts: list[str]) -> TensorInfo:
        infos = [self.stored.tensors[part] for part in parts if part in self.stored.tensors]
        nbytes = sum(info.nbytes for info in infos)
        shape = scheme.shape[::-1] if scheme.name in self._transposed else scheme.shape
        return TensorInfo(scheme.name, shape, scheme.dtype, nbytes, infos[0].file, "nf4")

    def _blocks(self, scheme: Nf4Scheme, first: int, last: int) -> "Nf4Blocks":
        """Values `first` to `last` of the flattened weight; both are multiples of the group size, or its end."""
        import torch

        from eckart.linalg.nf4 import Nf4Blocks

        name, item = scheme.name, scheme.storage.itemsize
        codes = self.stored.rows(name, first // 2 // item, -(-last // 2) // item)
        begin, end = first // scheme.block_size, -(-last // scheme.block_size)
        blocks = Nf4Blocks(
            codes.view(torch.uint8).reshape(-1, 1),
            self.stored.rows(f"{name}.absmax", begin, end),
            (last - first,),
            scheme.dtype.torch,
            scheme.block_size,
        )
        if not scheme.double:
            return blocks
        return replace(
            blocks,
            nested_absmax=self.stored.rows(f"{name}.nested_absmax", begin // NESTED_BLOCK, -(-end // NESTED_BLOCK)),
            nested_offset=torch.tensor(state_of(self.stored, name)["nested_offset"]),
            nested_map=self.stored.read(stored_name(self.stored, f"{name}.nested_quant_map")),
        )
