"""How a weight is stored as codes and scales of its blocks, to be written: integers, FP8, MXFP4 and NVFP4.

FP8 and INT8 take a byte each. FP4 takes half a byte, the first code in the low half. Other integers are stored plus
half their range, as many as fit in each int32, the first in the lowest bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from eckart.checkpoint.dtypes import FLOAT8_E8M0FNU, INT32, UINT8, DType
from eckart.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.linalg.scaled_codes import LevelKind, ScaledCodes


@dataclass(frozen=True)
class ScaledScheme:
    """How one weight is stored.

    Attributes:
        name: name of the weight.
        shape: `(out_features, in_features)`.
        dtype: data type that weights are dequantized to.
        kind: name of the encoding.
        leaf: last part of the weight's name.
        levels: kind of the codes.
        block: outputs and inputs that share a scale.
        codes: the stored codes; the names of this and of the other tensors are only their last parts.
        scale: the scales; bytes are powers of two.
        second: a scale of the whole matrix.
        sizes: the shape, as compressed-tensors stores it next to packed codes.
        divides: whether the second scale divides.
        least: reads scales that are kept where no value is out of their range.
    """

    name: str
    shape: tuple[int, int]
    dtype: DType
    kind: str
    leaf: str
    levels: "LevelKind"
    block: tuple[int, int]
    codes: TensorSpec
    scale: TensorSpec
    second: TensorSpec | None = None
    sizes: TensorSpec | None = None
    divides: bool = False
    least: "Callable[[], Tensor] | None" = field(default=None, repr=False, compare=False)

    def specs(self) -> list[TensorSpec]:
        """The tensors that store the weight; the codes come first."""
        parts = (self.codes, self.scale, self.second, self.sizes)
        return [replace(part, name=part_name(self.name, self.leaf, part.name)) for part in parts if part]

    def quantize(self, weight: "Tensor", importance: "Tensor | None" = None) -> "ScaledCodes":
        """A weight with its nearest codes, and scales that serve the inputs by their second moments if given."""
        from eckart.linalg.scaled_codes import quantize

        scales = FLOAT8_E8M0FNU if self.scale.dtype == UINT8 else self.scale.dtype
        least = self.least() if self.least else None
        types = {"scales": scales.torch, "dtype": self.dtype.torch}
        return quantize(weight, kind=self.levels, block=self.block, least=least, importance=importance, **types)

    def tensors(self, stored: "ScaledCodes") -> Iterator[tuple[str, "Tensor"]]:
        """The tensors of `specs` with the values of a quantized weight."""
        import torch

        values = [self._packed(stored), stored.scales.view(torch.uint8) if self.scale.dtype == UINT8 else stored.scales]
        if self.second and stored.second is not None:
            values.append((1 / stored.second if self.divides else stored.second).to(self.second.dtype.torch))
        if self.sizes:
            values.append(torch.tensor(self.shape).to(self.sizes.dtype.torch))
        for spec, value in zip(self.specs(), values, strict=True):
            yield spec.name, value.reshape(spec.shape)

    def _packed(self, stored: "ScaledCodes") -> "Tensor":
        """The codes as they are stored."""
        if self.codes.dtype == INT32:
            return in_words(stored.codes, int(self.levels[3:]))
        if self.levels != "e2m1":
            return stored.levels[stored.codes.int()].to(self.codes.dtype.torch)
        nibbles = _nibbles(stored.levels)[stored.codes.int()]
        return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(self.codes.dtype.torch)


def part_name(weight: str, leaf: str, part: str) -> str:
    """The name of a tensor that stores a weight.

    Args:
        weight: name of the weight.
        leaf: its last part; empty if the parts have the whole name of the weight in front.
        part: last part of the tensor's name.
    """
    return weight.removesuffix(leaf) + part if leaf else f"{weight}.{part}"


def in_words(codes: "Tensor", bits: int) -> "Tensor":
    """Codes in rows, packed into int32, the first in the lowest bits."""
    import torch

    words = codes.view(len(codes), -1, 32 // bits).long() << bits * torch.arange(32 // bits)
    return words.sum(2).to(torch.int32)


def _nibbles(levels: "Tensor") -> "Tensor":
    """The four bits of each level of E2M1: the index of its size, and the sign in the highest bit."""
    import torch

    from eckart.linalg.scaled_codes import E2M1

    sizes = torch.bucketize(levels.abs(), torch.tensor(E2M1))
    return (sizes + 8 * (levels < 0)).to(torch.uint8)
