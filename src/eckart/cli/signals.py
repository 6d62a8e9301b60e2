"""Ctrl-C and SIGTERM: the same end of a command, and no traceback before or after it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # exit status, also after SIGTERM
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """From now on, Ctrl-C and SIGTERM end the process with one line: there is nothing to clean up."""
    _handle(_end)


@contextmanager
def interrupting() -> Iterator[None]:
    """Inside the block, Ctrl-C and SIGTERM raise KeyboardInterrupt, so that what was begun is cleaned up."""
    before = _handle(signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> dict[signal.Signals, Any]:
    """Set the handler, except of signals that the caller of the program ignores; returns the earlier ones."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: earlier for number, earlier in before.items() if earlier not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _end(*_: object) -> None:
    os.write(2, b"eckart: interrupted\n")  # not through sys.stderr, which may be in the middle of a write
    os._exit(INTERRUPTED)
