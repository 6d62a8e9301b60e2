"""The singular spectrum of a matrix, and every statistic and rank rule that follows from it.

A spectrum is complete (all singular values, to the accuracy of the function that computed it) or partial: the leading
values only, with certified bounds on the others. Values that were not computed are unknown, never zero; whatever
depends on them is an `Interval`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from eckart.errors import OptionError
from eckart.linalg.interval import Interval
from eckart.linalg.scaling import exponent_of, shifted, shifted_number


@dataclass(frozen=True)
class RankBound(Interval):
    """Bounds on a rank, both inclusive."""

    lower: int
    upper: int


@dataclass(frozen=True)
class Tail:
    """Certified bounds on the singular values that a partial spectrum lacks.

    Attributes:
        energy_upper: shape `(k + 1,)`, upper bounds of Σ_{i≤r} σ_i² for r = 0…k; the computed values give lower bounds.
            Like every energy in units of 4^e, with e the `exponent` of the spectrum: 0 unless squares leave float64.
        norm: upper bound of every singular value beyond the k computed ones.
        rounding: energy that rounding in the products may have added to the computed values.
        failure_probability: probability, over the random start of the estimate, that a bound is wrong.
    """

    energy_upper: Float64[Tensor, " k1"]
    norm: float
    rounding: float
    failure_probability: float


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, in descending order, and what follows from them.

    Attributes:
        singular_values: shape `(k,)`, descending. If `tail` is None, all others are zero; otherwise these are
            the leading `k`, each a lower bound of the true one up to `tail.rounding`.
        shape: rows and columns of the matrix.
        fro_norm: Frobenius norm, accumulated in float64 from the entries.
        dtype: the dtype that the matrix was stored in.
        tail: certified bounds on the values that were not computed; None for a complete spectrum.
    """

    singular_values: Float64[Tensor, " k"]
    shape: tuple[int, int]
    fro_norm: float
    dtype: torch.dtype = torch.float32
    tail: Tail | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether every singular value was computed."""
        return self.tail is None

    @property
    def max_rank(self) -> int:
        """The largest rank of a matrix of this shape."""
        return min(self.shape)

    @property
    def exponent(self) -> int:
        """Energies are in units of 4^exponent: 0, unless the squares of these values leave the range of float64."""
        return exponent_of(self.fro_norm)

    def shifted(self, exponent: int) -> "Spectrum":
        """The spectrum of the matrix times 2^exponent."""
        norm, tail = shifted_number(self.fro_norm, exponent), self.tail
        if tail is not None:
            energies = 2 * (self.exponent + exponent - exponent_of(norm))
            limit = shifted_number(tail.norm, exponent)
            rounding = shifted_number(tail.rounding, energies)
            tail = replace(tail, energy_upper=shifted(tail.energy_upper, energies), norm=limit, rounding=rounding)
        return replace(self, singular_values=shifted(self.singular_values, exponent), fro_norm=norm, tail=tail)

    @property
    def _scaled_values(self) -> Tensor:
        return shifted(self.singular_values, -self.exponent)

    @property
    def _scaled_norm(self) -> float:
        return shifted_number(self.fro_norm, -self.exponent)

    def _scaled_limit(self, tail: Tail) -> float:
        return shifted_number(tail.norm, -self.exponent)

    @cached_property
    def energy_above(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the squared error of the best rank-r approximation, r = 0…`max_rank`.

        In units of 4^`exponent`. For a complete spectrum both are the suffix sums of σ², added from the smallest up,
        so that a tiny tail keeps its digits next to a large head; they end at rank k, above which nothing remains.
        """
        squares = self._scaled_values.square()
        if self.tail is None:
            suffix = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
            return suffix, suffix
        count, rest = len(squares), self.max_rank - len(squares)
        beyond = torch.arange(1, rest + 1, dtype=torch.float64)
        total = self._scaled_norm**2
        upper = total - torch.cat([squares.new_zeros(1), squares.cumsum(0) - self.tail.rounding])
        lower = total - self.tail.energy_upper
        # The best approximation of the remainder takes at least its share of the energy, at most `norm`² a rank.
        upper = torch.cat([upper, upper[count] * (1 - beyond / max(rest, 1))])
        lower = torch.cat([lower, lower[count] - beyond * self._scaled_limit(self.tail) ** 2])
        return lower.clamp_min(0), upper.clamp_min(0)

    def errors(self) -> Float64[Tensor, " k1"]:
        """Relative Frobenius error ‖W − W_r‖ / ‖W‖ of the best approximation at ranks 0…k (Eckart–Young).

        For a partial spectrum these are achievable errors: upper bounds of the best. All zero for a zero matrix.
        """
        upper = self.energy_above[1][: len(self.singular_values) + 1]
        return (upper / upper[0]).sqrt() if self.fro_norm > 0 else torch.zeros_like(upper)

    def error_bounds(self, rank: int) -> tuple[float, float]:
        """Bounds on the relative Frobenius error of the best approximation of a rank; 0 for a zero matrix."""
        if self.fro_norm == 0:
            return 0.0, 0.0
        lower, upper = (math.sqrt(float(energy[min(rank, len(energy) - 1)])) for energy in self.energy_above)
        return lower / self._scaled_norm, upper / self._scaled_norm

    def cumulative_energy(self) -> Float64[Tensor, " k"]:
        """Share of ‖W‖² in the leading r singular values, r = 1…k; lower bounds for a partial spectrum."""
        upper = self.energy_above[1][: len(self.singular_values) + 1]
        return (upper[0] - upper[1:]) / upper[0] if self.fro_norm > 0 else torch.ones_like(upper[1:])

    def rank_for_error(self, error: float) -> int | RankBound | None:
        """Smallest rank r with ‖W − W_r‖_F strictly below `error`·‖W‖_F; None for a zero matrix.

        Raises:
            OptionError: `error` is not in (0, 1].
        """
        if not 0 < error <= 1:
            msg = f"`error` must be in (0, 1], a share of the Frobenius norm, got {error}"
            raise OptionError(msg)
        total = self.energy_above[1][0]
        return self._first_rank(lambda tail: (tail / total).sqrt() < error)

    def rank_for_energy(self, energy: float) -> int | RankBound | None:
        """Smallest rank whose leading singular values have at least `energy` of ‖W‖_F²; None for a zero matrix.

        Raises:
            OptionError: `energy` is not in (0, 1].
        """
        if not 0 < energy <= 1:
            msg = f"`energy` must be in (0, 1], a share of the squared Frobenius norm, got {energy}"
            raise OptionError(msg)
        total = self.energy_above[1][0]
        # All of the energy means that the remainder is zero, not that it vanishes in the rounding of the total.
        allowed = total if energy < 1 else 0.0
        return self._first_rank(lambda tail: ((total - tail) / total >= energy) & (tail <= allowed))

    def _first_rank(self, enough: Callable[[Tensor], Tensor]) -> int | RankBound | None:
        """Bounds on the first rank whose tail is small enough: by its lower and by its upper bound."""
        if self.fro_norm == 0:
            return None
        lower, upper = self.energy_above
        most = self._first(enough(upper))
        least = most if lower is upper else self._first(enough(lower))
        return most if least == most else RankBound(least, most)

    def _first(self, flags: Tensor) -> int:
        """The first rank that is marked, or the largest one."""
        first = int(flags.numpy().argmax())  # NumPy starts faster, and there may be thousands of small matrices
        return first if bool(flags[first]) else self.max_rank

    @property
    def spectral_norm(self) -> float | Interval:
        """Largest singular value σ₁."""
        if not len(self.singular_values):
            return 0.0
        if self.tail is None:
            return float(self.singular_values[0])
        lowest = math.sqrt(max(float(self._scaled_values[0]) ** 2 - self.tail.rounding, 0.0))
        highest = math.sqrt(float(self.tail.energy_upper[1]))
        return _interval(shifted_number(lowest, self.exponent), shifted_number(highest, self.exponent))

    @property
    def stable_rank(self) -> float | Interval | None:
        """‖W‖_F² / σ₁²; None for a zero matrix."""
        norm = self.spectral_norm
        if self.fro_norm == 0:
            return None
        if isinstance(norm, Interval):
            return _interval((self.fro_norm / norm.upper) ** 2, (self.fro_norm / norm.lower) ** 2)
        return (self.fro_norm / norm) ** 2

    @property
    def effective_rank(self) -> float | None:
        """Exp of the entropy of σ / Σσ (Roy & Vetterli 2007); None for a zero matrix or a partial spectrum.

        The smallest values contribute too much to bound it usefully without them.
        """
        if self.fro_norm == 0 or self.tail is not None:
            return None
        values = self._scaled_values
        share = values / values.sum()
        return float(torch.special.entr(share).sum().exp())

    @property
    def participation_ratio(self) -> float | Interval | None:
        """(Σσ²)² / Σσ⁴; None for a zero matrix."""
        if self.fro_norm == 0:
            return None
        values = self._scaled_values
        fourth = float(values.pow(4).sum())
        total = self._scaled_norm**4
        if self.tail is None:
            return total / fourth
        # The unknown energy adds least if spread evenly, and most if concentrated in values as large as allowed;
        # the computed squares are too small by at most `missed` in total.
        count = len(self.singular_values)
        least, most = (float(tail[count]) for tail in self.energy_above)
        missed = most - least
        head = float(values[0]) ** 2
        lower = total / (fourth + 2 * head * missed + missed**2 + most * self._scaled_limit(self.tail) ** 2)
        certain = max(fourth - 2 * head * self.tail.rounding, 0.0) + least**2 / max(self.max_rank - count, 1)
        return _interval(lower, total / certain)

    @property
    def numerical_rank(self) -> int | RankBound:
        """Singular values above max(shape)·ε·σ₁, as `numpy.linalg.matrix_rank` counts them.

        ε is that of float64 for a matrix stored in float64 and that of float32 for every other.
        """
        eps = torch.finfo(torch.float64 if self.dtype == torch.float64 else torch.float32).eps
        if not len(self.singular_values) or self.fro_norm == 0:
            return 0
        limit = max(self.shape) * eps * float(self.singular_values[0])
        count = int((self.singular_values > limit).sum())
        if self.tail is None or self.tail.norm <= limit:
            return count
        return RankBound(count, self.max_rank)


def _interval(lower: float, upper: float) -> float | Interval:
    """The interval, or the number itself if rounding made the bounds equal."""
    return lower if lower >= upper else Interval(lower, upper)
