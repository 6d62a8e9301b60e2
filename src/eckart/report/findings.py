"""The headline of each figure: one sentence that states what the numbers show."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eckart.linalg import Interval
from eckart.report.figures.curves import middle

if TYPE_CHECKING:
    from eckart.operations import Analysis, MatrixAnalysis

USUAL_RANK = 16  # a common choice for LoRA
SUBJECTS = {"weights": "the weights", "delta": "the update", "adapter": "the adapter"}


def subject(analysis: "Analysis") -> str:
    """What was analyzed, as a sentence names it."""
    return SUBJECTS[analysis.kind]


def name(analysis: "Analysis") -> str:
    """What was analyzed, as the user named it."""
    return f"{analysis.source} − {analysis.base}" if analysis.base else analysis.source


def measured(analysis: "Analysis") -> list["MatrixAnalysis"]:
    """The matrices that have a spectrum: all but the zero ones."""
    return [matrix for matrix in analysis.matrices if matrix.spectrum.fro_norm > 0]


def of_medians(analysis: "Analysis") -> str:
    """What the numbers of a headline are medians of."""
    count = len(measured(analysis))
    return f"median of {count} matrices" if count > 1 else "one matrix"


def spectrum_finding(analysis: "Analysis") -> str:
    """How many directions stand above the noise, or else how concentrated the spectrum is."""
    matrices = measured(analysis)
    full = middle([_most(analysis, matrix) for matrix in matrices])
    signal = (
        None
        if analysis.kind == "weights"
        else middle([matrix.noise.signal_rank if matrix.noise else None for matrix in matrices])
    )
    if signal is not None:
        return f"{round(signal)} of {full:.0f} directions of {subject(analysis)} stand above the noise"
    stable = middle([matrix.spectrum.stable_rank for matrix in matrices])
    return f"The stable rank of {subject(analysis)} is {stable:.3g}, of {full:.0f} possible"


def energy_finding(analysis: "Analysis", *, energy: float = 0.9) -> str:
    """What a usual LoRA rank keeps, and the rank that a usual share needs."""
    matrices, rank = measured(analysis), _usual_rank(analysis)
    needed = [matrix.spectrum.rank_for_energy(energy) for matrix in matrices]
    kept = _floor_text(middle([_kept(matrix, rank) for matrix in matrices]) or 0.0)
    return f"Rank {rank} keeps {kept} of the energy of {subject(analysis)}; {energy:.0%} needs rank {_at_most(needed)}"


def error_finding(analysis: "Analysis", *, error: float = 0.1) -> str:
    """The error at a usual LoRA rank, and the rank that a usual tolerance needs."""
    matrices, rank = measured(analysis), _usual_rank(analysis)
    needed = [matrix.spectrum.rank_for_error(error) for matrix in matrices]
    missed = middle([1 - _kept(matrix, rank) for matrix in matrices]) or 0.0
    return (
        f"Rank {rank} has a relative error of {missed**0.5:.0%} for {subject(analysis)}; "
        f"an error below {error:.0%} needs rank {_at_most(needed)}"
    )


def rank_map_finding(analysis: "Analysis", *, energy: float = 0.9) -> str:
    """Which kind of module needs the least rank and which the most, among those in the layers if any are."""
    where = analysis.places()
    layered = {place.kind for place in where.values() if place.layer is not None}
    needed = {
        kind: middle([matrix.spectrum.rank_for_energy(energy) for matrix in matrices])
        for kind, matrices in analysis.by_kind().items()
        if kind in layered or not layered
    }
    known = {kind: rank for kind, rank in needed.items() if rank is not None}
    full = {kind: middle([min(matrix.shape) for matrix in analysis.by_kind()[kind]]) for kind in known}
    least, most = min(known, key=lambda kind: known[kind]), max(known, key=lambda kind: known[kind])
    if known[least] == known[most]:
        return f"{energy:.0%} of the energy needs rank {known[most]:.0f} (median) in every kind of module"
    return (
        f"{energy:.0%} of the energy needs rank {known[least]:.0f} of {full[least]:.0f} in {least}, "
        f"{known[most]:.0f} of {full[most]:.0f} in {most}"
    )


def _most(analysis: "Analysis", matrix: "MatrixAnalysis") -> int:
    """The largest number of nonzero singular values: for an adapter, the rank of its factors."""
    return len(matrix.spectrum.singular_values) if analysis.kind == "adapter" else min(matrix.shape)


def _usual_rank(analysis: "Analysis") -> int:
    """The rank that a headline speaks of: 16, or half of all where 16 is nearly all."""
    most = middle([_most(analysis, matrix) for matrix in measured(analysis)]) or 1
    return USUAL_RANK if most > 2 * USUAL_RANK else max(1, int(most // 2))


def _kept(matrix: "MatrixAnalysis", rank: int) -> float:
    """Share of the energy in the leading `rank` singular values."""
    energy = matrix.spectrum.cumulative_energy()
    return float(energy[min(rank, len(energy)) - 1])


def _floor_text(share: float) -> str:
    """A share in percent, never rounded up to 100%."""
    return f"{share:.0%}" if share < 0.995 or share == 1 else f"{min(share, 0.999):.1%}"


def _at_most(needed: Sequence[int | Interval | None]) -> str:
    """The median rank, marked where some of the ranks are only bounded."""
    bounded = any(isinstance(rank, Interval) for rank in needed)
    return f"{'at most ' if bounded else ''}{middle(needed):.0f}"
