"""What result folders hold, told by the files in them and read with the libraries that wrote them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eckart.errors import FileFormatError, SourceError
from eckart.operations import Analysis
from eckart.training.trajectory import Dynamics, read_dynamics

ANALYSIS, DYNAMICS, TRAINING, SWEEP, EXTRACTION = (
    *("analysis.json", "dynamics.json", "train.json", "sweep.json", "extract.json"),
)
FORMATS = {TRAINING: "eckart-train/1", SWEEP: "eckart-sweep/1", EXTRACTION: "eckart-extract/2"}
MOST_BYTES = 512 * 2**20


@dataclass
class Results:
    """Everything that goes on one page, each thing under the name of its folder.

    Attributes:
        analyses: spectra of weights, differences or adapters.
        trainings: `train.json` and what was recorded of it; either may be missing.
        sweeps: `sweep.json` of each.
        extractions: `extract.json` of each.
    """

    analyses: dict[str, Analysis] = field(default_factory=dict)
    trainings: dict[str, tuple[dict[str, Any] | None, Dynamics | None]] = field(default_factory=dict)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    extractions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.analyses or self.trainings or self.sweeps or self.extractions)


def read_results(folders: Sequence[str | Path], titles: Sequence[str] | None = None) -> Results:
    """The results in folders that `eckart analyze`, `extract`, `train` and `sweep` wrote.

    Args:
        folders: each with at least one result.
        titles: what the page calls them, all different; without, the names of the folders.

    Raises:
        SourceError: a folder is missing or holds no result; all faults together.
        FileFormatError: a file is damaged, or of another version.
    """
    results, faults = Results(), []
    for folder, label in zip(map(Path, folders), titles or _labels(folders), strict=True):
        if not folder.is_dir():
            faults.append(f"{folder}: no such folder")
        elif not _read(folder, label, results):
            faults.append(f"{folder}: holds none of {', '.join((ANALYSIS, TRAINING, DYNAMICS, SWEEP, EXTRACTION))}")
    if faults:
        msg = "a report is made of folders that eckart analyze, extract, train or sweep wrote with -o"
        raise SourceError.listing(msg, faults)
    return results


def _read(folder: Path, label: str, results: Results) -> bool:
    """Take up what one folder holds; False where that is nothing."""
    found = {name for name in (ANALYSIS, DYNAMICS, TRAINING, SWEEP, EXTRACTION) if (folder / name).is_file()}
    if ANALYSIS in found:
        results.analyses[label] = Analysis.load(folder)
    if found & {TRAINING, DYNAMICS}:
        told = _json(folder / TRAINING) if TRAINING in found else None
        results.trainings[label] = told, read_dynamics(folder) if DYNAMICS in found else None
    if SWEEP in found:
        results.sweeps[label] = _json(folder / SWEEP)
    if EXTRACTION in found:
        results.extractions[label] = _json(folder / EXTRACTION)
    return bool(found)


def _json(file: Path) -> dict[str, Any]:
    """The object in a result file of the format that belongs to its name."""
    if file.stat().st_size > MOST_BYTES:
        msg = f"{file}: {file.stat().st_size:,} bytes are too many for a result"
        raise FileFormatError(msg)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as broken:
        msg = f"{file} is not JSON: {broken}"
        raise FileFormatError(msg) from broken
    expected = FORMATS[file.name]
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != expected:
        msg = f"{file}: its format is {found!r}, expected {expected!r}"
        raise FileFormatError(msg)
    return content


def _labels(folders: Sequence[str | Path]) -> list[str]:
    """Names that tell folders apart: the last part of each path, or all of it where that is not enough."""
    short = [Path(folder).resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
