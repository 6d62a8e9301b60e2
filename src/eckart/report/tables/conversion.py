"""An adapter in another format as a table for a terminal of 80 columns."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines, unbroken
from eckart.report.words import bytes_text

if TYPE_CHECKING:
    from eckart.operations.conversion import ConvertResult
    from eckart.operations.preview import Match


def conversion_table(result: "ConvertResult") -> RenderableType:
    """The layers of the result, an example of their new names, and what was skipped.

    Returns:
        a rich renderable of at most 80 columns.
    """
    columns: list[Column[Match]] = [Column("rank", lambda layer: layer.rank)]
    layers = result.layers
    where = f" in {result.output}" if result.output else ""
    notes = [SUMMARY] if is_summarized(layers) else []
    renamed: list[Text] = []
    if result.renamed:
        old, new = result.renamed[0]
        renamed = [Text(f"{len(result.renamed)} names changed, such as"), unbroken(f"  {old} →"), unbroken(f"  {new}")]
    size = Text(f"{len(layers)} layers, {bytes_text(result.nbytes)}")
    head = unbroken(f"Adapter{where}, from {result.origin} to {result.to}", style="bold")
    return Group(head, grid(layers, columns), *map(Text, notes), *renamed, size, *skipped_lines(result.skipped))
