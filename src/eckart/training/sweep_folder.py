"""The folder of a sweep: its settings, and its finished cells."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eckart.checkpoint import atomic_file, check_output
from eckart.checkpoint.manifest import foreign_files
from eckart.checkpoint.output import publish
from eckart.engine.working_folder import WorkingFolder
from eckart.errors import MismatchError, OutputError
from eckart.result import Finish
from eckart.training.rundir import differences, remove_work
from eckart.training.sweep_result import RESULT_FILE, Sweep

SETTINGS_FILE, CELLS = "sweep-settings.json", "cells"
RESULT_FOLDER = ".result"  # result, figure and page until all of them are there
NAMES = rf"{CELLS}|\{RESULT_FOLDER}|\.?(sweep\.json|sweep\.png|report\.html)(\.partial)?"


@contextmanager
def sweep_folder(
    folder: Path, shared: dict[str, Any], *, resume: bool, force: bool, inputs: Sequence[Path]
) -> Iterator[None]:
    """Create or reuse the folder of a sweep with these settings, and lock it for this process.

    It is deleted again when the block fails before the first cell.

    Raises:
        OutputError: the folder is or contains an input, contains something else or a finished sweep that must not be
            replaced, or is in use.
        MismatchError: it contains a sweep with different settings.
    """
    check_output(folder, kind="folder", reuse=True, inputs=inputs)
    working = WorkingFolder(folder, folder, NAMES, marker=SETTINGS_FILE)
    try:
        is_finished = (folder / RESULT_FILE).exists()
        if is_finished and not resume and not force:
            msg = f"{folder} contains a finished sweep; use `force` to replace it"
            raise OutputError(msg)
        if force or not resume:
            _refuse_foreign(folder / CELLS)
            working.clear()
        if any((folder / CELLS).glob("*/train.json")) or any((folder / CELLS).glob("*.failed.json")):
            _check_same_settings(folder, shared, start_over="`force`" if is_finished else "`resume=False`")
        working.write_marker(json.dumps(shared, indent=1) + "\n")
        (folder / CELLS).mkdir(exist_ok=True)
        yield
    except BaseException:
        working.release() if any((folder / CELLS).glob("*")) else working.close()
        raise
    working.release()


def _refuse_foreign(cells: Path) -> None:
    """Refuse to start over where a cell's folder contains something that eckart did not write."""
    foreign = [f"{cell.name}/{name}" for cell in _finished(cells) for name in foreign_files(cell)]
    if foreign:
        msg = f"{cells} contains files that eckart did not write; move them away, or choose another output"
        raise OutputError.listing(msg, foreign)


def _finished(cells: Path) -> list[Path]:
    return sorted(cell for cell in cells.glob("*") if cell.is_dir() and not cell.name.endswith(".partial"))


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


def write_result(folder: Path, result: Sweep, finish: Finish[Sweep] | None) -> None:
    """Write `sweep.json` and what `finish` adds to it; it appears last, because it marks a finished sweep."""
    partial = folder / RESULT_FOLDER
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir()
    try:
        text = json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n"
        (partial / RESULT_FILE).write_text(text, encoding="utf-8")
        if finish is not None:
            finish(partial, result)
        for file in sorted(partial.iterdir(), key=lambda each: each.name == RESULT_FILE):
            publish(file, folder / file.name, force=True)
    finally:
        shutil.rmtree(partial)


def cell_name(rank: int, target: str, seed: int) -> str:
    """The name of a cell's folder; characters that a file name cannot contain are replaced by their code."""
    plain = re.sub(r"[^\w.+-]", lambda character: f"%{ord(character[0]):x}", target)
    return f"{plain}-rank{rank}-seed{seed}"


def finished_cell(cell: Path) -> dict[str, Any] | None:
    """The `train.json` of a finished cell, or the error of a failed one; None if it has to be trained.

    What is left of a training that was killed at its very end is removed.
    """
    for file in (cell / "train.json", _failure_file(cell)):
        if file.exists():
            if file.parent == cell:
                remove_work(cell)
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
