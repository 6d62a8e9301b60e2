"""Outputs that appear completely or not at all: checked before work, written under another name, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from eckart.errors import OutputError

_RESULTS = (
    "*.safetensors",
    "config.json",
    "adapter_config.json",
    "comparison.json",
    "*/adapter_config.json",
    "analysis.json",
    "report.html",
)
_WRITING_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def check_output(path: Path, needed_bytes: int = 0, *, force: bool = False, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Args:
        path: the file or folder to be written.
        needed_bytes: its size; compared with the free space.
        force: whether an existing result may be replaced.
        inputs: files and folders that are read, and so must not be replaced.

    Raises:
        OutputError: with all faults.
    """
    path, parent = Path(path), Path(path).absolute().parent
    faults = [fault] if (fault := _existing_fault(path, force=force)) else []
    used = [source for source in inputs if source and source.resolve().is_relative_to(path.resolve())]
    if used:
        faults = [f"it is or contains an input ({used[0]}), and inputs are never changed; choose another name"]
    if not parent.is_dir():
        faults.append(f"its folder {parent} does not exist; create it first")
    elif not os.access(parent, os.W_OK | os.X_OK):
        faults.append(f"its folder {parent} is not writable")
    elif (free := shutil.disk_usage(parent).free) < needed_bytes:
        faults.append(f"it needs {_size(needed_bytes)} and {parent} has {_size(free)} free")
    if faults:
        msg = f"{path}: this output cannot be written"
        raise OutputError.listing(msg, faults)


@contextmanager
def atomic_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A new folder next to `path` to write in, renamed to `path` when the block ends without an error.

    After an exception or an interruption nothing is left behind, and an earlier `path` is unchanged.

    Raises:
        OutputError: `path` must not be replaced, or the disk is full or read-only.
    """
    with _replacing(Path(path), force=force) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A new file name next to `path` to write to, renamed to `path` when the block ends without an error.

    Raises:
        OutputError: `path` must not be replaced, or the disk is full or read-only.
    """
    with _replacing(Path(path), force=force) as partial:
        yield partial


def publish(partial: Path, path: Path) -> None:
    """Rename a finished file or folder to `path`, replacing what is there, and sync both to disk.

    `check_output` decides whether `path` may be replaced.
    """
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    try:
        _sync(partial)
        # A folder cannot replace one that is not empty: the old one is renamed first.
        if path.is_dir():
            path.rename(old)
        partial.replace(path)
        _sync(path.absolute().parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)


@contextmanager
def refusing_full_disk(path: Path, remedy: str) -> Iterator[None]:
    """Turn a disk that is full or read-only into an OutputError that ends in `remedy`."""
    try:
        yield
    except Exception as error:
        reason = _why_writing_failed(error)
        if reason is None:
            raise
        msg = f"{path}: writing failed ({reason}); {remedy}"
        raise OutputError(msg) from error


def _why_writing_failed(error: Exception) -> str | None:
    """Why the disk refused to write, also where safetensors or torch.save report it in their own words."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _WRITING_FAILED else None
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device"
    return "the disk took less than was written" if "unexpected pos" in text else None


@contextmanager
def _replacing(path: Path, *, force: bool) -> Iterator[Path]:
    check_output(path, force=force)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with refusing_full_disk(path, "nothing was left behind"):
            yield partial
            publish(partial, path)
    except BaseException:
        _remove(partial)
        raise


def _existing_fault(path: Path, *, force: bool) -> str | None:
    """Why `path` must not be replaced. Even `force` replaces only a result."""
    if not path.exists() and not path.is_symlink():
        return None
    if not force:
        return "it already exists; use `force` to replace it"
    if path.is_symlink():
        return "it is a link; give the name of the folder or file itself"
    if path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        return "it is the working folder, or contains it"
    if path.is_dir() and any(path.iterdir()) and not any(any(path.glob(pattern)) for pattern in _RESULTS):
        return "it is a folder without results, which `force` does not replace; remove it yourself"
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
