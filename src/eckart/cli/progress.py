"""Progress on stderr: of matrices by their bytes, and of the stages of a training by their steps."""

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bar:
    """What the engine tells, shown as one line that disappears when the stage is over; only on a terminal.

    The time left follows bytes rather than matrices, which differ in size by orders of magnitude.
    """

    def __init__(self) -> None:
        self._shown: tuple[RichProgress, TaskID] | None = None

    def start(self, stage: str, total: int, unit: str) -> None:
        """Show the bar of a stage."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]} matrices"),
            DownloadColumn(),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        progress.start()
        self._shown = progress, progress.add_task(stage, total=total, done=0)

    def update(self, amount: int, detail: str = "") -> None:
        """Count one more matrix."""
        if self._shown:
            progress, bar = self._shown
            progress.update(bar, advance=amount, done=progress.tasks[bar].fields["done"] + 1)

    def note(self, message: str) -> None:
        """Say something now, above the bar if there is one."""
        if self._shown:
            self._shown[0].console.print(message, highlight=False, markup=False)
        else:
            sys.stderr.write(f"{message}\n")

    def finish(self) -> None:
        """Take the bar away."""
        if self._shown:
            self._shown[0].stop()
            self._shown = None


class Stages:
    """What a training tells: a bar for the stage that runs, and a line for each one that is over.

    Without a terminal there is no bar, and a stage that takes long leaves a line now and then. Ends as a context does.
    """

    EVERY = 30.0  # seconds between lines of one stage

    def __init__(self, *, quiet: bool = False) -> None:
        """Show everything, or nothing: of processes that train together one tells."""
        from rich.console import Console

        self._console = Console(stderr=True, soft_wrap=True, quiet=quiet)
        self._stage: str | None = None
        self._place = (0, 0, "")
        self._told_at = 0.0
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """`done` of `total` steps of a stage are done, the last with this loss in nats per token."""
        self.show(stage, done, total, "" if loss is None else f"loss {loss:.4f}")

    def show(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` steps of a stage are done; a detail stays until there is another."""
        if stage != self._stage:
            self._end()
            self._stage, self._place, self._told_at = stage, (0, 0, ""), time.monotonic()
        self._place = done, total, detail or self._place[2]
        if done >= total:
            self._end()
        elif self._console.is_terminal:
            self._move()
        elif time.monotonic() - self._told_at > self.EVERY:
            self._tell()

    def note(self, message: str) -> None:
        """Say something now, above the bar if there is one."""
        self._console.print(message, highlight=False, markup=False)

    def _end(self) -> None:
        """Leave a line of the stage that ran, if one did."""
        self._clear()
        if self._stage is not None:
            self._tell()
            self._stage = None

    def _tell(self) -> None:
        done, total, detail = self._place
        told = ", ".join(filter(None, ("" if total == 1 else f"{done} of {total}", detail)))
        self.note(f"{self._stage}: {told}" if told else str(self._stage))
        self._told_at = time.monotonic()

    def _clear(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _move(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(str(self._stage), detail="")
            self._bar.start()
        done, total, detail = self._place
        self._bar.update(self._bar.tasks[0].id, completed=done, total=total, detail=detail)
