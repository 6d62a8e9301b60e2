"""Finished matrices kept on disk, so that a killed run goes on where it was.

One safetensors file a matrix in a folder beside the output, each written under a temporary name and renamed: what is
there is whole. A fingerprint of inputs and options guards against mixing two runs.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eckart.engine.execution import Execution
from eckart.engine.tasks import Task, run_tasks
from eckart.errors import OutputError

FORMAT = "eckart-journal/1"


@dataclass(frozen=True)
class Record:
    """What is kept of one matrix: facts as JSON, and tensors."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Journal:
    """The folder of finished matrices of one output.

    Attributes:
        folder: where they are kept: the output's name with `.partial` behind it.
        restarted: why an earlier run's matrices were thrown away, None if none were.
    """

    def __init__(self, output: Path, fingerprint: str, *, resume: bool = True) -> None:
        """Open the journal of `output`, empty unless an earlier run had the same fingerprint.

        Raises:
            OutputError: the folder cannot be written, or another run is at work in it.
        """
        self.folder = output.with_name(output.name + ".partial")
        self.restarted: str | None = None
        header = {"format": FORMAT, "fingerprint": fingerprint}
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock: int | None = _locked(self.folder / "lock")
            head = self.folder / "journal.json"
            kept = _header(head)
            if kept != header or not resume:
                if kept is not None:
                    self.restarted = "inputs or options changed" if kept != header else "--no-resume"
                self.forget()
                head.write_text(json.dumps(header))
        except BlockingIOError:
            msg = f"{self.folder}: another run is writing {output}; wait for it, or choose another output"
            raise OutputError(msg) from None
        except OSError as error:
            msg = f"{self.folder}: cannot be written ({error.strerror}); choose another output"
            raise OutputError(msg) from None

    def load(self, name: str) -> Record | None:
        """What was kept of a matrix, or None. Tensors are read lazily from their file."""
        try:
            with safe_open(self._file(name), framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                return Record(facts, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def keep(self, name: str, record: Record) -> None:
        """Keep a matrix; safe to be killed in."""
        file = self._file(name)
        partial = file.with_suffix(".tmp")
        tensors = {key: tensor.contiguous() for key, tensor in record.tensors.items()}
        try:
            save_file(tensors, partial, metadata={"name": name, "facts": json.dumps(record.facts)})
            partial.replace(file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            msg = f"{self.folder}: {name} cannot be kept ({error}); free some space and run the same command again"
            raise OutputError(msg) from error

    def forget(self) -> None:
        """Throw away what was kept."""
        for file in self.folder.glob("*.safetensors"):
            file.unlink()

    def close(self) -> None:
        """Throw everything away: the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let another run go on from what is kept; where that is nothing, leave nothing."""
        if self._lock is None:
            return
        if not any(self.folder.glob("*.safetensors")):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


@contextmanager
def journal_of(output: Path | None, fingerprint: str, execution: Execution) -> Iterator[Journal | None]:
    """The journal of an output while it is worked on: thrown away when the block ends well, kept when it does not.

    Without an output nothing is kept. The user is told when an earlier run's matrices had to be thrown away.
    """
    if output is None:
        yield None
        return
    journal = Journal(output, fingerprint, resume=execution.resume)
    try:
        if journal.restarted:
            execution.progress.note(f"starting over: {journal.restarted}")
        yield journal
        journal.close()
    finally:
        journal.release()


def run_kept(
    tasks: Sequence[Task[Record]], *, stage: str, execution: Execution, journal: Journal | None
) -> dict[str, Record]:
    """Records of all tasks by name: those the journal kept, and the others by running, kept as they come.

    Tensors of a kept record are mapped from its file rather than held in memory.
    """
    if journal is None:
        return {task.name: record for task, record in run_tasks(tasks, stage=stage, execution=execution)}
    records = {task.name: kept for task in tasks if (kept := journal.load(task.name))}
    if records:
        execution.progress.note(f"going on from an earlier run: {len(records)} of {len(tasks)} matrices are done")
    rest = [task for task in tasks if task.name not in records]
    for task, record in run_tasks(rest, stage=stage, execution=execution):
        journal.keep(task.name, record)
        records[task.name] = journal.load(task.name) or record
    return records


def _locked(file: Path) -> int:
    """A descriptor that holds the file's lock until it is closed; BlockingIOError if another does."""
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _header(file: Path) -> dict[str, Any] | None:
    """What the journal says of itself; {} if it is damaged, None if there is none."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
