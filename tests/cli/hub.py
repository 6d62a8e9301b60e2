"""A local stand-in for the hub's HTTP API, as far as an upload by huggingface_hub speaks it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_standin"


class Hub:
    """Repositories by name: whether each is private, and its files; a list of all requests."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.broken: tuple[str, ...] = ()  # ends of paths that are answered by an error
        self.url = ""


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that listens on a free port of this machine."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002
            pass

        def answer(self, status: int, body: Any = None, **headers: str) -> None:
            data = json.dumps(body).encode() if body is not None else b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            path = self.path.partition("?")[0]
            state.requests.append(f"{self.command} {path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials in Authorization header"})
            elif path.endswith(state.broken) and state.broken:
                self.answer(403, {"error": "storage limit reached"})
            elif path == "/api/whoami-v2":
                self.answer(200, {"name": "me", "type": "user", "orgs": [{"name": "team"}]})
            elif path == "/api/validate-yaml":
                yaml.safe_load(json.loads(body)["content"].split("---")[1])
                self.answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif "/resolve/main/" in path:
                repository, _, file = path[1:].partition("/resolve/main/")
                exists = file in state.files.get(repository, {})
                self.answer(200 if exists else 404, **({} if exists else {"X_Error_Code": "EntryNotFound"}))
            elif path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                self.answer(
                    200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            elif path.endswith("/commit/main"):
                self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
            else:
                self.answer(404, {"error": f"not spoken here: {self.command} {path}"})

        def create(self, fields: dict[str, Any]) -> None:
            name = f"{fields.get('organization') or 'me'}/{fields['name']}"
            if name in state.private:
                self.answer(409, {"error": "You already created this model repo", "url": f"{state.url}/{name}"})
                return
            state.private[name], state.files[name] = (
                fields.get("visibility") == "private" or bool(fields.get("private")),
                {},
            )
            self.answer(200, {"url": f"{state.url}/{name}", "name": name})

        def commit(self, repository: str, body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    state.files[repository][line["value"]["path"]] = content
            self.answer(
                200,
                {
                    "commitUrl": f"{state.url}/{repository}/commit/1",
                    "commitOid": "1",
                    "hookOutput": "",
                    "success": True,
                },
            )

        do_GET = do_HEAD = do_POST = handle_request

    return Handler
