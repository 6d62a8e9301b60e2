"""What of a spectrum is signal: the edge below which rounding, or a random matrix, explains a singular value.

Three regimes. A difference of checkpoints stored in a narrow dtype carries rounding of known variance u²/12 an entry
(u the unit in the last place): "additive" noise while few entries stayed exactly equal. Where half or more did, small
updates vanished in the grid and what is left is sparse: in that "dead-zone" the edge is measured on the residual with
its signs flipped at random (Dobriban et al., parallel analysis). With no known variance, "bulk", the residual energy
gives it. Trained weights are not low rank plus independent noise: there the count is a description, not a proof.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eckart.linalg.krylov import PartialSVD, partial_svd
from eckart.linalg.slabs import Matrix, RowSlabs, as_slabs, compute_dtype
from eckart.linalg.spectra import Spectrum

DEAD_ZONE = 0.5  # share of unchanged entries from which rounding no longer acts as independent noise
FLIP_MARGIN = 1.1  # sign-flipped edges agree with the true one within a tenth, up to 93 % unchanged entries
EXPONENT_BITS = 0x7F800000  # of a float32; what they encode is the power of two at or below |w|

Regime = Literal["additive", "dead-zone", "bulk"]


@dataclass(frozen=True)
class NoiseEstimate:
    """What noise explains of a matrix.

    Attributes:
        zero_fraction: share of entries that are exactly zero.
        rounding_floor: expected Frobenius norm of the rounding that the stored dtype caused.
        edge: singular values above it are signal.
        signal_rank: how many are; counted among the computed ones where the spectrum is partial.
        regime: how the edge was found.
    """

    zero_fraction: float
    rounding_floor: float
    edge: float
    signal_rank: int
    regime: Regime


@dataclass(frozen=True)
class RoundingVariance:
    """Sums of u²/12 over the entries of a stored weight: per row, shape `(m,)`, and per column, shape `(n,)`."""

    rows: Tensor
    columns: Tensor

    @property
    def floor(self) -> float:
        """Expected Frobenius norm of the rounding error."""
        return float(self.rows.sum()) ** 0.5

    @property
    def edge(self) -> float:
        """Limit that the spectral norm of independent rounding errors stays under; tight for even variances."""
        if not len(self.rows) or not len(self.columns):
            return 0.0
        highest = float(self.rows.max()) ** 0.5 + float(self.columns.max()) ** 0.5
        return highest * _scatter(len(self.rows), len(self.columns))


def _scatter(rows: int, columns: int) -> float:
    """Factor on an edge: the largest value of pure noise scatters about it by n^-2/3 of it (Tracy & Widom)."""
    return 1 + max(min(rows, columns), 1) ** (-2 / 3)


def rounding_variance(weight: Matrix) -> RoundingVariance:
    """Variance of the rounding that storing a weight in its dtype caused, one pass over the rows."""
    matrix = as_slabs(weight)
    stored = torch.finfo(matrix.dtype)
    columns = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    rows = [columns[:0]]
    for slab in matrix.slabs():
        power = slab.to(torch.float32).contiguous().view(torch.int32).bitwise_and(EXPONENT_BITS).view(torch.float32)
        # Below its smallest normal number a dtype's grid is even.
        squares = power.clamp_min_(stored.tiny).square_()
        rows.append(squares.sum(1).to(torch.float64))
        columns += squares.sum(0)
    unit = stored.eps**2 / 12
    return RoundingVariance(torch.cat(rows) * unit, columns * unit)


def zero_fraction(weight: Matrix) -> float:
    """Share of entries that are exactly zero."""
    matrix = as_slabs(weight)
    nonzero = sum(int(torch.count_nonzero(slab)) for slab in matrix.slabs())
    return 1 - nonzero / max(matrix.shape[0] * matrix.shape[1], 1)


def bulk_noise(weight: Matrix, spectrum: Spectrum) -> NoiseEstimate:
    """Signal above the Marchenko–Pastur edge, with the variance that the energy beyond the signal gives.

    An edge below what storing the weight, or decomposing it in float64, rounds is raised to that.

    Args:
        weight: the matrix, shape `(m, n)`.
        spectrum: its spectrum, complete or partial.

    Returns:
        `NoiseEstimate` of regime "bulk".
    """
    rows, columns = spectrum.shape
    values, rank = spectrum.singular_values, 0
    stored = rounding_variance(weight)
    computed = max(rows, columns) * torch.finfo(torch.float64).eps * (float(values[0]) if len(values) else 0.0)
    while True:
        free = (rows - rank) * (columns - rank)
        deviation = (float(spectrum.energy_above[1][rank]) / free) ** 0.5 if free else 0.0
        edge = max(deviation * (rows**0.5 + columns**0.5) * _scatter(rows, columns), stored.edge, computed)
        count = int((values > edge).sum())
        if count <= rank or count >= min(rows, columns):
            break
        rank = count
    return NoiseEstimate(zero_fraction(weight), stored.floor, edge, rank, "bulk")


def difference_noise(
    difference: Matrix, spectrum: Spectrum, tuned: Matrix, *, generator: torch.Generator | None = None
) -> NoiseEstimate:
    """Signal of tuned − base above what rounding the tuned weight to its stored dtype explains.

    The assumption: the base lies on the stored grid and the tuned weight was rounded to it once.

    Args:
        difference: tuned − base, shape `(m, n)`.
        spectrum: its spectrum, complete or partial.
        tuned: the tuned weight, in its stored dtype.
        generator: source of the random signs, on the CPU.

    Returns:
        `NoiseEstimate` of regime "additive", or "dead-zone" where half the entries or more did not change.
    """
    variance = rounding_variance(tuned)
    unchanged = zero_fraction(difference)
    if unchanged < DEAD_ZONE or spectrum.fro_norm == 0:
        count = int((spectrum.singular_values > variance.edge).sum())
        return NoiseEstimate(unchanged, variance.floor, variance.edge, count, "additive")
    edge, count = _flipped_edge(as_slabs(difference), spectrum, generator)
    return NoiseEstimate(unchanged, variance.floor, edge, count, "dead-zone")


def _flipped_edge(matrix: RowSlabs, spectrum: Spectrum, generator: torch.Generator | None) -> tuple[float, int]:
    """Edge of the residual, its signs flipped, once what stands above the flipped matrix itself is taken away.

    One deflation and no more: removing further directions eats into the noise, whose edge then falls for ever.
    """
    values, limit = spectrum.singular_values, min(matrix.shape) // 2
    seed = int(torch.randint(2**31, (1,), generator=generator))
    edge, count, svd = 0.0, 0, None
    for _ in range(2):
        flipped = _SignFlipped(matrix, svd, seed)
        edge = FLIP_MARGIN * float(partial_svd(flipped, rank=1, generator=generator).S[0])
        count = int((values > edge).sum())
        if not 0 < count < limit:
            break
        svd = partial_svd(matrix, rank=count, generator=generator)
    return edge, count


@dataclass(frozen=True)
class _SignFlipped:
    """A matrix less its leading triplets, every entry with a random sign that is the same at each reading."""

    matrix: RowSlabs
    leading: PartialSVD | None
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def slabs(self) -> Iterator[Tensor]:
        signs = torch.Generator().manual_seed(self.seed)
        start, dtype = 0, compute_dtype(self.matrix)
        for slab in self.matrix.slabs():
            residual = slab.to(dtype)
            if self.leading is not None:
                weighted = self.leading.U[start : start + len(slab)] * self.leading.S.to(residual)
                residual = residual - weighted @ self.leading.Vh
            flips = torch.randint(0, 2, residual.shape, generator=signs, dtype=torch.int8).to(residual)
            start += len(slab)
            yield residual * (2 * flips - 1)
