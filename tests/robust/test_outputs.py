"""No option makes a command write over, above, below or through an input, or over what eckart did not write."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eckart.checkpoint.manifest import write_manifest
from eckart.cli.main import app

from .commands import COMMANDS, digests


def same(place: Path, source: Path, suffix: str) -> Path:
    return source


def above(place: Path, source: Path, suffix: str) -> Path:
    """A folder that eckart wrote, with the input in it."""
    folder = place / f"above{suffix}"
    folder.mkdir()
    shutil.move(source, folder / source.name)
    source.symlink_to(folder / source.name)
    write_manifest(folder)
    return folder


def below(place: Path, source: Path, suffix: str) -> Path:
    """A name in the input's folder; where the input is a file, the file's own."""
    return source / f"new{suffix}" if source.is_dir() else source


def link(place: Path, source: Path, suffix: str) -> Path:
    (place / f"link{suffix}").symlink_to(source)
    return place / f"link{suffix}"


def hard_link(place: Path, source: Path, suffix: str) -> Path:
    """An output that eckart wrote, and that is a file of the input under another name."""
    files = sorted(path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file())
    output = place / f"linked{suffix}"
    if suffix:
        output.hardlink_to(files[-1])
        return output
    output.mkdir()
    for file in files:
        (output / file.name).hardlink_to(file)
    write_manifest(output)
    return output


def partial(place: Path, source: Path, suffix: str) -> Path:
    """An output whose working folder would be the input."""
    moved = place / f"out{suffix}.partial"
    shutil.move(source, moved)
    source.symlink_to(moved)
    return place / f"out{suffix}"


RELATIONS = [same, above, below, link, hard_link, partial]
REFUSALS = ("inputs are never changed", "it is a link; give the name", "is one file; name it")


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.__name__)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_replaces_or_shares_an_input(name, relation, originals, tmp_path, monkeypatch) -> None:
    command = COMMANDS[name]
    for source in command.inputs:
        folder = tmp_path / source.replace(".", "-")
        shutil.copytree(originals, folder, symlinks=True)
        monkeypatch.chdir(folder)
        output = relation(folder, folder / source, command.suffix)
        before = digests(folder)
        ended = CliRunner().invoke(app, command.arguments(output, "--force"))
        assert ended.exit_code == 1, (source, ended.output)
        assert any(reason in ended.stderr for reason in REFUSALS), (source, ended.stderr)
        assert digests(folder) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_what_exists_and_is_not_eckarts_is_refused_before_any_work(name, inputs) -> None:
    command = COMMANDS[name]
    (inputs / "file").write_text("mine")
    (inputs / "folder" / "base").mkdir(parents=True)  # a part of a demo
    (inputs / "folder" / "base" / "notes.txt").write_text("mine")
    for output in ("file", "folder"):
        path = inputs / f"{output}{command.suffix}"
        (inputs / output).rename(path) if command.suffix else None
        before = digests(inputs)
        ended = CliRunner().invoke(app, command.arguments(path, "--force"))
        assert ended.exit_code == 1, ended.output
        expected = ("is to be written", "eckart did not write")
        assert any(part in ended.stderr for part in expected), ended.stderr
        assert digests(inputs) == before


@pytest.mark.parametrize("output", ["base", "adapter", "text.txt"])
def test_a_correction_replaces_none_of_its_inputs(output, inputs) -> None:
    before = digests(inputs)
    line = f"correct tuned base --calibrate text.txt --with adapter -o {output} --force"
    ended = CliRunner().invoke(app, line.split())
    assert ended.exit_code == 1, ended.output
    assert "inputs are never changed" in ended.stderr
    assert digests(inputs) == before
