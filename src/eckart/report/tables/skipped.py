"""The lines under a table that say what was skipped, and why."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from eckart.result import Skipped

SHOWN_LEFT_OUT = 4


def skipped_lines(skipped: Iterable["Skipped"]) -> list[Text]:
    """What was left out, as one line a reason: how many, why, and an example."""
    found = list(skipped)
    reasons = Counter(left.reason for left in found).most_common()
    example = {left.reason: left.name for left in reversed(found)}
    lines = [
        f"Left out: {count} × {reason} ({'such as ' if count > 1 else ''}{example[reason]})"
        for reason, count in reasons[:SHOWN_LEFT_OUT]
    ]
    rest = sum(count for _, count in reasons[SHOWN_LEFT_OUT:])
    return [Text(line) for line in [*lines, *([f"Left out: {rest} more"] if rest else [])]]
