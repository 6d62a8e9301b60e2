"""The folder of a sweep: its settings, and its finished cells."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eckart.checkpoint import atomic_file, check_output
from eckart.errors import MismatchError, OutputError
from eckart.training.rundir import differences
from eckart.training.sweep_result import RESULT_FILE

SETTINGS_FILE, CELLS = "sweep-settings.json", "cells"


@contextmanager
def sweep_folder(folder: Path, shared: dict[str, Any], *, resume: bool, force: bool) -> Iterator[None]:
    """Create or reuse the folder of a sweep with these settings, and lock it for this process.

    Raises:
        OutputError: the folder contains something else, a finished sweep that must not be replaced, or a sweep in
            progress.
        MismatchError: it contains a sweep with different settings.
    """
    if not folder.exists():
        check_output(folder)
        folder.mkdir()
    elif any(folder.iterdir()) and not (folder / SETTINGS_FILE).exists():
        msg = f"{folder} exists and is not a sweep; choose another output, or remove it"
        raise OutputError(msg)
    with _locked(folder):
        is_finished = (folder / RESULT_FILE).exists()
        if is_finished and not resume and not force:
            msg = f"{folder} contains a finished sweep; use `force` to replace it"
            raise OutputError(msg)
        if force or not resume:
            for path in (path for path in folder.iterdir() if path.name != "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if any((folder / CELLS).glob("*/train.json")) or any((folder / CELLS).glob("*.failed.json")):
            _check_same_settings(folder, shared, start_over="`force`" if is_finished else "`resume=False`")
        (folder / CELLS).mkdir(exist_ok=True)
        with atomic_file(folder / SETTINGS_FILE, force=True) as partial:
            partial.write_text(json.dumps(shared, indent=1) + "\n", encoding="utf-8")
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / "lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        msg = f"another sweep is running in {folder}; wait for it, or choose another output"
        raise OutputError(msg) from None
    try:
        yield
    finally:
        lock.release()


def _check_same_settings(folder: Path, shared: dict[str, Any], *, start_over: str) -> None:
    try:
        before = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        msg = f"{folder / SETTINGS_FILE} is not JSON ({error}): the sweep cannot resume; start over with {start_over}"
        raise MismatchError(msg) from error
    if faults := differences(shared, before):
        msg = (
            f"the sweep in {folder} was started with different settings; "
            f"resume with the same ones, choose another output, or start over with {start_over}"
        )
        raise MismatchError.listing(msg, faults)


def cell_name(rank: int, target: str, seed: int) -> str:
    """The name of a cell's folder; characters that a file name cannot contain are replaced by their code."""
    plain = re.sub(r"[^\w.+-]", lambda character: f"%{ord(character[0]):x}", target)
    return f"{plain}-rank{rank}-seed{seed}"


def finished_cell(cell: Path) -> dict[str, Any] | None:
    """The `train.json` of a finished cell, or the error of a failed one; None if it has to be trained."""
    for file in (cell / "train.json", _failure_file(cell)):
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def record_failure(cell: Path, error: str) -> dict[str, Any]:
    """Record why a cell has no result."""
    content = {"error": error}
    with atomic_file(_failure_file(cell), force=True) as partial:
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return content


def _failure_file(cell: Path) -> Path:
    return cell.with_name(f"{cell.name}.failed.json")
