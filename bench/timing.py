"""Time and memory: whole processes, calls, and two sides in turn."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAUSE_SECONDS = 0.5  # a BLAS's threads spin for a while after their last call, on the cores of whoever comes next
LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Run:
    """One run of one side.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time of all threads, which other work on the machine disturbs least.
        peak_rss_bytes: largest resident memory of the process; None for a call inside this process.
        value: what the call returned, or the standard output of the process.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int | None = None
    value: Any = None


def run_process(*command: str | Path) -> Run:
    """Run a command to its end, from the start of the interpreter to its exit.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote last.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        launcher = [sys.executable, "-I", "-S", LAUNCHER, record, *command]
        done = subprocess.run(launcher, capture_output=True, text=True, check=True)
        measured = json.loads(record.read_text())
    if measured["exit_code"] != 0:
        msg = f"{' '.join(map(str, command))} ended with {measured['exit_code']}:\n{done.stderr[-2000:]}"
        raise RuntimeError(msg)
    return Run(measured["seconds"], measured["cpu_seconds"], measured["peak_rss_bytes"], done.stdout)


def run_call(function: Callable[[], Any]) -> Run:
    """Call a function once."""
    start, cpu_start = time.perf_counter(), time.process_time()
    value = function()
    return Run(time.perf_counter() - start, time.process_time() - cpu_start, value=value)


def alternate(sides: Mapping[str, Callable[[], Run]], *, repeats: int) -> dict[str, list[Run]]:
    """Run the sides in turn, A B A B, so that a slow minute of the machine meets them all.

    Nothing is thrown away here: a side that needs warming up is run once before.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            time.sleep(PAUSE_SECONDS)
            runs[name].append(side())
    return runs


def median_seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)
