"""Signal and noise in a spectrum: the edge below which rounding, or a random matrix, explains a singular value.

Three regimes. A difference of checkpoints stored in a narrow dtype contains rounding of known variance, u²/12 per entry
(u is the unit in the last place): "additive" noise if few entries are exactly equal. If half or more are, small updates
were rounded away and the remaining ones are sparse: in this "dead-zone" the edge is measured on the residual with
randomly flipped signs (Dobriban et al., parallel analysis). If the variance is unknown ("bulk"), it is estimated from
the residual energy. Where a few directions stand far out, what rounding makes of them alone is simulated: it depends on
them, and in a large matrix stands above independent noise. Trained weights are not low rank plus independent noise:
their signal rank is a description, not a proof.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from eckart.linalg.krylov import PartialSVD, partial_svd
from eckart.linalg.scaling import normalized, shifted, shifted_number
from eckart.linalg.slabs import Matrix, RowSlabs, Streamed, as_slabs, compute_dtype
from eckart.linalg.spectra import Spectrum

DEAD_ZONE = 0.5  # share of unchanged entries from which rounding no longer acts as independent noise
FLIP_MARGIN = 1.1  # sign-flipped edges agree with the true one within 10 %, up to 93 % unchanged entries
# The bits of a float that encode the power of two at or below |w|, and the integers to read them as.
EXPONENT_BITS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
GAP = 2.0  # ratio of a singular value to the next above which the values up to it may be all of the signal
SIMULATED_MARGIN = 1.3  # the rounding of an estimated update agrees with that of the true one within 20 %
SAFE_POWERS = 1e-20, 1e30  # a sum of squared powers of two in this range is right in float32

Regime = Literal["additive", "dead-zone", "bulk"]


@dataclass(frozen=True)
class NoiseEstimate:
    """The part of a spectrum that noise explains.

    Attributes:
        zero_fraction: share of entries that are exactly zero.
        rounding_floor: expected Frobenius norm of the rounding to the stored dtype.
        edge: singular values above it are signal.
        signal_rank: number of singular values above the edge; of a partial spectrum, of the computed ones.
        regime: how the edge was found.
    """

    zero_fraction: float
    rounding_floor: float
    edge: float
    signal_rank: int
    regime: Regime


@dataclass(frozen=True)
class RoundingVariance:
    """Sums of u²/12 over the entries of a stored weight, in units of 4^exponent: per row `(m,)`, per column `(n,)`."""

    rows: Tensor
    columns: Tensor
    exponent: int = 0

    @property
    def floor(self) -> float:
        """Expected Frobenius norm of the rounding error."""
        return shifted_number(math.sqrt(float(self.rows.sum())), self.exponent)

    @property
    def edge(self) -> float:
        """Upper bound on the spectral norm of independent rounding errors; tight for equal variances."""
        if not len(self.rows) or not len(self.columns):
            return 0.0
        highest = math.sqrt(float(self.rows.max())) + math.sqrt(float(self.columns.max()))
        return shifted_number(highest * _scatter(len(self.rows), len(self.columns)), self.exponent)


def _scatter(rows: int, columns: int) -> float:
    """Factor on an edge: the largest singular value of noise fluctuates around it by n^-2/3 (Tracy & Widom)."""
    return 1 + max(min(rows, columns), 1) ** (-2 / 3)


def rounding_variance(weight: Matrix) -> RoundingVariance:
    """Variance of the rounding of a weight to its stored dtype, in one pass over the rows."""
    matrix = as_slabs(weight)
    squares = _squared_powers(matrix, 0)
    if 0 in matrix.shape or SAFE_POWERS[0] < float(squares[0].max()) < SAFE_POWERS[1]:
        exponent = 0
    else:
        exponent = max(math.frexp(float(power.max()))[1] for power in _powers(matrix))
        squares = _squared_powers(matrix, exponent)
    unit = torch.finfo(matrix.dtype).eps ** 2 / 12
    return RoundingVariance(squares[0] * unit, squares[1] * unit, exponent)


def _squared_powers(matrix: RowSlabs, exponent: int) -> tuple[Tensor, Tensor]:
    """Sums over rows and over columns of the squared powers of two at or below |w|, over 4^exponent."""
    columns = torch.zeros(matrix.shape[1], dtype=torch.float64, device=matrix.device)
    rows = [columns[:0]]
    for power in _powers(matrix):
        squares = shifted(power, -exponent).square_()
        rows.append(squares.sum(1).to(torch.float64))
        columns += squares.sum(0)
    return torch.cat(rows), columns


def _powers(matrix: RowSlabs) -> Iterator[Tensor]:
    """The power of two at or below each |w|, at least the smallest normal number: the grid is uniform below it."""
    dtype, least = compute_dtype(matrix), torch.finfo(matrix.dtype).tiny
    integers, bits = EXPONENT_BITS[dtype]
    for slab in matrix.slabs():
        yield slab.to(dtype).contiguous().view(integers).bitwise_and(bits).view(dtype).clamp_min_(least)


def zero_fraction(weight: Matrix) -> float:
    """Share of entries that are exactly zero."""
    matrix = as_slabs(weight)
    nonzero = sum(int(torch.count_nonzero(slab)) for slab in matrix.slabs())
    return 1 - nonzero / max(matrix.shape[0] * matrix.shape[1], 1)


def product_noise(left: Tensor, right: Tensor) -> float:
    """Upper bound on the spectral norm of what rounding two stored factors does to their product.

    Args:
        left: shape `(m, r)`, as stored.
        right: shape `(r, n)`, as stored.
    """
    norms = [float(torch.linalg.matrix_norm(factor.to(torch.float64), 2)) for factor in (left, right)]
    return rounding_variance(left).edge * norms[1] + norms[0] * rounding_variance(right).edge


def bulk_noise(weight: Matrix, spectrum: Spectrum) -> NoiseEstimate:
    """Signal above the Marchenko–Pastur edge, with the noise variance estimated from the energy beyond the signal.

    The edge is at least the rounding of the stored weight and of its decomposition in float64.

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
        deviation = math.sqrt(float(spectrum.energy_above[1][rank]) / free) if free else 0.0
        deviation = shifted_number(deviation, spectrum.exponent)
        edge = max(deviation * (math.sqrt(rows) + math.sqrt(columns)) * _scatter(rows, columns), stored.edge, computed)
        count = int((values > edge).sum())
        if count <= rank or count >= min(rows, columns):
            break
        rank = count
    return NoiseEstimate(zero_fraction(weight), stored.floor, edge, rank, "bulk")


