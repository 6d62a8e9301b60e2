"""The command line that is running, as the card of its output shows it: without paths of this machine."""

import shlex
from pathlib import Path
from typing import Any

import typer

from eckart.operations.card import shown_name

# How a command is run and shown, and where its output goes: none of it changes what is written.
_LEFT_OUT = {
    *("workers", "device", "ray", "no_resume", "resume", "force", "as_json", "open_page", "debug", "dry_run"),
    *("push", "cache", "collect"),
    *("save_every", "output"),
}


def command_line(context: typer.Context) -> str:
    """The arguments and options that were given, in the order of the help; of a path its last part."""
    words = ["eckart", context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _LEFT_OUT and source is not None and source.name == "COMMANDLINE":
            words += _words(parameter, context.params.get(name))
    if "output" in context.params:
        words += ["-o", "OUT"]
    return shlex.join(words)


def _words(parameter: Any, value: Any) -> list[str]:
    """What one parameter was given."""
    values = [shown_value(each) for each in (value if isinstance(value, list | tuple) else [value])]
    if parameter.param_type_name == "argument":
        return values
    flag = next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
    return [flag] if parameter.is_flag else [word for each in values for word in (flag, each)]


def shown_value(value: Any) -> str:
    """A value without what it says of this machine: a folder's name in place of its path."""
    text = "".join(character if character.isprintable() else "�" for character in str(value))
    is_path = isinstance(value, Path) or "://" in text or Path(text).expanduser().exists()
    return shown_name(text) if is_path or text.startswith(("/", "~", ".")) else text
