"""`eckart compare` on files, as a user types it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, two adapters of it, and the base with the first of them in it, at weight one and a half."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(24, 16, generator=generator) for i in range(20)}
    save_file(base, tmp_path / "base.safetensors")
    for name in ("a", "b"):
        layers = {
            module.removesuffix(".weight"): AdapterLayer(
                torch.randn(2, 16, generator=generator), torch.randn(24, 2, generator=generator), 4.0
            )
            for module in base
        }
        Adapter(layers).save(tmp_path / name)
        for merged, weight in ((f"with-{name}", 1.0), (f"half-{name}", 0.5)):
            whole = {n: w + weight * layers[n.removesuffix(".weight")].delta() for n, w in base.items()}
            save_file(whole, tmp_path / f"{merged}.safetensors")
    return tmp_path


def test_two_adapters_make_a_table_of_80_columns_with_chance(folder: Path, fits_80_columns) -> None:
    ended = eckart("compare", folder / "a", folder / "b")
    assert ended.exit_code == 0, ended.stderr
    assert "chance" in ended.stdout
    assert "Over all matrices: cosine" in ended.stdout
    assert fits_80_columns(ended.stdout)


def test_json_and_files_hold_the_same_comparison(folder: Path) -> None:
    out = folder / "out"
    ended = eckart("compare", folder / "a", folder / "b", "--base", folder / "base.safetensors", "-o", out, "--json")
    assert ended.exit_code == 0, ended.stderr
    content = json.loads(ended.stdout)
    assert content == json.loads((out / "comparison.json").read_text())
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "alignment.png",
        "comparison.json",
        "overlap.png",
        "report.html",
    ]
    assert (content["format"], content["kind"], len(content["matrices"])) == ("eckart-compare/2", "adapters", 20)
    matrix = content["matrices"][0]
    assert matrix["outputs"]["chance"] == [[round(max(i, j) / 24, 6) for j in (1, 2)] for i in (1, 2)]
    assert len(matrix["intruders"]) == 2
    assert eckart("compare", folder / "a", folder / "b", "-o", out).exit_code == 1
    assert eckart("compare", folder / "a", folder / "b", "-o", out, "--force").exit_code == 0


def test_checkpoints_are_compared_by_their_updates_of_a_base(folder: Path) -> None:
    files = [folder / f"{name}.safetensors" for name in ("with-a", "with-b", "base")]
    content = json.loads(eckart("compare", *files[:2], "--base", files[2], "--directions", 2, "--json").stdout)
    factors = json.loads(eckart("compare", folder / "a", folder / "b", "--json").stdout)
    assert content["kind"] == "updates"
    assert content["total"]["cosine"] == pytest.approx(factors["total"]["cosine"], abs=1e-5)


VERDICTS = {
    ("with-a", "a"): ("equal", "rounding"),
    ("half-a", "a"): ("other weight",),
    ("base", "a"): ("not merged",),
    ("with-b", "a"): ("differs",),
}


@pytest.mark.parametrize("case", VERDICTS, ids=" holds ".join)
def test_a_claimed_merge_gets_a_verdict_and_status_0(case, folder: Path) -> None:
    merged, adapter = folder / f"{case[0]}.safetensors", folder / case[1]
    ended = eckart("compare", adapter, merged, "--base", folder / "base.safetensors")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.startswith("Verdict: ")
    content = json.loads(eckart("compare", merged, adapter, "--base", folder / "base.safetensors", "--json").stdout)
    assert content["verdict"] in VERDICTS[case]
    assert content["holds"] is (case[0] == "with-a")
    if case[0] == "half-a":
        assert content["weight"]["lower"] <= 0.5 <= content["weight"]["upper"]
        assert "fits with weight 0.5" in " ".join(ended.stdout.split())


def test_a_checkpoint_and_an_adapter_alone_are_refused_with_what_to_do(folder: Path) -> None:
    ended = eckart("compare", folder / "with-a.safetensors", folder / "a")
    assert ended.exit_code == 1
    assert "as --base" in ended.stderr


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    ended = eckart("compare", folder / "a", folder / "b", "-o", folder / "out", "--dry-run")
    assert ended.exit_code == 0, ended.stderr
    assert "20 modules match" in ended.stdout
    assert not (folder / "out").exists()
