"""The page's data of spectra: complete if they fit, else thinned so that every rank shown on the page is exact.

A thinned spectrum contains the leading singular values, and beyond them the remaining energy at selected ranks: those
at the stops of the slider, and enough others for a curve.
"""

from collections.abc import Sequence
from typing import Any

import torch

from eckart.linalg import Interval, Spectrum
from eckart.operations import MatrixAnalysis
from eckart.report.page.numbers import Numbers
from eckart.report.page.stops import ENERGIES, ERRORS, sparse_ranks

MOST_VALUES = 2**18  # singular values of one analysis: 2 MiB
LEAST_VALUES = 16  # of each matrix
CURVE_RATIO = 1.06  # between ranks selected for the curve alone


def values_that_fit(matrices: Sequence[MatrixAnalysis], most: int) -> int | None:
    """How many leading values of each complete spectrum fit into `most` in total; None if all do.

    Partial spectra are never thinned, for their bounds need all values.
    """
    lengths = [len(matrix.spectrum.singular_values) for matrix in matrices]
    if sum(lengths) <= most:
        return None
    lowest, highest = LEAST_VALUES, max(lengths)
    while lowest < highest:  # bisection for the most values per matrix that fit
        middle = (lowest + highest + 1) // 2
        fits = sum(min(length, middle) for length in lengths) <= most
        lowest, highest = (middle, highest) if fits else (lowest, middle - 1)
    return lowest


def spectrum_data(spectrum: Spectrum, thinned: int | None, numbers: Numbers) -> dict[str, Any]:
    """A spectrum in the form that the page's `Spectrum` reads, with at most `thinned` values if it is complete.

    Keys: `at` and `count`, start and number of its values in the block of numbers; for a thinned spectrum `rest`, start
    and number of the selected ranks, which the energies remaining at these ranks follow, and `remains`, the energy
    beyond the last value; for a partial spectrum `tail`, with ‖W‖² as `total` and the largest possible σ² of a value
    that was not computed as `largest`.
    """
    count = len(spectrum.singular_values)
    if thinned is not None and spectrum.tail is None:
        count = min(count, thinned)
    at, _ = numbers.add(spectrum.singular_values[:count].tolist())
    data: dict[str, Any] = {"at": at, "count": count, "fro": spectrum.fro_norm}
    if spectrum.tail is not None:
        limits, _ = numbers.add(spectrum.tail.energy_upper.tolist())
        # Squared here, because a browser's square may differ from Python's in the last bit.
        squares = {"total": spectrum.fro_norm**2, "largest": spectrum.tail.norm**2}
        return data | {"tail": {"at": limits, "rounding": spectrum.tail.rounding, **squares}}
    if count < len(spectrum.singular_values):
        energies = spectrum.energy_above[0]
        ranks = _selected_ranks(spectrum, count)
        rest, length = numbers.add(map(float, ranks))
        numbers.add(energies[[min(rank, len(energies) - 1) for rank in ranks]].tolist())
        data |= {"remains": float(energies[count]), "rest": [rest, length]}
    return data


def bounds(number: float | Interval | None) -> float | list[float] | None:
    """A number for the page; an interval as the pair of its bounds."""
    return [number.lower, number.upper] if isinstance(number, Interval) else number


def _selected_ranks(spectrum: Spectrum, count: int) -> list[int]:
    """Ranks above `count` whose remaining energy is on the page, ascending; at the last one nothing remains."""
    highest = spectrum.max_rank
    ranks = {*sparse_ranks(highest), *_ranks_at_stops(spectrum)}
    rank = float(count)
    while rank < highest:
        rank = max(rank + 1, rank * CURVE_RATIO)
        ranks.add(min(round(rank), highest))
    return sorted(rank for rank in ranks if rank > count)


def _ranks_at_stops(spectrum: Spectrum) -> list[int]:
    """`rank_for_energy` and `rank_for_error` of a complete spectrum at every stop, in one pass."""
    tail = spectrum.energy_above[0]
    total = tail[0]
    if total == 0:
        return []
    energies, errors = (torch.tensor(stops, dtype=torch.float64) for stops in (ENERGIES, ERRORS))
    enough = torch.searchsorted((total - tail) / total, energies)
    below = torch.searchsorted(-(tail / total).sqrt(), -errors, right=True)
    return [min(rank, spectrum.max_rank) for rank in (*enough.tolist(), *below.tolist())]
