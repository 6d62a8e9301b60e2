"""`eckart plan` as a user meets it: a table in 80 columns, JSON, and an exit status that scripts can guard on."""

import json

import pytest
from typer.testing import CliRunner, Result

from eckart.cli.main import app


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_plan_shows_every_method_and_advice_in_80_columns_and_draws_bars(tiny_folder, tmp_path, fits_80_columns):
    figure = tmp_path / "bars.png"
    ended = eckart(tiny_folder("llama"), "--memory", "8GB", "--max-length", 32, "--figure", figure)
    assert ended.exit_code == 0, ended.stderr
    for part in ("full", "lora", "dora", "qlora", "activa-", "Advice for 8GB", "eckart train", "reserved"):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("memory", "status"), [("8GB", 0), ("500.1MB", 3)])
def test_the_exit_status_shows_whether_it_fits(tiny_folder, memory, status):
    ended = eckart(tiny_folder("llama"), "--method", "lora", "--memory", memory, "--max-length", 16, "--json")
    assert ended.exit_code == status
    told = json.loads(ended.stdout)
    assert told["format"] == "eckart-plan/1"
    assert told["fits"] is (status == 0)
    assert told["peak_bytes"] == sum(told["parts"].values())
    assert set(told["parts"]) == {"weights", "adapters", "gradients", "optimizer", "activations", "other"}


def test_a_count_of_parameters_needs_no_model():
    ended = eckart("70B", "--method", "full", "--memory", "128GB")
    assert ended.exit_code == 3
    assert "closed-form" in ended.stdout
    assert "70 B parameters" in ended.stdout


def test_a_real_step_is_measured_and_compared_with_its_prediction(tiny_folder):
    ended = eckart(tiny_folder("gpt2"), "--method", "lora", "--dtype", "float32", "--max-length", 32, "--measure")
    assert ended.exit_code == 0, ended.stderr
    assert "predicted" in ended.stdout
    assert "measured" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama-3-8b"], "llama-3-8b"),
        (["8B", "--memory", "much"], "24GiB"),
        (["8B", "--batch-size", "0"], "--batch-size must be an integer of at least 1"),
        (["8B", "--measure"], "cannot be measured"),
        (["8B", "--figure", "bars.txt"], ".png"),
        (["8B", "--analysis", "nowhere"], "--analysis"),
    ],
)
def test_what_cannot_be_is_refused_in_words(arguments, said):
    ended = eckart(*arguments)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sequences_longer_than_the_model_sees_are_warned_of_on_stderr(tiny_folder):
    ended = eckart(tiny_folder("llama"), "--method", "lora", "--max-length", 128)
    assert ended.exit_code == 0
    assert "exceeds the model's context of 64 tokens" in ended.stderr
