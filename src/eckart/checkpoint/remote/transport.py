"""What every way to a remote file offers: its size and version, and its bytes by ranges, repeated where they fail."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eckart.errors import FileFormatError, SourceError

CONNECTIONS = 8  # to one source at a time
ATTEMPTS = 6
FIRST_ATTEMPTS = 3  # at a source that has not answered yet: its address is probably wrong
FIRST_DELAY_S = 0.5  # doubled after each attempt
LONGEST_DELAY_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteStat:
    """What is known of a remote file before it is read.

    Attributes:
        size: bytes.
        version: ETag, commit or time of change: another content has another one; empty if the server states none.
        ranges: whether the server sends a part of the file alone.
    """

    size: int
    version: str
    ranges: bool = True


class Transport(Protocol):
    """Reads the files of one source; thread-safe. A file is named by its `locator`, which may contain secrets."""

    def stat(self, locator: str) -> RemoteStat:
        """Size and version of a file as it is now.

        Raises:
            FileNotFoundError: there is no such file.
            AccessError: it is not shown to this user.
        SourceError: it cannot be read; with the reason.
        """
        ...

    def read_into(self, locator: str, buffer: memoryview, offset: int, stat: RemoteStat) -> None:
        """Fill `buffer` with the bytes from `offset` on.

        Raises:
            FileFormatError: the file is no longer the one of `stat`.
            SourceError: it cannot be read; with the reason.
        """
        ...

    def pieces(self, locator: str, stat: RemoteStat) -> Iterator[bytes]:
        """The whole file, for a server that does not send parts of it; raises as `read_into`."""
        ...


class AccessError(SourceError):
    """A file that the server does not show to this user."""


class Transient(Exception):  # noqa: N818  # not an error of its own: another attempt may succeed
    """An attempt that failed for a reason that may pass.

    Attributes:
        after_s: how long the server asks to wait, if it does.
    """

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


def repeated(call: Callable[[], T], shown: str, *, attempts: int = ATTEMPTS) -> T:
    """The result of a call that may fail for a while; waits longer after each attempt, or as long as the server asks.

    Raises:
        SourceError: the last attempt failed too; the message names the source as `shown`.
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Transient as failure:
            if attempt == attempts:
                msg = f"{shown}: cannot be read ({failure}; {attempts} attempts)"
                raise SourceError(msg) from None
            # Spread out, so that the connections of many workers do not all return at once.
            delay = FIRST_DELAY_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            time.sleep(min(max(delay, failure.after_s or 0), LONGEST_DELAY_S))
    raise AssertionError


def changed(shown: str) -> FileFormatError:
    """The error for a file that was replaced while it was read."""
    return FileFormatError(f"{shown}: the file changed while it was being read; run again when nothing writes to it")
