"""Opening a file for reading, of this machine or a remote one that its path stands for."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from eckart.checkpoint.remote.table import remote_file
from eckart.checkpoint.stamp import Stamp


@contextmanager
def opened(path: Path, *, present: bool = False) -> Iterator[tuple[BinaryIO, Stamp]]:
    """A file, buffered, and its stamp.

    Args:
        path: the file.
        present: ask for the stamp of a remote file anew, rather than take that of the version that is being read.

    Raises:
        OSError: a file of this machine cannot be opened.
        SourceError, FileFormatError: a remote one cannot be read, or was replaced.
    """
    remote = remote_file(path)
    if remote is None:
        with path.open("rb") as file:
            yield file, Stamp.of(file.fileno())
        return
    stamp = remote.present_stamp() if present else remote.stamp
    with cast("io.BufferedReader", path.open("rb")) if remote.is_local else remote.open(present=present) as file:
        yield file, stamp
