"""Showing a result: a table for people, or one JSON object for programs.

Prose is wrapped to the terminal's width, and to 80 columns in a pipe. A line that contains a path or a command is never
wrapped, so that it can be copied.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.cli.flags import RUNNING, with_flags
from eckart.cli.printable import Printable, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

PIPE_WIDTH = 80
COMMAND = re.compile(r"(^|[\s(])(eckart [a-z]+ \S|(pip|pipx|uv|python3?|torchrun|vllm|llama-server) \S)")
PATH = re.compile(r"(^|[\s\"'(])(~?[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\w+://)\S")
WORD = re.compile(r"(--[\w-]+ )?\S+\s*")  # a flag and its value are one


def show(result: "RenderableType") -> None:
    """Print a table and its notes on stdout: in colour on a terminal, plain in a pipe or a file."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    for part in _parts(result, console.width):
        console.print(Printable(part), crop=False, soft_wrap=isinstance(part, Text))


def present(result: Any, table: "Callable[[Any], RenderableType]", *, as_json: bool) -> None:
    """Print a result as JSON, or as the table that is made of it."""
    if as_json:
        show_json(result.to_json())
    else:
        show(table(result))


def _parts(renderable: "RenderableType", width: int) -> "Iterator[RenderableType]":
    """The lines and tables of a result, in order."""
    from rich.console import Group
    from rich.text import Text

    if isinstance(renderable, Group):
        for part in renderable.renderables:
            yield from _parts(part, width)
    elif isinstance(renderable, Text):
        for line in renderable.split(allow_blank=True):
            yield from _lines(line, width)
    else:
        yield renderable


def _lines(line: "Text", width: int) -> "Iterator[Text]":
    """The line with flags in place of arguments, wrapped unless it contains what a user might copy."""
    shown = with_flags(line.plain)
    if shown != line.plain:
        line = type(line)(shown, style=line.style)
    copied = COMMAND.search(shown) or PATH.search(shown) or any(path in shown for path in _paths())
    for piece in [line] if copied else line.divide(_breaks(shown, width)):
        piece.rstrip()
        yield piece


def _breaks(text: str, width: int) -> list[int]:
    """Where each line after the first begins; words are never split."""
    breaks, start = [], 0
    for word in WORD.finditer(text):
        if word.start() > start and len(text[start : word.end()].rstrip()) > width:
            start = word.start()
            breaks.append(start)
    return breaks


def _paths() -> list[str]:
    """What the running command was given as paths and sources."""
    context = RUNNING.get()
    values = context.params.values() if context is not None else ()
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    return [str(item) for item in flat if isinstance(item, Path) or (isinstance(item, str) and "/" in item)]


def show_json(result: Mapping[str, object]) -> None:
    """Print a result on stdout as one JSON object, which contains no NaN."""
    sys.stdout.write(f"{json.dumps(result, allow_nan=False)}\n")


def note(message: str) -> None:
    """Print a line on stderr, where it disturbs no pipe."""
    sys.stderr.write(f"{printable(with_flags(message))}\n")
