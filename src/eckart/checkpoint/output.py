"""Outputs that appear completely or not at all: checked before work, written under another name, then renamed.

`force` replaces only what eckart wrote, and no output replaces or shares a file with an input.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from eckart.checkpoint.manifest import (
    CARD,
    foreign_files,
    has_manifest,
    is_edited_card,
    is_written_by_eckart,
    write_manifest,
)
from eckart.checkpoint.overlap import shared_with_inputs
from eckart.engine.working_folder import WorkingFolder, first_names
from eckart.errors import OutputError

Kind = Literal["file", "folder"]
_WRITING_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_NEW, _OLD = "new", "old"
_LONGEST_NAME = 240  # bytes; what eckart adds to a name must fit into 255


def check_output(
    path: Path,
    needed_bytes: int = 0,
    *,
    kind: Kind | None = None,
    force: bool = False,
    reuse: bool = False,
    inputs: Sequence[Path | None] = (),
) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Args:
        path: the file or folder to be written.
        needed_bytes: its size; compared with the free space.
        kind: whether a file or a folder is to be written; what exists must be the same. None if either may be.
        force: whether an existing result of eckart may be replaced.
        reuse: whether work continues in an existing folder.
        inputs: every file and folder that is read; a file of a model or PEFT adapter stands for its folder. Neither
            `path` nor the folder `path`.partial may be one of them, contain one, be inside one, or share a file.

    Raises:
        OutputError: with all faults.
    """
    path, parent = Path(path), Path(path).absolute().parent
    working = working_name(path)
    faults = [fault] if (fault := _existing_fault(path, kind, force=force)) and not (reuse and path.is_dir()) else []
    if fault := shared_with_inputs(path, inputs) or shared_with_inputs(working, inputs):
        faults = [f"{fault}, and inputs are never changed; choose another name"]
    if not parent.is_dir():
        faults.append(f"its folder {parent} does not exist; create it first")
    elif not os.access(parent, os.W_OK | os.X_OK):
        faults.append(f"its folder {parent} is not writable")
    elif (free := shutil.disk_usage(parent).free) < needed_bytes:
        faults.append(f"it needs {_size(needed_bytes)} and {parent} has {_size(free)} free")
    if faults:
        msg = f"{path}: this output cannot be written"
        raise OutputError.listing(msg, faults)


def working_name(path: Path) -> Path:
    """The folder next to an output in which long work keeps what is finished, so that an interrupted run resumes.

    Raises:
        OutputError: the output's name is too long for it.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        msg = f"{path}: its name is longer than {_LONGEST_NAME} bytes; choose a shorter one"
        raise OutputError(msg)
    return path.with_name(f"{path.name}.partial")


@contextmanager
def atomic_directory(path: Path, *, force: bool = False, inputs: Sequence[Path | None] = ()) -> Iterator[Path]:
    """A new folder to write in, renamed to `path` when the block ends without an error.

    After an exception or an interruption nothing is left behind, and an earlier `path` is unchanged. What a killed
    process leaves is removed by the next one that writes `path`.

    Raises:
        OutputError: `path` must not be replaced, another process is writing it, or the disk is full or read-only.
    """
    path = Path(path)
    with refusing_full_disk(path), _replacing(path, "folder", force=force, inputs=inputs) as hidden:
        new = hidden / _NEW
        new.mkdir()
        yield new
        _publish(new, hidden, path)


@contextmanager
def atomic_file(path: Path, *, force: bool = False, inputs: Sequence[Path | None] = ()) -> Iterator[Path]:
    """A new file name to write to, renamed to `path` when the block ends without an error.

    Raises:
        OutputError: as of `atomic_directory`.
    """
    path = Path(path)
    with refusing_full_disk(path), _replacing(path, "file", force=force, inputs=inputs) as hidden:
        new = hidden / f"{_NEW}{path.suffix}"
        yield new
        _publish(new, hidden, path)


def publish(partial: Path, path: Path, *, force: bool = False, inputs: Sequence[Path | None] = ()) -> None:
    """Rename a finished file or folder to `path`, and sync both to disk.

    Raises:
        OutputError: `path` must not be replaced, or another process is writing it.
    """
    kind: Kind = "folder" if partial.is_dir() else "file"
    with _replacing(path, kind, force=force, inputs=inputs) as hidden:
        _publish(partial, hidden, path)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed left of its work on `path`; an earlier result gets its name back."""
    if _hidden(path).exists():
        working = _hidden_folder(path)
        _restore(working.path / _OLD, path)
        working.close()


