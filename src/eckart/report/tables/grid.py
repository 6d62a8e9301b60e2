"""The table that all results share: one line per matrix if there are few, otherwise one line per module kind."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Generic, Literal, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from eckart.checkpoint.naming import shown_names
from eckart.linalg import Interval
from eckart.operations.analysis.places import Named, by_kind
from eckart.report.words import Number, number_text, percent_text, shape_text

SUMMARY = "Median over the layers of each module kind (lowest–highest)."
FEW = 16  # matrices listed one by one; more are summarized by their kind
WIDTH = 80
LONGEST_NAME = 120  # characters, in a table

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


@dataclass(frozen=True)
class Grid(Generic[M]):
    """The matrices, or their kinds, with name, shape and the columns, at most 80 characters wide.

    Names are never broken: where space is short, the ranges of numbers go first, then the shape, then columns from
    the right. A name too long for any of this makes the table wider.
    """

    matrices: Sequence[M]
    columns: Sequence[Column[M]]
    per_matrix: bool = False

    @property
    def is_summarized(self) -> bool:
        """Whether the rows are kinds rather than matrices."""
        return not self.per_matrix and is_summarized(self.matrices)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The widest variant that fits."""
        width = min(options.max_width, WIDTH)
        unlimited = options.update(max_width=10_000)
        tables = [(console.measure(table, options=unlimited).maximum, table) for table in self._variants()]
        needed, table = next((each for each in tables if each[0] <= width), tables[-1])
        return console.render(table, options.update(max_width=max(needed, width)))

    def _variants(self) -> Iterator[Table]:
        """From the fullest to the narrowest."""
        yield self._table(len(self.columns))
        if self.is_summarized:
            yield self._table(len(self.columns), ranges=False)
        for count in range(len(self.columns), 0, -1):
            yield self._table(count, ranges=False, shape=False)

    def _table(self, count: int, *, ranges: bool = True, shape: bool = True) -> Table:
        """The table with the first `count` columns of numbers."""
        summarized, columns = self.is_summarized, self.columns[:count]
        table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
        table.add_column("module" if summarized else "matrix", no_wrap=True, overflow="ignore")
        if summarized:
            table.add_column("n", justify="right", no_wrap=True)
        if shape:
            table.add_column("shape", no_wrap=True)
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for label, count_of_all, shape_of_all, numbers in self._rows:
            cells = [str(count_of_all)] if summarized else []
            cells += [shape_of_all] if shape else []
            cells += [_cell(each, column.form, ranges=ranges) for each, column in zip(numbers, columns, strict=False)]
            table.add_row(label, *cells)
        return table

    @cached_property
    def _rows(self) -> list[tuple[str, int, str, list[list[Number]]]]:
        """Of each matrix or kind its label, how many matrices it has, their shape, and their numbers by column."""
        if self.is_summarized:
            members = by_kind(self.matrices)
        else:
            names = shown_names((matrix.name for matrix in self.matrices), most=LONGEST_NAME)
            members = {names[matrix.name]: [matrix] for matrix in self.matrices}
        rows = []
        for label, matrices in members.items():
            shapes = {shape_text(matrix.shape) for matrix in matrices}
            numbers = [[column.read(matrix) for matrix in matrices] for column in self.columns]
            rows.append((label, len(matrices), shapes.pop() if len(shapes) == 1 else "several", numbers))
        return rows


def grid(matrices: Sequence[M], columns: Sequence[Column[M]], *, per_matrix: bool = False) -> Grid[M]:
    """The table of some matrices, as a rich renderable; `per_matrix` lists each of many."""
    return Grid(matrices, columns, per_matrix)


def is_summarized(matrices: Sequence[Named]) -> bool:
    """Whether the table shows kinds rather than matrices."""
    return len(matrices) > FEW


def _cell(numbers: Sequence[Number], form: str, ranges: bool) -> str:
    """One number, or the median with the range; of numbers that are only bounded the median is of the upper limits."""
    defined = [number for number in numbers if number is not None]
    if len(numbers) == 1 or not defined:
        return _text(numbers[0], form)
    lower = [number.lower if isinstance(number, Interval) else number for number in defined]
    upper = [number.upper if isinstance(number, Interval) else number for number in defined]
    middle = ("≤" if lower != upper else "") + _text(median(upper), form)
    lowest, highest = _text(min(lower), form), _text(max(upper), form)
    if form == "size" or not ranges or lowest == highest:
        return middle
    return f"{middle} ({lowest.removesuffix('%')}–{highest})"


def _text(number: Number, form: str) -> str:
    if form == "share" and isinstance(number, int | float):
        return percent_text(number)
    if form == "rank" and isinstance(number, float):
        return f"{number:.0f}"
    return number_text(number)
