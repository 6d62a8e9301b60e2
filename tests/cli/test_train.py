"""`eckart train` as a user meets it, on a tiny model."""

import json
import os
import signal
import sys

import pytest
from typer.testing import CliRunner, Result

from eckart.cli.main import app
from eckart.cli.progress import Stages
from eckart.formats import load_adapter

QUICK = ("--steps", 3, "--rank", 2, "--max-length", 16, "--learning-rate", 1e-2)


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_training_shows_a_table_and_leaves_an_adapter_with_figures(model, text, tmp_path):
    out = tmp_path / "out"
    ended = eckart("train", model, text, "-o", out, *QUICK, "--target", "q_proj", "--method", "dora")
    assert ended.exit_code == 0, ended.stderr
    assert f"Adapter in {out}" in ended.stdout.replace(" \n", " ").replace("\n", "")
    for part in (
        "q_proj",
        "‖ΔW‖ / ‖W‖",
        "held-out tokens",
        "parameters trained",
        "3 steps in",
    ):
        assert part in ended.stdout
    assert all(len(line) <= 80 for line in ended.stdout.splitlines())
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert '"title":"out"' in (out / "report.html").read_text()  # of the folder's last name, not of where it was made
    layers = load_adapter(out)
    assert {layer.rank for layer in layers.values()} == {2}
    assert all(layer.magnitude is not None for layer in layers.values())


def test_json_holds_the_fields_scripts_rely_on(model, text, tmp_path):
    ended = eckart("train", model, text, "-o", tmp_path / "out", *QUICK, "--no-dynamics", "--json")
    result = json.loads(ended.stdout)
    assert result["format"] == "eckart-train/1"
    numbers = ("trainable_params", "steps", "heldout_loss_before", "heldout_loss_after", "seconds", "peak_bytes")
    assert all(isinstance(result[number], int | float) for number in numbers)
    assert result == json.loads((tmp_path / "out" / "train.json").read_text())
    assert not (tmp_path / "out" / "dynamics.json").exists()


def test_every_option_arrives(model, tmp_path):
    lines = [json.dumps({"prompt": "the rank ", "completion": f"is {word}"}) for word in ["high", "low", "noise"] * 16]
    data, held = tmp_path / "data.jsonl", tmp_path / "held.jsonl"
    data.write_text("\n".join(lines))
    held.write_text("\n".join(lines[:3]))
    options = {
        "alpha": 6, "dropout": 0.1, "bias": "lora-only", "init": "olora", "exclude": "o_proj", "epochs": 0.5,
        "batch-size": 2, "accumulate": 2, "loss-on": "all", "eval-data": held, "lora-plus": 4, "schedule": "cosine",
        "warmup": 0.2, "weight-decay": 0.01, "dtype": "float32", "device": "cpu", "save-every": 2, "seed": 3,
    }  # fmt: skip
    flags = ("--rslora", "--packing", "--gradient-checkpointing")
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    ended = eckart(
        "train", model, data, "-o", tmp_path / "out", "--max-length", 16, "--rank", 2, *given, *flags, "--json"
    )
    assert ended.exit_code == 0, ended.stderr
    run = json.loads(ended.stdout)["run"]
    config = {"rank": 2, "alpha": 6.0, "dropout": 0.1, "bias": "lora-only", "init": "olora", "exclude": ["o_proj"]}
    assert config.items() <= (run["config"] | {"exclude": list(run["config"]["exclude"])}).items()
    assert run["config"]["rslora"]
    settings = {
        "epochs": 0.5, "batch_size": 2, "accumulate": 2, "lora_plus_ratio": 4.0, "schedule": "cosine", "warmup": 0.2,
        "weight_decay": 0.01, "dtype": "float32", "device": "cpu", "seed": 3, "gradient_checkpointing": True,
    }  # fmt: skip
    assert settings.items() <= run["settings"].items()
    assert {"max_length": 16, "answers_only": False, "packing": True, "seed": 3}.items() <= run["options"].items()
    assert json.loads(ended.stdout)["heldout_tokens"] == 3 * 4


def test_ctrl_c_keeps_a_checkpoint_says_how_to_go_on_and_exits_130(model, text, tmp_path, monkeypatch):
    told = Stages.at

    def at(self, stage, done, total, loss=None):
        told(self, stage, done, total, loss)
        if (stage, done) == ("training", 1):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Stages, "at", at)
    options = ("train", model, text, "-o", tmp_path / "out", *QUICK, "--no-dynamics")
    ended = eckart(*options)
    assert ended.exit_code == 130
    assert "stopped after step 2 of 3" in ended.stderr
    assert "the same command with --resume goes on" in ended.stderr
    monkeypatch.setattr(Stages, "at", told)
    ended = eckart(*options)
    assert ended.exit_code == 1
    assert "--resume goes on, --force starts over" in ended.stderr
    assert eckart(*options, "--resume").exit_code == 0
    assert load_adapter(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rank", 0), "rank must be a whole number from 1"),
        (("--rank", 99), "rank 99 is above the dimensions"),
        (("--target", "query"), "'query' matches nothing; nearest"),
        (("--steps", 0), "steps must be a whole number from 1"),
        (("--epochs", 2), "steps and epochs are both given"),
        (("--batch-size", 999), "one batch takes 999"),
        (("--max-length", 10**6), "tokens at once"),
        (("--eval-data", "nothing.txt"), "nothing.txt: no such file or folder"),
        (("--init", "best"), "init must be one of zero"),
        (("--quantize", "int8"), "quantize must be one of nf4"),
        (("--loss-on", "prompts"), "--loss-on is answers or all"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(options, said, model, text, tmp_path):
    ended = eckart("train", model, text, "-o", tmp_path / "out", *QUICK, *options)
    assert ended.exit_code == 1
    assert said in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_malformed_data_are_refused_with_line_and_reason(model, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "the rank"}\n{"text": \n{"txt": "a"}\n')
    ended = eckart("train", model, path, "-o", tmp_path / "out", *QUICK)
    assert ended.exit_code == 1
    assert "data.jsonl line 2: not JSON" in ended.stderr
    assert not list(tmp_path.glob("out*"))
    assert "data.jsonl line 3: holds txt; expected text, or prompt and completion, or messages" in ended.stderr


def test_without_trl_the_extra_is_named(model, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_trainer", None)
    ended = eckart("train", model, text, "-o", tmp_path / "out", *QUICK)
    assert ended.exit_code == 1
    assert "'train' extra: pip install 'accelerate" in ended.stderr
