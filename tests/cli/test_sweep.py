"""`eckart sweep` as a user meets it, on a tiny model, with the cells trained in this process."""

import functools
import json

import pytest
from typer.testing import CliRunner, Result

from eckart import training
from eckart.cli.main import app
from eckart.formats import load_adapter
from eckart.training.sweep_cell import train_here

QUICK = ("--steps", 2, "--batch-size", 2, "--max-length", 16)


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch):
    """A fresh process a cell takes seconds to import torch; tests of training do that once."""
    monkeypatch.setattr(training, "sweep", functools.partial(training.sweep, run_cell=train_here))


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_sweep_shows_a_table_and_leaves_cells_json_and_a_figure(model, text, tmp_path, fits_80_columns):
    out = tmp_path / "out"
    options = ("--ranks", "1,2", "--targets", "q_proj+v_proj,mlp", *QUICK)
    ended = eckart("sweep", model, text, "-o", out, *options)
    assert ended.exit_code == 0, ended.stderr
    for part in ("q_proj+v_proj", "mlp", "sweet spot", "Without an adapter", "the noise is unknown"):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)
    assert "4/4 mlp-rank2-seed0: Held-out loss after training: " in ended.stderr
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "q_proj+v_proj" in (out / "report.html").read_text()
    adapter = load_adapter(out / "cells/q_proj+v_proj-rank2-seed0")
    assert {layer.rank for layer in adapter.values()} == {2}
    assert {layer.alpha for layer in adapter.values()} == {4.0}
    again = json.loads(eckart("sweep", model, text, "-o", out, *options, "--json").stdout)
    assert again == json.loads((out / "sweep.json").read_text())
    assert [(cell["rank"], cell["target"]) for cell in again["cells"]] == [
        (1, "q_proj+v_proj"),
        (2, "q_proj+v_proj"),
        (1, "mlp"),
        (2, "mlp"),
    ]
    assert again["cells"][1]["params"] == adapter.params


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--ranks", "4,eight"], 1, "'eight' is not a whole number"),
        (["--ranks", "4,4"], 1, "more than once"),
        (["--targets", "atention"], 1, "'atention' matches nothing"),
        (["--ranks", "4,512"], 1, "rank 512 is above"),
        (["--seeds", "0"], 1, "at least 1"),
        (["--seeds", "two"], 2, "--seeds"),
        (["--method", "qlora"], 2, "'qlora' is not one of 'lora', 'dora'"),
        (["--steps", "0"], 1, "--steps must be"),
        (["--eval-data", "nowhere.txt"], 1, "nowhere.txt"),
        (["--max-length", "4096"], 1, "4096"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_kept(model, text, tmp_path, *, options, code, said):
    ended = eckart("sweep", model, text, "-o", tmp_path / "out", *QUICK, *options)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("out/cells/*/train.json"))
    mended = ("--ranks", "1", "--targets", "mlp", "--seeds", "1", "--method", "lora")
    assert eckart("sweep", model, text, "-o", tmp_path / "out", *QUICK, *mended).exit_code == 0


def test_an_output_of_other_settings_and_one_that_is_no_sweep_are_refused(model, text, tmp_path):
    options = ("--ranks", "1", "--targets", "mlp", *QUICK)
    assert eckart("sweep", model, text, "-o", tmp_path / "out", *options).exit_code == 0
    other = eckart("sweep", model, text, "-o", tmp_path / "out", *options, "--learning-rate", 1e-3)
    assert (other.exit_code, "learning_rate: now 0.001, then 0.0002" in other.stderr) == (1, True)
    assert eckart("sweep", model, text, "-o", model, *options, "--force").exit_code == 1
    assert (model / "model.safetensors").exists()


def test_an_interrupted_sweep_says_what_is_kept_and_how_to_go_on(model, text, tmp_path, monkeypatch):
    def interrupted(job, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "sweep", functools.partial(training.sweep, run_cell=interrupted))
    ended = eckart("sweep", model, text, "-o", tmp_path / "out", *QUICK)
    assert ended.exit_code == 130
    assert "0 of 6 cells are kept" in ended.stderr.replace("\n", " ")
    assert "run the same again to resume" in ended.stderr
