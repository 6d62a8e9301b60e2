"""An analysis as a table for a terminal of 80 columns."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.findings import name
from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.operations import Analysis, MatrixAnalysis


def analysis_table(analysis: "Analysis", *, per_layer: bool = False) -> RenderableType:
    """The ranks of an analysis, its totals, and what was skipped.

    Args:
        analysis: the analysis.
        per_layer: one line per matrix, also where there are many.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[MatrixAnalysis]] = [
        Column("stable\nrank", lambda matrix: matrix.spectrum.stable_rank, "size"),
        Column("rank for 90%\nof energy", lambda matrix: matrix.spectrum.rank_for_energy(0.9)),
        Column("rank for\nerror < 10%", lambda matrix: matrix.spectrum.rank_for_error(0.1)),
    ]
    if analysis.kind == "delta" and any(matrix.noise for matrix in analysis.matrices):
        columns.append(Column("above\nnoise", lambda matrix: matrix.noise.signal_rank if matrix.noise else None))
    notes = [SUMMARY] if not per_layer and is_summarized(analysis.matrices) else []
    if not analysis.is_complete:
        notes.append("A range for one matrix, and ≤, are certified limits; `full` computes every singular value.")
    if analysis.kind == "delta":
        notes.append("Energy does not predict the loss of a rank; eckart extract with `eval` measures it.")
    notes.append(
        f"{len(analysis.matrices)} matrices, {count_text(analysis.params)} parameters, "
        f"{seconds_text(analysis.seconds)}, peak memory {bytes_text(analysis.peak_rss_bytes)}"
    )
    table = grid(analysis.matrices, columns, per_matrix=per_layer)
    return Group(unbroken(name(analysis), style="bold"), table, *map(Text, notes), *skipped_lines(analysis.skipped))
