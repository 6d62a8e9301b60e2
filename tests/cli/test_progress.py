"""The progress bar: on a terminal it counts, elsewhere it says nothing."""

import io

import pytest

from eckart.cli.progress import Bar
from eckart.engine import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(bar: Progress) -> None:
    bar.start("spectra", 2, 2_000_000)
    bar.advance("q_proj", 1_500_000)
    bar.note("something to know")
    bar.advance("v_proj", 500_000)
    bar.finish()


def test_a_terminal_sees_matrices_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    run(Bar())
    shown = terminal.getvalue()
    assert "spectra" in shown
    assert "2/2 matrices" in shown
    assert "2.0/2.0 MB" in shown
    assert "something to know" in shown


def test_a_pipe_sees_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run(Bar())
    assert capsys.readouterr() == ("", "something to know\n")


def test_finishing_twice_is_no_harm() -> None:
    bar = Bar()
    bar.finish()
    bar.finish()
