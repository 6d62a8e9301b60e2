"""Lines of text above and under a table."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

if TYPE_CHECKING:
    from eckart.result import Skipped

SHOWN_REASONS = 4
WIDTH = 80
_NO_BREAK = "\u00a0"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:[kMGT]?B|[kM]|s|min|h)\b)")


@dataclass(frozen=True)
class Paragraph:
    """Prose, wrapped at 80 columns or the console's width; a number and its unit stay on one line."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines."""
        text = _BEFORE_UNIT.sub(_NO_BREAK, self.text)
        lines = textwrap.wrap(text, min(options.max_width, WIDTH), break_on_hyphens=False)
        yield Text("\n".join(lines).replace(_NO_BREAK, " "))


def unbroken(text: str, style: str = "") -> Text:
    """A line that is neither wrapped nor cut, because a reader copies the path or command in it."""
    return Text(text, style=style, no_wrap=True, overflow="ignore")


def skipped_lines(skipped: Iterable["Skipped"], remedies: Mapping[str, str] | None = None) -> list[Text]:
    """One line that counts what was skipped by reason, with an example of each; no line if nothing was.

    Args:
        skipped: of a result.
        remedies: what to do about a reason, said once.
    """
    items = list(skipped)
    if not items:
        return []
    reasons = Counter(item.reason for item in items).most_common()
    examples = {item.reason: item.name for item in reversed(items)}
    texts = []
    for reason, count in reasons[:SHOWN_REASONS]:
        example = f"such as {examples[reason]}" if count > 1 else examples[reason]
        texts.append(f"{count} {reason} ({'; '.join(filter(None, (example, (remedies or {}).get(reason))))})")
    others = sum(count for _, count in reasons[SHOWN_REASONS:])
    texts += [f"{others} others"] if others else []
    return [Text(f"{len(items)} skipped: {', '.join(texts)}")]
