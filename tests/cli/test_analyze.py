"""`eckart analyze` on files, as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.cli.main import app

QUERY = "encoder.layer.0.attention.self.query"


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tune of three layers, each one file."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.q_proj.weight": torch.randn(12, 8, generator=generator) for i in range(3)}
    tuned = {name: weight + torch.randn(12, 8, generator=generator) for name, weight in base.items()}
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    for file, weights in zip(files, (base, tuned), strict=True):
        save_file(weights, file)
    return files


def test_the_table_goes_to_stdout_without_colours_in_a_pipe(minilm: Path) -> None:
    ended = eckart("analyze", minilm, "--target", QUERY)
    assert ended.exit_code == 0
    assert "encoder.layer.0.attention.self.query" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert ended.stderr == ""


def test_json_is_all_that_stdout_holds(minilm: Path) -> None:
    ended = eckart("analyze", minilm, "--target", QUERY, "--json")
    content = json.loads(ended.stdout)
    assert content["format"] == "eckart-analysis/1"
    assert content["kind"] == "weights"
    assert [matrix["name"] for matrix in content["matrices"]] == [QUERY]


def test_an_output_folder_holds_numbers_and_figures(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    ended = eckart("analyze", tuned, "--base", base, "-o", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        *("analysis.csv", "analysis.json", "energy.png", "error.png", "rank_map.png", "report.html", "spectrum.png")
    ]
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["kind"] == "delta"


def test_an_output_is_overwritten_only_by_force(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command = ("analyze", pair[0], "-o", tmp_path / "out")
    assert eckart(*command).exit_code == 0
    refused = eckart(*command)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert eckart(*command, "--force").exit_code == 0


def test_patterns_may_be_repeated(minilm: Path) -> None:
    ended = eckart(
        "analyze", minilm, "--target", QUERY, "--target", "layer.1.attention.self.key", "--exclude", QUERY, "--json"
    )
    names = [matrix["name"] for matrix in json.loads(ended.stdout)["matrices"]]
    assert names == ["encoder.layer.1.attention.self.key"]


def test_a_pair_of_two_models_is_refused_with_the_one_cause(minilm: Path, pair: tuple[Path, Path]) -> None:
    ended = eckart("analyze", pair[1], "--base", minilm)
    assert ended.exit_code == 1
    assert ended.stderr.count("\n  - ") == 1


def test_an_unknown_device_is_refused(pair: tuple[Path, Path]) -> None:
    ended = eckart("analyze", pair[0], "--device", "gpu")
    assert ended.exit_code == 2
    assert "expected auto, cpu, cuda" in ended.stderr
