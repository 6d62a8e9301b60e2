"""A lab is a script: it runs in a separate process, in the quick form, with warnings as errors."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LABS = Path(__file__).parents[2] / "labs"
SECONDS = 300  # time limit of a lab, in its full form too


@dataclass(frozen=True)
class Lab:
    """What a lab printed.

    Attributes:
        numbers: every checked number as printed, by name.
        output: the complete output.
    """

    numbers: dict[str, str]
    output: str


@pytest.fixture(scope="session")
def run_lab():
    """Runs a lab by name, such as `lab1_what_svd_sees`, once per session; a failure shows the end of its output."""

    @functools.cache
    def run(name: str) -> Lab | AssertionError:
        try:
            return _run(LABS / f"{name}.py")
        except AssertionError as failed:
            return failed

    def lab(name: str) -> Lab:
        ended = run(name)
        if isinstance(ended, AssertionError):
            raise ended
        return ended

    return lab


def _run(script: Path) -> Lab:
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=LABS,
        env=os.environ | {"ECKART_LABS": "quick", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-1500:]}\n{ended.stderr[-3000:]}"
    checked = [line[2:].rpartition(": ") for line in ended.stdout.splitlines() if line.startswith("✓ ")]
    numbers = {name: value for name, _, value in checked}
    assert len(numbers) == len(checked), "two checks of a lab have the same name"
    return Lab(numbers, ended.stdout)