@contextmanager
def _replacing(path: Path, kind: Kind, *, force: bool, inputs: Sequence[Path | None]) -> Iterator[Path]:
    """A hidden, locked folder next to `path` to write in, removed at the end; `path` may be replaced meanwhile."""
    check_output(path, kind=kind, force=force, inputs=inputs)
    working = _hidden_folder(path)
    try:
        _restore(working.path / _OLD, path)
        if fault := _existing_fault(path, kind, force=force):  # another process may have written it meanwhile
            msg = f"{path}: {fault}"
            raise OutputError(msg)
        working.clear()
        yield working.path
    finally:
        _restore(working.path / _OLD, path)
        working.close()


def _hidden_folder(path: Path) -> WorkingFolder:
    return WorkingFolder(_hidden(path), path, rf"\.?{_NEW}(\..*)?|{_OLD}")


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _publish(new: Path, hidden: Path, path: Path) -> None:
    if new.is_dir():
        write_manifest(new)
    _sync(new)
    # A folder cannot replace one that is not empty: the old one is moved away first.
    if path.is_dir():
        path.rename(hidden / _OLD)
    new.replace(path)
    _sync(path.absolute().parent)


def _restore(old: Path, path: Path) -> None:
    """Give an earlier result its name back after a failure between the two renames."""
    if old.exists() and not path.exists():
        old.rename(path)


@contextmanager
def refusing_full_disk(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn a disk that is full or read-only into an OutputError that ends in `remedy`, or else in what was left."""
    try:
        yield
    except Exception as error:
        reason = _why_writing_failed(error)
        if reason is None:
            raise
        left = f"{_hidden(path)} could not be removed" if _hidden(path).exists() else "nothing was left behind"
        msg = f"{path}: writing failed ({reason}); {remedy or left}"
        raise OutputError(msg) from error


def _why_writing_failed(error: Exception) -> str | None:
    """Why the disk refused to write, also where safetensors or torch.save report it in their own words."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _WRITING_FAILED else None
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device"
    refused = any(words in text for words in ("unexpected pos", "iostream error"))  # torch.save's
    return "the disk took less than was written" if refused else None


def _existing_fault(path: Path, kind: Kind | None, *, force: bool) -> str | None:
    """Why `path` must not be replaced. Even `force` replaces only what eckart wrote."""
    if not path.exists() and not path.is_symlink():
        return None
    if kind and path.is_dir() != (kind == "folder"):
        return f"it is a {'folder' if path.is_dir() else 'file'}, and a {kind} is to be written; choose another name"
    if not force:
        return "it already exists; use `force` to replace it"
    if path.is_symlink():
        return "it is a link; give the name of the folder or file itself"
    return _foreign_fault(path)


def _foreign_fault(path: Path) -> str | None:
    """What makes an existing output more than a result of eckart."""
    if path.is_file():
        return None if is_written_by_eckart(path) else "eckart did not write this file; remove it yourself"
    if Path.cwd().is_relative_to(path.resolve()):
        return "it is the working folder, or contains it"
    foreign = foreign_files(path)
    if not foreign and is_edited_card(path):
        return f"its {CARD} was edited since eckart wrote it; move it away, or delete it"
    listed = first_names(foreign)
    if foreign and has_manifest(path):
        return f"it contains files that eckart did not write ({listed}); move them away"
    return f"eckart did not write this folder, which contains {listed}; remove it yourself" if foreign else None


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk before it is renamed."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return  # Windows cannot sync a folder
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 10**8 else f"{nbytes / 1e6:.2f} MB"
