"""The identity of files that are read: whether they are still those that a run began with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from eckart.checkpoint.header import HEADER_LIMIT_BYTES
from eckart.checkpoint.stamp import Stamp
from eckart.errors import SourceError

END_BYTES = 16 * 2**10


def files_digest(files: Iterable[Path]) -> str:
    """A hex digest that changes when a file is written or replaced, by three short reads of each.

    It covers name, stamp, the first and last 16 KiB, and all of a safetensors header.

    Raises:
        SourceError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                stamp = Stamp.of(file.fileno())
                digest.update(repr((path.name, *stamp)).encode())
                head = file.read(8)
                header = int.from_bytes(head, "little") if path.suffix == ".safetensors" else 0
                digest.update(head + file.read(max(END_BYTES, header if header <= HEADER_LIMIT_BYTES else 0)))
                file.seek(max(file.tell(), stamp.size - END_BYTES))
                digest.update(file.read(END_BYTES))
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror})"
            raise SourceError(msg) from None
    return digest.hexdigest()


class InputFiles:
    """The files that a run reads, as they were when it began."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._digests = {file: files_digest([file]) for file in files}

    def check_unchanged(self) -> None:
        """Refuse to publish what was computed from files that are no longer there.

        Raises:
            SourceError: a file was written, replaced or removed since the run began; it is named.
        """
        if changed := [f"{file}: written, replaced or removed" for file in self._digests if self._differs(file)]:
            msg = "inputs changed while they were being read, so nothing was written; run again when they are complete"
            raise SourceError.listing(msg, changed)

    def _differs(self, file: Path) -> bool:
        try:
            return files_digest([file]) != self._digests[file]
        except SourceError:
            return True
