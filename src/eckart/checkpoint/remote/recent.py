"""What was read last, in memory: algorithms read a matrix in slabs, and often more than once."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeAlias

Range: TypeAlias = tuple[Path, int, int]
"""A file, and the first byte and the end of a part of it."""
MOST_BYTES = 256 * 2**20


class Recent:
    """Parts of files, of at most `MOST_BYTES` together; a part that two threads need is fetched once."""

    def __init__(self) -> None:
        self._parts: OrderedDict[Range, Future[memoryview]] = OrderedDict()
        self._lock, self._nbytes = threading.Lock(), 0

    def get(self, part: Range, fetch: Callable[[], memoryview]) -> memoryview:
        """The content of a part; raises what `fetch` raises."""
        with self._lock:
            found = self._parts.get(part)
            future = self._parts.setdefault(part, Future())
            self._parts.move_to_end(part)
            if found is None:
                self._nbytes += part[2] - part[1]
                self._drop_oldest()
        if found is not None:
            return found.result()
        try:
            future.set_result(fetch())
        except BaseException as error:
            with self._lock:
                if self._parts.pop(part, None):
                    self._nbytes -= part[2] - part[1]
            future.set_exception(error)
            raise
        return future.result()

    def _drop_oldest(self) -> None:
        while self._nbytes > MOST_BYTES and len(self._parts) > 1:
            (_, begin, end), _ = self._parts.popitem(last=False)
            self._nbytes -= end - begin
