"""The table that all results share: a line a matrix where there are few, else a line a module kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eckart.linalg import Interval
from eckart.operations.analysis.places import Named, by_kind
from eckart.report.words import Number, number_text, shape_text

SUMMARY = "Each number is the median of a kind (lowest–highest)."
FEW = 16  # matrices listed one by one; more are summarised by their kind


M = TypeVar("M", bound=Named)


@dataclass(frozen=True)
class Column(Generic[M]):
    """A number of each matrix.

    Attributes:
        heading: one or two lines.
        read: takes the number from a matrix; None where it is undefined.
        form: a `rank` and a `share` (in percent) show the range over a kind, a `size` only the median.
    """

    heading: str
    read: Callable[[M], Number]
    form: Literal["rank", "share", "size"] = "rank"


def grid(matrices: Sequence[M], columns: Sequence[Column[M]]) -> Table:
    """The matrices, or their kinds, with name, shape and the columns; at most 80 characters wide."""
    summarised = is_summarised(matrices)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    table.add_column("module" if summarised else "matrix", overflow="fold", min_width=10)
    if summarised:
        table.add_column("n", justify="right", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    lines = by_kind(matrices) if summarised else {matrix.name: [matrix] for matrix in matrices}
    for label, members in lines.items():
        shapes = {shape_text(matrix.shape) for matrix in members}
        count = [str(len(members))] if summarised else []
        cells = [_cell([column.read(matrix) for matrix in members], column.form) for column in columns]
        table.add_row(label, *count, shapes.pop() if len(shapes) == 1 else "several", *cells)
    return table


def is_summarised(matrices: Sequence[Named]) -> bool:
    """Whether `grid` shows kinds rather than matrices."""
    return len(matrices) > FEW


def _cell(numbers: Sequence[Number], form: str) -> str:
    """One number, or the median with the range; of numbers that are only bounded the median is of the upper limits."""
    known = [number for number in numbers if number is not None]
    if len(numbers) == 1 or not known:
        return _text(numbers[0], form)
    lower = [number.lower if isinstance(number, Interval) else number for number in known]
    upper = [number.upper if isinstance(number, Interval) else number for number in known]
    middle = ("≤" if lower != upper else "") + _text(median(upper), form)
    if form == "size" or min(lower) == max(upper):
        return middle
    return f"{middle} ({_text(min(lower), form).removesuffix('%')}–{_text(max(upper), form)})"


def _text(number: Number, form: str) -> str:
    if form == "share" and isinstance(number, int | float):
        return f"{100 * number:.3g}%"
    if form == "rank" and isinstance(number, float):
        return f"{number:.0f}"
    return number_text(number)
