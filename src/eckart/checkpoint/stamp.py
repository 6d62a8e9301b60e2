"""What the file system knows of a file, to notice that it is no longer the one that was opened."""

import os
from typing import NamedTuple


class Stamp(NamedTuple):
    """What the file system knows of a file's content; a new file of the same size and time has another inode.

    A remote file has neither times nor inode, but the server may state its version, of which `version` is a digest.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    version: str = ""

    @classmethod
    def of(cls, descriptor: int) -> "Stamp":
        """The stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def is_version(self) -> bool:
        """Whether the stamp alone distinguishes one content from another."""
        return bool(self.version)

    def without_times(self) -> tuple[int | str, ...]:
        """What a copy of the file on this machine shares."""
        return (self.size, self.version) if self.version else (self.size,)
