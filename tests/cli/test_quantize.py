"""`eckart quantize` as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.checkpoint import open_checkpoint
from eckart.cli.main import app


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


@pytest.fixture
def model(tmp_path):
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.up_proj")]
    weights = {f"{name}.weight": torch.randn(48, 64, generator=generator) for name in [*names, "lm_head"]}
    (tmp_path / "model").mkdir()
    save_file(weights | {"norm.weight": torch.ones(64)}, tmp_path / "model/model.safetensors")
    (tmp_path / "model/config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    return tmp_path / "model"


def test_the_table_shows_error_size_and_unchanged_layers(model, tmp_path, fits_80_columns):
    ended = eckart(model, "-o", tmp_path / "out", "--target", "mlp", "--target", "q_proj")
    assert ended.exit_code == 0, ended.stderr
    said = " ".join(ended.stdout.split())
    assert "12.3 k of 15.4 k parameters in NF4, 0.6" in said
    assert "Relative error over all layers: 9." in said
    assert "1 skipped: 1 output layer, which transformers keeps dense (lm_head)" in said
    assert fits_80_columns(ended.stdout)


@pytest.mark.parametrize(
    ("options", "block", "double"), [([], 64, False), (["--double", "--block-size", "256"], 256, True)]
)
def test_json_holds_the_fields_scripts_rely_on(model, tmp_path, options, block, double):
    ended = eckart(model, "-o", tmp_path / "out", "--json", *options)
    result = json.loads(ended.stdout)
    assert result["format"] == "eckart-quantize/2"
    assert (result["tensors"], result["quantized"], result["params"], result["quantized_params"]) == (
        6,
        4,
        15424,
        12288,
    )
    files = open_checkpoint(tmp_path / "out")
    stored = {name: files.stored.tensors[name].nbytes for name in files.stored.tensors}
    assert result["bytes"] == sum(stored.values())
    parts = sum(size for name, size in stored.items() if "proj" in name)
    assert result["bytes_per_quantized_param"] == parts / 12288
    errors = [layer["error"] for layer in result["layers"]]
    assert min(errors) <= result["error"] <= max(errors)
    assert {(scheme.block_size, scheme.double) for scheme in files.schemes.values()} == {(block, double)}


def test_a_dry_run_matches_and_writes_nothing(model, tmp_path):
    ended = eckart(model, "-o", tmp_path / "out", "--dry-run", "--exclude", "q_proj")
    assert "2 modules match" in ended.stdout
    preview = json.loads(eckart(model, "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert preview["format"] == "eckart-quantize-preview/2"
    eckart(model, "-o", tmp_path / "out")
    written = open_checkpoint(tmp_path / "out").stored.tensors.values()
    assert preview["written_bytes"] == sum(info.nbytes for info in written)


def test_an_unknown_dtype_is_wrong_usage(model, tmp_path):
    ended = eckart(model, "-o", tmp_path / "out", "--dtype", "int8")
    assert ended.exit_code == 2
    assert "'int8' is not one of 'float32', 'bfloat16', 'float16'" in ended.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--block-size", "100"], "--block-size must be one of 32, 64"),
        (["--target", "q_porj"], "'q_porj' matches nothing; nearest: q_proj"),
    ],
)
def test_what_cannot_be_done_is_refused(model, tmp_path, options, said):
    ended = eckart(model, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()
