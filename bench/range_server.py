"""Serves a folder by byte ranges from a process of its own, which counts what it sends."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

SENT = "/bytes-sent"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, on this machine."""
    command = [sys.executable, "-m", "bench.range_server", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def bytes_sent(address: str) -> int:
    """What the server has sent since it was last asked."""
    with urlopen(f"{address}{SENT}") as answer:  # an address of this machine
        return int(answer.read())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.sent, self.lock = folder, 0, threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that ends leaves connections open."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        file = self.server.folder / self.path[1:]
        if self.path == SENT:
            with self.server.lock:
                text, self.server.sent = str(self.server.sent).encode(), 0
            self._begin(200, len(text))
            self.wfile.write(text)
        elif not file.is_file():
            self._begin(404, 0)
        else:
            self._send_range(file)

    def _send_range(self, file: Path) -> None:
        status = file.stat()
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1, status.st_size)
        with self.server.lock:
            self.server.sent += end - begin
        stated = {"ETag": f'"{status.st_mtime_ns:x}"', "Content-Range": f"bytes {begin}-{end - 1}/{status.st_size}"}
        self._begin(206, end - begin, stated)
        self.wfile.flush()
        with file.open("rb") as opened:
            self.connection.sendfile(opened, begin, end - begin)

    def _begin(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()


if __name__ == "__main__":
    server = _Server(Path(sys.argv[1]))
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
