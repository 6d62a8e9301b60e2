"""How long work tells of itself: counts that a display may show, and a silent one."""

from typing import Protocol


class Progress(Protocol):
    """What is told while matrices are worked on; called from one thread only."""

    def start(self, stage: str, matrices: int, nbytes: int) -> None:
        """A stage begins that will work on `matrices` matrices of `nbytes` bytes in all."""
        ...

    def advance(self, name: str, nbytes: int) -> None:
        """One more matrix of `nbytes` bytes is done."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know now."""
        ...

    def finish(self) -> None:
        """The stage is over."""
        ...


class Silent:
    """Tells nothing."""

    def start(self, stage: str, matrices: int, nbytes: int) -> None:
        """Tells nothing."""

    def advance(self, name: str, nbytes: int) -> None:
        """Tells nothing."""

    def note(self, message: str) -> None:
        """Tells nothing."""

    def finish(self) -> None:
        """Tells nothing."""
