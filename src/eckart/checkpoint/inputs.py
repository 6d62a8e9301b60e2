"""The identity of files that are read: whether they are still those that a run began with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eckart.checkpoint.header import HEADER_LIMIT_BYTES
from eckart.checkpoint.opened import opened
from eckart.checkpoint.remote.table import remote_file
from eckart.errors import SourceError

BLOCKS, BLOCK_BYTES = 32, 4096
_DIGEST = "files_digest"  # in the state of what is sent
_REMOTE = "remote files"


def files_digest(files: Iterable[Path], *, stamped: bool = True) -> str:
    """A hex digest that changes when a file is written or replaced, by a few short reads of each.

    It covers name, size, 32 blocks of 4 KiB from the first to the last bytes, and all of a safetensors header; of a
    remote file, name, size and version, as the server states it now.

    Args:
        files: the files.
        stamped: cover times and inode too, so that any other file is noticed; without them, a copy has the digest of
            the original.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with opened(path, present=True) as (file, stamp):
                digest.update(repr((path.name, *(stamp if stamped else stamp.without_times()))).encode())
                if stamp.is_version:
                    continue
                if path.suffix == ".safetensors":
                    digest.update(file.read(min(int.from_bytes(file.read(8), "little"), HEADER_LIMIT_BYTES)))
                for block in range(BLOCKS):
                    file.seek(max(0, stamp.size - BLOCK_BYTES) * block // (BLOCKS - 1))
                    digest.update(file.read(BLOCK_BYTES))
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror})"
            raise SourceError(msg) from None
    return digest.hexdigest()


class FilesOnEveryNode:
    """What reads `files` and may be sent to another machine, where it is refused unless those are the same files."""

    files: tuple[Path, ...]

    def __getstate__(self) -> dict[str, Any]:
        """With a digest of the files, and with what remote ones are read by.

        Raises:
            SourceError: the URL of a remote file grants access, and is not sent.
        """
        remote = [file.address() for path in self.files if (file := remote_file(path))]
        return self.__dict__ | {_DIGEST: files_digest(self.files), _REMOTE: remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compare the files with those where this comes from.

        Raises:
            SourceError: a file is not there, or another one.
        """
        expected, remote = state.pop(_DIGEST), state.pop(_REMOTE)
        if remote:
            from eckart.checkpoint.remote.mounts import mount_files

            mount_files(remote)
        self.__dict__.update(state)
        remedy = "sources must be on a file system that every node sees under the same path"
        try:
            same = files_digest(self.files) == expected
        except SourceError as error:
            msg = f"{error}; {remedy}"
            raise SourceError(msg) from None
        if not same:
            msg = f"{', '.join(map(str, self.files))}: not the files that the work was started with; {remedy}"
            raise SourceError(msg)


class InputFiles:
    """The files that a run reads, as they were when it began."""

    def __init__(self, files: Iterable[Path], *, stamped: bool = True) -> None:
        self._stamped = stamped
        self._digests = {file: files_digest([file], stamped=stamped) for file in files}

    @property
    def folder(self) -> Path | None:
        """The folder of all files; None if they are in several."""
        folders = {file.parent for file in self._digests}
        return folders.pop() if len(folders) == 1 else None

    def check_unchanged(self) -> None:
        """Refuse to publish what was computed from files that are no longer there.

        Raises:
            SourceError: a file was written, replaced or removed since the run began; it is named.
        """
        if changed := [f"{file}: written, replaced or removed" for file in self._digests if self._differs(file)]:
            msg = "inputs changed during the run, so nothing was written; run again when they are complete"
            raise SourceError.listing(msg, changed)

    def _differs(self, file: Path) -> bool:
        try:
            return files_digest([file], stamped=self._stamped) != self._digests[file]
        except SourceError:
            return True
