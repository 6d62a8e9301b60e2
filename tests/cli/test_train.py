"""`eckart train` as a user meets it, on a tiny model."""

import json
import os
import signal
import sys

import pytest
from typer.testing import CliRunner, Result

from eckart.cli.main import app
from eckart.cli.progress import StderrProgress
from eckart.formats import load_adapter

QUICK = ("--steps", 3, "--rank", 2, "--max-length", 16, "--learning-rate", 1e-2)


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_training_shows_a_table_and_leaves_an_adapter_with_figures(model, text, tmp_path, fits_80_columns):
    out = tmp_path / "out"
    ended = eckart("train", model, text, "-o", out, *QUICK, "--target", "q_proj", "--method", "dora")
    assert ended.exit_code == 0, ended.stderr
    assert f"Adapter in {out}" in ended.stdout.splitlines()
    assert f"Page: {out / 'report.html'}" in ended.stderr.splitlines()
    for part in (
        "q_proj",
        "‖ΔW‖ / ‖W‖",
        "held-out tokens",
        "parameters trained",
        "3 steps in",
    ):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert '"title":"out"' in (out / "report.html").read_text()  # of the folder's last name, not of where it was made
    layers = load_adapter(out)
    assert {layer.rank for layer in layers.values()} == {2}
    assert all(layer.magnitude is not None for layer in layers.values())


def test_report_writes_the_page_that_the_training_left(model, text, tmp_path):
    out = tmp_path / "out"
    assert eckart("train", model, text, "-o", out, *QUICK, "--target", "q_proj").exit_code == 0
    assert eckart("report", out, "-o", tmp_path / "again.html").exit_code == 0
    assert (out / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    data = json.loads((out / "train.json").read_text())["data"]
    assert (data["source"], data["heldout_source"], data["form"]) == (str(text), None, "texts")
    assert data["sequences"] > data["heldout_sequences"] > 0


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
    (tmp_path / "ranks.json").write_text('{"down_proj": 3, "up_proj": 0}')
    options["rank-pattern"] = tmp_path / "ranks.json"
    flags = ("--rslora", "--packing", "--gradient-checkpointing")
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    ended = eckart(
        "train", model, data, "-o", tmp_path / "out", "--max-length", 16, "--rank", 2, *given, *flags, "--json"
    )
    assert ended.exit_code == 0, ended.stderr
    run = json.loads(ended.stdout)["run"]
    config = {"rank": 2, "alpha": 6.0, "dropout": 0.1, "bias": "lora-only", "init": "olora"}
    config["exclude"] = ["o_proj", "up_proj"]
    assert config.items() <= (run["config"] | {"exclude": list(run["config"]["exclude"])}).items()
    assert run["config"]["rslora"]
    ranks = {name.rpartition(".")[2]: layer.rank for name, layer in load_adapter(tmp_path / "out").items()}
    assert ranks["down_proj"] == 2 * 3  # with OLoRA's start, which is subtracted
    assert ranks["q_proj"] == 2 * 2
    assert "up_proj" not in ranks
    settings = {
        "epochs": 0.5, "batch_size": 2, "accumulate": 2, "lora_plus_ratio": 4.0, "schedule": "cosine", "warmup": 0.2,
        "weight_decay": 0.01, "dtype": "float32", "device": "cpu", "seed": 3, "gradient_checkpointing": True,
    }  # fmt: skip
    assert settings.items() <= run["settings"].items()
    assert {"max_length": 16, "answers_only": False, "packing": True, "seed": 3}.items() <= run["options"].items()
    assert json.loads(ended.stdout)["heldout_tokens"] == 3 * 4


class InterruptedProgress(StderrProgress):
    """Presses Ctrl-C after the first step of training."""

    def start(self, stage, total, unit):
        self.training = stage.lower() == "training"
        super().start(stage, total, unit)

    def update(self, amount, detail=""):
        super().update(amount, detail)
        if self.training and amount:
            self.training = False
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_resumes(model, text, tmp_path, monkeypatch):
    monkeypatch.setattr("eckart.cli.progress.StderrProgress", InterruptedProgress)
    options = ("train", model, text, "-o", tmp_path / "out", *QUICK, "--no-dynamics")
    ended = eckart(*options)
    assert ended.exit_code == 130
    assert "stopped after step 2 of 3" in ended.stderr
    monkeypatch.undo()
    ended = eckart(*options)
    assert ended.exit_code == 0, ended.stderr
    assert load_adapter(tmp_path / "out")


def test_a_script_that_still_says_resume_is_understood(model, text, tmp_path):
    assert eckart("train", model, text, "-o", tmp_path / "out", *QUICK, "--no-dynamics", "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--rank", 0), 1, "rank must be a whole number"),
        (("--rank", 99), 1, "rank 99 is above the dimensions"),
        (("--target", "query"), 1, "'query' matches nothing; nearest"),
        (("--steps", 0), 1, "--steps must be a whole number of at least 1"),
        (("--epochs", 2), 1, "--steps and --epochs are both given"),
        (("--batch-size", 999), 1, "one batch takes 999"),
        (("--max-length", 10**6), 1, "tokens only"),
        (("--eval-data", "nothing.txt"), 1, "nothing.txt: no such file or folder"),
        (("--init", "best"), 2, "'best' is not one of 'zero', 'pissa', 'olora', 'eva', 'loftq', 'lora-ga'"),
        (("--quantize", "int8"), 2, "'int8' is not one of 'nf4'"),
        (("--loss-on", "prompts"), 2, "'prompts' is not one of 'answers', 'all'"),
        (("--method", "qlora"), 2, "'qlora' is not one of 'lora', 'dora'"),
        (("--schedule", "steps"), 2, "'steps' is not one of 'linear', 'cosine', 'constant'"),
        (("--dtype", "float16"), 2, "'float16' is not one of 'auto', 'float32', 'bfloat16'"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(model, text, tmp_path, *, options, code, said):
    ended = eckart("train", model, text, "-o", tmp_path / "out", *QUICK, *options)
    assert ended.exit_code == code
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
    assert "data.jsonl line 3: has txt; expected text, or prompt and completion, or messages" in ended.stderr


def test_without_trl_the_extra_is_named(model, text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_trainer", None)
    ended = eckart("train", model, text, "-o", tmp_path / "out", *QUICK)
    assert ended.exit_code == 1
    assert "'train' extra: pip install 'accelerate" in ended.stderr
