"""The table of commands is complete: no command, output format or option that names an input is missing from it."""

from typing import get_args

import pytest
import typer

from eckart.cli import convert
from eckart.cli.main import app

from .commands import COMMANDS, KEPT, SOURCES, WRITES_NOTHING

GROUP = typer.main.get_command(app)
READ = {"ADAPTER", "BASE", "DATA", "FILE", "MODEL", "SOURCE", "TEXT"}  # what help calls an input


def test_every_command_that_writes_has_a_row_and_every_other_a_reason() -> None:
    writing = {name for name, each in GROUP.commands.items() if any("-o" in option.opts for option in each.params)}
    assert {row.name for row in COMMANDS.values()} == writing
    assert writing | WRITES_NOTHING.keys() == set(GROUP.commands)
    assert writing.isdisjoint(WRITES_NOTHING)


@pytest.mark.parametrize("name", sorted(GROUP.commands.keys() - WRITES_NOTHING))
def test_every_option_that_names_an_input_is_in_a_row(name) -> None:
    read = [option for option in GROUP.commands[name].params if option.metavar in READ and "-o" not in option.opts]
    options = {option.opts[0] for option in read if option.param_type_name == "option"}
    rows = [row.line.split() for row in COMMANDS.values() if row.name == name]
    assert rows
    assert options - KEPT <= {word for row in rows for word in row}


def test_every_format_that_is_written_has_a_row() -> None:
    lines = [row.line for row in COMMANDS.values() if row.name == "convert"]
    assert all(any(f"--to {name}" in line for line in lines) for name in get_args(convert.Format))


def test_every_input_is_read_by_a_command(originals) -> None:
    assert {name for row in COMMANDS.values() for name in row.inputs} == SOURCES
    assert {path.name for path in originals.iterdir()} == SOURCES
