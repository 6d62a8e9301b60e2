"""`eckart plan`: what will a fine-tune take, does it fit, and what to train with?"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from eckart.cli.options import Json, Target

DOES_NOT_FIT = 3


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A preset such as llama-3-8b, a SOURCE (only its config is read), or a count such as 8B.",
        ),
    ],
    *,
    method: Annotated[
        str | None, typer.Option(metavar="full|lora|dora|qlora", help="Only this one. [default: compare all]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="24GB", help="To fit: exit status 0 if it does, 3 if not.")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="N", help="Of the adapter. [default: by the data's size]")] = None,
    target: Target = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Sequences a step.")] = 1,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a sequence. [default: 1024, or what the model sees]")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="float32|float16|bfloat16", help="Of the base and the activations.")
    ] = "bfloat16",
    optimizer: Annotated[
        str, typer.Option(metavar="adamw|adamw8bit", help="With states in full, or 8 bits.")
    ] = "adamw",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    attention: Annotated[
        str | None, typer.Option(metavar="sdpa|eager", help="Eager keeps scores of all pairs of tokens.")
    ] = None,
    data_size: Annotated[
        str | None, typer.Option(metavar="N", help="To learn from: 5000 or 20k examples, '3M tokens'.")
    ] = None,
    analysis: Annotated[
        Path | None, typer.Option(metavar="FILE", help="analysis.json of an earlier fine-tune: its ranks by module.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run a real step on this machine's CPU too, and compare.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", "-o", metavar="FILE", help="Draw the bars: .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what fine-tuning a model takes, before renting a GPU.

    The model's own code runs a training step on tensors without data: no
    weights are downloaded, no GPU is asked, and every byte is counted.

    \b
    $ eckart plan llama-3-8b --memory 24GB
    llama-3-8b: 8.03 B parameters
    1 × 1,024 tokens a step, bfloat16, adamw, sdpa
             peak           adap-  gradi-  opti-  activa-         fits
     method    GB  weights   ters    ents  mizer    tions  other  24GB
     ─────────────────────────────────────────────────────────────────
     full    64.3     16.1      –    16.1   32.1        –   0.01    no
     lora    24.1     16.1   0.17       –   0.34     7.42   0.13    no
     dora    27.0     16.1   0.18       –   0.35     10.2   0.13    no
     qlora   13.8     5.70   0.17       –   0.34     7.39   0.16   yes
    Advice for 24GB: peak 22.1 GB
    …
    """  # noqa: D301
    from eckart import planning
    from eckart.cli.output import note, show, show_json
    from eckart.report import plan_table, save_plan_figure

    checked = None
    with _line() as tell, _warnings_as_notes():
        plan = planning.plan(
            model,
            method=method,  # type: ignore[arg-type]  # checked there, as are the others
            memory=memory,
            data_size=data_size,
            analysis=analysis,
            tell=tell,
            rank=rank,
            target=target,
            batch_size=batch_size,
            max_length=max_length,
            dtype=dtype,  # type: ignore[typeddict-item]
            optimizer=optimizer,  # type: ignore[typeddict-item]
            gradient_checkpointing=gradient_checkpointing,
            attention=attention,  # type: ignore[typeddict-item]
        )
        if measure:
            tell("a real step")
            checked = planning.check(model, plan.chosen.setting)
    if figure is not None:
        note(f"Figure in {save_plan_figure(plan, figure)}")
    if as_json:
        show_json(plan.to_json() | ({"measured": checked.to_json()} if checked else {}))
    else:
        show(plan_table(plan, checked))
    if plan.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


@contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that tells what is being simulated."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("Reading the config") as status:
        yield lambda words: status.update(f"Simulating {words}")


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Warnings, which are for programs, as a line for people."""
    from eckart.cli.output import note

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(each.message) for each in caught):
        note(f"Warning: {message}")
