"""What an adapter is and which runtimes load it, as tables for a terminal of 80 columns."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.operations.checking.runtimes import RUNTIMES
from eckart.report.tables.lines import unbroken
from eckart.report.words import bytes_text, count_text

if TYPE_CHECKING:
    from eckart.operations.checking.result import CheckResult, Verdict

SHOWN = 4  # ranks, scales or names in a line


def check_table(result: "CheckResult") -> RenderableType:
    """The adapter in a few lines, the verdict of each runtime, and what to do.

    Returns:
        a rich renderable of at most 80 columns, but for paths and commands.
    """
    verdicts = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    for heading in ("runtime", "version", "verdict"):
        verdicts.add_column(heading)
    for name, verdict in result.verdicts.items():
        verdicts.add_row(name, verdict.version, _word(verdict))
    details = [line for verdict in result.verdicts.values() for line in _details(verdict)]
    misfit = [Text(result.misfit)] if result.misfit else []
    return Group(unbroken(result.source, style="bold"), *_facts(result), *misfit, verdicts, *details)


def _facts(result: "CheckResult") -> list[Text]:
    outline, counts = result.outline, result.counts()
    lines = [
        f"{outline.format}, {len(outline)} layers, {count_text(outline.params)} parameters, "
        f"{bytes_text(outline.nbytes)}, {', '.join(counts['dtypes'])}"
    ]
    lines += [f"{what}: {_counted(counts[what])}" for what in ("kinds", "ranks", "scales")]
    saved = list(outline.modules_to_save)
    lines += [f"saved in full: {', '.join(saved[:SHOWN])}{_more(len(saved))}"] if saved else []
    lines += [f"made for {outline.base_model}"] if outline.base_model else []
    return [Text(line) for line in lines]


def _counted(counts: dict[str, int]) -> str:
    """Values with their numbers, the most common first: `16 (28), 8 (4)`; one value alone without."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in list(counts.items())[:SHOWN]) + _more(len(counts))


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""


def _word(verdict: "Verdict") -> str:
    if not verdict.loads:
        return "does not load"
    if not verdict.fits:
        return "loads, but not all of it"
    return "loads, with an option" if verdict.texts("needs") else "loads"


def _details(verdict: "Verdict") -> list[Text]:
    """Every reason in a line, and the command."""
    lines = [
        Text(
            f"{RUNTIMES[verdict.runtime].title} {finding.text}.", style="" if finding.rule.effect == "needs" else "bold"
        )
        for finding in verdict.findings
    ]
    return lines + ([unbroken(f"  {verdict.fix}")] if verdict.fix else [])
