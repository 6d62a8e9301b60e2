"""One remote file: large ranges are read over several connections, small tensors that are neighbours together."""

import hashlib
import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from eckart.checkpoint.remote.blocks import BlockStore
from eckart.checkpoint.remote.names import is_weights
from eckart.checkpoint.remote.transport import RemoteStat, Transport, changed
from eckart.checkpoint.stamp import Stamp
from eckart.errors import SourceError

_PART_BYTES = 16 * 2**20  # of a range, over one connection
_SMALL_BYTES = 256 * 2**10  # a tensor that is read together with its neighbours
_RUN_BYTES = 8 * 2**20  # of small neighbours that are read together
_MOST_BYTES = 64 * 2**20  # of a config, an index or a part of a tokenizer
_RUNS = 8  # that are kept in memory
_FIRST_WINDOW, _LARGEST_WINDOW = 32 * 2**10, 4 * 2**20  # read ahead, in headers


class RemoteFile:
    """A file that is read by ranges; thread-safe.

    Attributes:
        shown: the URL in messages.
        path: what stands for it on this machine: an empty file, or its content once it is downloaded.
        is_local: whether it is downloaded.
        is_weights: whether it has weights, and not a config or a part of a tokenizer.

    Args:
        transport: reads it.
        locator: names it for `transport`.
        shown: as the attribute.
        path: as the attribute.
        pool: threads that read; their number bounds the connections.
        stat: what is known of it already.
        cache: the folder where what was read is kept.
    """

    def __init__(
        self,
        transport: Transport,
        locator: str,
        shown: str,
        path: Path,
        *,
        pool: ThreadPoolExecutor,
        stat: RemoteStat | None = None,
        cache: Path | None = None,
    ) -> None:
        self.shown, self.path, self.is_local, self.is_weights = shown, path, False, is_weights(path.name)
        self._transport, self._locator, self._pool, self._cache = transport, locator, pool, cache
        self._runs: list[tuple[int, int]] = []
        self._in_memory: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()
        if stat is not None:
            self.stat = stat

    @cached_property
    def stat(self) -> RemoteStat:
        """Size and version when the file was found."""
        try:
            return self._transport.stat(self._locator)
        except FileNotFoundError:
            msg = f"{self.shown}: no such file"
            raise SourceError(msg) from None

    @property
    def stamp(self) -> Stamp:
        """What stands for the times and inode of a local file; the same in every process."""
        return _stamp(self.stat)

    def present_stamp(self) -> Stamp:
        """The stamp of the file as it is now."""
        try:
            return _stamp(self._transport.stat(self._locator))
        except FileNotFoundError:
            raise changed(self.shown) from None

    def require_ranges(self) -> None:
        """Refuse a file that can only be read completely, unless it is kept.

        Raises:
            SourceError: it is.
        """
        if self._cache is None and not self.stat.ranges:
            msg = f"{self.shown}: the server does not send parts of a file; `cache=DIR` downloads it once and keeps it"
            raise SourceError(msg)

    def open(self) -> io.BufferedReader:
        """The file, to be read from its beginning on, as a header is."""
        return io.BufferedReader(_Sequential(self), _FIRST_WINDOW)

    def join_small(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read small tensors that are neighbours together: begin and end of every tensor, in the order of the file."""
        runs: list[tuple[int, int]] = []
        for begin, end in ranges:
            if end - begin > _SMALL_BYTES:
                continue
            if runs and runs[-1][1] == begin and end - runs[-1][0] <= _RUN_BYTES:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((begin, end))
        self._runs = runs

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            FileFormatError: the file was replaced.
            SourceError: it cannot be read; with the reason.
        """
        if offset + len(buffer) > self.stat.size:
            raise changed(self.shown)
        self.require_ranges()
        if self._blocks is not None:
            self._blocks.read_into(buffer, offset, self._fetch)
        elif run := self._run_with(offset, offset + len(buffer)):
            begin = run[0]
            buffer[:] = self._joined(run)[offset - begin : offset - begin + len(buffer)]
        else:
            self._fetch(buffer, offset)

    def download(self) -> None:
        """Put the content in the place of the file that stands for it.

        Raises:
            SourceError: it is too large for a file next to weights, or cannot be read.
        """
        if self.is_local:
            return
        if not self.is_weights and self.stat.size > _MOST_BYTES:
            msg = f"{self.shown}: {self.stat.size:,} bytes is too large, expected at most {_MOST_BYTES:,}"
            raise SourceError(msg)
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("wb") as file:
            for piece in self._pieces():
                file.write(piece)
        partial.replace(self.path)
        self.is_local = True

    @cached_property
    def _blocks(self) -> BlockStore | None:
        if self._cache is None:
            return None
        facts = repr((self.shown, self.stat.size, self.stat.version))
        name = f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}-{self.path.name}"
        # Without a version, what was read may be of another content the next time: it is kept for this process alone.
        folder = self._cache / name if self.stat.version else self.path.with_name(f"{self.path.name}.blocks")
        store = BlockStore(folder, self.stat.size)
        if not self.stat.ranges and not store.is_complete():
            store.fill(self._transport.pieces(self._locator, self.stat))
        return store

    def _pieces(self) -> Iterator[bytes | memoryview]:
        """The content from the first byte to the last."""
        if not self.stat.ranges:
            yield from self._transport.pieces(self._locator, self.stat)
            return
        for begin in range(0, self.stat.size, 4 * _PART_BYTES):
            buffer = memoryview(bytearray(min(4 * _PART_BYTES, self.stat.size - begin)))
            self.read_into(buffer, begin)
            yield buffer

    def _fetch(self, buffer: memoryview, offset: int) -> None:
        """Read a range in parts, over as many connections as are free."""
        starts = range(0, len(buffer), _PART_BYTES)
        parts = [
            self._pool.submit(
                self._transport.read_into,
                self._locator,
                buffer[start : start + _PART_BYTES],
                offset + start,
                self.stat,
            )
            for start in starts
        ]
        try:
            for part in parts:
                part.result()
        except FileNotFoundError:
            raise changed(self.shown) from None
        finally:
            for part in parts:
                part.cancel()

    def _run_with(self, begin: int, end: int) -> tuple[int, int] | None:
        """The run of small tensors that contains a range."""
        found = self._runs[max(0, bisect_right(self._runs, (begin, 2**63)) - 1) :][:1]
        return found[0] if found and found[0][0] <= begin and end <= found[0][1] else None

    def _joined(self, run: tuple[int, int]) -> memoryview:
        """The content of a run, kept in memory for a while."""
        with self._lock:
            if run not in self._in_memory:
                content = memoryview(bytearray(run[1] - run[0]))
                self._fetch(content, run[0])
                self._in_memory[run] = content
            self._in_memory.move_to_end(run)
            while len(self._in_memory) > _RUNS:
                self._in_memory.popitem(last=False)
            return self._in_memory[run]


class _Sequential(io.RawIOBase):
    """A remote file as a stream that reads ahead, at first little, because most headers are short."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._position, self._ahead = file, 0, _FIRST_WINDOW
        self._window, self._begin = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._file.stat.size)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a writable buffer, as io passes it
        at, left = self._position, self._file.stat.size - self._position
        if left <= 0:
            return 0
        end = self._begin + len(self._window)
        if not self._begin <= at < end:
            self._ahead = self._ahead if at == end else _FIRST_WINDOW
            self._window, self._begin = memoryview(bytearray(min(max(self._ahead, len(buffer)), left))), at
            self._file.read_into(self._window, at)
            self._ahead = min(2 * self._ahead, _LARGEST_WINDOW)
        piece = self._window[at - self._begin :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _stamp(stat: RemoteStat) -> Stamp:
    version = hashlib.sha256(stat.version.encode()).hexdigest() if stat.version else ""
    return Stamp(stat.size, 0, 0, 0, version)
