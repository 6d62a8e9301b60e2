"""Options of a distillation, and its steps on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eckart.cli.evaluate import read_text
from eckart.cli.progress import Stages
from eckart.errors import OptionError

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.training import Distillation

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
    from eckart.engine import Execution
    from eckart.training import Distillation, fast_dtype
    from eckart.training.distiller import SHORT

    settings = replace(SHORT, steps=steps or SHORT.steps, seed=seed, compute_dtype=fast_dtype())
    with Stages() as stages:
        yield Distillation(
            base,
            teacher,
            content,
            settings,
            device=Execution(device=device).torch_device(),
            progress=lambda step, steps, kl: stages.show("Distilling", step, steps, f"KL {kl:.4f}"),
        )
