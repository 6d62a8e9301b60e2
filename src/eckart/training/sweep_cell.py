"""One cell of a sweep: a training, in a process of its own so that the memory it is charged with is its own.

The child reads its job as one line of JSON, and ends when its parent does. What it tells, it tells as lines of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eckart.errors import EckartError
from eckart.nn import LoRAConfig
from eckart.training.data import DataOptions
from eckart.training.health import DivergenceError
from eckart.training.settings import TrainSettings
from eckart.training.training_run import train
from eckart.training.watching import Watcher

CHILD = "from eckart.training.sweep_cell import main; main()"


@dataclass(frozen=True)
class CellJob:
    """What `train` is to be called with; sources by their names, since another process reads them."""

    model: str
    data: str
    held_out: str | None
    config: LoRAConfig
    settings: TrainSettings
    options: DataOptions | None
    output: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CellJob":
        """The job that `asdict` described."""
        options = content["options"]
        parts = {
            "config": LoRAConfig(**content["config"]),
            "settings": TrainSettings(**content["settings"]),
            "options": None if options is None else DataOptions(**options),
        }
        return cls(**content | parts)


RunCell = Callable[[CellJob, Watcher], dict[str, Any]]
"""Trains a cell and gives what `train.json` holds; DivergenceError where its loss is not finite."""


def train_here(job: CellJob, watcher: Watcher) -> dict[str, Any]:
    """Train in this process, from the start."""
    result = train(
        job.model,
        job.data,
        config=job.config,
        settings=job.settings,
        options=job.options,
        held_out=job.held_out,
        output=job.output,
        force=True,
        watcher=watcher,
    )
    return result.to_json()


def train_apart(job: CellJob, watcher: Watcher) -> dict[str, Any]:
    """Train in a fresh process, which ends with this one; errors arrive as they were raised there.

    Raises:
        DivergenceError: the loss or gradient is not finite.
        EckartError: whatever else `train` refuses, or the process died.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(asdict(job)) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                told = json.loads(line)
                if "at" in told:
                    watcher.at(*told["at"])
                elif "note" in told:
                    watcher.note(told["note"])
                elif "error" in told:
                    raise (DivergenceError if told["diverged"] else EckartError)(told["error"])
                else:
                    return told["result"]
            child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
        stderr.seek(0)
        last = stderr.read().strip().rpartition("\n")[2]
        killed = (
            f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"ended with {child.returncode}"
        )
        hint = "; the memory may have been too small" if child.returncode == -9 else ""
        msg = f"the process that trained {Path(job.output).name} {killed}{hint}{': ' if last else ''}{last}"
        raise EckartError(msg)


def main() -> None:
    """The child: one job from stdin, lines of JSON on what stdout was."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no line of ours
    job = CellJob.from_json(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(**content: object) -> None:
        told.write(json.dumps(content) + "\n")
        told.flush()

    try:
        tell(result=train_here(job, _Telling(tell)))
    except EckartError as error:
        tell(error=str(error), diverged=isinstance(error, DivergenceError))


def _end_with_parent() -> None:
    """Leave when the pipe from the parent closes: nobody waits for the result."""
    sys.stdin.read()
    os._exit(1)


class _Telling:
    """A watcher that passes on what it is told."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """Pass it on."""
        self._tell(at=[stage, done, total, loss])

    def note(self, message: str) -> None:
        """Pass it on."""
        self._tell(note=message)
