"""Spectra as the page carries them: whole where they fit, else thinned so that every rank the page names is exact.

A thinned spectrum keeps its leading singular values, and beyond them the energy that remains at chosen ranks: those
where a stop of the slider falls, and enough others for a curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eckart.linalg import Interval, Spectrum
from eckart.operations import MatrixAnalysis
from eckart.report.page.numbers import Numbers
from eckart.report.page.stops import ENERGIES, ERRORS, sparse_ranks

MOST_VALUES = 2**18  # singular values of one analysis: 2 MiB
LEAST_KEPT = 16  # of each matrix
CURVE_RATIO = 1.06  # between ranks kept for the curve alone


@dataclass(frozen=True)
class Thinning:
    """How many leading singular values of each matrix are kept.

    Attributes:
        kept: of a complete spectrum; None keeps all.
    """

    kept: int | None

    @classmethod
    def of(cls, matrices: Sequence[MatrixAnalysis], most: int) -> "Thinning":
        """As many as make no more than `most` in all; partial spectra are kept whole, for their limits need them."""
        lengths = [len(matrix.spectrum.singular_values) for matrix in matrices]
        if sum(lengths) <= most:
            return cls(None)
        lowest, highest = LEAST_KEPT, max(lengths)
        while lowest < highest:  # the most values a matrix that still fit
            middle = (lowest + highest + 1) // 2
            fits = sum(min(length, middle) for length in lengths) <= most
            lowest, highest = (middle, highest) if fits else (lowest, middle - 1)
        return cls(lowest)

    def length(self, spectrum: Spectrum) -> int:
        """How many leading values of a spectrum are kept."""
        found = len(spectrum.singular_values)
        return found if self.kept is None or spectrum.tail is not None else min(found, self.kept)


def spectrum_data(spectrum: Spectrum, thinning: Thinning, numbers: Numbers) -> dict[str, Any]:
    """A spectrum as the page's `Spectrum` reads it; `at` is where its values start in the block of numbers.

    Keys beside `at` and `count`: `rest`, where the ranks kept beyond and the energies that remain there start, and
    how many they are; `remains`, the energy beyond the last value; `tail` of a partial spectrum, with ‖W‖² as `total`
    and the largest σ² that an unknown value may have as `largest`.
    """
    count = thinning.length(spectrum)
    at, _ = numbers.add(spectrum.singular_values[:count].tolist())
    data: dict[str, Any] = {"at": at, "count": count, "fro": spectrum.fro_norm}
    if spectrum.tail is not None:
        limits, _ = numbers.add(spectrum.tail.energy_upper.tolist())
        # Squares are taken here: a browser's may differ from Python's in the last bit.
        squares = {"total": spectrum.fro_norm**2, "largest": spectrum.tail.norm**2}
        return data | {"tail": {"at": limits, "rounding": spectrum.tail.rounding, **squares}}
    if count < len(spectrum.singular_values):
        energies = spectrum.energy_above[0]
        ranks = _kept_ranks(spectrum, count)
        rest, length = numbers.add(map(float, ranks))
        numbers.add(energies[ranks].tolist())
        data |= {"remains": float(energies[count]), "rest": [rest, length]}
    return data


def bounds(number: float | Interval | None) -> float | list[float] | None:
    """A number for the page; one that is only bounded is the pair of its limits."""
    return [number.lower, number.upper] if isinstance(number, Interval) else number


def _kept_ranks(spectrum: Spectrum, count: int) -> list[int]:
    """Ranks above `count` whose remaining energy is kept, ascending, the last where nothing remains."""
    highest = spectrum.max_rank
    found = {*sparse_ranks(highest), *_ranks_at_stops(spectrum)}
    rank = float(count)
    while rank < highest:
        rank = max(rank + 1, rank * CURVE_RATIO)
        found.add(min(round(rank), highest))
    return sorted(rank for rank in found if rank > count)


def _ranks_at_stops(spectrum: Spectrum) -> list[int]:
    """What `rank_for_energy` and `rank_for_error` of a complete spectrum give at every stop, all found in one pass."""
    tail = spectrum.energy_above[0]
    total = tail[0]
    if total == 0:
        return []
    energies, errors = (torch.tensor(stops, dtype=torch.float64) for stops in (ENERGIES, ERRORS))
    enough = torch.searchsorted((total - tail) / total, energies)
    below = torch.searchsorted(-(tail / total).sqrt(), -errors, right=True)
    return [min(rank, spectrum.max_rank) for rank in (*enough.tolist(), *below.tolist())]
