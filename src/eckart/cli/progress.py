"""Progress on stderr: a bar on a terminal, and elsewhere a line now and then."""

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from eckart.cli.flags import with_flags
from eckart.cli.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from eckart.engine.progress import Unit

LONG_SECONDS, EVERY_SECONDS = 5.0, 30.0


class StderrProgress:
    """Shows the stage that runs, how far it is, the time left and the latest detail, until its block ends.

    Without a terminal a stage that takes long leaves a line when that becomes clear, one at least every 30 seconds, and
    one at its end. A stage whose details are results, such as losses, leaves its last one in any case.
    """

    def __init__(self, *, long: float = LONG_SECONDS, every: float = EVERY_SECONDS) -> None:
        """Report to stderr.

        Args:
            long: seconds after which a stage takes long.
            every: seconds between the lines of a stage where there is no terminal.
        """
        self._long, self._every = long, every
        self._stage: _Stage | None = None
        self._display: _Bar | _Lines | None = None

    def __enter__(self) -> "StderrProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def start(self, stage: str, total: int, unit: "Unit") -> None:
        """Show the bar of a stage; a stage that is still shown is over."""
        self.finish()
        self._stage = _Stage(stage, total, unit)
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._display = _Bar(self._stage) if terminal else _Lines(self._stage, self._long, self._every)

    def update(self, amount: int, detail: str = "") -> None:
        """Count what was done."""
        if self._stage is not None and self._display is not None:
            self._stage.done += amount
            self._stage.detail = printable(detail) or self._stage.detail
            self._display.update()

    def note(self, message: str) -> None:
        """Say something now, above the bar if there is one."""
        _say(printable(with_flags(message)), self._display.console if isinstance(self._display, _Bar) else None)

    def finish(self) -> None:
        """Take the bar away, and leave a line if the stage took long or ended with a result."""
        stage, display, self._stage, self._display = self._stage, self._display, None, None
        if stage is None or display is None:
            return
        display.close()
        if isinstance(display, _Lines) and stage.seconds() > self._long:
            _say(stage.summary())
        elif stage.has_result():
            _say(stage.result())


class _Stage:
    """What runs, and how far it is."""

    def __init__(self, name: str, total: int, unit: "Unit") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.detail = 0, ""
        self._began = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def has_result(self) -> bool:
        """Whether the details are results; of bytes they are the names of matrices."""
        return self.unit != "bytes" and bool(self.detail)

    def count(self) -> str:
        """How much is done, such as `3 of 40 steps` or `1.2 of 4.8 GB`."""
        if self.total <= 1 and not (self.unit == "bytes" and self.total):
            return f"{self.done} {self.unit}" if self.total == 0 and self.done else ""
        if self.unit == "bytes":
            scale, unit = next(
                ((10**p, u) for p, u in ((9, "GB"), (6, "MB"), (3, "kB")) if self.total >= 10**p), (1, "B")
            )
            return f"{self.done / scale:.1f} of {self.total / scale:.1f} {unit}"
        return f"{self.done} of {self.total} {self.unit}"

    def line(self) -> str:
        """The stage in one line, while it runs."""
        seconds = self.seconds()
        left = seconds * (self.total - self.done) / self.done if 0 < self.done < self.total else None
        parts = [
            self.count(),
            self.detail,
            f"{_duration(seconds)} so far",
            f"about {_duration(left)} left" if left else "",
        ]
        return f"{self.name}: {', '.join(filter(None, parts))}"

    def result(self) -> str:
        """The stage in one line, when it is over."""
        return f"{self.name}: {', '.join(filter(None, [self.count(), self.detail]))}"

    def summary(self) -> str:
        """The line that a long stage leaves."""
        detail = f", {self.detail}" if self.has_result() else ""
        return f"{self.name}: {self.count() or 'done'}{detail}, in {_duration(self.seconds())}"


class _Lines:
    """A line after a while and then at intervals; from a thread, so also while a single matrix takes minutes."""

    def __init__(self, stage: _Stage, long: float, every: float) -> None:
        self._stage, self._long, self._every = stage, long, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Nothing: the thread reads the stage."""

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _report(self) -> None:
        wait = self._long
        while not self._over.wait(wait):
            _say(self._stage.line())
            wait = self._every


class _Bar:
    """A bar that disappears when the stage is over."""

    def __init__(self, stage: _Stage) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._stage = stage
        self.console = Console(stderr=True, soft_wrap=True)
        text = TextColumn("{task.description}", markup=False)
        fields = TextColumn("{task.fields[count]}", markup=False), TextColumn("{task.fields[detail]}", markup=False)
        timing = TimeRemainingColumn() if stage.total else TimeElapsedColumn()
        self._bar: RichProgress = Progress(
            *(text, BarColumn(bar_width=24), fields[0], timing, fields[1]), console=self.console, transient=True
        )
        self._task = self._bar.add_task(stage.name, total=stage.total or None, count=stage.count(), detail="")
        self._bar.start()

    def update(self) -> None:
        stage = self._stage
        self._bar.update(self._task, completed=stage.done, count=stage.count(), detail=stage.detail)

    def close(self) -> None:
        self._bar.stop()


def _say(message: str, console: "Console | None" = None) -> None:
    if console is None:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    else:
        console.print(message, highlight=False, markup=False)


def _duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
