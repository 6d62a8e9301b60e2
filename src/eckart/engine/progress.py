"""Progress reporting: one protocol for everything that takes long, and a reporter that does nothing."""

from typing import Literal, Protocol

Unit = Literal["bytes", "steps", "windows", "cells"]


class Progress(Protocol):
    """Receives the progress of long work; called from one thread only."""

    def start(self, stage: str, total: int, unit: Unit) -> None:
        """A stage begins.

        Args:
            stage: what is done, such as `Extracting`.
            total: how much there is to do, in `unit`; 0 where that is unknown.
            unit: what is counted.
        """
        ...

    def update(self, amount: int, detail: str = "") -> None:
        """`amount` more units are done; `detail` is shown next to the count until there is another."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know now."""
        ...

    def finish(self) -> None:
        """The stage is over."""
        ...


class NoProgress:
    """Does nothing."""

    def start(self, stage: str, total: int, unit: Unit) -> None:
        """Does nothing."""

    def update(self, amount: int, detail: str = "") -> None:
        """Does nothing."""

    def note(self, message: str) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""
