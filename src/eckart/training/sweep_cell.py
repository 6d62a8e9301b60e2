"""One cell of a sweep: a training in a process of its own, so that its peak memory is its own.

The child reads its job as one line of JSON, writes progress and result as lines of JSON, and ends when its parent does.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eckart.engine.progress import Progress, Unit
from eckart.errors import EckartError
from eckart.nn import LoRAConfig
from eckart.training.data import DataOptions
from eckart.training.health import DivergenceError
from eckart.training.settings import TrainSettings
from eckart.training.training_run import train

GRACE_SECONDS = 10
CHILD = "from eckart.training.sweep_cell import main; main()"


@dataclass(frozen=True)
class CellJob:
    """The arguments of `train`; model and data by their names, since another process reads them."""

    model: str
    data: str
    held_out: str | None
    config: LoRAConfig
    settings: TrainSettings
    options: DataOptions | None
    output: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "CellJob":
        """The job that `asdict` turned into `content`."""
        options = content["options"]
        parts = {
            "config": LoRAConfig(**content["config"]),
            "settings": TrainSettings(**content["settings"]),
            "options": None if options is None else DataOptions(**options),
        }
        return cls(**content | parts)


RunCell = Callable[[CellJob, Progress], dict[str, Any]]
"""Trains a cell and returns the content of `train.json`; raises DivergenceError if its loss is not finite."""


class ForwardedProgress:
    """Passes every call on, as the name of a method of `Progress` and its arguments."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send

    def start(self, stage: str, total: int, unit: Unit) -> None:
        """Passes it on."""
        self._send("start", stage, total, unit)

    def update(self, amount: int, detail: str = "") -> None:
        """Passes it on."""
        self._send("update", amount, detail)

    def note(self, message: str) -> None:
        """Passes it on."""
        self._send("note", message)

    def finish(self) -> None:
        """Passes it on."""
        self._send("finish")


def labelled(progress: Progress, label: str) -> Progress:
    """The same progress with a label before every stage and note."""

    def send(method: str, *arguments: Any) -> None:
        if method in ("start", "note"):
            arguments = (f"{label}: {arguments[0]}", *arguments[1:])
        getattr(progress, method)(*arguments)

    return ForwardedProgress(send)


def train_here(job: CellJob, progress: Progress) -> dict[str, Any]:
    """Train in this process, from the beginning."""
    result = train(
        job.model,
        job.data,
        config=job.config,
        settings=job.settings,
        options=job.options,
        held_out=job.held_out,
        output=job.output,
        resume=False,
        force=True,
        progress=progress,
    )
    return result.to_json()


def train_apart(job: CellJob, progress: Progress) -> dict[str, Any]:
    """Train in a new process, which ends with this one; its errors are raised here again.

    Raises:
        DivergenceError: the loss or gradient is not finite.
        EckartError: any other error of `train`, or the process died.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only the parent, which ends the child
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(asdict(job)) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                message = json.loads(line)
                if "progress" in message:
                    method, *arguments = message["progress"]
                    getattr(progress, method)(*arguments)
                elif "error" in message:
                    raise (DivergenceError if message["diverged"] else EckartError)(message["error"])
                else:
                    return message["result"]
            child.wait()
        finally:
            _end(child)
            child.stdin.close()
            child.stdout.close()
        stderr.seek(0)
        last = stderr.read().strip().rpartition("\n")[2]
        killed = (
            f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"ended with {child.returncode}"
        )
        hint = "; it may have run out of memory" if child.returncode == -9 else ""
        msg = f"the process that trained {Path(job.output).name} {killed}{hint}{': ' if last else ''}{last}"
        raise EckartError(msg)


def _end(child: "subprocess.Popen[str]") -> None:
    """Ask the child to clean up and end, and end it if it does not."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    """The child: reads one job from stdin, and writes lines of JSON to what stdout was."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the output of libraries out of the JSON stream
    job = CellJob.from_json(json.loads(sys.stdin.readline()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def write(**content: object) -> None:
        messages.write(json.dumps(content) + "\n")
        messages.flush()

    try:
        write(result=train_here(job, ForwardedProgress(lambda *call: write(progress=call))))
    except EckartError as error:
        write(error=str(error), diverged=isinstance(error, DivergenceError))


def _end_with_parent() -> None:
    """Exit when the pipe from the parent closes, since nothing waits for the result any more."""
    sys.stdin.read()
    os._exit(1)
