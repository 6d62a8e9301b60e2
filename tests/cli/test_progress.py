"""Progress: a bar on a terminal; elsewhere lines for stages that take long or end with a result."""

import io
import time

import pytest

from eckart.cli.progress import StderrProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, name: str = "xterm") -> Terminal:
    """A wide terminal as stderr."""
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", name)
    return stderr


def analyze(progress: StderrProgress) -> None:
    progress.start("Analyzing", 2_000_000, "bytes")
    progress.update(1_500_000, "q_proj")
    progress.note("something to know")
    progress.update(500_000, "v_proj")
    progress.finish()


def train(progress: StderrProgress) -> None:
    progress.start("Held-out loss before", 1, "steps")
    progress.update(1, "loss 3.2500")
    progress.start("Training", 3, "steps")
    progress.update(1, "loss 2.5000")
    progress.note("something to know")
    progress.update(1, "loss 2.2500")
    progress.finish()


def test_a_terminal_shows_stage_bytes_and_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    analyze(StderrProgress())
    shown = stderr.getvalue()
    for part in ("Analyzing", "2.0 of 2.0 MB", "v_proj", "something to know"):
        assert part in shown


def test_a_terminal_shows_steps_and_the_latest_result(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    train(StderrProgress())
    shown = stderr.getvalue()
    for part in ("Held-out loss before: loss 3.2500", "2 of 3 steps", "loss 2.2500", "something to know"):
        assert part in shown


def test_a_dumb_terminal_gets_lines_instead_of_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch, "dumb")
    train(StderrProgress())
    assert "\x1b" not in stderr.getvalue()
    assert "Training: 2 of 3 steps, loss 2.2500\n" in stderr.getvalue()


def test_short_work_on_matrices_leaves_only_notes_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    analyze(StderrProgress())
    assert capsys.readouterr() == ("", "something to know\n")


def test_a_pipe_gets_the_result_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    train(StderrProgress())
    assert capsys.readouterr().err.splitlines() == [
        "Held-out loss before: loss 3.2500",
        "something to know",
        "Training: 2 of 3 steps, loss 2.2500",
    ]


def test_a_pipe_gets_lines_of_long_work_even_while_one_matrix_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StderrProgress(long=0.01, every=0.01)
    progress.start("Extracting", 4_000_000_000, "bytes")
    progress.update(1_000_000_000, "q_proj")
    time.sleep(0.3)
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    *during, last = lines
    assert all(line.startswith("Extracting: 1.0 of 4.0 GB, q_proj, 0 s so far, about ") for line in during[1:])
    assert last == "Extracting: 1.0 of 4.0 GB, in 0 s"


def test_the_lines_keep_their_distance(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StderrProgress(long=0.01, every=60.0)
    progress.start("Simulating", 0, "steps")
    time.sleep(0.3)
    progress.finish()
    assert capsys.readouterr().err.splitlines() == ["Simulating: 0 s so far", "Simulating: done, in 0 s"]


def test_finishing_twice_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    progress = StderrProgress()
    progress.finish()
    progress.finish()
    progress.update(1)
    assert capsys.readouterr() == ("", "")
