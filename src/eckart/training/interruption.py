"""Stopping a training from outside: the first signal stops it after the current step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingInterrupted(KeyboardInterrupt):
    """A training that was asked to stop; the message says where its checkpoint is and how to resume."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Inside the block the first SIGINT or SIGTERM sets the event; the second one interrupts at once."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(*_: object) -> None:
        requested.set()
        for number in before:
            signal.signal(number, signal.default_int_handler)

    for number in before:
        signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
