"""Folders of a run, and how often it repeats."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Options of one run of the benchmark.

    Attributes:
        pair: folder with `base` and `tuned`, created if missing.
        work: folder for cached matrices, references and the outputs of both sides.
        repeats: paired runs of a slow comparison; fast ones repeat more often.
        sd_scripts: a checkout of sd-scripts; None compares with recorded results of its.
    """

    pair: Path
    work: Path
    repeats: int
    sd_scripts: Path | None = None


def script(name: str) -> Path:
    """A command of the current environment."""
    return Path(sys.executable).with_name(name)
