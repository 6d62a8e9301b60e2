"""The numbers of a page, exact to the last bit: one block of float64 that entries point into."""

import base64
import sys
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Numbers:
    """Float64 values in the order in which they were added."""

    values: array = field(default_factory=lambda: array("d"))

    def add(self, values: Iterable[float]) -> tuple[int, int]:
        """Append values.

        Returns:
            where they start, and how many they are.
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
    """Bytes as base64 of their deflated form, which the page's `unpacked` undoes."""
    return base64.b64encode(zlib.compress(content, 6)).decode("ascii")
