"""The `eckart` command: its subcommands, and how each of them ends."""

import functools
import gc
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from eckart.cli.analyze import analyze
from eckart.cli.combine import combine
from eckart.cli.compare import compare
from eckart.cli.convert import convert
from eckart.cli.demo import demo
from eckart.cli.extract import extract
from eckart.cli.merge import merge
from eckart.cli.plan import plan
from eckart.cli.quantize import quantize
from eckart.cli.report import report
from eckart.cli.resize import resize
from eckart.cli.sweep import sweep
from eckart.cli.train import train
from eckart.cli.unmerge import unmerge
from eckart.engine.machine import c_library_function
from eckart.errors import EckartError
from eckart.version import __version__

REFUSED, INTERRUPTED = 1, 130
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 32 * 2**20  # the most that the second of them takes

app = typer.Typer(
    name="eckart",
    help="A low-rank workbench for neural-network weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def run() -> None:
    """The entry point: exit status 0 done, 1 refused, 2 wrong usage, 130 interrupted."""
    _settle()
    app(prog_name="eckart")


def _settle() -> None:
    """Settings of the process for what a command does: start torch once, then take and free slabs until it ends."""
    # torch makes some hundred thousand objects that live as long as the process; scanning them again and again while
    # they are made takes a sixth of its start.
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
) -> None:
    """A low-rank workbench for neural-network weights: see the rank, extract the adapter."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a `--debug` option and our endings: a refusal is one message, never a traceback."""

    @functools.wraps(command)
    def ending_well(*arguments: Any, debug: bool, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            _interrupted(options.get("output"))
        except (typer.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            elif isinstance(error, EckartError):
                _say(f"eckart: {error}")
            else:
                what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
                _say(f"eckart: unexpected {what}; run with --debug to see where")
            raise typer.Exit(REFUSED) from None

    signature = inspect.signature(command)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    ending_well.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    ending_well.__annotations__ = {**command.__annotations__, "debug": Debug}
    return ending_well


def _interrupted(output: object) -> NoReturn:
    """Say what was kept, and leave at once: a worker thread inside LAPACK cannot be asked to stop."""
    partial = Path(f"{output}.partial")
    kept = f"; finished matrices are kept in {partial}: the same command goes on from them" if partial.exists() else ""
    _say(f"eckart: interrupted{kept}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")


for _command in (
    *(analyze, extract, resize, combine, compare, convert, demo, merge, plan, quantize, report, sweep, train, unmerge),
):
    app.command()(guarded(_command))
