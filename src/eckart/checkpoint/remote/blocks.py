"""The parts of a remote file that were read once, in a sparse file, each block with its checksum."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from eckart.errors import SourceError

BLOCK_BYTES = 256 * 2**10
_SUM_BYTES = 16
_MOST_AT_ONCE = 128  # blocks that are fetched by one request

Fetch = Callable[[memoryview, int], None]


class BlockStore:
    """Blocks of one file; several processes may use a store at once, because all write the same bytes to it.

    A block counts only if its checksum matches, so that one that was half written, or damaged since, is fetched again.

    Args:
        folder: where `data` and `sums` are; created if it is missing.
        size: bytes of the file.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._size, self._lock, self._folder = size, threading.Lock(), folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._data, self._sums = (
                os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
                for name in ("data", "sums")
            )
        except OSError as error:
            raise self._refusal(error) from None

    def __del__(self) -> None:
        for descriptor in (getattr(self, "_data", None), getattr(self, "_sums", None)):
            if descriptor is not None:
                os.close(descriptor)

    def read_into(self, buffer: memoryview, offset: int, fetch: Fetch) -> None:
        """Fill `buffer` with the bytes from `offset` on; missing blocks are fetched, neighbours together."""
        first, last = offset // BLOCK_BYTES, -(-(offset + len(buffer)) // BLOCK_BYTES)
        missing: list[int] = []
        for block in range(first, last):
            content = self._load(block)
            if content is None:
                missing.append(block)
            else:
                _copy(content, block * BLOCK_BYTES, buffer, offset)
        while missing:
            count = next((n for n, block in enumerate(missing) if block != missing[0] + n), len(missing))
            run, missing = missing[: min(count, _MOST_AT_ONCE)], missing[min(count, _MOST_AT_ONCE) :]
            begin = run[0] * BLOCK_BYTES
            content = memoryview(bytearray(min(self._size, (run[-1] + 1) * BLOCK_BYTES) - begin))
            fetch(content, begin)
            self._store(content, begin)
            _copy(content, begin, buffer, offset)

    def is_complete(self) -> bool:
        """Whether every block is there."""
        return all(self._load(block) is not None for block in range(-(-self._size // BLOCK_BYTES)))

    def fill(self, pieces: Iterable[bytes]) -> None:
        """Store the whole file, which arrives in pieces of any size."""
        begin, waiting = 0, bytearray()
        for piece in pieces:
            waiting += piece
            whole = len(waiting) // BLOCK_BYTES * BLOCK_BYTES
            self._store(memoryview(bytes(waiting[:whole])), begin)
            del waiting[:whole]
            begin += whole
        self._store(memoryview(bytes(waiting)), begin)

    def _load(self, block: int) -> memoryview | None:
        """A block, if it is there and undamaged."""
        with self._lock:
            os.lseek(self._sums, block * _SUM_BYTES, os.SEEK_SET)
            stated = os.read(self._sums, _SUM_BYTES)
            if len(stated) < _SUM_BYTES or not any(stated):
                return None
            os.lseek(self._data, block * BLOCK_BYTES, os.SEEK_SET)
            content = os.read(self._data, min(BLOCK_BYTES, self._size - block * BLOCK_BYTES))
        return memoryview(content) if _sum(content) == stated else None

    def _store(self, content: memoryview, begin: int) -> None:
        sums = b"".join(_sum(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))
        try:
            with self._lock:
                _write(self._data, content, begin)
                _write(self._sums, memoryview(sums), begin // BLOCK_BYTES * _SUM_BYTES)
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> SourceError:
        return SourceError(f"{self._folder}: `cache` cannot be written there ({error.strerror})")


def _copy(content: memoryview, begin: int, buffer: memoryview, offset: int) -> None:
    """Copy what `content`, which begins at `begin` in the file, has of `buffer`, which begins at `offset`."""
    start, stop = max(begin, offset), min(begin + len(content), offset + len(buffer))
    if start < stop:
        buffer[start - offset : stop - offset] = content[start - begin : stop - begin]


def _sum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_SUM_BYTES).digest()


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])
