"""Hub names through huggingface_hub's real code, against a local stand-in for the hub."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from safetensors.torch import load_file

TOKEN = "hf_standin"
COMMIT = "c" * 40


class Hub:
    """A hub with public repositories `org/...`, and private ones `me/...` for who has the token.

    Files are redirected to another host, as large ones are, which must not be sent the token.
    """

    def __init__(self, folder) -> None:
        self.folder, self.sent, self.tokens_elsewhere, self.requests = folder, {}, [], []
        self.url = self.storage = ""


@contextmanager
def hub(folder):
    state = Hub(folder)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(state, storage=storage)) for storage in (False, True)]
    state.url = f"http://127.0.0.1:{servers[0].server_address[1]}"
    state.storage = f"http://localhost:{servers[1].server_address[1]}"
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(state, *, storage):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def answer(self, status, body=b"", **headers) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            state.requests.append(path)
            token = self.headers.get("Authorization")
            if storage:
                if token:
                    state.tokens_elsewhere.append(token)
                self.send_range(state.folder / path[1:])
                return
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            if path.startswith("/api/models/me/") and token != f"Bearer {TOKEN}":
                self.answer(401, b'{"error": "Invalid username or password."}', X_Error_Code="RepoNotFound")
            elif path.startswith("/api/models/"):
                self.repository(name)
            elif f"/resolve/{COMMIT}/" in path:
                model, _, file = path[1:].partition(f"/resolve/{COMMIT}/")
                self.answer(302, Location=f"{state.storage}/{model.partition('/')[2]}/{file}?Signature=secret")
            else:
                self.answer(404)

        def repository(self, name) -> None:
            folder = state.folder / name.partition("/")[2]
            if not folder.is_dir():
                self.answer(401, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
                return
            files = [{"rfilename": f.name, "size": f.stat().st_size} for f in folder.iterdir() if f.is_file()]
            facts = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0}
            self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")

        def send_range(self, file) -> None:
            data = file.read_bytes()
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1]
            state.sent[file.name] = state.sent.get(file.name, 0) + len(part)
            self.answer(206, part, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")

        do_HEAD = do_GET

    return Handler


@pytest.fixture(scope="module")
def there(originals):
    with hub(originals) as state:
        yield state


def eckart(*arguments, folder, endpoint="http://127.0.0.1:9", token=None, offline=False):
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, "-m", "eckart", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_extraction_from_the_hub_downloads_neither_model(there, originals, tmp_path) -> None:
    ended = eckart(
        "extract",
        "org/base",
        "org/tuned@main",
        "-o",
        tmp_path / "out",
        "--rank",
        2,
        folder=tmp_path,
        endpoint=there.url,
    )
    assert ended.returncode == 0, ended.stderr
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert "org/base" in (tmp_path / "out" / "README.md").read_text()
    from eckart.operations import extract

    extract(originals / "base", originals / "tuned", rank=2, output=tmp_path / "local")
    files = [load_file(tmp_path / each / "adapter_model.safetensors") for each in ("out", "local")]
    assert all(files[0][name].equal(tensor) for name, tensor in files[1].items())
    assert "tokenizer.json" not in there.sent


def test_a_private_repository_needs_the_token_which_goes_to_no_other_host(there, tmp_path) -> None:
    there.tokens_elsewhere.clear()
    run = ["analyze", "me/tuned", "--target", "q_proj"]
    refused = eckart(*run, folder=tmp_path, endpoint=there.url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("eckart: me/tuned: no such folder, and it could not be read from the hub: ")
    ended = eckart(*run, folder=tmp_path, endpoint=there.url, token=TOKEN)
    assert ended.returncode == 0, ended.stderr
    assert there.tokens_elsewhere == []
    assert TOKEN not in ended.stdout + ended.stderr


@pytest.fixture
def cached(originals, tmp_path):
    """The hub's cache with a complete snapshot of org/tuned."""
    repo = tmp_path / "home" / "hub" / "models--org--tuned"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in (originals / "tuned").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


@pytest.mark.parametrize("how", ["offline", "unreachable", "online"])
def test_a_complete_snapshot_in_the_cache_is_read_from_there(how, cached, there, tmp_path) -> None:
    there.sent.clear()
    endpoint = there.url if how == "online" else "http://127.0.0.1:9"
    ended = eckart(
        "analyze", "org/tuned", "--target", "q_proj", folder=tmp_path, endpoint=endpoint, offline=how == "offline"
    )
    assert ended.returncode == 0, ended.stderr
    assert there.sent == {}


def test_an_incomplete_snapshot_is_read_remotely(cached, there, tmp_path) -> None:
    (cached / "model.safetensors").unlink()
    ended = eckart("analyze", "org/tuned", "--target", "q_proj", folder=tmp_path, endpoint=there.url)
    assert ended.returncode == 0, ended.stderr
    assert there.sent["model.safetensors"] > 2**21


@pytest.mark.parametrize("source", ["hf://org/tuned", "hf://org/tuned@main", "hf://org/tuned/model.safetensors"])
def test_hf_urls_name_repositories_and_files(source, there, tmp_path) -> None:
    ended = eckart("analyze", source, "--target", "q_proj", folder=tmp_path, endpoint=there.url)
    assert ended.returncode == 0, ended.stderr


def test_a_merge_copies_the_tokenizer_of_a_remote_base(there, originals, tmp_path) -> None:
    out = tmp_path / "out"
    ended = eckart("merge", "org/base", "org/adapter", "-o", out, folder=tmp_path, endpoint=there.url)
    assert ended.returncode == 0, ended.stderr
    assert (out / "tokenizer.json").read_bytes() == (originals / "base" / "tokenizer.json").read_bytes()
    assert (out / "config.json").is_file()
