"""`eckart extract` as a user meets it: what it prints, what it refuses, and how it ends when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from eckart.cli.main import app

SHAPES = {f"layers.{i}.{name}_proj.weight": (40, 24) for i in range(3) for name in "qv"}


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_pair(folder: Path, shapes: dict[str, tuple[int, int]]) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    base["norm.weight"] = torch.ones(8)
    tuned = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    for name, weights in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(weights, folder / name / "model.safetensors")
    return folder / "base", folder / "tuned"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, SHAPES)


def test_the_table_shows_ranks_errors_and_what_was_skipped(pair, tmp_path, fits_80_columns):
    ended = eckart("extract", *pair, "-o", tmp_path / "out", "--rank", 4)
    assert ended.exit_code == 0, ended.stderr
    for part in ("relative error", "least possible", "q_proj", "norm"):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)


def test_json_holds_the_fields_scripts_rely_on(pair, tmp_path):
    ended = eckart("extract", *pair, "-o", tmp_path / "out", "--energy", 0.5, "--json")
    result = json.loads(ended.stdout)
    assert result["format"] == "eckart-extract/2"
    assert {"name", "rank", "error", "error_lower_bound"} <= set(result["layers"][0])
    assert result["eval"] is None
    assert result["params"] == sum(layer["rank"] * (40 + 24) for layer in result["layers"])
    assert result["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("adapter_*"))
    assert result == json.loads((tmp_path / "out" / "extract.json").read_text())
    assert (tmp_path / "out" / "report.html").is_file()
    assert [item["name"] for item in result["skipped"]] == ["norm.weight"]


def test_an_adapter_is_as_readable_as_its_config(pair, tmp_path):
    eckart("extract", *pair, "-o", tmp_path / "out")
    modes = {(tmp_path / "out" / name).stat().st_mode for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert len(modes) == 1


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def truncate(base, tuned):
    file = tuned / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def garbage(base, tuned):
    (tuned / "model.safetensors").write_bytes(b"\x93NUMPY" * 40)


def absurd_header(base, tuned):
    (tuned / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def absurd_tensor(base, tuned):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}).encode()
    (tuned / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))


def escaping_index(base, tuned):
    index = {"weight_map": {"w": "../base/model.safetensors"}}
    (tuned / "model.safetensors").unlink()
    (tuned / "model.safetensors.index.json").write_text(json.dumps(index))


def escaping_link(base, tuned):
    (tuned / "model.safetensors").rename(tuned.parent / "elsewhere.safetensors")
    (tuned / "model.safetensors").symlink_to(tuned.parent / "elsewhere.safetensors")


def pickled(base, tuned):
    (tuned / "model.safetensors").unlink()
    torch.save({"w": torch.ones(2)}, tuned / "pytorch_model.bin")


def identical(base, tuned):
    (tuned / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())


def missing_tensor(base, tuned):
    change_weights(tuned, lambda weights: weights.pop("layers.1.q_proj.weight"))


def more_rows(base, tuned):
    change_weights(tuned, lambda weights: weights.update({"layers.1.q_proj.weight": torch.zeros(41, 24)}))


def not_finite(base, tuned):
    change_weights(tuned, lambda weights: weights["layers.2.v_proj.weight"][0, :3].fill_(float("nan")))


def nothing(base, tuned):
    (tuned / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        (truncate, [], "model.safetensors"),
        (garbage, [], "model.safetensors"),
        (absurd_header, [], "header"),
        (absurd_tensor, [], "w"),
        (escaping_index, [], "../base"),
        (escaping_link, [], "link"),
        (pickled, [], "pickle"),
        (nothing, [], "safetensors"),
        (identical, [], "identical in all 6 targeted matrices"),
        (missing_tensor, [], "layers.1.q_proj.weight"),
        (more_rows, [], "(41, 24)"),
        (not_finite, ["--rank", "4", "--modules-to-save", "norm"], "layers.2.v_proj contains 3 values"),
        (None, ["--target", "k_proj"], "nearest"),
        (None, ["--modules-to-save", "bias"], "bias"),
        (None, ["--rank", "0"], "at least 1"),
        (None, ["--rank", "4", "--energy", "0.9"], "exactly one way"),
        (None, ["--error", "1.5"], "(0, 1]"),
        (None, ["--budget", "lots"], "20MB"),
        (None, ["--budget", "3"], "budget"),
        (None, ["--device", "cuda:7"], "CUDA devices"),
        (None, ["--eval", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_bad_input_is_refused_with_its_reason_and_nothing_is_written(pair, tmp_path, damage, options, said):
    if damage:
        damage(*pair)
    ended = eckart("extract", *pair, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert ended.stderr.startswith("eckart: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "out").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"base", "tuned", "elsewhere.safetensors"}
    assert left <= ({"out.partial"} if damage is not_finite else set())


@pytest.mark.parametrize(("option", "value", "said"), [("--dtype", "int8", "bfloat16"), ("--device", "tpu", "cuda")])
def test_a_value_that_is_no_choice_is_wrong_usage(pair, tmp_path, option, value, said):
    ended = eckart("extract", *pair, "-o", tmp_path / "out", option, value)
    assert ended.exit_code == 2
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_or_cannot_be_made_is_refused(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    for output, said in ((tmp_path / "out", "exist"), (tmp_path / "no/where", "does not exist"), (pair[0], "input")):
        ended = eckart("extract", *pair, "-o", output)
        assert ended.exit_code == 1
        assert said in ended.stderr
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def slow_pair(tmp_path_factory) -> tuple[Path, Path]:
    """Matrices of which each takes long enough to be interrupted in."""
    shapes = {f"layers.{i}.q_proj.weight": (1600, 1600) for i in range(10)}
    return write_pair(tmp_path_factory.mktemp("slow"), shapes)


def start(pair: tuple[Path, Path], output: Path) -> subprocess.Popen:
    """A run whose first matrix is kept already and whose others are not."""
    command = [sys.executable, "-m", "eckart", "extract", *map(str, pair), "-o", str(output), "--error", "0.2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True)
    while not list(output.with_name(output.name + ".partial").glob("*.safetensors")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_ctrl_c_ends_a_run_before_its_time_and_says_what_is_kept(slow_pair, tmp_path):
    process = start(slow_pair, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "repeat the command to resume" in said
    assert not (tmp_path / "out").exists()


def test_a_killed_run_loses_at_most_the_matrices_in_flight(slow_pair, tmp_path):
    output = tmp_path / "out"
    process = start(slow_pair, output)
    process.kill()
    process.communicate()
    kept = len(list(output.with_name("out.partial").glob("*.safetensors")))
    assert kept >= 1
    assert not output.exists()
    ended = eckart("extract", *slow_pair, "-o", output, "--error", "0.2")
    assert ended.exit_code == 0
    assert f"{kept} of 10 matrices are already done" in ended.stderr
    assert output.is_dir()
    assert not output.with_name("out.partial").exists()
