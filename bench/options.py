"""Where a run finds and keeps things, and how often it repeats."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Choices of one run of the benchmark.

    Attributes:
        pair: folder with `base` and `tuned`, made if missing.
        work: cached matrices, references and the outputs of both sides.
        repeats: paired runs of a slow comparison; quick ones repeat more.
    """

    pair: Path
    work: Path
    repeats: int


def script(name: str) -> Path:
    """A command that is installed in the environment this runs in."""
    return Path(sys.executable).with_name(name)
