"""The folder in which a training works until its output is complete: its settings and its checkpoints."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eckart.checkpoint.output import check_output, remove_leftovers, working_name
from eckart.engine.working_folder import WorkingFolder, write_whole
from eckart.errors import MismatchError, OutputError

RUN_FILE = "run.json"
LAST_GOOD = "last-good"  # the adapter before a step that was refused
LOGS_FOLDER = "tensorboard"
DATA_FOLDERS = r"eckart-data-\w+"  # the sequences to train on
NAMES = rf"checkpoint-\d+|{LAST_GOOD}|\.{LAST_GOOD}\.partial|{LOGS_FOLDER}|{DATA_FOLDERS}"
STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that transformers' trainer writes


def is_writer() -> bool:
    """Whether this process writes the output: the first that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def destroy_process_group() -> None:
    """Release what processes that train together share, at the end of a program; nothing where there is only one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def working_folder(output: Path, *, resume: bool, force: bool, inputs: Sequence[Path]) -> Iterator[Path]:
    """The folder `output`.partial, locked for this process; with `resume`, an interrupted training in it is kept.

    It is deleted when the block ends, or fails with nothing to resume from and nothing to keep.

    Raises:
        OutputError: the output exists, is or contains an input, or cannot be written; the folder contains something
            else, is in use, or contains the adapter of a training that diverged.
    """
    folder = working_name(output)
    if not is_writer():
        yield folder
        return
    check_output(output, kind="folder", force=force, inputs=inputs)
    working = WorkingFolder(folder, output, NAMES, marker=RUN_FILE)
    try:
        check_output(output, kind="folder", force=force)  # another process may have written it meanwhile
        checkpoint = last_checkpoint(folder)
        if resume and not force and checkpoint is None and (folder / LAST_GOOD).exists():
            msg = (
                f"{folder / LAST_GOOD} is the adapter of a training that diverged; "
                "`resume=False` starts over without it"
            )
            raise OutputError(msg)
        if checkpoint is None or not resume:
            working.clear()
            write_run(folder, {})
        for data in folder.glob("eckart-data-*"):  # of a killed process
            shutil.rmtree(data)
        yield folder
    except BaseException:
        is_needed = last_checkpoint(folder) is not None or (folder / LAST_GOOD).exists()
        working.release() if is_needed else working.close()
        raise
    working.close()


def remove_work(output: Path) -> None:
    """Remove what a training left behind if it was killed after its output was complete."""
    remove_leftovers(output)
    if working_name(output).exists():
        WorkingFolder(working_name(output), output, NAMES, marker=RUN_FILE).close()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and _is_complete(path)]
    return max(checkpoints, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Store the settings of a training, to be compared when it resumes."""
    write_whole(folder / RUN_FILE, json.dumps(run, indent=1) + "\n")


def read_run(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and first results of the interrupted training; the settings must be `expected`.

    Raises:
        MismatchError: it has another model, adapter, setting or data; all differences are listed.
    """
    try:
        run = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError) as error:
        msg = f"{folder / RUN_FILE} cannot be read ({error}), so the training cannot resume; `resume=False` starts over"
        raise MismatchError(msg) from None
    if faults := differences(expected, run):
        msg = (
            f"the training in {folder} was started with different settings; "
            "resume with the same ones, or start over with `resume=False`"
        )
        raise MismatchError.listing(msg, faults)
    return run


def differences(now: Mapping[str, Any], before: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings, nested ones by dotted names, that two runs do not share; only those of `now` are compared."""
    faults = []
    for key, value in now.items():
        other = before.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            faults += differences(value, other, f"{prefix}{key}.")
        elif value != other:
            faults.append(f"{prefix}{key}: now {value!r}, then {other!r}")
    return faults
