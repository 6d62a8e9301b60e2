"""A killed analysis goes on where it was, and ends with the numbers of one that was not killed."""

from pathlib import Path

import pytest
import torch

from eckart.engine import Execution, NoProgress
from eckart.errors import OutputError
from eckart.operations import Analysis, analyze

WEIGHTS = {f"layers.{i}.q.weight": torch.randn(6, 5, generator=torch.Generator().manual_seed(i)) for i in range(6)}


class Killed(NoProgress):
    """Interrupts after some matrices, and remembers what it was told."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.done: list[str] = []
        self.notes: list[str] = []

    def update(self, amount: int, detail: str = "") -> None:
        self.done.append(detail)
        if len(self.done) == self.after:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)


def killed_after(count: int, output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        analyze(WEIGHTS, output=output, execution=Execution(progress=Killed(count), workers=1))


def test_an_interrupted_run_resumes_and_gives_the_same_numbers(tmp_path: Path) -> None:
    killed_after(4, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = Killed()
    resumed = analyze(WEIGHTS, output=tmp_path / "out", execution=Execution(progress=again))
    assert again.notes == ["resuming: 3 of 6 matrices are already done"]
    assert len(again.done) == 3
    assert resumed.to_json()["matrices"] == analyze(WEIGHTS).to_json()["matrices"]
    assert Analysis.load(tmp_path / "out").to_json() == resumed.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["other options", "asked to"])
def test_a_run_that_is_not_the_same_starts_over(change: str, tmp_path: Path) -> None:
    killed_after(4, tmp_path / "out")
    again = Killed()
    analyze(
        WEIGHTS,
        output=tmp_path / "out",
        full=change == "other options",
        execution=Execution(progress=again, resume=change != "asked to"),
    )
    assert len(again.done) == 6
    assert again.notes[0].startswith("starting over")


def test_an_output_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    progress = Killed()
    with pytest.raises(OutputError, match="use `force` to replace it"):
        analyze(WEIGHTS, output=tmp_path / "out", execution=Execution(progress=progress))
    assert progress.done == []


def test_a_forced_output_replaces_the_whole_folder(tmp_path: Path) -> None:
    analyze(WEIGHTS, output=tmp_path / "out")
    (tmp_path / "out" / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"files that eckart did not write \(report\.html\)"):
        analyze(WEIGHTS, output=tmp_path / "out", force=True)
    (tmp_path / "out" / "report.html").unlink()
    (tmp_path / "out" / "analysis.csv").write_text("damaged")
    analyze(WEIGHTS, output=tmp_path / "out", force=True)
    names = [".eckart.json", "analysis.csv", "analysis.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "analysis.csv").read_text().startswith("name,")
