"""Measurements as values, as JSON and as Markdown tables."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import THREADS
from bench.timing import Run, median_seconds

PEERS = ("transformers", "peft", "bitsandbytes", "mergekit", "weightwatcher", "scikit-learn")
PACKAGES = ("eckart", "torch", "numpy", *PEERS)


@dataclass(frozen=True)
class Side:
    """Time, memory and error of one side of a comparison, over its runs.

    Attributes:
        seconds: median wall time.
        least_seconds: the fastest run; compared with the median it shows how busy the machine was.
        cpu_seconds: median processor time of all threads.
        peak_rss_bytes: peak resident memory of its process; None if it ran in the harness.
        error: lower is better; None if the results are compared exactly.
    """

    seconds: float
    least_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int | None = None
    error: float | None = None

    @classmethod
    def of(cls, runs: Sequence[Run], *, error: float | None = None) -> "Side":
        peaks = [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None]
        return cls(
            seconds=median_seconds(runs),
            least_seconds=min(run.seconds for run in runs),
            cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
            peak_rss_bytes=max(peaks, default=None),
            error=error,
        )


@dataclass(frozen=True)
class Comparison:
    """A task of eckart and of a peer, in one paired run.

    Attributes:
        target: what eckart should achieve, in words.
        met: whether it did.
        measure: definition of the two errors.
        note: remarks needed to judge the comparison.
    """

    task: str
    peer: str
    ours: Side
    theirs: Side
    target: str
    met: bool
    measure: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """The peer's time divided by eckart's."""
        return self.theirs.seconds / self.ours.seconds


@dataclass(frozen=True)
class Limit:
    """A number that should stay below a limit, without a peer."""

    task: str
    value: float
    limit: float
    unit: str
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.limit


Row = Comparison | Limit


def save(folder: Path, section: str, rows: Sequence[Row]) -> None:
    """Write a section's rows and their machine into `folder`/results.json, and rewrite RESULTS.md."""
    path = folder / "results.json"
    sections = json.loads(path.read_text()) if path.exists() else {}
    entries = [
        asdict(row) | ({"ratio": row.ratio} if isinstance(row, Comparison) else {"met": row.met}) for row in rows
    ]
    sections[section] = {"machine": machine(), "rows": entries}
    path.write_text(json.dumps(sections, indent=2) + "\n")
    by_machine: dict[str, list[Row]] = {}
    for saved in sections.values():
        by_machine.setdefault(_about(saved["machine"]), []).extend(map(_row, saved["rows"]))
    (folder / "RESULTS.md").write_text("\n".join(_tables(about, rows) for about, rows in by_machine.items()))


def machine() -> dict[str, str | int]:
    """Processor, threads, and the versions of the compared tools."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{len(names)} × {names[0]}" if names else cpu
    installed = {distribution.name for distribution in metadata.distributions()}
    versions = {name: metadata.version(name) for name in PACKAGES if name in installed}
    return {"cpu": cpu, "threads": THREADS, "python": platform.python_version()} | versions


def markdown(rows: Sequence[Row]) -> str:
    """Two tables: comparisons with peers, and limits; measured on this machine."""
    return _tables(_about(machine()), rows)


def _about(facts: Mapping[str, str | int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _tables(about: str, rows: Sequence[Row]) -> str:
    lines = [f"Measured on: {about}.", ""]
    comparisons = [row for row in rows if isinstance(row, Comparison)]
    if comparisons:
        lines += _table(COMPARISON_HEADS, [_comparison_cells(row) for row in comparisons])
    limits = [row for row in rows if isinstance(row, Limit)]
    if limits:
        lines += _table(LIMIT_HEADS, [_limit_cells(row) for row in limits])
    return "\n".join(lines)


TIME_HEADS = ("peer s", "eckart s", "ratio", "target", "met")
COMPARISON_HEADS = ("task", "peer", *TIME_HEADS, "peer error", "error", "peer memory", "memory", "note")
LIMIT_HEADS = ("task", "measured", "limit", "met", "note")


def _comparison_cells(row: Comparison) -> list[str]:
    return [
        row.task,
        row.peer,
        f"{row.theirs.seconds:.3g}",
        f"{row.ours.seconds:.3g}",
        f"**{row.ratio:.3g}×**",
        row.target,
        _yes(row.met),
        _number(row.theirs.error),
        _number(row.ours.error),
        _megabytes(row.theirs.peak_rss_bytes),
        _megabytes(row.ours.peak_rss_bytes),
        "; ".join(filter(None, [f"error: {row.measure}" if row.measure else "", row.note])),
    ]


def _limit_cells(row: Limit) -> list[str]:
    return [row.task, f"{row.value:.3g} {row.unit}", f"{row.limit:.3g} {row.unit}", _yes(row.met), row.note]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)), ""]


def _row(entry: dict[str, Any]) -> Row:
    if "peer" not in entry:
        return Limit(**{name: entry[name] for name in Limit.__dataclass_fields__})
    fields: dict[str, Any] = {name: entry[name] for name in Comparison.__dataclass_fields__}
    fields |= {name: Side(**entry[name]) for name in ("ours", "theirs")}
    return Comparison(**fields)


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"
