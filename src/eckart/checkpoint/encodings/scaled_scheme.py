"""How a weight is stored as codes and scales of its blocks, to be written: integers, FP8, MXFP4 and NVFP4.

FP8 and INT8 take a byte each. FP4 takes half a byte, the first code in the low half. Other integers are stored plus
half their range, as many as fit in each int32, the first in the lowest bits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import FLOAT8_E8M0FNU, FLOAT32, INT32, INT64, UINT8, DType
from eckart.checkpoint.encodings.encoded import PartNames
from eckart.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.scaled_codes import LevelKind, ScaledCodes

WORD = 32  # bits


@dataclass(frozen=True)
class ScaledScheme:
    """How one weight is stored.

    Attributes:
        name: name of the weight.
        shape: `(out_features, in_features)`.
        dtype: data type that weights are dequantized to.
        kind: name of the encoding.
        names: of the stored tensors, the last parts; `second` is the scale of the whole matrix.
        levels: kind of the codes.
        block: outputs and inputs that share a scale.
        codes: data type of the codes.
        scale: data type of the scales; bytes are powers of two.
        scale_shape: shape in which they are stored.
        divides: whether the second scale divides.
        transposed: whether words are packed along the inputs, as GPTQ does it; compressed-tensors stores the shape too.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    kind: str
    names: PartNames
    levels: "LevelKind"
    block: tuple[int, int]
    codes: DType
    scale: DType
    scale_shape: tuple[int, ...]
    divides: bool = False
    transposed: bool = False

    def specs(self) -> list[TensorSpec]:
        """The tensors that store the weight; the codes come first."""
        rows, columns = self.shape
        columns //= self._per_item
        shape = (columns, rows) if self.transposed else (rows, columns)
        specs = [
            TensorSpec(self._part(self.names.codes), shape, self.codes),
            TensorSpec(self._part(self.names.scale), self.scale_shape, self.scale),
        ]
        if self.names.second:
            specs.append(TensorSpec(self._part(self.names.second), (1,), FLOAT32))
        if self._has_shape:
            specs.append(TensorSpec(self._part(f"{self.names.weight}_shape"), (2,), INT64))
        return specs

    def quantize(self, weight: "Tensor") -> "ScaledCodes":
        """A weight with its nearest codes."""
        from eckart.linalg.scaled_codes import quantize

        scales = FLOAT8_E8M0FNU if self.scale == UINT8 else self.scale
        return quantize(weight, kind=self.levels, block=self.block, scales=scales.torch, dtype=self.dtype.torch)

    def tensors(self, stored: "ScaledCodes") -> Iterator[tuple[str, "Tensor"]]:
        """The tensors of `specs` with the values of a quantized weight."""
        import torch

        yield self._part(self.names.codes), self._packed(stored)
        scales = stored.scales.view(torch.uint8) if self.scale == UINT8 else stored.scales
        scales = scales.T.contiguous() if self.transposed else scales
        yield self._part(self.names.scale), scales.reshape(self.scale_shape)
        if stored.second is not None and self.names.second:
            yield self._part(self.names.second), (1 / stored.second if self.divides else stored.second).reshape(1)
        if self._has_shape:
            yield self._part(f"{self.names.weight}_shape"), torch.tensor(self.shape, dtype=torch.int64)

    @property
    def _per_item(self) -> int:
        """Codes in each entry of the stored tensor."""
        if self.codes == INT32:
            return WORD // int(self.levels[3:])
        return 2 if self.levels == "e2m1" else 1

    @property
    def _has_shape(self) -> bool:
        return self.codes == INT32 and not self.transposed

    def _part(self, leaf: str) -> str:
        return self.name.removesuffix(self.names.weight) + leaf

    def _packed(self, stored: "ScaledCodes") -> "Tensor":
        """The codes as they are stored."""
        import torch

        if self.codes == INT32:
            bits = WORD // self._per_item
            words = (stored.codes.view(len(stored.codes), -1, self._per_item).long() << bits * torch.arange(
                self._per_item)).sum(2).to(torch.int32)  # fmt: skip
            return words.T.contiguous() if self.transposed else words
        if self.levels != "e2m1":
            return stored.levels[stored.codes.int()].to(self.codes.torch)
        nibbles = _nibbles(stored.levels)[stored.codes.int()]
        return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(self.codes.torch)


def scale_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Number of blocks along each dimension."""
    rows, columns = (math.ceil(entries / size) for entries, size in zip(shape, block, strict=True))
    return rows, columns


def _nibbles(levels: "Tensor") -> "Tensor":
    """The four bits of each level of E2M1: the index of its size, and the sign in the highest bit."""
    import torch

    from eckart.linalg.scaled_codes import E2M1

    sizes = torch.bucketize(levels.abs(), torch.tensor(E2M1))
    return (sizes + 8 * (levels < 0)).to(torch.uint8)
