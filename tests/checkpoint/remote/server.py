"""A local HTTP server of files that misbehaves on request, and counts what it sends."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Files:
    """What the server has and how it behaves.

    Attributes:
        folder: the files.
        url: of the folder.
        sent: bytes of each file in answers.
        requests: the method, path and headers of each request.
        faults: what happens to the next requests for weights of more than a byte, one entry each: a status such as 503,
            `drop` or `truncate`, None for a right answer.
        retry_after: the header with 429 and 503.
        ranges: whether ranges are understood.
        states_version: whether answers have an ETag.
        redirects: where a path redirects to.
        token: what the Authorization header must be.
        after: called after so many requests for weights.
    """

    folder: Path
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    retry_after: str | None = None
    ranges: bool = True
    states_version: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    after: dict[int, Any] = field(default_factory=dict)
    weights_requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Nothing: clients break off on purpose."""


@contextmanager
def serving(folder: Path) -> Iterator[Files]:
    """A server of a folder on a free port of this machine."""
    state = Files(folder)
    server = _Server(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: Files) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("Content_Length", str(len(body))))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            with state.lock:
                state.requests.append((self.command, self.path, dict(self.headers)))
            if path in state.redirects:
                self.answer(302, Location=state.redirects[path])
                return
            if state.token is not None and self.headers.get("Authorization") != state.token:
                self.answer(401)
                return
            file = state.folder / path[1:]
            if not file.is_file():
                self.answer(404)
                return
            data = file.read_bytes()
            begin, end = 0, len(data)
            given = self.headers.get("Range")
            if given and state.ranges:
                first, _, last = given.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last) + 1, len(data))
            fault = None
            if file.suffix == ".safetensors" and end - begin > 1:
                with state.lock:
                    state.weights_requests += 1
                    fault = state.faults.pop(0) if state.faults else None
                    action = state.after.pop(state.weights_requests, None)
                if action:
                    action()
            if isinstance(fault, int):
                self.answer(fault, **({"Retry_After": state.retry_after} if state.retry_after else {}))
                return
            body = data[begin:end]
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'} if state.states_version else {}
            self.send_response(206 if given and state.ranges else 200)
            if given and state.ranges:
                headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            if fault != "truncate":
                headers["Content-Length"] = str(len(body))
            for name, value in headers.items():
                self.send_header(name, value)
            if fault:
                body = body[: len(body) // 2]
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            with state.lock:  # first, because the client may be done before this thread continues
                state.sent[path] = state.sent.get(path, 0) + len(body)
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        do_HEAD = do_GET

    return Handler
