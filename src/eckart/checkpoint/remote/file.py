"""One remote file: large ranges are read over several connections, small tensors that are neighbours together."""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from eckart.checkpoint.remote.blocks import BlockStore
from eckart.checkpoint.remote.names import is_weights
from eckart.checkpoint.remote.recent import Recent
from eckart.checkpoint.remote.transport import RemoteStat, Transport, changed
from eckart.checkpoint.remote.urls import shown_url
from eckart.checkpoint.stamp import Stamp
from eckart.errors import SourceError

_PART_BYTES = 4 * 2**20  # of a range, over one connection
_SMALL_BYTES = 256 * 2**10  # a tensor that is read together with its neighbours
_RUN_BYTES = 8 * 2**20  # of small neighbours that are read together
_WINDOW_BYTES = 16 * 2**20  # of a large tensor that are read together, ahead of the slabs that are asked for
_AHEAD_FROM_BYTES = 2**19  # a slab; a few rows of an embedding are read alone
_MOST_BYTES = 64 * 2**20  # of a config, an index or a part of a tokenizer
_FIRST_WINDOW, _LARGEST_WINDOW = 32 * 2**10, 4 * 2**20  # read ahead, in headers


class RemoteAddress(NamedTuple):
    """What another process reads a remote file by, under the same path: picklable, and without secrets."""

    transport: Transport
    locator: str
    shown: str
    path: Path
    stat: RemoteStat
    spans: list[tuple[int, int]]


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
        recent: what was read last, of all files.
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
        recent: Recent,
        stat: RemoteStat | None = None,
        cache: Path | None = None,
    ) -> None:
        self.shown, self.path, self.is_local, self.is_weights = shown, path, False, is_weights(path.name)
        self._transport, self._locator, self._pool, self._cache = transport, locator, pool, cache
        self._recent = recent
        self._spans: list[tuple[int, int]] = []
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

    def address(self) -> RemoteAddress:
        """What another process, on any machine, reads the file by, with the credentials that it finds there.

        Raises:
            SourceError: the URL itself has a password or a signature.
        """
        if self._locator != shown_url(self._locator):
            msg = f"{self.shown}: its password or signature is not sent to other machines; let each find credentials"
            raise SourceError(msg)
        return RemoteAddress(self._transport, self._locator, self.shown, self.path, self.stat, self._spans)

    @classmethod
    def at(cls, address: RemoteAddress, *, pool: ThreadPoolExecutor, recent: Recent) -> "RemoteFile":
        """The file of an address."""
        transport, locator, shown, path, stat, spans = address
        file = cls(transport, locator, shown, path, pool=pool, recent=recent, stat=stat)
        file._spans = spans
        return file

    def require_ranges(self) -> None:
        """Refuse a file that can only be read completely, unless it is kept.

        Raises:
            SourceError: it is.
        """
        if self._cache is None and not self.stat.ranges:
            msg = f"{self.shown}: the server does not send parts of a file; `cache=DIR` downloads it once and keeps it"
            raise SourceError(msg)

    def open(self, *, present: bool = False) -> io.BufferedReader:
        """The file, to be read from its beginning on, as a header is; `present`: nothing that was read before."""
        return io.BufferedReader(_Sequential(self._fetch if present else self.read_into, self.stat.size), _FIRST_WINDOW)

    def set_tensors(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Tell where tensors begin and end: small ones that are neighbours are read together, large ones ahead."""
        spans: list[tuple[int, int]] = []
        last_is_small = False
        for begin, end in sorted(ranges):
            is_small = end - begin <= _SMALL_BYTES
            joins = spans and spans[-1][1] == begin and end - spans[-1][0] <= _RUN_BYTES
            if joins and is_small and last_is_small:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((begin, end))
            last_is_small = is_small
        self._spans = spans

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
            return
        span = self._span_of(offset, offset + len(buffer))
        if span is None or (span[1] - span[0] > _RUN_BYTES and len(buffer) < _AHEAD_FROM_BYTES):
            self._fetch(buffer, offset)
            return
        done = 0
        while done < len(buffer):
            begin = span[0] + (offset + done - span[0]) // _WINDOW_BYTES * _WINDOW_BYTES
            content = self._window(begin, min(begin + _WINDOW_BYTES, span[1]))
            piece = content[offset + done - begin :][: len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

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
        for begin in range(0, self.stat.size, _WINDOW_BYTES):
            buffer = memoryview(bytearray(min(_WINDOW_BYTES, self.stat.size - begin)))
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

    def _span_of(self, begin: int, end: int) -> tuple[int, int] | None:
        """The tensor, or the small neighbours, that contain a range."""
        at = bisect_right(self._spans, (begin, 2**63)) - 1
        return self._spans[at] if at >= 0 and end <= self._spans[at][1] else None

    def _window(self, begin: int, end: int) -> memoryview:
        def fetch() -> memoryview:
            content = memoryview(bytearray(end - begin))
            self._fetch(content, begin)
            return content

        return self._recent.get((self.path, begin, end), fetch)


class _Sequential(io.RawIOBase):
    """A remote file as a stream that reads ahead, at first little, because most headers are short."""

    def __init__(self, read_into: Callable[[memoryview, int], None], size: int) -> None:
        self._read_into, self._size, self._position, self._ahead = read_into, size, 0, _FIRST_WINDOW
        self._window, self._begin = memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._size)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # a writable buffer, as io passes it
        at, left = self._position, self._size - self._position
        if left <= 0:
            return 0
        end = self._begin + len(self._window)
        if not self._begin <= at < end:
            self._ahead = self._ahead if at == end else _FIRST_WINDOW
            self._window, self._begin = memoryview(bytearray(min(max(self._ahead, len(buffer)), left))), at
            self._read_into(self._window, at)
            self._ahead = min(2 * self._ahead, _LARGEST_WINDOW)
        piece = self._window[at - self._begin :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _stamp(stat: RemoteStat) -> Stamp:
    version = hashlib.sha256(stat.version.encode()).hexdigest() if stat.version else ""
    return Stamp(stat.size, 0, 0, 0, version)
