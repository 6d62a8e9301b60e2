"""The numbers of a page, exact to the last bit: one block of float64 values that entries refer to."""

import base64
import sys
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Numbers:
    """Float64 values in the order of their addition."""

    values: array = field(default_factory=lambda: array("d"))

    def add(self, values: Iterable[float]) -> tuple[int, int]:
        """Append values.

        Returns:
            their start and their number.
        """
        start = len(self.values)
        self.values.extend(values)
        return start, len(self.values) - start

    def text(self) -> str:
        """The block as base64 of deflated little-endian bytes."""
        values = array("d", self.values)
        if sys.byteorder == "big":
            values.byteswap()
        return packed(values.tobytes())


def packed(content: bytes) -> str:
    """Bytes deflated and base64-encoded; the page decodes them with `unpacked`."""
    return base64.b64encode(zlib.compress(content, 6)).decode("ascii")
