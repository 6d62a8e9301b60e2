"""No command reads or copies a file that a folder from a stranger links to elsewhere; the hub's cache works."""

import json
import shutil

import pytest
import torch

import eckart
from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import FileFormatError
from eckart.report.page import read_results
from eckart.training.records import read_records

NAMES = ("model", "adapter", "analysis", "data")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder):
    """One folder of each kind that eckart reads."""
    root = tmp_path_factory.mktemp("folders")
    shutil.copytree(tiny_folder("llama"), root / "model")
    (root / "model/notes.txt").write_text("notes")
    module = "model.layers.0.self_attn.q_proj"
    Adapter({module: AdapterLayer(torch.ones(1, 32), torch.ones(32, 1), 1)}).save(root / "adapter")
    eckart.analyze(root / "adapter", output=root / "analysis")
    (root / "data").mkdir()
    (root / "data/a.jsonl").write_text(json.dumps({"text": "word"}))
    return root


USES = {
    "merge": (lambda root, out: eckart.merge(root / "model", root / "adapter", out), ["model", "adapter"]),
    "quantize": (lambda root, out: eckart.quantize(root / "model", out), ["model"]),
    "analyze": (lambda root, out: eckart.analyze(root / "model"), ["model"]),
    "report": (lambda root, out: read_results([root / "analysis"]), ["analysis"]),
    "train": (lambda root, out: list(read_records(root / "data", [])), ["data"]),
}
LINKED = [
    ("merge", "model/notes.txt"),
    ("merge", "model/config.json"),
    ("merge", "model/model.safetensors"),
    ("merge", "adapter/adapter_config.json"),
    ("merge", "adapter/adapter_model.safetensors"),
    ("quantize", "model/generation_config.json"),
    ("analyze", "model/config.json"),
    ("report", "analysis/analysis.json"),
    ("train", "data/a.jsonl"),
]


@pytest.mark.parametrize(("use", "file"), LINKED)
def test_a_file_that_leads_out_of_its_folder_is_refused_by_name(use, file, folders, tmp_path) -> None:
    shutil.copytree(folders, tmp_path / "in")
    linked = tmp_path / "in" / file
    linked.rename(tmp_path / "secret")
    linked.symlink_to(tmp_path / "secret")
    with pytest.raises(FileFormatError, match=f"{linked.name} is a link to .*secret, outside"):
        USES[use][0](tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use", USES)
def test_the_links_of_the_hubs_cache_are_followed(use, folders, tmp_path) -> None:
    for name in USES[use][1]:
        kind = "datasets" if name == "data" else "models"
        blobs, snapshot = (tmp_path / f"hub/{kind}--org--{name}" / each for each in ("blobs", "snapshots/0a1b"))
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for number, file in enumerate((folders / name).iterdir()):
            shutil.copyfile(file, blobs / str(number))
            (snapshot / file.name).symlink_to(f"../../blobs/{number}")
        (tmp_path / name).symlink_to(snapshot)
    USES[use][0](tmp_path, tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").glob("*"))
