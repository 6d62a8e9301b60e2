"""The values that a weight can take in an encoding with codes and scales: a few levels, times a scale of its block."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ScaledLevels:
    """The representable values of every entry of a weight.

    Attributes:
        levels: shape `(k,)`, at most 256, ascending: the values at scale one.
        scales: shape of the weight, float32: the scale of each entry; zero where only zero is representable.
    """

    levels: Float[Tensor, " k"]
    scales: Float[Tensor, "m n"]

    def codes(self, values: Float[Tensor, "m n"], columns: Tensor | slice = slice(None)) -> UInt8[Tensor, "m n"]:
        """The index of the nearest level for values of some columns; of two at the same distance the lower one."""
        return torch.bucketize(values / self._divisors(columns), self._bounds().to(values)).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "m n"], columns: Tensor | slice = slice(None)) -> Float[Tensor, "m n"]:
        """The values of codes, in float32."""
        return self.levels.to(self.scales)[codes.int()] * self.scales[:, columns]

    def _divisors(self, columns: Tensor | slice) -> Tensor:
        scales = self.scales[:, columns]
        return torch.where(scales == 0, 1.0, scales)

    def _bounds(self) -> Tensor:
        return (self.levels[:-1] + self.levels[1:]) / 2
