"""Many spectra as a few curves: the median over the matrices of one kind, and the band they lie in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.linalg import Interval

if TYPE_CHECKING:
    from eckart.linalg import Spectrum
    from eckart.operations import Analysis, MatrixAnalysis

MOST_KINDS = 10  # lines that a reader can still tell apart
FEW_MATRICES = 6  # drawn one by one, under their own names
SHORTEST = 8  # singular values that make a line
BAND = (0.1, 0.9)  # quantiles over the matrices of a kind


@dataclass(frozen=True)
class Curve:
    """One line of a figure: medians over `count` matrices, with the band of their 10th to 90th percentile.

    Attributes:
        median, low, high: shape `(k,)`, where k is the shortest spectrum of the group.
    """

    label: str
    median: Tensor
    low: Tensor
    high: Tensor
    count: int


def groups(analysis: "Analysis") -> dict[str, list["MatrixAnalysis"]]:
    """What is drawn as one line: a module kind, or a single matrix where there are few.

    Zero matrices are never drawn, nor those of a few rows beside larger ones. Of many kinds those with the most
    parameters are kept.

    Raises:
        ValueError: every matrix is zero.
    """
    largest = max((min(matrix.shape) for matrix in analysis.matrices), default=0)
    nonzero = {
        kind: [
            matrix
            for matrix in matrices
            if matrix.spectrum.fro_norm > 0 and min(matrix.shape) >= min(SHORTEST, largest)
        ]
        for kind, matrices in analysis.by_kind().items()
    }
    nonzero = {kind: matrices for kind, matrices in nonzero.items() if matrices}
    if not nonzero:
        msg = f"nothing to draw: none of the {len(analysis.matrices)} matrices of {analysis.source} is nonzero"
        raise ValueError(msg)
    everything = [matrix for matrices in nonzero.values() for matrix in matrices]
    if len(everything) <= FEW_MATRICES:
        return {matrix.name: [matrix] for matrix in everything}
    heaviest = sorted(nonzero, key=lambda kind: -sum(matrix.params for matrix in nonzero[kind]))[:MOST_KINDS]
    return {kind: matrices for kind, matrices in nonzero.items() if kind in heaviest}


def curve(label: str, matrices: list["MatrixAnalysis"], value: Callable[["Spectrum"], Tensor]) -> Curve:
    """The curve of `value(spectrum)` over the matrices of one group."""
    lines = [value(matrix.spectrum) for matrix in matrices]
    shortest = min(len(line) for line in lines)
    stacked = torch.stack([line[:shortest] for line in lines])
    middle = stacked.quantile(0.5, dim=0)
    low, high = (stacked.quantile(share, dim=0) for share in BAND)
    return Curve(label, middle, low, high, len(lines))


def upper(number: int | float | Interval | None) -> float | None:
    """The number, or the upper limit where it is only bounded."""
    return None if number is None else float(number.upper if isinstance(number, Interval) else number)


def middle(numbers: Sequence[int | float | Interval | None]) -> float | None:
    """Median of the defined numbers, bounded ones at their upper limit; None where there are none."""
    known = [value for value in map(upper, numbers) if value is not None]
    return median(known) if known else None
