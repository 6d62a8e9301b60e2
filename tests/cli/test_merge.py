"""`eckart merge` and `eckart unmerge` as a user meets them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def places(tmp_path):
    """A base, an adapter for two of its layers, and where the output goes."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.q_proj" for i in range(3)]
    base = {f"{name}.weight": torch.randn(24, 16, generator=generator) for name in names}
    (tmp_path / "base").mkdir()
    save_file(base | {"norm.weight": torch.ones(16)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
    layers = {n: AdapterLayer(torch.randn(4, 16, generator=generator), torch.ones(24, 4), 4) for n in names[:2]}
    Adapter(layers).save(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", tmp_path / "out"


def test_the_table_shows_where_the_model_is_and_what_changed(places, fits_80_columns):
    base, adapter, output = places
    ended = eckart("merge", base, adapter, "-o", output)
    assert ended.exit_code == 0, ended.stderr
    assert "2 of 4 tensors changed" in ended.stdout
    assert fits_80_columns(ended.stdout)


def test_json_holds_the_fields_scripts_rely_on(places):
    base, adapter, output = places
    result = json.loads(eckart("merge", base, adapter, "-o", output, "--json").stdout)
    assert result["format"] == "eckart-merge/2"
    assert (result["tensors"], result["changed"], result["requantization_error"]) == (4, 2, None)
    assert result["bytes"] == 4 * (3 * 24 * 16 + 16)


def test_a_merge_is_taken_out_again(places):
    base, adapter, output = places
    eckart("merge", base, adapter, "-o", output, "--weights", "0.5")
    restored = output.with_name("restored")
    ended = eckart("unmerge", output, adapter, "-o", restored, "--base", base, "--weights", "0.5")
    assert ended.exit_code == 0, ended.stderr
    assert "bit for bit" in ended.stdout
    first, second = load_file(base / "model.safetensors"), load_file(restored / "model.safetensors")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    result = json.loads(eckart("unmerge", output, adapter, "-o", restored, "--force", "--json").stdout)
    assert result["format"] == "eckart-unmerge/2"
    assert {"bit_equal", "base_equal", "max_ulps"} <= result.keys()


@pytest.mark.parametrize("command", ["merge", "unmerge"])
def test_a_dry_run_matches_and_writes_nothing(places, command):
    base, adapter, output = places
    ended = eckart(command, base, adapter, "-o", output, "--dry-run")
    assert ended.exit_code == 0, ended.stderr
    assert "2 modules match" in ended.stdout
    preview = json.loads(eckart(command, base, adapter, "-o", output, "--dry-run", "--json").stdout)
    assert preview["format"] == f"eckart-{command}-preview/2"
    assert [match["ranks"] for match in preview["matches"]] == [[4], [4]]
    assert preview["written_bytes"] == 4 * (3 * 24 * 16 + 16)
    assert {path.name for path in output.parent.iterdir()} == {"base", "adapter"}


def test_another_dtype_is_in_the_files_and_in_the_config(places):
    base, adapter, output = places
    eckart("merge", base, adapter, "-o", output, "--dtype", "bfloat16")
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((output / "config.json").read_text()) == {"model_type": "llama", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["BASE", "ADAPTER", "--weights", "1,2"], 1, "2 weights for 1 adapters"),
        (["BASE", "ADAPTER", "--weights", "much"], 1, "--weights must be one number per adapter"),
        (["BASE", "ADAPTER", "--dtype", "int8"], 2, "bfloat16"),
        (["ADAPTER", "ADAPTER"], 1, "adapter is an adapter, not a model"),
        (["BASE", "BASE"], 1, "adapter"),
        (["NOWHERE", "ADAPTER"], 1, "no such file or folder"),
    ],
)
def test_bad_input_is_refused_with_its_reason_and_nothing_is_written(places, arguments, code, said):
    base, adapter, output = places
    stand = {"BASE": base, "ADAPTER": adapter, "NOWHERE": base / "nowhere"}
    ended = eckart("merge", *(stand.get(word, word) for word in arguments), "-o", output)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert ended.stderr.startswith("eckart: " if code == 1 else "Usage: eckart merge")
    assert {path.name for path in output.parent.iterdir()} == {"base", "adapter"}
