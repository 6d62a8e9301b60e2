"""The folder of a sweep: whose it is, and the cells that are finished in it."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eckart.checkpoint import atomic_file, check_output
from eckart.errors import OutputError

SETTINGS_FILE, CELLS = "sweep-settings.json", "cells"


@contextmanager
def opened(folder: Path, about: dict[str, Any], *, force: bool) -> Iterator[None]:
    """The folder of a sweep of these settings, for this process alone."""
    file = folder / SETTINGS_FILE
    if not folder.exists():
        check_output(folder)
        folder.mkdir()
    elif any(folder.iterdir()) and not file.exists():
        msg = f"{folder}: it exists and holds no sweep; give another output, or remove it"
        raise OutputError(msg)
    lock = FileLock(folder / "lock", timeout=0, thread_local=False)
    try:
        held = lock.acquire()
    except Timeout:
        msg = f"{folder}: another sweep is at work in it; wait for it, or give another output"
        raise OutputError(msg) from None
    with held:
        if force:
            for kept in (path for path in folder.iterdir() if path.name != "lock"):
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        if any((folder / CELLS).glob("*/train.json")) or any((folder / CELLS).glob("*.failed.json")):
            _check_same_settings(folder, about)
        (folder / CELLS).mkdir(exist_ok=True)
        with atomic_file(file, force=True) as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        yield


def _check_same_settings(folder: Path, about: dict[str, Any]) -> None:
    try:
        before = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError as broken:
        msg = f"{folder / SETTINGS_FILE} is not JSON ({broken}); --force starts the sweep over"
        raise OutputError(msg) from broken
    was, now = _flat(before), _flat(about)
    faults = [
        f"{key} is {now.get(key)!r}, was {was.get(key)!r}" for key in {**was, **now} if was.get(key) != now.get(key)
    ]
    if faults:
        msg = f"{folder} holds a sweep of other settings; give another output, or start over: --force"
        raise OutputError.listing(msg, faults)


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in content.items())
    return {key: value for part in parts for key, value in part.items()}


def cell_name(rank: int, target: str, seed: int) -> str:
    """The name of a cell's folder; what no name can hold is spelt by its code."""
    plain = re.sub(r"[^\w.+-]", lambda character: f"%{ord(character[0]):x}", target)
    return f"{plain}-rank{rank}-seed{seed}"


def kept_cell(folder: Path, name: str) -> dict[str, Any] | None:
    """What an earlier run kept of a cell: its `train.json`, or the error of one that failed."""
    for file in (folder / CELLS / name / "train.json", _failure(folder / CELLS / name)):
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


def keep_failure(cell: Path, error: str) -> dict[str, Any]:
    """Keep why a cell has no result."""
    content = {"error": error}
    with atomic_file(_failure(cell), force=True) as partial:
        partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return content


def _failure(cell: Path) -> Path:
    return cell.with_name(f"{cell.name}.failed.json")
