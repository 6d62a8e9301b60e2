"""A mapping whose values are read at every lookup, so that a large adapter is never in memory completely."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")
Outline = TypeVar("Outline")


class Deferred(Mapping[str, T], Generic[T, Outline]):
    """Values by name, read when they are looked up and not cached.

    Attributes:
        outlines: outline of each value, from headers.
    """

    def __init__(self, outlines: Mapping[str, Outline], read: Callable[[str], T]) -> None:
        self.outlines = outlines
        self._read = read

    def __getitem__(self, name: str) -> T:
        if name not in self.outlines:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def __contains__(self, name: object) -> bool:
        # Mapping's own method would read the value to see whether it exists.
        return name in self.outlines
