"""The `eckart` command and its subcommands."""

import gc
import io
import sys
from typing import Annotated

import typer

from eckart.cli.analyze import analyze
from eckart.cli.check import check
from eckart.cli.combine import combine
from eckart.cli.command import Command
from eckart.cli.compare import compare
from eckart.cli.convert import convert
from eckart.cli.correct import correct
from eckart.cli.demo import demo
from eckart.cli.extract import extract
from eckart.cli.merge import merge
from eckart.cli.plan import plan
from eckart.cli.quantize import quantize
from eckart.cli.report import report
from eckart.cli.resize import resize
from eckart.cli.run import run as run_recipe
from eckart.cli.sweep import sweep
from eckart.cli.train import train
from eckart.cli.unmerge import unmerge
from eckart.engine.machine import c_library_function
from eckart.version import __version__

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 * 2**20  # the most that the second of them takes

app = typer.Typer(
    name="eckart",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: nothing is truncated or framed, so that it can be copied
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Run the command line.

    Exit status 0 done, 1 refused, 2 wrong usage, 3 a plan or adapter does not fit, 130 interrupted.
    """
    _settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal's encoding lacks must not end a command
    app(prog_name="eckart")


def _settle() -> None:
    """Settings of the process for what a command does: start torch once, then take and free slabs until it ends."""
    # torch creates some hundred thousand objects that live as long as the process; scanning them again and again
    # meanwhile takes a sixth of its start.
    gc.set_threshold(100_000, 50, 50)
    # glibc gives freed slabs back to the system, which fills each page with zeros when it hands it out again.
    mallopt = c_library_function("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"eckart {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    dump_recipe: Annotated[
        bool, typer.Option("--dump-recipe", help="Print the command line as a recipe for eckart run; run nothing.")
    ] = False,
) -> None:
    """A low-rank workbench for neural-network weights: see the rank, extract the adapter.

    \b
    eckart COMMAND --help          options of a command, and an example with its output
    eckart --install-completion    completion by the Tab key in bash, zsh, fish and PowerShell

    \b
    $ eckart extract base tuned -o extracted --rank 8  a fine-tune as a small adapter
    $ eckart analyze tuned --base base -o update       how much rank it really has
    $ eckart plan llama-3-8b --memory 24GB             whether a fine-tune fits

    Exit status: 0 done, 1 refused, 2 wrong usage, 3 a plan or adapter does not fit, 130 interrupted.
    """  # noqa: D301


for _command in (
    *(
        analyze,
        extract,
        resize,
        combine,
        merge,
        unmerge,
        convert,
        compare,
        check,
        quantize,
        correct,
        train,
        sweep,
        plan,
        report,
        run_recipe,
        demo,
    ),
):
    app.command("run" if _command is run_recipe else None, cls=Command)(_command)
