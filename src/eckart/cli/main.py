"""The `eckart` command and its subcommands."""

import gc
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from eckart.cli.command import Command
from eckart.engine.machine import c_library_function
from eckart.version import __version__

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 * 2**20  # the most that the second of them takes

COMMANDS = (
    *("analyze", "extract", "resize", "combine", "merge", "unmerge", "convert", "compare", "check"),
    *("quantize", "correct", "train", "sweep", "plan", "report", "run", "demo"),
)
"""The names of the commands in the order of the help; each is a function of the same name in its own file."""


class Commands(Mapping[str, Any]):
    """The commands by name. A command's file is imported when the command is used."""

    def __getitem__(self, name: str) -> Any:
        """The command as typer makes it from its function."""
        if name not in COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a command; imports nothing."""
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(COMMANDS)

    def __len__(self) -> int:
        """How many there are."""
        return len(COMMANDS)


@cache
def _command(name: str) -> Any:
    function = getattr(importlib.import_module(f"eckart.cli.{name}"), name)
    return get_command_from_info(
        CommandInfo(name, cls=Command, callback=function), pretty_exceptions_short=True, rich_markup_mode=None
    )


class Program(TyperGroup):
    """The group of all commands, each imported when it is used."""

    def __init__(self, **attributes: Any) -> None:
        options: dict[str, Any] = {**attributes, "commands": Commands()}
        super().__init__(**options)


app = typer.Typer(
    name="eckart",
    cls=Program,
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