def difference_noise(
    difference: Matrix, spectrum: Spectrum, tuned: Matrix, *, generator: torch.Generator | None = None
) -> NoiseEstimate:
    """Signal of tuned − base above what rounding the tuned weight to its stored dtype explains.

    Assumes that the base is exactly representable in the stored dtype and that the tuned weight was rounded to it once.

    Args:
        difference: tuned − base, shape `(m, n)`.
        spectrum: its spectrum, complete or partial.
        tuned: the tuned weight, in its stored dtype.
        generator: source of the random signs, on the CPU.

    Returns:
        `NoiseEstimate` of regime "additive", or "dead-zone" if half of the entries or more are unchanged.
    """
    variance = rounding_variance(tuned)
    unchanged = zero_fraction(difference)
    if unchanged < DEAD_ZONE or spectrum.fro_norm == 0:
        edge, regime = variance.edge, "additive"
    else:
        edge, regime = _flipped_edge(as_slabs(difference), spectrum, generator)[0], "dead-zone"
    edge = max(edge, _simulated_edge(as_slabs(difference), as_slabs(tuned), spectrum, edge, generator))
    count = int((spectrum.singular_values > edge).sum())
    return NoiseEstimate(unchanged, variance.floor, edge, count, regime)


def _simulated_edge(
    matrix: RowSlabs, tuned: RowSlabs, spectrum: Spectrum, edge: float, generator: torch.Generator | None
) -> float:
    """What rounding alone makes of the directions before the widest gap above an edge; 0 if there is no such gap.

    The base plus these directions is rounded again; their singular values, which rounding attenuates, are corrected
    once by what that does to them.
    """
    values = spectrum.singular_values[spectrum.singular_values > edge]
    if len(values) < 2:
        return 0.0
    ratios = values[:-1] / values[1:]
    rank = int(ratios.argmax()) + 1
    if float(ratios[rank - 1]) < GAP or rank + 1 > min(matrix.shape) // 2:
        return 0.0
    update, found = partial_svd(matrix, rank=rank, generator=generator), 0.0
    for _ in range(2):
        again = Streamed(matrix.shape, matrix.dtype, matrix.device, partial(_rounded_again, matrix, tuned, update))
        rounded = partial_svd(again, rank=rank + 1, generator=generator).S
        found = float(rounded[rank])
        update = replace(update, S=update.S * (spectrum.singular_values[:rank] / rounded[:rank].clamp_min(1e-300)))
    return SIMULATED_MARGIN * found


