"""The folder in which a training works before its output is whole: what it was started with, and its checkpoints."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from eckart.checkpoint.output import check_output
from eckart.errors import MismatchError, OutputError

RUN_FILE = "run.json"
LAST_GOOD = "last-good"  # the adapter before a step that was refused
STATE_FILE = "trainer_state.json"  # written last of a checkpoint by transformers' trainer


def is_writer() -> bool:
    """Whether this process is the one of all that writes: the first that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def part() -> None:
    """End what processes that train together share, at the end of a program that only trained."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def prepare(output: Path, *, resume: bool, force: bool) -> Path:
    """The folder `output`.partial, made where there is none; refused where something would be lost.

    Raises:
        OutputError: the output exists or cannot be written, an earlier training waits to go on, or the folder holds
            something else.
    """
    folder = output.with_name(f"{output.name}.partial")
    if not is_writer():
        return folder
    check_output(output, force=force)
    if folder.exists() and any(folder.iterdir()) and not (folder / RUN_FILE).exists():
        msg = f"{folder}: training works in this folder, and something else is in it; give another output, or remove it"
        raise OutputError(msg)
    waiting = last_checkpoint(folder)
    if waiting is not None and not resume and not force:
        msg = f"{folder} holds a training stopped after step {step_of(waiting)}: --resume goes on, --force starts over"
        raise OutputError(msg)
    if waiting is None and (folder / LAST_GOOD).exists() and not force:
        msg = f"{folder / LAST_GOOD} is the adapter of a training that diverged: --force starts over without it"
        raise OutputError(msg)
    if waiting is None or not resume:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_run(folder, {})
    return folder


def clear_if_idle(folder: Path) -> None:
    """Take the folder of a training that ended early away, unless it holds what another could go on from."""
    if is_writer() and last_checkpoint(folder) is None and not (folder / LAST_GOOD).exists():
        shutil.rmtree(folder, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit() and _is_whole(path)]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Keep what a training was started with, for one that goes on."""
    partial = folder / f".{RUN_FILE}"
    partial.write_text(json.dumps(run, indent=1) + "\n")
    partial.replace(folder / RUN_FILE)


def read_run(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What the earlier training was started with, and found; it must be what is expected of this one.

    Raises:
        MismatchError: another model, adapter, setting or data; every difference is listed.
    """
    try:
        run = json.loads((folder / RUN_FILE).read_text())
    except (OSError, ValueError) as error:
        msg = f"{folder / RUN_FILE} cannot be read ({error}), so that nothing goes on from here; --force starts over"
        raise MismatchError(msg) from None
    faults = _differences(expected, run, "")
    if faults:
        msg = f"the training in {folder} was started otherwise, and goes on only as it was:"
        raise MismatchError.listing(msg, faults)
    return run


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str) -> list[str]:
    faults = []
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            faults += _differences(value, other, f"{where}{key}.")
        elif value != other:
            faults.append(f"{where}{key}: now {value!r}, then {other!r}")
    return faults
