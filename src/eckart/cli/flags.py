"""Python arguments in a library's message, shown as the flags of the command line.

A message names an option as an argument in backticks, such as `rank` or `modules_to_save=norm`. Here these become
`--rank` and `--modules-to-save norm`; other words in backticks stay as they are.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import typer

ARGUMENT = re.compile(r"`(?P<name>[a-z_][a-z0-9_]*)(?:=(?P<value>[^`]+))?`", re.IGNORECASE)
RUNNING: ContextVar[typer.Context | None] = ContextVar("RUNNING", default=None)
QUOTES = "\"'"
LIBRARY_NAMES = {"held_out": "eval_data", "lora_plus_ratio": "lora_plus"}
LIBRARY_VALUES = {
    ("answers_only", "True"): "--loss-on answers",
    ("answers_only", "False"): "--loss-on all",
    ("balanced", "False"): "--unbalanced",
}


@contextmanager
def running(context: typer.Context) -> Iterator[None]:
    """While a command runs, its own parameters decide what an argument is called."""
    from eckart.cli.command_line import command_line
    from eckart.operations.card import COMMAND

    token, command = RUNNING.set(context), COMMAND.set(command_line(context))
    try:
        yield
    finally:
        RUNNING.reset(token)
        COMMAND.reset(command)


def with_flags(message: str) -> str:
    """The message with arguments of the running command, or else of any command, as flags."""
    context = RUNNING.get()
    if context is None or "`" not in message:
        return message
    find = partial(_parameter, context)
    return ARGUMENT.sub(lambda match: _flag(match["name"], match["value"], find) or match[0], message)


def _parameter(context: typer.Context, name: str) -> Any:
    """A parameter of the running command, or else any command's option of that name."""
    own = (each for each in context.command.params if name in _names(each))
    siblings = getattr(context.parent and context.parent.command, "commands", {})
    others = (each for command in siblings.values() for each in command.params if each.param_type_name == "option")
    return next(own, None) or next((each for each in others if name in _names(each)), None)


def _names(parameter: Any) -> set[str]:
    """What Python may call a parameter: its own name, and those of its flags."""
    flags = {flag.removeprefix("--").replace("-", "_") for flag in parameter.opts if flag.startswith("--")}
    return {parameter.name} | flags


def _flag(name: str, value: str | None, find: Callable[[str], Any]) -> str | None:
    """`--name value`, the flag alone where it takes no value, or None where no command has such a parameter."""
    if (name, value) in LIBRARY_VALUES:
        return LIBRARY_VALUES[name, str(value)]
    parameter = find(LIBRARY_NAMES.get(name, name))
    if value == "False":
        parameter, value = find(f"no_{name}"), None
    if parameter is None:
        return None
    if parameter.param_type_name == "argument":
        return None if value is not None else str(parameter.metavar or name.upper()).removesuffix("...")
    long = [option for option in parameter.opts if option.startswith("--")]
    flag = next((option for option in long if option == f"--{name.replace('_', '-')}"), long[0])
    return flag if value is None or parameter.is_flag else f"{flag} {value.strip(QUOTES)}"