def _rounded_again(matrix: RowSlabs, tuned: RowSlabs, update: PartialSVD) -> Iterator[Tensor]:
    """The change that stored weights show after a low-rank update: base + update, rounded, minus base."""
    start, dtype = 0, compute_dtype(matrix)
    stored, left = tuned.slabs(), torch.empty(0, matrix.shape[1], dtype=tuned.dtype, device=tuned.device)
    for slab in matrix.slabs():
        while len(left) < len(slab):
            left = torch.cat([left, next(stored)])
        base, left = left[: len(slab)].to(dtype) - slab.to(dtype), left[len(slab) :]
        weighted = update.U[start : start + len(slab)] * update.S.to(base)
        start += len(slab)
        yield (base + weighted.to(dtype) @ update.Vh.to(dtype)).to(tuned.dtype).to(dtype) - base


def _flipped_edge(matrix: RowSlabs, spectrum: Spectrum, generator: torch.Generator | None) -> tuple[float, int]:
    """Edge of the sign-flipped residual, after removing the directions above the edge of the sign-flipped matrix.

    A single deflation: removing more directions also removes noise, so that the edge would fall without end.
    """
    matrix, exponent = normalized(matrix, spectrum.fro_norm)
    values, limit = shifted(spectrum.singular_values, -exponent), min(matrix.shape) // 2
    seed = int(torch.randint(2**31, (1,), generator=generator))
    edge, count, svd = 0.0, 0, None
    for _ in range(2):
        flipped = Streamed(matrix.shape, matrix.dtype, matrix.device, partial(_sign_flipped, matrix, svd, seed))
        edge = FLIP_MARGIN * float(partial_svd(flipped, rank=1, generator=generator).S[0])
        count = int((values > edge).sum())
        if not 0 < count < limit:
            break
        svd = partial_svd(matrix, rank=count, generator=generator)
    return shifted_number(edge, exponent), count


def _sign_flipped(matrix: RowSlabs, leading: PartialSVD | None, seed: int) -> Iterator[Tensor]:
    """A matrix minus its leading triplets, every entry with a random sign that is the same in each pass."""
    signs = torch.Generator().manual_seed(seed)
    start, dtype = 0, compute_dtype(matrix)
    for slab in matrix.slabs():
        residual = slab.to(dtype)
        if leading is not None:
            weighted = leading.U[start : start + len(slab)] * leading.S.to(residual)
            residual = residual - weighted @ leading.Vh
        flips = torch.randint(0, 2, residual.shape, generator=signs, dtype=torch.int8).to(residual)
        start += len(slab)
        yield residual * (2 * flips - 1)
