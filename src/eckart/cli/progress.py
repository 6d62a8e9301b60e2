"""The progress bar on stderr: matrices, bytes and time left; nothing where stderr is not a terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bar:
    """What the engine tells, shown as one line that disappears when the stage is over.

    The time left follows bytes rather than matrices, which differ in size by orders of magnitude.
    """

    def __init__(self) -> None:
        self._shown: tuple[RichProgress, TaskID] | None = None

    def start(self, stage: str, matrices: int, nbytes: int) -> None:
        """Show the bar of a stage."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}/{task.fields[matrices]} matrices"),
            DownloadColumn(),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        progress.start()
        self._shown = progress, progress.add_task(stage, total=nbytes, done=0, matrices=matrices)

    def advance(self, name: str, nbytes: int) -> None:
        """Count one more matrix."""
        if self._shown:
            progress, bar = self._shown
            progress.update(bar, advance=nbytes, done=progress.tasks[bar].fields["done"] + 1)

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
