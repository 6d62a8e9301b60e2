"""Finished matrices stored on disk, so that an interrupted run resumes where it stopped.

One safetensors file per matrix in a folder next to the output, each written under a temporary name and then renamed, so
no file is ever incomplete. A fingerprint of inputs and options keeps two different runs apart, and the digest in a file
shows whether it is what this run wrote for this matrix.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from eckart.engine.execution import Execution
from eckart.engine.shard import Shard, ShardDone
from eckart.engine.task import Task
from eckart.engine.tasks import run_tasks
from eckart.engine.working_folder import WorkingFolder, first_names
from eckart.errors import OptionError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "eckart-journal/2"
HEAD = "journal.json"
MODEL = "model"  # subfolder for the files of a model, which are filled in place
NAMES = rf"[0-9a-f]+\.(safetensors|tmp)|{MODEL}"


@dataclass(frozen=True)
class Record:
    """The result of one matrix: facts that JSON can express, and tensors."""

    facts: dict[str, Any]
    tensors: "dict[str, Tensor]" = field(default_factory=dict)


class Journal:
    """The folder of finished matrices of one output.

    Attributes:
        folder: the output's path with `.partial` appended.
        restarted: why the matrices of an earlier run were deleted; None if none were.
    """

    def __init__(
        self,
        output: Path,
        fingerprint: str,
        *,
        resume: bool = True,
        shard: Shard | None = None,
        collect: bool = False,
    ) -> None:
        """Open the journal of `output`, empty unless an earlier run had the same fingerprint.

        With a `shard`, other shares of the same run may open it too after `share`, and it is never emptied. With
        `collect` neither, and it must exist.

        Raises:
            OutputError: eckart did not make the folder, it cannot be written, or another process is using it; with a
                `shard` or `collect`, also if it is the journal of another run.
        """
        self.folder = output.with_name(output.name + ".partial")
        self.restarted: str | None = None
        self._fingerprint = fingerprint
        self._is_shared = shard is not None or collect
        if collect and not (self.folder / HEAD).is_file():
            msg = f"{self.folder}: no share has begun, so there is nothing to collect; run the shares first"
            raise OutputError(msg)
        self._working = WorkingFolder(self.folder, output, NAMES, marker=HEAD, shard=shard)
        try:
            self._begin({"format": FORMAT, "fingerprint": fingerprint}, resume=resume)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):
                msg = f"{self.folder}: cannot be written ({error.strerror}); choose another output"
                raise OutputError(msg) from None
            raise

    def _begin(self, header: dict[str, Any], *, resume: bool) -> None:
        """Keep the results of an earlier run with this header, or start over."""
        earlier = _header(self.folder / HEAD)
        if earlier == header and resume:
            return
        if earlier is not None and self._is_shared:
            msg = (
                f"{self.folder} contains work on other inputs, with other options or by another version of eckart: "
                "every share needs the same; delete the folder to start over"
            )
            raise OutputError(msg)
        if earlier is not None:
            self.restarted = "inputs or options changed" if earlier != header else "as requested"
        self.clear()
        self._working.write_marker(json.dumps(header))

    def load(self, name: str) -> Record | None:
        """The stored result of a matrix, or None if this run wrote none or it changed since.

        Tensors are mapped from their file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(name), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                is_own = metadata["digest"] == self._digest(name, metadata["facts"], tensors)
                return Record(json.loads(metadata["facts"]), tensors) if is_own else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def contains(self, name: str) -> bool:
        """Whether a result of this matrix is stored, whatever it is worth."""
        return self._file(name).exists()

    def save(self, name: str, record: Record) -> None:
        """Store the result of a matrix; if the process is killed meanwhile, the earlier state remains."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file = self._file(name)
        partial = file.with_name(f"{uuid4().hex}.tmp")  # another share may store the same result now
        tensors = {key: tensor.contiguous() for key, tensor in record.tensors.items()}
        try:
            facts = json.dumps(record.facts)
            save_file(tensors, partial, metadata={"facts": facts, "digest": self._digest(name, facts, tensors)})
            partial.replace(file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            msg = f"{self.folder}: cannot store {name} ({error}); free some space and run the same command again"
            raise OutputError(msg) from error

    def clear(self) -> None:
        """Delete all stored results."""
        for file in self.folder.glob("*.safetensors"):
            file.unlink()

    def require(self, missing: Collection[str], tasks: Sequence[Task[Record]]) -> None:
        """Refuse to finish without the results of some tasks.

        Raises:
            OutputError: there are any; it names the shares that have them, if all that began agree on their number.
        """
        if not missing:
            return
        shares = Shard(1, max(counts)).and_others() if len(counts := self._working.share_counts() - {0}) == 1 else []
        late = [
            str(each) for each in shares if any(task.name in missing for task in each.of(tasks, lambda t: t.nbytes))
        ]
        which = f"run the shares {first_names(late)}" if late else "run all shares"
        msg = (
            f"{self.folder}: {len(missing):,} of {len(tasks):,} matrices are not done; {which} first, or leave "
            "`collect` out to compute them here"
        )
        raise OutputError(msg)

    def share(self) -> None:
        """Let processes with other shares work here too, now that everything they have in common is there."""
        self._working.share()

    def close(self) -> None:
        """Delete the folder: the output is complete."""
        self._working.close()

    def release(self) -> None:
        """Let another process use the folder; if it contains no results and is not shared, delete it."""
        if self._is_shared or any(self.folder.glob("*.safetensors")):
            self._working.release()
        else:
            self.close()

    def _digest(self, name: str, facts: str, tensors: "Mapping[str, Tensor]") -> str:
        import torch

        outlines = {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in sorted(tensors.items())}
        digest = hashlib.sha256(json.dumps([self._fingerprint, name, facts, outlines]).encode())
        for key in outlines:
            digest.update(tensors[key].cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


@contextmanager
def open_journal(output: Path | None, fingerprint: str, execution: Execution) -> Iterator[Journal | None]:
    """The journal of an output, deleted when the block succeeds and left for the next run when it fails.

    Yields None without an output. Reports when the results of an earlier run had to be deleted.

    Raises:
        OptionError: only a share of the work is to be done, or shares are to be collected, without an output.
        OutputError: as of `Journal`.
    """
    if output is None:
        if execution.shard is not None:
            msg = "a `shard` needs an output: what it has done is stored next to it"
            raise OptionError(msg)
        if execution.collect:
            msg = "`collect` needs the output of the shares: what they have done is stored next to it"
            raise OptionError(msg)
        yield None
        return
    journal = Journal(output, fingerprint, resume=execution.resume, shard=execution.shard, collect=execution.collect)
    try:
        if journal.restarted:
            execution.progress.note(f"starting over: {journal.restarted}")
        yield journal
        journal.close()
    finally:
        journal.release()


def run_resumable(
    tasks: Sequence[Task[Record]],
    *,
    stage: str,
    execution: Execution,
    journal: Journal | None,
    is_valid: Callable[[str, Record], bool] = lambda *_: True,
    kind: str = "",
    all_needed: bool = False,
) -> dict[str, Record]:
    """Records of all tasks by name: loaded from the journal where it has them, else computed and stored there.

    Tensors of a stored record are mapped from its file, so they take no memory until they are used. A stored record of
    a task for whose name `is_valid` is false is computed again.

    Args:
        tasks: the work.
        stage: what it is called while it is done.
        execution: how it is run.
        journal: where results are stored; None keeps them in memory.
        is_valid: of a name and its stored record.
        kind: what is stored, if that is not the result for which the matrix is named.
        all_needed: whether a share needs the records of all tasks, also those that others have not done yet.

    Raises:
        ShardDone: only a share of the tasks was to be done, and is.
        OutputError: shares are to be collected, and some results are missing.
    """
    if journal is None:
        return {task.name: record for task, record in run_tasks(tasks, stage=stage, execution=execution)}
    shard, records = execution.shard, dict[str, Record]()
    shares = [tasks] if shard is None else [each.of(tasks, lambda task: task.nbytes) for each in shard.and_others()]

    def do(share: Sequence[Task[Record]]) -> None:
        stored = {task.name: record for task in share if (record := journal.load(kind + task.name))}
        records.update((name, record) for name, record in stored.items() if is_valid(name, record))
        done = sum(task.name in records for task in share)
        if done and share is shares[0]:
            execution.progress.note(f"resuming: {done} of {len(share)} matrices are already done")
        if shard is not None:
            journal.share()
        remaining = [task for task in share if task.name not in records]
        if execution.collect:
            journal.require({task.name for task in remaining}, tasks)
        for task, record in run_tasks(remaining, stage=stage, execution=execution):
            journal.save(kind + task.name, record)
            records[task.name] = journal.load(kind + task.name) or record

    do(shares[0])
    if shard is not None and not all_needed:
        raise ShardDone(shard, sum(journal.contains(task.name) for task in tasks), len(tasks))
    for share in shares[1:]:
        do(share)
    return records


def _header(file: Path) -> dict[str, Any] | None:
    """The format and fingerprint of an earlier run; {} if the file is damaged, None if there is none."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
