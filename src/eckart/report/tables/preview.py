"""A dry run as a table for a terminal of 80 columns."""

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from eckart.report.tables.grid import SUMMARY, Column, grid, is_summarized
from eckart.report.tables.lines import skipped_lines
from eckart.report.words import bytes_text

if TYPE_CHECKING:
    from eckart.operations import Match, Preview

SHOWN_ADAPTERS = 4


def preview_table(preview: "Preview") -> RenderableType:
    """What an operation would match, read and write.

    Returns:
        a rich renderable of at most 80 columns.
    """
    count = max((len(match.ranks) for match in preview.matches), default=0)
    columns: list[Column[Match]] = [
        Column("rank" if count == 1 else f"rank of\nadapter {place + 1}", lambda match, place=place: match.ranks[place])
        for place in range(min(count, SHOWN_ADAPTERS))
    ]
    if any(match.rank is not None for match in preview.matches):
        columns.append(Column("new rank", lambda match: match.rank))
    notes = [SUMMARY] if is_summarized(preview.matches) else []
    notes.append(
        f"{len(preview.matches)} modules match; {bytes_text(preview.read_bytes)} would be read and "
        f"{bytes_text(preview.written_bytes)} written."
    )
    notes += [*_stored(preview), *preview.notes]
    notes.append("Dry run: nothing was written.")
    head = Text(f"{preview.made_by}, dry run", style="bold")
    return Group(head, grid(preview.matches, columns), *map(Text, notes), *skipped_lines(preview.skipped))


def _stored(preview: "Preview") -> list[str]:
    """How many matrices are stored in each encoding or data type, or pair of them."""
    counts = Counter(" and ".join(dict.fromkeys(match.stored)) for match in preview.matches if match.stored)
    listed = ", ".join(f"{count:,} in {stored}" for stored, count in counts.most_common())
    return [f"Stored as: {listed}."] if listed else []
