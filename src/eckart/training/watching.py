"""What is told of a training while it runs, and how it is stopped from outside."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Watcher(Protocol):
    """Told how far a training is; called from one thread only."""

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """`done` of `total` steps of a stage are done, the last with this loss in nats per token."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know now."""
        ...


class SilentWatcher:
    """Tells nothing."""

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """Tells nothing."""

    def note(self, message: str) -> None:
        """Tells nothing."""


class Told:
    """What was noted, told at once and kept for the result."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        """Tell something, and keep it."""
        self.notes.append(message)
        self.watcher.note(message)


class Interruption:
    """Whether someone asked the training to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block the first SIGINT or SIGTERM asks to stop after the step; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(*_: object) -> None:
            self.asked = True
            for number in before:
                signal.signal(number, signal.default_int_handler)

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TrainingInterrupted(KeyboardInterrupt):
    """A training that was asked to stop; the message says what is kept and how to go on."""
