"""What the file system knows of a file, to notice that it is no longer the one that was opened."""

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """What the file system knows of a file's content; a new file of the same size and time has another inode."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> "Stamp":
        """The stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
