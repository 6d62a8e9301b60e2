"""`--push` through huggingface_hub's real code, against a local stand-in for the hub; and its refusals."""

import os
import subprocess
import sys

import pytest
import torch

from eckart.adapter import Adapter, AdapterLayer

from .hub import TOKEN, hub

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(name="adapter")
def saved(tmp_path):
    folder = tmp_path / "adapter"
    Adapter({LAYER: AdapterLayer(torch.randn(4, 8), torch.randn(6, 4), 8.0)}, base_model="org/base").save(folder)
    return folder


def eckart(*arguments, endpoint="http://127.0.0.1:9", token=TOKEN, offline=False, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-m", "eckart", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_finished_adapter_is_uploaded_to_a_new_private_repository(adapter, tmp_path):
    out = tmp_path / "small"
    with hub() as there:
        ended = eckart(
            "resize", adapter, "-o", out, "--rank", 2, "--push", "team/small", endpoint=there.url, folder=tmp_path
        )
    assert ended.returncode == 0, ended.stderr
    assert f"Uploaded to {there.url}/team/small" in ended.stderr
    assert there.private == {"team/small": True}
    local = {file.name: file.read_bytes() for file in out.iterdir() if file.name != ".eckart.json"}
    assert there.files["team/small"] == local
    assert set(local) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert TOKEN not in ended.stderr + ended.stdout


def test_a_card_that_the_repository_has_stays(adapter, tmp_path):
    with hub() as there:
        there.private["me/small"], there.files["me/small"] = False, {"README.md": b"mine"}
        ended = eckart(
            "convert",
            adapter,
            "-o",
            tmp_path / "small",
            "--to",
            "peft",
            "--push",
            "me/small",
            endpoint=there.url,
            folder=tmp_path,
        )
    assert ended.returncode == 0, ended.stderr
    assert "me/small keeps the README.md that it had" in ended.stderr
    assert there.files["me/small"]["README.md"] == b"mine"
    assert "adapter_model.safetensors" in there.files["me/small"]
    assert there.private == {"me/small": False}


def test_one_file_is_uploaded_under_its_name(adapter, tmp_path):
    out = tmp_path / "a.safetensors"
    with hub() as there:
        ended = eckart(
            "convert", adapter, "-o", out, "--to", "kohya", "--push", "me/k", endpoint=there.url, folder=tmp_path
        )
    assert ended.returncode == 0, ended.stderr
    assert there.files["me/k"] == {"a.safetensors": out.read_bytes()}


REFUSED = {
    "malformed": ("name", {}, "expects the name of a repository on the hub, ORG/NAME, got 'name'"),
    "a path": ("../../etc", {}, "expects the name of a repository"),
    "offline": ("me/a", {"offline": True}, "HF_HUB_OFFLINE"),
    "not logged in": ("me/a", {"token": None}, "nobody is logged in: run hf auth login"),
    "a wrong token": ("me/a", {"token": "hf_wrong_secret"}, "the hub did not accept the login"),
    "another's name": ("them/a", {}, "you are logged in as me, who may write to me, team, not to them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_upload_that_the_hub_would_refuse_is_refused_before_the_work(case, adapter, tmp_path):
    name, settings, message = REFUSED[case]
    with hub() as there:
        ended = eckart(
            "resize", adapter, "-o", tmp_path / "out", "--rank", 2, "--push", name,
            endpoint=there.url, folder=tmp_path, **settings,
        )  # fmt: skip
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "hf_" not in ended.stderr + ended.stdout
    assert not (tmp_path / "out").exists()
    assert not there.files


def test_a_failed_upload_leaves_the_output_and_says_how_to_repeat_it(adapter, tmp_path):
    out = tmp_path / "out"
    with hub() as there:
        there.broken = ("/commit/main",)
        ended = eckart("resize", adapter, "-o", out, "--rank", 2, "--push", "me/a", endpoint=there.url, folder=tmp_path)
    assert ended.returncode == 1
    assert f"repeat it with: hf upload me/a {out}" in ended.stderr
    assert (out / "adapter_model.safetensors").is_file()
    assert TOKEN not in ended.stderr


def test_a_dry_run_asks_nobody(adapter, tmp_path):
    with hub() as there:
        ended = eckart(
            "resize",
            adapter,
            "-o",
            tmp_path / "out",
            "--rank",
            2,
            "--dry-run",
            "--push",
            "me/a",
            endpoint=there.url,
            folder=tmp_path,
        )
    assert ended.returncode == 0, ended.stderr
    assert there.requests == []
