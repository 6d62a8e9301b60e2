"""`eckart report` as a user types it, and the page that other commands leave."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.cli.main import app
from eckart.operations import analyze


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.q_proj.weight": torch.randn(12, 8, generator=generator) for i in range(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def analysed(weights: Path, tmp_path: Path) -> Path:
    analyze(str(weights), output=tmp_path / "one")
    return tmp_path / "one"


def test_a_page_is_written_from_folders(analysed: Path, tmp_path: Path) -> None:
    ended = eckart("report", analysed, analysed.parent / "one", "-o", tmp_path / "page.html")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stderr.startswith("Report of one, one in ")
    assert "layers.2.q_proj" in (tmp_path / "page.html").read_text()


def test_a_page_that_exists_is_replaced_only_by_force(analysed: Path, tmp_path: Path) -> None:
    command = ("report", analysed, "-o", tmp_path / "page.html")
    assert eckart(*command).exit_code == 0
    refused = eckart(*command)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert eckart(*command, "--force").exit_code == 0


def test_folders_without_a_result_are_named_all_together(analysed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = eckart("report", analysed, tmp_path / "empty", tmp_path / "nowhere", "-o", tmp_path / "page.html")
    assert ended.exit_code == 1
    assert "empty: contains none of analysis.json" in ended.stderr
    assert "nowhere: no such folder" in ended.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sweep.json", "not JSON", "not valid JSON"),
        ("sweep.json", "[1]", "expected a JSON object, got list"),
        ("train.json", '{"format": "eckart-train/9"}', "expected 'eckart-train/1'"),
        ("extract.json", '{"format": "eckart-extract/2", "layers": [{}]}', "damaged"),
        ("sweep.json", '{"format": "eckart-sweep/1", "sweet_spot": 7, "about": {"model": 1}}', "damaged"),
        ("dynamics.json", "{}", "its format is None"),
        ("analysis.json", "{}", "its format is None"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    ended = eckart("report", tmp_path / "in", "-o", tmp_path / "page.html")
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert "unexpected" not in ended.stderr
    assert not (tmp_path / "page.html").exists()


def test_without_the_extra_an_analysis_is_whole_and_the_page_is_named_as_missing(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    ended = eckart("analyze", weights, "-o", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert "No report.html: drawing needs the " in ended.stderr
    assert "'report' extra: pip install 'jinja2" in ended.stderr
    assert json.loads((tmp_path / "out" / "analysis.json").read_text())["kind"] == "weights"
    assert not (tmp_path / "out" / "report.html").exists()
