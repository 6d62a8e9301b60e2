"""`eckart resize` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app
from eckart.formats import load_adapter


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    layers = {
        f"layers.{i}.{part}_proj": AdapterLayer(
            torch.randn(6, 24, generator=generator), torch.randn(40, 6, generator=generator), 12.0
        )
        for i in range(9)
        for part in "qv"
    }
    Adapter(layers).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_table_shows_ranks_errors_and_size(adapter, tmp_path, fits_80_columns):
    ended = eckart("resize", adapter, "-o", tmp_path / "out", "--rank", 2)
    assert ended.exit_code == 0, ended.stderr
    for part in ("Adapter in", "relative error", "least possible", "q_proj", "18 layers"):
        assert part in ended.stdout
    assert fits_80_columns(ended.stdout)
    assert {layer.rank for layer in load_adapter(tmp_path / "out").values()} == {2}


def test_json_holds_the_fields_scripts_rely_on(adapter, tmp_path):
    out = tmp_path / "out"
    ended = eckart("resize", adapter, "-o", out, "--budget", "1500", "--dtype", "bfloat16", "--json")
    result = json.loads(ended.stdout)
    assert result["format"] == "eckart-resize/2"
    assert {"name", "shape", "rank", "error", "error_lower_bound"} <= set(result["layers"][0])
    assert result["params"] == sum(layer["rank"] * 64 for layer in result["layers"]) <= 1500
    assert result["bytes"] == sum(file.stat().st_size for file in out.glob("adapter_*"))
    assert result["guarantee"]
    assert {layer.lora_A.dtype for layer in load_adapter(out).values()} == {torch.bfloat16}


def test_a_dry_run_writes_nothing(adapter, tmp_path):
    options = ("-o", tmp_path / "out", "--rank", 2, "--target", "q_proj", "--dry-run")
    ended = eckart("resize", adapter, *options)
    assert "9 modules match" in ended.stdout
    assert "not targeted" in ended.stdout
    preview = json.loads(eckart("resize", adapter, *options, "--json").stdout)
    assert preview["format"] == "eckart-resize-preview/2"
    assert len(preview["matches"]) == len(preview["skipped"]) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 1, "exactly one way"),
        (["--rank", 0], 1, "at least 1"),
        (["--rank", 2, "--energy", 0.9], 1, "exactly one way"),
        (["--rank", 2, "--dtype", "int8"], 2, "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["--rank", 2, "--target", "k_proj"], 1, "nearest"),
        (["--budget", "9"], 1, "raise --budget"),
        (["--rank", 2, "--open"], 1, "--open shows the page of a rank chosen by --gain"),
        (["--rank", 2, "--workers", 0], 2, "workers"),
        (["--rank", "many"], 2, "--rank"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(adapter, tmp_path, options, code, said):
    ended = eckart("resize", adapter, "-o", tmp_path / "out", *options)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_that_is_not_there_and_an_output_that_is(adapter, tmp_path):
    ended = eckart("resize", tmp_path / "nowhere", "-o", tmp_path / "out", "--rank", 2)
    assert (ended.exit_code, "nowhere" in ended.stderr) == (1, True)
    for output, options, said in ((adapter, ["--force"], "never changed"), (tmp_path / "a/b", [], "does not exist")):
        ended = eckart("resize", adapter, "-o", output, "--rank", 2, *options)
        assert (ended.exit_code, said in ended.stderr) == (1, True)


def test_several_adapters_are_written_into_a_folder_with_one_line_each(adapter, tmp_path):
    load_adapter(adapter).save(tmp_path / "second")
    found = eckart(
        "resize", adapter, tmp_path / "second", "-o", tmp_path / "small", "--rank", 2, "--scale", "q_proj=0.5"
    )
    assert found.exit_code == 0, found.output
    lines = found.stdout.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "small" / name) for name in ("adapter", "second")
    ]
    assert all("18 layers" in line for line in lines)
    one = load_adapter(tmp_path / "small/second")["layers.0.q_proj"]
    assert one.rank == 2


def test_one_of_several_that_is_refused_is_named_and_the_others_are_written(adapter, tmp_path):
    found = eckart("resize", adapter, tmp_path / "nowhere", "-o", tmp_path / "small", "--rank", 2)
    assert found.exit_code == 1
    assert "nowhere" in found.stderr
    assert (tmp_path / "small/adapter").is_dir()
    assert eckart("resize", adapter, adapter, "-o", tmp_path / "x.safetensors", "--rank", 2).exit_code == 1
