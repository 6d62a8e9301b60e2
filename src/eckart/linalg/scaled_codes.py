"""Weights as codes for a few levels, with one scale for each block of values: integers, FP8 and FP4."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from eckart.errors import NotFiniteError
from eckart.linalg.finite import require_finite
from eckart.linalg.scale_search import FACTORS, least_error
from eckart.linalg.scaled_levels import ScaledLevels

LevelKind: TypeAlias = Literal["int4", "int8", "e4m3", "e5m2", "e2m1"]
LARGEST: dict[LevelKind, float] = {  # what the scale of a block maps its largest value to
    "int4": 7.5, "int8": 127.5, "e4m3": 448.0, "e5m2": 57344.0, "e2m1": 6.0
}  # fmt: skip
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_BIAS, _LARGEST_POWER = 127, 254  # of E8M0, whose byte 255 is NaN
_STEP = 6  # of the exponents that the second scale of a matrix may have: so wide that most matrices have the same


@lru_cache(maxsize=8)
def levels_of(kind: LevelKind) -> Tensor:
    """The values of the codes at scale one, ascending: integers, or the finite numbers of a floating-point format."""
    if kind in ("int4", "int8"):
        end = 2 ** (int(kind[3:]) - 1)
        return torch.arange(-end, end, dtype=torch.float32)
    if kind == "e2m1":
        values = torch.tensor([*E2M1, *(-value for value in E2M1)])
    else:
        values = torch.arange(256, dtype=torch.uint8).view(_FLOAT8[kind]).float()
    return values[values.isfinite()].unique()


@dataclass(frozen=True, eq=False)
class ScaledCodes:
    """A quantized matrix.

    Attributes:
        codes: shape `(m, n)`: the index of each level.
        levels: shape `(k,)`, ascending.
        scales: shape `(⌈m/rows⌉, ⌈n/columns⌉)`, of each block.
        block: rows and columns that share a scale; the last block may be smaller.
        dtype: of the result of `dequantize`.
        second: a power of two that every scale is multiplied with; None for one.
    """

    codes: UInt8[Tensor, "m n"]
    levels: Float[Tensor, " k"]
    scales: Tensor
    block: tuple[int, int]
    dtype: torch.dtype
    second: Tensor | None = None

    def scaled_levels(self) -> ScaledLevels:
        """The values that the matrix can take with these scales."""
        scales = self.scales.float()
        if self.second is not None:
            scales = scales * self.second
        for dimension, (size, entries) in enumerate(zip(self.block, self.codes.shape, strict=True)):
            scales = scales.repeat_interleave(size, dimension).narrow(dimension, 0, entries)
        return ScaledLevels(self.levels, scales)

    def with_codes(self, codes: UInt8[Tensor, "m n"]) -> "ScaledCodes":
        """The same scales with other codes."""
        return replace(self, codes=codes)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Level times scale in float32, then cast."""
        return self.scaled_levels().decode(self.codes).to(dtype or self.dtype)


def quantize(
    weight: Float[Tensor, "m n"],
    *,
    kind: LevelKind,
    block: tuple[int, int],
    scales: torch.dtype,
    dtype: torch.dtype,
    least: Tensor | None = None,
    importance: Float[Tensor, " n"] | None = None,
) -> ScaledCodes:
    """A matrix with the nearest codes.

    Args:
        weight: shape `(m, n)`.
        kind: of the levels.
        block: rows and columns that share a scale.
        scales: their data type, to which they are rounded before codes are chosen. E8M0 has powers of two: the one
            with the smaller error of the two next to the largest value. E4M3, as in NVFP4, has a second scale for the
            whole matrix.
        dtype: of dequantized values.
        least: scales that are kept where no value is out of their range, so that values on their grid stay as they are.
        importance: second moment of each input. Scales are then those with the least error, weighted by it; without,
            the least ones that make the largest value of a block representable.

    Raises:
        NotFiniteError: a value is NaN or Inf, or a scale is too large for its data type.
    """
    require_finite(weight, "`weight`")
    wide = weight.float()
    largest = _in_blocks(wide.abs(), block).amax((1, 3)) / LARGEST[kind]
    if least is not None:
        largest = torch.maximum(largest, least.float().reshape(largest.shape))
    second = _second(largest) if scales == torch.float8_e4m3fn else None
    empty = ScaledCodes(torch.zeros(wide.shape, dtype=torch.uint8), levels_of(kind), largest, block, dtype, second)
    if scales == torch.float8_e8m0fnu:
        return _with_least_error(empty, wide, _powers_of_two(largest), importance)
    stored = (largest if second is None else largest / second).to(scales)
    if not bool(stored.float().isfinite().all()):
        msg = f"a scale of {float(largest.max()):.3g} is too large for {str(scales).removeprefix('torch.')}"
        raise NotFiniteError(msg)
    if importance is None or kind in _FLOAT8:  # whose relative error does not depend on the scale
        return _nearest(replace(empty, scales=stored), wide)
    most = torch.finfo(scales).max
    candidates = ((stored.float() * factor).clamp(max=most).to(scales) for factor in FACTORS)
    return _with_least_error(empty, wide, candidates, importance)


def _with_least_error(
    empty: ScaledCodes, wide: Tensor, candidates: Iterable[Tensor], importance: Tensor | None
) -> ScaledCodes:
    """The nearest codes with the scale of each block that has the least error."""

    def error_of(scales: Tensor) -> Tensor:
        squares = (_nearest(replace(empty, scales=scales), wide).dequantize(torch.float32) - wide).square()
        return _in_blocks(squares if importance is None else squares * importance.to(squares), empty.block).sum((1, 3))

    return _nearest(replace(empty, scales=least_error(candidates, error_of)), wide)


def _nearest(empty: ScaledCodes, wide: Tensor) -> ScaledCodes:
    return empty.with_codes(empty.scaled_levels().codes(wide))


def _in_blocks(values: Tensor, block: tuple[int, int]) -> Tensor:
    """A matrix as `(rows of blocks, rows, columns of blocks, columns)`, the last blocks padded with zeros."""
    rows, columns = block
    padded = pad(values, (0, -values.shape[1] % columns, 0, -values.shape[0] % rows))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))


def _second(largest: Tensor) -> Tensor:
    """A power of two that brings all scales into the range of E4M3: the same one for most weights.

    Layers that servers fuse need a common one, and within its range the relative error of E4M3 does not depend on it.
    """
    exponent = int(torch.frexp(largest.max() / LARGEST["e4m3"])[1]) if bool(largest.any()) else -10
    return torch.tensor(2.0 ** (-(-(exponent + 10) // _STEP) * _STEP - 10))


def _powers_of_two(largest: Tensor) -> list[Tensor]:
    """The smallest powers of two with which no value is out of range, and the halves of these."""
    exponent = torch.frexp(largest)[1]
    powers = ((exponent + step + _BIAS).clamp(0, _LARGEST_POWER).to(torch.uint8) for step in (0, -1))
    return [power.view(torch.float8_e8m0fnu) for power in powers]
