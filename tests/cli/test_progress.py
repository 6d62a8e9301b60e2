"""Progress: on a terminal a bar counts; elsewhere matrices say nothing, and stages a line each."""

import io

import pytest

from eckart.cli.progress import Bar, Stages
from eckart.engine import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(bar: Progress) -> None:
    bar.start("spectra", 2_000_000, "bytes")
    bar.update(1_500_000, "q_proj")
    bar.note("something to know")
    bar.update(500_000, "v_proj")
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


def train(stages: Stages) -> None:
    stages.at("held-out loss before", 0, 1)
    stages.at("held-out loss before", 1, 1, 3.25)
    stages.at("training", 0, 3)
    stages.at("training", 1, 3, 2.5)
    stages.note("something to know")
    stages.at("training", 2, 3, 2.25)


def test_a_pipe_sees_a_line_for_each_stage_that_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        train(stages)
        stages.show("merging", 0, 1)
        stages.show("merging", 1, 1)
    told = ["held-out loss before: loss 3.2500", "something to know", "training: 2 of 3, loss 2.2500", "merging"]
    assert capsys.readouterr().err.splitlines() == told


def test_a_pipe_sees_how_far_a_long_stage_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 1000, 20))
    monkeypatch.setattr("eckart.cli.progress.time.monotonic", lambda: float(next(seconds)))
    with Stages() as stages:
        for step in range(5):
            stages.at("training", step, 9, 2.0)
    told = capsys.readouterr().err.splitlines()
    assert told
    assert all(line.startswith("training: ") and line.endswith(" of 9, loss 2.0000") for line in told)
    assert len(told) < 4


def test_a_terminal_sees_a_bar_with_the_latest_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with Stages() as stages:
        train(stages)
    shown = terminal.getvalue()
    for told in ("held-out loss before: loss 3.2500", "2/3", "loss 2.2500", "something to know"):
        assert told in shown


def test_a_quiet_process_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages(quiet=True) as stages:
        train(stages)
    assert capsys.readouterr() == ("", "")
