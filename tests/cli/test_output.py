"""What commands print: wrapped prose, unwrapped paths and commands, in any environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Group
from rich.text import Text
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app
from eckart.cli.output import show

PROSE = "Rounding to the stored dtype loses a share of the update, as any merge into that dtype does, unless "
ENVIRONMENTS = {
    **{f"{width} columns": {"COLUMNS": str(width)} for width in (40, 80, 200)},
    "no color": {"NO_COLOR": "1"},
    "forced color": {"FORCE_COLOR": "1"},
    "dumb terminal": {"TERM": "dumb"},
    "C locale": {"LC_ALL": "C", "LANG": "C"},
}


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tune, each one file."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.q_proj.weight": torch.randn(12, 8, generator=generator) for i in range(3)}
    tuned = {name: weight + torch.randn(12, 8, generator=generator) for name, weight in base.items()}
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for file, weights in zip(files, (base, tuned), strict=True):
        save_file(weights, file)
    return files


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    layers = {f"layers.{i}.q_proj": AdapterLayer(torch.randn(2, 8), torch.randn(12, 2), 4.0) for i in range(3)}
    Adapter(layers).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "line",
    [
        f"Adapter in /{'a/' * 60}adapter, from kohya to diffusers",
        "Adapter in C:" + 12 * "\\models" + ", from kohya to diffusers",
        f"{PROSE}$ eckart merge base adapter -o merged --dtype float32",
        f"{PROSE}install it: pip install 'matplotlib>=3.9' 'jinja2>=3.1'",
    ],
)
def test_a_line_with_a_path_or_a_command_is_never_wrapped(line, capsys):
    show(Group(Text("Result", style="bold"), Text(line)))
    assert capsys.readouterr().out.splitlines() == ["Result", line]


def test_prose_is_wrapped_between_words_and_not_between_a_flag_and_its_value(capsys):
    for padding in range(12):
        text = f"{'x' * padding} {PROSE}--dtype float32 is given; prose goes on after it for a little while."
        show(Text(text))
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 1
        assert max(map(len, lines)) <= 80
        assert " ".join(lines) == text
        assert any("--dtype float32" in line for line in lines)


PRINTED = (
    "from rich.console import Group; from rich.text import Text; from eckart.cli.output import note, show; "
    "line = 'Adapter in /' + 50 * 'a/' + 'adapter, from kohya to diffusers'; "
    "show(Group(Text('Result', style='bold'), Text(line))); note(line)"
)


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_paths_are_whole_in_every_environment(environment):
    ended = subprocess.run(
        [sys.executable, "-c", PRINTED], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    line = f"Adapter in /{50 * 'a/'}adapter, from kohya to diffusers"
    assert ended.stdout.splitlines()[1] == line
    assert ended.stderr.splitlines() == [line]
    assert ("\x1b" in ended.stdout) == ("FORCE_COLOR" in environment)


def test_signs_that_a_stream_cannot_encode_do_not_end_a_command():
    ended = subprocess.run(
        [sys.executable, "-m", "eckart", "extract", "--help"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "--modules-to-save" in ended.stdout


@pytest.mark.parametrize("length", [1, 24, 40, 61])
def test_a_path_of_any_length_stays_on_one_line(adapter, length):
    output = adapter.with_name("o" * length)
    ended = eckart("resize", adapter, "-o", output, "--rank", 1)
    assert ended.exit_code == 0, ended.stderr
    assert f"Adapter in {output}" in ended.stdout.splitlines()


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_usage_errors_and_refusals_are_never_wrapped(columns, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    long = tmp_path / ("x" * 100) / "model"
    assert f"eckart: {long}: no such file or folder" in eckart("analyze", long).stderr
    wrong = eckart("extract", "a", "b", "-o", "c", "--device", long)
    assert (wrong.exit_code, f"'{long}': expected auto, cpu, cuda or cuda:N" in wrong.stderr) == (2, True)


def test_commands_name_the_folder_and_the_page_that_they_write(pair):
    out = pair[0].parent / "out"
    ended = eckart("analyze", pair[1], "--base", pair[0], "-o", out)
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.splitlines() == [f"Analysis in {out}", f"Page: {out / 'report.html'}"]
    ended = eckart("extract", *pair, "-o", out.with_name("adapter"), "--rank", 2)
    assert f"Adapter in {out.with_name('adapter')}" in ended.stdout.splitlines()
    assert f"Page: {out.with_name('adapter') / 'report.html'}" in ended.stderr.splitlines()


def test_open_shows_the_page_in_the_browser(pair, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    out = pair[0].parent / "out"
    assert eckart("analyze", pair[0], "-o", out, "--open").exit_code == 0
    assert eckart("report", out, "-o", out.with_name("page.html"), "--open").exit_code == 0
    assert eckart("compare", *pair, "-o", out.with_name("compared"), "--open").exit_code == 0
    pages = (out / "report.html", out.with_name("page.html"), out.with_name("compared") / "report.html")
    assert opened == [page.as_uri() for page in pages]


def test_open_without_a_page_is_refused_before_the_work(pair):
    ended = eckart("analyze", pair[0], "--open")
    assert ended.exit_code == 1
    assert ended.stderr == "eckart: --open shows the page in the output folder; add --output\n"


@pytest.mark.parametrize(
    ("command", "files", "skipped"),
    [
        (("analyze",), ["analysis.csv", "analysis.json"], "No figures and no report.html: "),
        (("compare",), ["comparison.json"], "No figures and no report.html: "),
        (
            ("extract", "--rank", 2),
            ["README.md", "adapter_config.json", "adapter_model.safetensors", "extract.json"],
            "No report.html: ",
        ),
    ],
    ids=["analyze", "compare", "extract"],
)
def test_without_drawing_libraries_the_numbers_are_written_and_the_rest_is_named_first(
    command, files, skipped, pair, monkeypatch
):
    for library in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, library, None)
    out = pair[0].parent / "out"
    sources = pair[:1] if command[0] == "analyze" else pair
    ended = eckart(command[0], *sources, *command[1:], "-o", out, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["format"].startswith(f"eckart-{command[0].replace('analyze', 'analysis')}/")
    assert sorted(path.name for path in out.iterdir()) == [".eckart.json", *files]
    assert ended.stderr.startswith(skipped)
    assert "'report' extra: pip install 'jinja2" in ended.stderr


def test_a_plan_without_matplotlib_is_printed_and_the_figure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = eckart("plan", "8B", "--method", "lora", "--figure", "bars.png")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.startswith("No bars.png: drawing needs the 'report' extra")
    assert "lora" in ended.stdout


def test_without_transformers_a_measured_gain_is_refused_before_the_work(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    text = pair[0].with_name("text.txt")
    text.write_text("some words")
    out = pair[0].with_name("out")
    ended = eckart("extract", *pair, "-o", out, "--eval", text)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"eckart: --eval {text} needs the 'train' extra: pip install ")
    assert not out.exists()
