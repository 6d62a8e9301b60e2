"""A mapping whose values are read each time they are asked for, so that a large adapter is never whole in memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Deferred(Mapping[str, T], Generic[T]):
    """Values by name, read when they are looked up and kept nowhere.

    Attributes:
        outlines: each value as its header tells it: with tensors on the meta device.
    """

    def __init__(self, outlines: Mapping[str, T], read: Callable[[str], T]) -> None:
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
        # Mapping's own would read the value to see whether it is there.
        return name in self.outlines
