"""Writes a result of several files atomically: all of them or none."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from eckart.errors import OutputError


def refuse_existing(folder: Path, names: Iterable[str]) -> None:
    """Check that writing these files to `folder` overwrites nothing.

    Raises:
        OutputError: `folder` is a file, or contains one of them.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file, expected a folder; choose another name"
        raise OutputError(msg)
    existing = [name for name in names if (folder / name).exists()]
    if existing:
        msg = f"{folder} already contains {', '.join(existing)}; choose another folder, or overwrite with `force`"
        raise OutputError(msg)


def write_together(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write each text under a temporary name, and rename them once all are on disk.

    Args:
        folder: created if it does not exist.
        texts: content by file name.

    Returns:
        the paths, in the order of `texts`.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    paths = [folder / name for name in texts]
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(temporary, texts.values(), strict=True):
            with path.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path, final in zip(temporary, paths, strict=True):
            path.replace(final)
    except OSError as failed:
        msg = f"cannot write {', '.join(texts)} to {folder}: {failed.strerror or failed}"
        raise OutputError(msg) from failed
    finally:
        for path in temporary:
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return paths
