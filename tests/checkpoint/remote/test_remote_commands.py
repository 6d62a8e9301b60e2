"""Remote sources on the command line: no secret of a URL is shown or stored, and a dry run says what will be read."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from eckart.checkpoint.remote import table
from eckart.cli.main import app

from .server import serving

SECRETS = ("hunter2", "X-Amz", "s3cr3t", "wanda")


@pytest.fixture
def server(tmp_path):
    torch.manual_seed(0)
    base = {f"model.layers.{n}.self_attn.q_proj.weight": torch.randn(64, 64) for n in range(3)}
    for model, scale in (("base", 0.0), ("tuned", 0.1)):
        folder = tmp_path / "served" / model
        folder.mkdir(parents=True)
        save_file({name: weight + scale for name, weight in base.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
    with serving(tmp_path / "served") as files:
        yield files


def signed(url: str, model: str) -> str:
    return url.replace("http://", "http://wanda:hunter2@") + f"/{model}/model.safetensors?X-Amz-Signature=s3cr3t"


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.output


def test_nothing_secret_in_a_url_is_shown_or_written(server, tmp_path) -> None:
    out = tmp_path / "out"
    base, tuned = signed(server.url, "base"), signed(server.url, "tuned")
    status, text = run("extract", base, tuned, "-o", out, "--rank", "2", "--json")
    assert status == 0, text
    sent = [path for _, path, _ in server.requests]
    assert any("X-Amz-Signature=s3cr3t" in path for path in sent)
    written = [text, *(file.read_text(errors="replace") for file in out.rglob("*") if file.is_file())]
    assert len(written) > 4
    assert not [(secret, part[:99]) for part in written for secret in SECRETS if secret in part]
    assert f"{server.url}/base/model.safetensors" in (out / "adapter_config.json").read_text()


@pytest.mark.parametrize("command", ["analyze", "extract", "merge", "check", "resize", "compare"])
def test_nothing_secret_in_a_url_is_in_a_message(command, server, tmp_path) -> None:
    missing = signed(server.url, "nothing")
    out = [] if command in ("check", "compare") else ["-o", tmp_path / "out"]
    more = {"extract": [missing], "merge": [missing], "compare": [missing], "resize": ["--rank", 2]}.get(command, [])
    status, text = run(command, missing, *more, *out)
    assert status == 1
    assert f"eckart: {server.url}/nothing/model.safetensors: no such file or folder\n" == text
    assert not [secret for secret in SECRETS if secret in text]


def test_a_dry_run_says_how_many_bytes_will_be_read_and_reads_headers_only(server, tmp_path) -> None:
    sources = [f"{server.url}/{model}" for model in ("base", "tuned")]
    status, text = run("extract", *sources, "-o", tmp_path / "out", "--rank", 2, "--dry-run", "--json")
    assert status == 0, text
    assert json.loads(text)["read_bytes"] == 2 * 3 * 64 * 64 * 4
    assert sum(server.sent.values()) < 70_000


def test_the_cache_of_an_interrupted_command_serves_the_next(server, tmp_path) -> None:
    sent = []
    for _ in range(2):
        status, text = run("analyze", f"{server.url}/tuned", "--cache", tmp_path / "cache")
        assert status == 0, text
        sent.append(server.sent.pop("/tuned/model.safetensors"))
        table.MOUNTS.folders, table.MOUNTS.files = {}, {}
    assert sent[0] > 3 * 64 * 64 * 4
    assert sent[1] <= 4


def test_a_url_on_a_card_is_its_last_part(server, tmp_path) -> None:
    run("extract", f"{server.url}/base", f"{server.url}/tuned", "-o", tmp_path / "out", "--rank", "2")
    card = (Path(tmp_path) / "out" / "README.md").read_text()
    assert re.search(r"eckart extract base tuned --rank 2 -o OUT", card)
