"""How an output and the inputs of an operation share files: an input is never changed, under none of its names."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_Identity = tuple[int, int]
_CONFIGS = ("config.json", "adapter_config.json")  # files that make a folder one model or adapter


def shared_with_inputs(output: Path, inputs: Iterable[Path | None]) -> str | None:
    """Why an output would change an input, or be written into one; None if it is separate from all of them.

    Paths are compared after links are resolved, and files by their device and inode, so hard links count too.

    Args:
        output: the file or folder to be written; it need not exist.
        inputs: files and folders that are read, a file of a model for the model's folder.
    """
    target = output.resolve()
    written: dict[_Identity, Path] | None = None
    for source in _with_folders(inputs):
        place = source.resolve()
        if _is_same(place, target):
            return f"it is the input {source}"
        if any(_is_same(place, parent) for parent in target.parents):
            return f"it is inside the input {source}"
        if any(_is_same(target, parent) for parent in place.parents):
            return f"it contains the input {source}"
        written = dict(_identities(target)) if written is None else written
        shared = next((file for identity, file in _identities(place) if identity in written), None) if written else None
        if shared is not None:
            return f"it shares a file with the input {source} ({shared.name})"
    return None


def _with_folders(inputs: Iterable[Path | None]) -> dict[Path, None]:
    """The inputs that exist; a file in a model's or adapter's folder is replaced by the folder."""
    existing = [path for path in inputs if path is not None and path.exists()]
    return dict.fromkeys(
        path.parent if path.is_file() and any((path.parent / name).is_file() for name in _CONFIGS) else path
        for path in existing
    )


def _is_same(first: Path, second: Path) -> bool:
    """Whether two resolved paths are one file or folder, also where names differ in case only."""
    if first == second:
        return True
    identity = _identity(first)
    return identity is not None and identity == _identity(second)


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def _identities(path: Path) -> Iterator[tuple[_Identity, Path]]:
    """Device and inode of a file, or of every file in a folder."""
    files = [path] if path.is_file() else (Path(top, name) for top, _, names in os.walk(path) for name in names)
    for file in files:
        if (identity := _identity(file)) is not None:
            yield identity, file
