"""What a combination of adapters keeps of each one's gain, as a table for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.checkpoint.naming import shown_names
from eckart.report.words import number_text

if TYPE_CHECKING:
    from eckart.evaluation import KeptGain, SearchedWeights


def kept_gain_table(
    names: Sequence[str], kept: "Sequence[KeptGain]", found: "SearchedWeights | None" = None
) -> RenderableType:
    """Losses on each adapter's text, and the gain kept.

    Args:
        names: of the adapters.
        kept: what is kept on the text of each.
        found: the weights, if they were searched for.

    Returns:
        a rich renderable of at most 80 columns.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    table.add_column("text of", no_wrap=True, overflow="ignore")
    for heading in ("tokens", "base", "adapter\nalone", "combined", "gain kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = shown_names(names, most=30)
    for name, each in zip(names, kept, strict=True):
        share = "no gain" if each.gain_kept is None else f"{number_text(100 * each.gain_kept)}%"
        losses = (f"{loss:.4f}" for loss in (each.base_loss, each.alone_loss, each.combined_loss))
        table.add_row(shown[name], f"{each.tokens:,}", *losses, share)
    notes = ["Loss in nats per token; gain kept: (base − combined) / (base − adapter alone)."]
    if found is not None:
        weights = ",".join(f"{weight:.3g}" for weight in found.weights)
        notes.append(
            f"Weights {weights} keep most of {len(found.tried)} tried, by the mean on the first half of each text; "
            "the table is of the second half."
        )
    return Group(table, *map(Text, notes))
