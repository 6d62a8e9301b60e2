"""Many spectra as a few curves: median and band over the matrices of each module type."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eckart.checkpoint.naming import shown_names
from eckart.linalg import Interval
from eckart.operations.analysis.places import LONGEST_KIND

if TYPE_CHECKING:
    from eckart.linalg import Spectrum
    from eckart.operations import Analysis, MatrixAnalysis

MOST_KINDS = 10  # lines that a reader can still distinguish
FEW_MATRICES = 6  # drawn individually, labelled by name
SHORTEST = 8  # singular values needed for a line
BAND = (0.1, 0.9)  # quantiles over the matrices of a kind


def groups(analysis: "Analysis") -> dict[str, list["MatrixAnalysis"]]:
    """The matrices behind each line: those of a module type, or a single one if there are few.

    Zero matrices are not drawn, and neither are matrices of a few rows if there are larger ones. If there are too many
    types, those with the most parameters are drawn.

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
        names = shown_names((matrix.name for matrix in everything), most=LONGEST_KIND)
        return {names[matrix.name]: [matrix] for matrix in everything}
    heaviest = sorted(nonzero, key=lambda kind: -sum(matrix.params for matrix in nonzero[kind]))[:MOST_KINDS]
    return {kind: matrices for kind, matrices in nonzero.items() if kind in heaviest}


def curve(
    matrices: list["MatrixAnalysis"], value: Callable[["Spectrum"], Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The median of `value(spectrum)` over the matrices of one group, and the band of their middle 80 %.

    Returns:
        tensors of shape `(k,)`, where k is the length of the shortest value; no band of a single matrix.
    """
    lines = [value(matrix.spectrum) for matrix in matrices]
    shortest = min(len(line) for line in lines)
    stacked = torch.stack([line[:shortest] for line in lines])
    middle = stacked.quantile(0.5, dim=0)
    low, high = (stacked.quantile(share, dim=0) for share in BAND)
    return middle, (low, high) if len(lines) > 1 else None


def upper(number: int | float | Interval | None) -> float | None:
    """The number, or its upper bound if it is an interval."""
    return None if number is None else float(number.upper if isinstance(number, Interval) else number)


def middle(numbers: Sequence[int | float | Interval | None]) -> float | None:
    """Median of the defined numbers, intervals at their upper bound; None if there are none."""
    known = [value for value in map(upper, numbers) if value is not None]
    return median(known) if known else None
