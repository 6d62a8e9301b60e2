"""A share of one operation's matrices, so that several processes or machines work on one output.

Each process runs the same command with its own share, and stores finished matrices in the journal next to the output,
in a folder that all of them see; the command without a share then finds every matrix done and writes the output. Told
to collect, it refuses what is not done instead of doing it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eckart.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of several equal shares.

    Attributes:
        number: from 1 to `count`.
        count: how many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A share written as `2/4`.

        Raises:
            OptionError: it is not two whole numbers, the first from 1 to the second.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            msg = f"`shard` must be I/N with I from 1 to N, such as 1/4 to 4/4, got {text!r}"
            raise OptionError(msg)
        return cls(number, count)

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.number}/{self.count}"

    def and_others(self) -> "list[Shard]":
        """All shares, this one first."""
        return [Shard((self.number - 1 + step) % self.count + 1, self.count) for step in range(self.count)]

    def of(self, items: Sequence[T], size: Callable[[T], int]) -> list[T]:
        """This share of some items: every share has about as many of each size."""
        return sorted(items, key=lambda item: -size(item))[self.number - 1 :: self.count]


class ShardDone(Exception):  # noqa: N818  # it ends an operation early, but not in error
    """Ends an operation whose share is done, in place of its result: others may still be at work on theirs.

    Attributes:
        shard: the share.
        done: how many matrices of all shares are done now.
        total: how many there are.
    """

    def __init__(self, shard: Shard, done: int, total: int) -> None:
        super().__init__(
            f"Share {shard} is done; with those of other shares, {done:,} of {total:,} matrices are.\n"
            "Once all shares are done, the same command without `shard` finishes."
        )
        self.shard, self.done, self.total = shard, done, total
