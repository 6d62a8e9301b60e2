"""Showing a result: a table for people, or one JSON object for programs."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def show(table: "RenderableType") -> None:
    """Print a table on stdout: in colour on a terminal, plain and 80 columns wide in a pipe or a file."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if terminal else 80, highlight=False).print(table)


def show_json(result: Mapping[str, object]) -> None:
    """Print a result on stdout as one JSON object, which holds no NaN."""
    sys.stdout.write(f"{json.dumps(result, allow_nan=False)}\n")


def note(message: str) -> None:
    """Say something on stderr, where it disturbs no pipe."""
    sys.stderr.write(f"{message}\n")
