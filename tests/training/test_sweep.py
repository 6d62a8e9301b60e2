"""Sweeps: which cells are trained, what is kept when they stop, and what is refused before the first one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import eckart
from eckart.checkpoint.manifest import write_manifest
from eckart.engine.progress import NoProgress
from eckart.errors import EckartError, MismatchError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.nn import LoRAConfig
from eckart.training import DataOptions, DivergenceError, TrainSettings
from eckart.training.sweep_cell import CellJob, train_apart, train_here
from eckart.training.sweep_grid import SweepGrid, patterns
from eckart.training.sweep_run import sweep

GRID = SweepGrid(ranks=(2, 4), targets=("q_proj+v_proj", "all-linear"), seeds=(0, 1, 2))
SETTINGS = TrainSettings(steps=3, batch_size=2)
OPTIONS = DataOptions(max_length=32)


class Trainings:
    """Trains nothing: writes what a training would, with a loss of rank, target and seed."""

    def __init__(self, loss=lambda rank, target, seed: 3 - rank / 10 + seed / 100, data="digest") -> None:
        self.loss, self.data, self.jobs = loss, data, []

    def __call__(self, job: CellJob, progress) -> dict:
        self.jobs.append(job)
        progress.start("Training", 3, "steps")
        progress.update(1, "loss 2.5")
        rank, target = job.config.rank, "+".join(job.config.target)
        content = {
            "heldout_loss_before": 3.5,
            "heldout_loss_after": self.loss(rank, target, job.settings.seed),
            "heldout_tokens": 100,
            "trainable_params": rank * (100 if target == "all-linear" else 10),
            "seconds": 1.5,
            "peak_bytes": 10**9,
            "run": {"data": self.data},
        }
        Path(job.output).mkdir()
        (Path(job.output) / "train.json").write_text(json.dumps(content))
        write_manifest(Path(job.output))
        return content

    @property
    def done(self) -> list[tuple[int, str, int]]:
        return [(job.config.rank, "+".join(job.config.target), job.settings.seed) for job in self.jobs]


@pytest.fixture
def run(tiny, text, tmp_path):
    def start(run_cell, *, grid=GRID, **options):
        given = {"settings": SETTINGS, "options": OPTIONS, "data": text} | options
        given |= {"ranks": grid.ranks, "targets": grid.targets, "seeds": grid.seeds}
        return sweep(tiny, given.pop("data"), tmp_path / "out", run_cell=run_cell, **given)

    return start


def test_every_combination_is_trained_with_alpha_twice_the_rank_all_settings_before_the_next_seed(run, tmp_path):
    trainings = Trainings()
    result = run(trainings, config=LoRAConfig(dropout=0.1))
    assert trainings.done == [
        (rank, target, seed) for seed in GRID.seeds for target in GRID.targets for rank in GRID.ranks
    ]
    assert {job.config.alpha / job.config.rank for job in trainings.jobs} == {2.0}
    assert {job.config.dropout for job in trainings.jobs} == {0.1}
    assert {job.config.target for job in trainings.jobs} == {("q_proj", "v_proj"), ("all-linear",)}
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert content["format"] == "eckart-sweep/1"
    fields = {"rank", "target", "seed", "loss", "params", "seconds", "peak_bytes", "error"}
    assert {frozenset(cell) for cell in content["cells"]} == {frozenset(fields)}
    assert content["base_loss"] == 3.5
    first = content["settings"][0]
    assert (first["rank"], first["target"], first["seeds"]) == (2, "q_proj+v_proj", 3)
    assert first["loss"] == pytest.approx(2.81)
    assert first["standard_error"] == pytest.approx(0.01 / 3**0.5)
    assert (first["lowest"], first["highest"]) == pytest.approx((2.8, 2.82))
    assert (content["sweet_spot"]["rank"], content["sweet_spot"]["target"]) == (4, "q_proj+v_proj")
    assert content["sweet_spot"]["decided"]


def test_a_sweep_takes_ranks_targets_and_a_number_of_seeds_and_needs_no_output(tiny, text):
    trainings = Trainings()
    settings = replace(SETTINGS, seed=5)
    result = eckart.sweep(
        tiny, text, ranks=[2, 4], targets="mlp", seeds=2, settings=settings, options=OPTIONS, run_cell=trainings
    )
    assert trainings.done == [(2, "mlp", 5), (4, "mlp", 5), (2, "mlp", 6), (4, "mlp", 6)]
    assert [(row["rank"], row["seed"]) for row in result.rows()] == [(2, 5), (4, 5), (2, 6), (4, 6)]
    assert not Path(trainings.jobs[0].output).exists()
    assert len(repr(result)) < 1000


def test_a_live_model_is_refused_since_every_training_has_its_own_process(text):
    with pytest.raises(OptionError, match=r"`model` must be a SOURCE.*got a Linear"):
        eckart.sweep(torch.nn.Linear(2, 2), text)


def test_without_resume_an_interrupted_sweep_starts_over_and_a_finished_one_is_kept(run, tmp_path):
    run(Trainings(), grid=replace(GRID, seeds=(0,)))
    with pytest.raises(OutputError, match="finished sweep; use `force`"):
        run(Trainings(), resume=False)
    (tmp_path / "out/sweep.json").unlink()
    again = Trainings()
    run(again, resume=False)
    assert len(again.done) == 12


def test_one_seed_claims_no_spread(run):
    result = run(Trainings(), grid=replace(GRID, seeds=(0,)))
    assert {setting["standard_error"] for setting in result.to_json()["settings"]} == {None}
    assert result.sweet_spot.probability is None


def test_an_interrupted_sweep_resumes_with_the_missing_cells(run):
    first = Trainings()

    def stopped(job, progress):
        if len(first.jobs) == 5:
            raise KeyboardInterrupt
        return first(job, progress)

    with pytest.raises(KeyboardInterrupt, match="5 of 12 cells are kept"):
        run(stopped)
    second = Trainings()
    result = run(second)
    assert sorted(first.done + second.done) == sorted(all_cells(GRID))
    assert len(second.done) == 7
    assert len(result.cells) == 12
    third = Trainings()
    assert run(third).to_json()["cells"] == result.to_json()["cells"]
    assert third.done == []


def all_cells(grid):
    return [(rank, target, seed) for rank in grid.ranks for target in grid.targets for seed in grid.seeds]


def test_more_seeds_and_ranks_reuse_what_is_there(run):
    run(Trainings())
    more = Trainings()
    result = run(more, grid=replace(GRID, ranks=(2, 4, 8), seeds=(0, 1, 2, 3)))
    assert len(result.cells) == 24
    assert len(more.done) == 12
    assert all(rank == 8 or seed == 3 for rank, _, seed in more.done)


def test_a_diverged_cell_is_kept_as_failed_and_its_setting_is_no_candidate(run):
    def diverging(job, progress):
        if job.config.rank == 4 and job.settings.seed == 1:
            msg = "training stopped at step 2 of 3: the loss is not finite"
            raise DivergenceError(msg)
        return healthy(job, progress)

    healthy = Trainings()
    result = run(diverging)
    assert {(cell.rank, cell.seed) for cell in result.failed} == {(4, 1)}
    assert all("step 2" in cell.error for cell in result.failed)
    assert {setting.rank for setting in result.settings} == {2}
    assert result.sweet_spot.setting.rank == 2
    again = Trainings()
    assert len(run(again).failed) == 2
    assert again.done == []


def test_a_sweep_in_which_every_cell_fails_has_no_sweet_spot(run):
    def failing(job, progress):
        msg = "the loss is not finite"
        raise DivergenceError(msg)

    result = run(failing)
    assert (result.sweet_spot, result.base_loss) == (None, None)
    assert result.to_json()["sweet_spot"] is None


def test_a_refused_training_ends_the_sweep_and_keeps_the_cells_before_it(run):
    trainings = Trainings()

    def refused(job, progress):
        if len(trainings.jobs) == 2:
            msg = "the memory is too small"
            raise EckartError(msg)
        return trainings(job, progress)

    with pytest.raises(EckartError, match="memory"):
        run(refused)
    again = Trainings()
    run(again)
    assert len(again.done) == 10


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": replace(SETTINGS, learning_rate=1e-3)}, "settings.learning_rate: now 0.001, then 0.0002"),
        ({"config": LoRAConfig(method="dora")}, "config.method: now 'dora', then 'lora'"),
        ({"options": DataOptions(max_length=16)}, "options.max_length: now 16, then 32"),
        ({"config": LoRAConfig(rank=8, alpha=8)}, "alpha_per_rank: now 1.0, then 2.0"),
    ],
)
def test_a_sweep_of_other_settings_is_refused_and_force_starts_over(run, changed, said):
    run(Trainings())
    with pytest.raises(MismatchError, match=said) as refusal:
        run(Trainings(), **changed)
    assert "was started with different settings; resume with the same ones" in str(refusal.value)
    again = Trainings()
    run(again, force=True, **changed)
    assert len(again.done) == 12


def test_other_data_under_the_same_name_are_found_out(run):
    run(Trainings(), grid=replace(GRID, seeds=(0,)))
    with pytest.raises(MismatchError, match="data are not those"):
        run(Trainings(data="another digest"))


def test_a_folder_that_holds_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match=r"files that eckart did not write \(thesis\.txt\)"):
            run(Trainings(), force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_two_sweeps_do_not_work_in_one_folder(run):
    def second(job, progress):
        with pytest.raises(OutputError, match="another process is writing"):
            run(Trainings())
        msg = "enough"
        raise EckartError(msg)

    with pytest.raises(EckartError, match="enough"):
        run(second)


def test_cells_that_cannot_be_trained_are_all_reported_before_the_first_one(run, tmp_path):
    grid = SweepGrid(ranks=(2, 64), targets=("attention", "qproj", "[z"))
    trainings = Trainings()
    with pytest.raises(MismatchError) as refusal:
        run(trainings, grid=grid)
    for part in ("'qproj' matches nothing", "q_proj", "rank 64 is above", "'[z' is neither a name nor a regex"):
        assert part in str(refusal.value)
    assert trainings.done == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ranks", "targets", "options", "said"),
    [
        ("4,eight", "attention", {}, "'eight' is not a whole number"),
        ("4,0", "attention", {}, "0 is not a whole number"),
        ("4,-8", "attention", {}, "'-8' is not a whole number"),
        ("4,8,4", "attention", {}, "`ranks`: 4 occurs more than once"),
        ("4", "mlp,mlp", {}, "`targets`: mlp occurs more than once"),
        ("", "attention", {}, "`ranks`: at least one"),
        ("4", "", {}, "`targets`: at least one"),
        ("4", "mlp", {"seeds": 0}, "at least 1"),
        ("4", "mlp", {"alpha_per_rank": 0.0}, "positive"),
        ("4", "mlp", {"alpha_per_rank": float("nan")}, "positive"),
    ],
)
def test_grids_that_make_no_sense_are_refused(ranks, targets, options, said):
    with pytest.raises(OptionError, match=said):
        SweepGrid.parse(ranks, targets, **options)


def test_a_grid_is_read_from_text():
    assert SweepGrid.parse("4, 8", "attention,q_proj+v_proj", seeds=2, first_seed=5) == SweepGrid(
        (4, 8), ("attention", "q_proj+v_proj"), (5, 6)
    )
    assert patterns(r".*\.(q|v)_proj+") == (r".*\.(q|v)_proj+",)


def test_a_cell_in_a_fresh_process_learns_what_it_learns_here(tiny, text, tmp_path):
    jobs = [
        CellJob(
            str(tiny), str(text), None, LoRAConfig(rank=2, target="attention"), SETTINGS, OPTIONS, str(tmp_path / side)
        )
        for side in ("apart", "here")
    ]
    reports = []

    class Reports(NoProgress):
        def start(self, stage, total, unit):
            reports.append((stage, total, unit))

        def update(self, amount, detail=""):
            reports.append((amount, detail[:4]))

        def finish(self):
            reports.append("finish")

    apart, here = train_apart(jobs[0], Reports()), train_here(jobs[1], NoProgress())
    training = reports[reports.index(("Training", 3, "steps")) :]
    assert training[1:6] == [(0, ""), (1, "loss"), (1, "loss"), (1, "loss"), "finish"]
    for field in ("heldout_loss_before", "heldout_loss_after", "losses", "trainable_params", "steps"):
        assert apart[field] == here[field]
    assert apart["run"]["data"] == here["run"]["data"]
    assert load_adapter(tmp_path / "apart").fingerprint()


def test_errors_of_the_fresh_process_arrive_as_they_were_raised(tiny, text, tmp_path):
    job = CellJob(str(tiny), str(tmp_path / "nowhere"), None, LoRAConfig(), SETTINGS, OPTIONS, str(tmp_path / "out"))
    with pytest.raises(EckartError, match="nowhere: no such file"):
        train_apart(job, NoProgress())


def test_the_fresh_process_ends_when_its_parent_is_killed(tiny, text, tmp_path):
    settings = replace(SETTINGS, steps=100_000)
    job = CellJob(str(tiny), str(text), None, LoRAConfig(rank=2), settings, OPTIONS, str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(asdict(job))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert any(line.startswith("Training") for line in process.stdout)
        children = _children(process.pid)
        assert len(children) == 1
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while _parent_of(children[0]) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _parent_of(children[0]) is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


PARENT = """
import json, sys
from eckart.training.sweep_cell import CellJob, train_apart

from eckart.engine.progress import NoProgress

class Printed(NoProgress):
    def start(self, stage, total, unit): print(stage, flush=True)

train_apart(CellJob.from_json(json.loads(sys.argv[1])), Printed())
"""


def _children(parent: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if _parent_of(pid) == parent]


def _parent_of(pid: int) -> int | None:
    """None of a process that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)
