"""Options of a distillation, and its steps on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eckart.cli.evaluate import read_text
from eckart.errors import OptionError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.training import Distillation, StepCallback

LINES = 10  # a run without a terminal

DistillText = Annotated[
    Path | None,
    typer.Option(
        "--distill",
        metavar="TEXT",
        help="Text file on which the factors are then trained towards the predictions of what they approximate.",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Of --distill.  [default: 40]")]


@contextmanager
def distillation(
    base: str | None,
    teacher: "str | Adapter",
    text: Path | None,
    *,
    steps: int | None,
    seed: int = 0,
    device: str = "cpu",
) -> "Iterator[Distillation | None]":
    """The training that was asked for, its text read and checked, with its steps shown while the block runs.

    Raises:
        OptionError: steps without a text.
        EckartError: the text is missing or too short, or the base has no tokenizer.
    """
    if text is None:
        if steps is not None:
            msg = "--steps tells how long to train: name the text with --distill"
            raise OptionError(msg)
        yield None
        return
    if base is None:
        msg = "--distill needs the model that the adapter belongs to, and the adapter names none: --base BASE"
        raise OptionError(msg)
    content = read_text(text, "--distill")
    from eckart.engine import Run
    from eckart.training import Distillation, fast_dtype
    from eckart.training.distill import SHORT

    settings = replace(SHORT, steps=steps or SHORT.steps, seed=seed, compute_dtype=fast_dtype())
    with _steps_shown() as progress:
        yield Distillation(
            base, teacher, content, settings, device=Run(device=device).torch_device(), progress=progress
        )


@contextmanager
def _steps_shown() -> "Iterator[StepCallback]":
    """A bar that comes with the first step; a line now and then where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Distilling"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("KL {task.fields[kl]:.4f}"),
    )
    terminal = sys.stderr.isatty()
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not terminal)

    def tell(step: int, steps: int, kl: float) -> None:
        if not terminal:
            if step % max(1, steps // LINES) == 0 or step == steps:
                sys.stderr.write(f"Distilling: step {step} of {steps}, KL {kl:.4f}\n")
            return
        if not bar.tasks:
            bar.start()
            bar.add_task("", total=steps, kl=kl)
        bar.update(bar.tasks[0].id, completed=step, kl=kl)
        if step == steps:  # another bar may follow
            bar.stop()

    try:
        yield tell
    finally:
        bar.stop()
