"""`--distill` of extract and resize as a user meets it."""

import json
from pathlib import Path

import pytest
from transformers.utils import logging
from typer.testing import CliRunner, Result

from eckart.cli.main import app
from eckart.evaluation import load_model, load_tokenizer
from eckart.formats import load_adapter
from eckart.training import FinetuneSettings, finetune, pack_texts

from .tiny import words, write_tiny_llama


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, tuned, adapter (of rank 8) and text.txt."""
    folder = tmp_path_factory.mktemp("distill")
    base, text = write_tiny_llama(folder / "base"), words(3000)
    model, tokenizer = load_model(base), load_tokenizer(base)
    finetune(model, pack_texts([text], tokenizer, length=32), FinetuneSettings(steps=40, learning_rate=1e-2))
    logging.disable_progress_bar()
    model.save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")
    (folder / "text.txt").write_text(text)
    (folder / "short.txt").write_text(words(100))
    assert eckart("extract", base, folder / "tuned", "-o", folder / "adapter", "--rank", 8).exit_code == 0
    return folder


def command(place: Path, name: str, output: Path, *options: object) -> Result:
    inputs = {"extract": ["base", "tuned"], "resize": ["adapter"]}[name]
    return eckart(name, *(place / part for part in inputs), "-o", output, "--rank", 1, *options)


@pytest.mark.parametrize("name", ["extract", "resize"])
def test_json_contains_the_result_of_a_distillation_and_stderr_its_steps(place, tmp_path, name):
    options = ("--distill", place / "text.txt", "--steps", 20, "--json")
    ended = command(place, name, tmp_path / "out", *options)
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    told = result["distill"]
    assert told["kept"]
    assert told["steps"] == 20
    assert told["kl_after"] < told["kl_before"]
    assert told["gain_recovered_after"] > told["gain_recovered_before"]
    assert "Distilling: 20 of 20 steps, KL" in ended.stderr
    assert {layer.rank for layer in load_adapter(tmp_path / "out").values()} == {1}
    assert all(layer["error"] > layer["error_lower_bound"] for layer in result["layers"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_table_shows_kl_and_gain_before_and_after(place, tmp_path):
    ended = command(place, "extract", tmp_path / "out", "--distill", place / "text.txt", "--eval", place / "text.txt")
    assert "Distilled for 40 steps." in ended.stdout
    for part in ("KL to the teacher", "→", "gain recovered", "Gain recovered"):
        assert part in ended.stdout
    lines = [line for line in ended.stdout.splitlines() if str(tmp_path) not in line]  # paths are never wrapped
    assert lines
    assert all(len(line) <= 80 for line in lines)


def test_without_it_json_says_that_there_was_none(place, tmp_path):
    assert json.loads(command(place, "extract", tmp_path / "out", "--json").stdout)["distill"] is None


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["extract", "--distill", "nowhere.txt"], 1, "--distill nowhere.txt"),
        (["extract", "--distill", "short.txt"], 1, "needs 1,707"),
        (["extract", "--steps", 10], 1, "--distill"),
        (["extract", "--distill", "text.txt", "--steps", 0], 2, "--steps"),
        (["extract", "--distill", "text.txt", "--unbalanced"], 1, "--unbalanced"),
        (["resize", "--distill", "text.txt", "--base", "nowhere"], 1, "nowhere"),
        (["resize", "--distill", "short.txt"], 1, "needs 1,707"),
        (["resize", "--base", "base"], 1, "--distill"),
        (["resize", "--steps", 10], 1, "--distill"),
    ],
)
def test_bad_options_are_refused_before_any_work(place, tmp_path, options, code, said):
    name, *rest = options
    rest = [place / part if (place / str(part)).is_file() else part for part in rest]
    ended = command(place, name, tmp_path / "out", *rest)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_names_no_base_asks_for_one(place, tmp_path):
    config = json.loads((place / "adapter/adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    weights = "adapter_model.safetensors"
    (tmp_path / "adapter" / weights).write_bytes((place / "adapter" / weights).read_bytes())
    command = ["resize", tmp_path / "adapter", "-o", tmp_path / "out", "--rank", 1, "--distill", place / "text.txt"]
    ended = eckart(*command)
    assert (ended.exit_code, "--base" in ended.stderr) == (1, True)
    assert eckart(*command, "--base", place / "base", "--steps", 5).exit_code == 0
