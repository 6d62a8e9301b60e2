"""Stopping a training from outside: the first signal stops it after the current step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """Whether the training was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block the first SIGINT or SIGTERM requests a stop after the step; the second one interrupts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def request(*_: object) -> None:
            self.requested = True
            for number in before:
                signal.signal(number, signal.default_int_handler)

        for number in before:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TrainingInterrupted(KeyboardInterrupt):
    """A training that was asked to stop; the message says where its checkpoint is and how to resume."""
