"""Reading results from folders, recognized by their file names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eckart.checkpoint.links import refuse_links
from eckart.checkpoint.result_files import read_result
from eckart.errors import SourceError
from eckart.operations import Analysis
from eckart.training.trajectory import Dynamics, read_dynamics

ANALYSIS, DYNAMICS, TRAINING = "analysis.json", "dynamics.json", "train.json"
SWEEP, COMPARISON = "sweep.json", "comparison.json"
EXTRACTION, RESIZING = "extract.json", "resize.json"
FORMATS = {
    TRAINING: "eckart-train/1",
    SWEEP: "eckart-sweep/1",
    EXTRACTION: "eckart-extract/2",
    RESIZING: "eckart-resize/2",
    COMPARISON: "eckart-compare/2",
}
FILES = (ANALYSIS, TRAINING, DYNAMICS, SWEEP, EXTRACTION, RESIZING, COMPARISON)


@dataclass
class Results:
    """The results on one page, by the name of their folder.

    Attributes:
        analyses: spectra of weights, differences or adapters.
        trainings: `train.json` and the recorded dynamics; either may be missing.
        sweeps: contents of `sweep.json`.
        extractions: contents of `extract.json`, or of the `resize.json` of a rank chosen by its gain.
        comparisons: contents of `comparison.json`.
    """

    analyses: dict[str, Analysis] = field(default_factory=dict)
    trainings: dict[str, tuple[dict[str, Any] | None, Dynamics | None]] = field(default_factory=dict)
    sweeps: dict[str, dict[str, Any]] = field(default_factory=dict)
    extractions: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.analyses or self.trainings or self.sweeps or self.extractions or self.comparisons)


def read_results(folders: Sequence[str | Path], titles: Sequence[str] | None = None) -> Results:
    """The results in folders that `eckart analyze`, `extract`, `resize`, `train`, `sweep` and `compare` wrote.

    Args:
        folders: folders with at least one result each.
        titles: their names on the page, all different; by default the names of the folders.

    Raises:
        SourceError: a folder is missing or contains no result; all faults together.
        FileFormatError: a file is damaged or of another version.
    """
    results, faults = Results(), []
    for folder, label in zip(map(Path, folders), titles or _labels(folders), strict=True):
        if not folder.is_dir():
            faults.append(f"{folder}: no such folder")
        elif not _read(folder, label, results):
            faults.append(f"{folder}: contains none of {', '.join(FILES)}")
    if faults:
        msg = "a report needs folders that eckart analyze, extract, resize, train, sweep or compare wrote with -o"
        raise SourceError.listing(msg, faults)
    return results


def _read(folder: Path, label: str, results: Results) -> bool:
    """Add the results of one folder; False if it has none."""
    files = {name for name in FILES if (folder / name).is_file()}
    refuse_links([folder / name for name in files], folder)
    if ANALYSIS in files:
        results.analyses[label] = Analysis.load(folder)
    if files & {TRAINING, DYNAMICS}:
        result = _json(folder / TRAINING) if TRAINING in files else None
        results.trainings[label] = result, read_dynamics(folder) if DYNAMICS in files else None
    if SWEEP in files:
        results.sweeps[label] = _json(folder / SWEEP)
    for name in files & {EXTRACTION, RESIZING}:
        results.extractions[label] = _json(folder / name)
    if COMPARISON in files:
        results.comparisons[label] = _json(folder / COMPARISON)
    return bool(files)


def _json(file: Path) -> dict[str, Any]:
    """The content of a result file, checked."""
    return read_result(file, [FORMATS[file.name]])


def _labels(folders: Sequence[str | Path]) -> list[str]:
    """A name for each folder: the last part of its path, or the full path if that is ambiguous."""
    short = [Path(folder).resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
