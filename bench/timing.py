"""Time and memory of processes and calls, and two sides in alternation."""

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

PAUSE_SECONDS = 0.5  # BLAS threads spin for a while after their last call, on the cores of the next run
LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Run:
    """One run of one side.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time of all threads, least affected by other work on the machine.
        peak_rss_bytes: peak resident memory of the process; None for a call in this process.
        value: what the call returned, or the standard output of the process.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int | None = None
    value: Any = None


def run_process(*command: str | Path) -> Run:
    """Run a command, from the start of the interpreter to its exit.

    Raises:
        RuntimeError: it failed; the message ends with its last output.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        launcher = [sys.executable, "-I", "-S", LAUNCHER, record, *command]
        process = subprocess.run(launcher, capture_output=True, text=True, check=True)
        measured = json.loads(record.read_text())
    if measured["exit_code"] != 0:
        msg = f"{' '.join(map(str, command))} exited with {measured['exit_code']}:\n{process.stderr[-2000:]}"
        raise RuntimeError(msg)
    return Run(measured["seconds"], measured["cpu_seconds"], measured["peak_rss_bytes"], process.stdout)


def run_call(function: Callable[[], Any]) -> Run:
    """Call a function once."""
    start, cpu_start = time.perf_counter(), time.process_time()
    value = function()
    return Run(time.perf_counter() - start, time.process_time() - cpu_start, value=value)


def alternate(sides: Mapping[str, Callable[[], Run]], *, repeats: int) -> dict[str, list[Run]]:
    """Run the sides alternately, A B A B, so that a slow minute of the machine affects all of them.

    No run is discarded; a side that needs a warm-up is run once before.
    """
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            time.sleep(PAUSE_SECONDS)
            runs[name].append(side())
    return runs


def median_seconds(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)
