"""How every command parses, shows its help and ends: a refusal is one message and a status, never a traceback."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from eckart.checkpoint.remote.table import MOUNTS
from eckart.checkpoint.remote.urls import is_url
from eckart.cli import flags
from eckart.cli.printable import printable
from eckart.cli.recipe import ARGUMENTS, step_of, to_yaml
from eckart.cli.signals import INTERRUPTED, interrupting
from eckart.engine.shard import ShardDone
from eckart.engine.working_folder import calibration_folder
from eckart.errors import EckartError

REFUSED = 1
DEBUG = "eckart.debug"  # in the context's `meta`
EXAMPLE = "\b\n$ eckart"  # how the first example in a docstring begins
GENERAL = "General"


def set_debug(context: typer.Context, value: bool) -> None:
    """The callback of `--debug`."""
    context.meta[DEBUG] = value


class Command(TyperCommand):
    """A command whose errors become messages and whose help groups its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and leave out what pydantic puts before the reason of a wrong value."""
        ctx.meta[ARGUMENTS] = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise
        ctx.params = {name: _concealed(value) for name, value in ctx.params.items()}
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit status 1 after a refusal, 130 after Ctrl-C or SIGTERM.

        With `eckart --dump-recipe`, print its recipe instead.
        """
        if ctx.parent is not None and ctx.parent.params.get("dump_recipe"):
            return typer.echo(to_yaml([step_of(ctx)]), nl=False)
        with flags.running(ctx), interrupting():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stopped:
                _interrupted(str(stopped), ctx.params.get("output"))
            except ShardDone as ended:
                _shard_done(ended, as_json=ctx.params.get("as_json", False))
            except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
                raise
            except Exception as error:
                _refused(error, debug=ctx.meta.get(DEBUG, False))
                raise typer.Exit(REFUSED) from None

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first paragraph of the help, unabridged."""
        return (self.help or "").partition("\n\n")[0].replace("\n", " ")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS]` and the names of the arguments."""
        return ["[OPTIONS]", *(_argument(each) for each in self.params if each.param_type_name == "argument")]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """What the command does; its examples come last."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text((self.help or "").partition(EXAMPLE)[0].rstrip())

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, after the options."""
        _, marker, examples = (self.help or "").partition(EXAMPLE)
        if marker:
            with formatter.section("Example"):
                formatter.write_text(marker + examples)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the command's own options, then the shared ones by their group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                sections["Arguments"].append((_argument(parameter), getattr(parameter, "help", None) or ""))
            elif record := parameter.get_help_record(ctx):
                group = GENERAL if parameter.name == "help" else getattr(parameter, "rich_help_panel", None)
                sections.setdefault(group or "Options", []).append(record)
        general = sections.pop(GENERAL)
        for heading, records in [*sections.items(), (GENERAL, general)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _concealed(value: Any) -> Any:
    """A value in which URLs have no password and no signature, so that nothing that is written or shown has one."""
    if isinstance(value, list | tuple):
        return type(value)(map(_concealed, value))
    if not isinstance(value, str) or not is_url(value):
        return value
    from eckart.checkpoint.remote.mounts import concealed

    return concealed(value)


def _argument(parameter: Any) -> str:
    """How help names an argument."""
    return parameter.metavar or parameter.name.upper()


def _refused(error: Exception, *, debug: bool) -> None:
    """One message on stderr; for an unexpected error, its first line and how to see where it arose."""
    if debug:
        sys.stderr.write(printable(traceback.format_exc()))
    elif isinstance(error, EckartError):
        sys.stderr.write(f"eckart: {printable(flags.with_flags(MOUNTS.shown(str(error))))}{_where(error)}\n")
    else:
        reason = MOUNTS.shown(f"{type(error).__name__}: {error}".strip().splitlines()[0])
        sys.stderr.write(f"eckart: unexpected {printable(reason)}{_where(error)}; run with --debug to see where\n")


def _where(error: Exception) -> str:
    """The matrix that was processed, and on which node, where the message does not say it."""
    notes = getattr(error, "__notes__", ())
    return f" ({printable(', '.join(notes))})" if notes else ""


def _shard_done(ended: ShardDone, *, as_json: bool) -> None:
    """What is done, in place of a result."""
    facts = {"format": "eckart-shard/1", "shard": str(ended.shard), "done": ended.done, "total": ended.total}
    typer.echo(json.dumps(facts) if as_json else flags.with_flags(str(ended)))


def _finished_work(output: Path) -> list[Path]:
    """What a repetition of a command finds next to its output: folders with finished parts, and complete parts."""
    folders = [Path(f"{output}{part}.partial") for part in ("", ".correction")]
    found = [each for each in folders if any(any(each.glob(name)) for name in ("*.safetensors", "checkpoint-*"))]
    return found + [each for each in (calibration_folder(output), Path(f"{output}.correction")) if each.exists()]


def _interrupted(reason: str, output: object) -> NoReturn:
    """Say what can be resumed; without a reason nothing has stopped the worker threads, so leave at once.

    A thread inside LAPACK cannot be stopped, and the interpreter would wait for it.
    """
    places = ", ".join(map(str, _finished_work(Path(str(output)))))
    kept = f"interrupted; finished work is kept in {places}: repeat the command to resume"
    message = reason or (kept if places else "interrupted")
    sys.stderr.write(f"eckart: {printable(flags.with_flags(message))}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if reason:
        raise typer.Exit(INTERRUPTED)
    os._exit(INTERRUPTED)
