"""Weights as codes for a few levels, with one scale for each group of values in a row: int4 and FP8."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eckart.linalg.finite import require_finite
from eckart.linalg.scaled_levels import ScaledLevels

INT4 = torch.arange(-8, 8, dtype=torch.float32)
LARGEST = {"int4": 7.5, "fp8": 448.0}  # what the scale of a group maps its largest value to


def levels_of(kind: str) -> Tensor:
    """The values of the codes at scale one, ascending: 16 integers, or the 253 finite numbers of E4M3."""
    if kind == "int4":
        return INT4
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return values[values.isfinite()].unique()


@dataclass(frozen=True, eq=False)
class ScaledCodes:
    """A quantized matrix.

    Attributes:
        codes: shape `(m, n)`: the index of each level.
        levels: shape `(k,)`, ascending.
        scales: shape `(m, groups)`; a group is n/groups consecutive values of a row.
        dtype: of the result of `dequantize`.
    """

    codes: UInt8[Tensor, "m n"]
    levels: Float[Tensor, " k"]
    scales: Float[Tensor, "m g"]
    dtype: torch.dtype

    def scaled_levels(self) -> ScaledLevels:
        """The values that the matrix can take with these scales."""
        size = self.codes.shape[1] // self.scales.shape[1]
        return ScaledLevels(self.levels, self.scales.float().repeat_interleave(size, dim=1))

    def with_codes(self, codes: UInt8[Tensor, "m n"]) -> "ScaledCodes":
        """The same scales with other codes."""
        return replace(self, codes=codes)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Level times scale in float32, then cast."""
        return self.scaled_levels().decode(self.codes).to(dtype or self.dtype)


def quantize(weight: Float[Tensor, "m n"], *, kind: str, group: int, dtype: torch.dtype) -> ScaledCodes:
    """A matrix with the nearest codes.

    Args:
        weight: shape `(m, n)`.
        kind: `int4` or `fp8`.
        group: values of a row that share a scale; divides n.
        dtype: of the scales, which are rounded before codes are chosen, and of dequantized values.

    Raises:
        NotFiniteError: a value is NaN or Inf.
    """
    require_finite(weight, "`weight`")
    wide = weight.float()
    largest = wide.view(len(wide), -1, group).abs().amax(2)
    scales = (largest / LARGEST[kind]).to(dtype)
    zeros = ScaledCodes(torch.zeros(wide.shape, dtype=torch.uint8), levels_of(kind), scales, dtype)
    return zeros.with_codes(zeros.scaled_levels().codes(wide))
