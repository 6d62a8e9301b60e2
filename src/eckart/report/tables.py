"""Results as tables of at most 80 columns: a line a module kind, or a line a matrix where there are few."""

from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.linalg import Interval
from eckart.report.words import (
    Number,
    bytes_text,
    count_text,
    limits,
    number_text,
    seconds_text,
    shape_text,
)

if TYPE_CHECKING:
    from eckart.analysis import Analysis, MatrixAnalysis
    from eckart.checkpoint import LeftOut

FEW = 16  # matrices listed one by one; more are summarised by their kind
SHOWN_LEFT_OUT = 4


def analysis_table(analysis: "Analysis") -> RenderableType:
    """The ranks of an analysis, its totals, and what was left out.

    Returns:
        a rich renderable of at most 80 columns.
    """
    name = f"{analysis.source} − {analysis.base}" if analysis.base else analysis.source
    by_kind = len(analysis.matrices) > FEW
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    table.add_column("module" if by_kind else "matrix", overflow="fold", min_width=10)
    if by_kind:
        table.add_column("n", justify="right", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for heading in _columns(analysis):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, matrices in _groups(analysis, by_kind=by_kind):
        shapes = {shape_text(matrix.shape) for matrix in matrices}
        count = [str(len(matrices))] if by_kind else []
        cells = [_cell([read(matrix) for matrix in matrices]) for read in _columns(analysis).values()]
        table.add_row(label, *count, shapes.pop() if len(shapes) == 1 else "several", *cells)
    notes = "Each number is the median of a kind (lowest–highest)." if by_kind else ""
    if not analysis.is_complete:
        notes = f"{notes} a–b: known to lie between; --full computes every singular value.".strip()
    total = (
        f"{len(analysis.matrices)} matrices, {count_text(analysis.params)} parameters, "
        f"{seconds_text(analysis.seconds)}, peak memory {bytes_text(analysis.peak_rss_bytes)}"
    )
    parts = [Text(name, style="bold", overflow="fold"), table, *([Text(notes)] if notes else []), Text(total)]
    return Group(*parts, *left_out_lines(analysis.left_out))


def left_out_lines(left_out: Iterable["LeftOut"]) -> list[Text]:
    """What was left out, as one line a reason: how many, why, and an example."""
    found = list(left_out)
    reasons = Counter(left.reason for left in found)
    example = {left.reason: left.name for left in reversed(found)}
    lines = [
        f"Left out: {count} × {reason} ({'such as ' if count > 1 else ''}{example[reason]})"
        for reason, count in reasons.most_common(SHOWN_LEFT_OUT)
    ]
    rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(SHOWN_LEFT_OUT))
    return [Text(line) for line in [*lines, *([f"Left out: {rest} more"] if rest else [])]]


def _columns(analysis: "Analysis") -> dict[str, Callable[["MatrixAnalysis"], Number]]:
    """Heading and number of each column; the noise only where it was estimated."""
    columns: dict[str, Callable[[MatrixAnalysis], Number]] = {
        "stable\nrank": lambda matrix: matrix.spectrum.stable_rank,
        "rank for 90%\nof energy": lambda matrix: matrix.spectrum.rank_for_energy(0.9),
        "rank for\nerror < 10%": lambda matrix: matrix.spectrum.rank_for_error(0.1),
    }
    if analysis.kind == "delta" and any(matrix.noise for matrix in analysis.matrices):
        columns["above\nnoise"] = lambda matrix: matrix.noise.signal_rank if matrix.noise else None
    return columns


def _groups(analysis: "Analysis", *, by_kind: bool) -> Iterable[tuple[str, list["MatrixAnalysis"]]]:
    if by_kind:
        return analysis.by_kind().items()
    return [(matrix.name, [matrix]) for matrix in analysis.matrices]


def _cell(numbers: list[Number]) -> str:
    """One number, or the median with the range of ranks; of bounds the median takes the upper."""
    known = [pair for pair in map(limits, numbers) if pair is not None]
    if len(numbers) == 1 or not known:
        return number_text(numbers[0])
    lowest, highest = min(low for low, _ in known), max(high for _, high in known)
    middle = median(high for _, high in known)
    bounded = "≤" if any(low != high for low, high in known) else ""
    if lowest == highest or not all(isinstance(number, int | Interval) for number in numbers if number is not None):
        return f"{bounded}{middle:.3g}"
    return f"{bounded}{middle:.0f} ({lowest:.0f}–{highest:.0f})"
