"""How commands end: what is printed where, and the exit status."""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import eckart
from eckart.cli.main import COMMANDS, app

HEAVY = ("torch", "numpy", "transformers", "matplotlib", "pandas", "huggingface_hub", "safetensors")


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_importing_eckart_imports_nothing_heavy() -> None:
    ended = python(f"import sys, eckart; print([name for name in {HEAVY} if name in sys.modules])")
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    ended = python(
        f"import sys; sys.argv = ['eckart', *{arguments}]\n"
        "from eckart.cli.main import run\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print('imported:', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert ended.stdout.splitlines()[-1] == "imported: []", ended.stderr


def test_a_command_imports_the_file_of_no_other_command() -> None:
    ended = python(
        "import sys; sys.argv = ['eckart', 'analyze', '/no/such/folder']\n"
        "from eckart.cli.main import COMMANDS, run\n"
        "try:\n    run()\nexcept SystemExit:\n"
        "    print([name for name in COMMANDS if f'eckart.cli.{name}' in sys.modules])"
    )
    assert ended.stdout == "['analyze']\n", ended.stderr


def test_the_version_is_that_of_the_project() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["version"]
    assert runpy.run_path(str(root / settings["path"]))["__version__"] == eckart.__version__
    assert CliRunner().invoke(app, ["--version"]).output == f"eckart {eckart.__version__}\n"


@pytest.mark.parametrize("name", eckart.__all__)
def test_a_daily_name_is_there(name: str) -> None:
    assert name in dir(eckart)
    assert getattr(eckart, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"attribute.*analyse"):
        eckart.analyse  # noqa: B018


def test_the_module_runs_as_a_program() -> None:
    ended = subprocess.run([sys.executable, "-m", "eckart", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"eckart {eckart.__version__}\n"


def test_a_refusal_is_a_message_and_status_1() -> None:
    ended = CliRunner().invoke(app, ["analyze", "/no/such/folder"])
    assert ended.exit_code == 1
    assert ended.stderr.startswith("eckart: /no/such/folder: no such file")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_refusal_shows_its_traceback_when_debugging() -> None:
    ended = CliRunner().invoke(app, ["analyze", "/no/such/folder", "--debug"])
    assert ended.exit_code == 1
    assert "Traceback" in ended.stderr
    assert "SourceError" in ended.stderr


@pytest.mark.parametrize("arguments", [["analyze"], ["analyze", "here", "--bogus"], ["nonsense"]], ids=" ".join)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        msg = "first line\nsecond line"
        raise RuntimeError(msg)

    monkeypatch.setattr("eckart.operations.analyze", broken)
    ended = CliRunner().invoke(app, ["analyze", "here"])
    assert ended.exit_code == 1
    assert ended.stderr == "eckart: unexpected RuntimeError: first line; run with --debug to see where\n"


def test_an_interruption_is_status_130_and_says_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "finished.safetensors").touch()
    ended = python(
        "import sys, eckart.operations\n"
        "def interrupted(*_, **__): raise KeyboardInterrupt\n"
        "eckart.operations.analyze = interrupted\n"
        f"sys.argv = ['eckart', 'analyze', 'here', '-o', {str(tmp_path / 'out')!r}]\n"
        "from eckart.cli.main import run\nrun()"
    )
    assert ended.returncode == 130
    assert ended.stderr == (
        f"eckart: interrupted; finished work is kept in {tmp_path / 'out.partial'}: repeat the command to resume\n"
    )
