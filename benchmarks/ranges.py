"""A web server over a folder that answers ranges late, as an object store does, and counts what it was asked.

    with serving(folder, latency=0.02) as server:
        ...                                   # read server.url + "/name.tif"
        requests, sent = server.counts()

Every request waits in a thread of its own: many at once wait together. It runs in a process of its own, so that
its work is in nobody's processor time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from .child import ROOT

__all__ = ["Server", "serving"]


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    """Its address, without a slash at the end."""

    def counts(self) -> tuple[int, int]:
        """Return requests and bytes sent since the last call."""
        with urllib.request.urlopen(f"{self.url}/.counts") as answer:
            requests, sent = json.load(answer)
        return requests, sent


@contextmanager
def serving(folder: Path, latency: float) -> Iterator[Server]:
    """Serve ``folder`` on the loopback with ``latency`` seconds before each answer."""
    command = [sys.executable, "-m", "benchmarks.ranges", str(folder), str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.terminate()
        process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    folder: Path
    latency: float
    lock = threading.Lock()
    counted: ClassVar = [0, 0]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        if self.path == "/.counts":
            self._counts()
        else:
            self._answer(body=True)

    def _counts(self) -> None:
        with self.lock:
            text = json.dumps(self.counted).encode()
            self.counted[:] = [0, 0]
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _answer(self, body: bool) -> None:
        time.sleep(self.latency)
        path = self.folder / self.path.split("?")[0].lstrip("/")
        if not path.is_file():
            with self.lock:
                self.counted[0] += 1
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2] or size - 1), size - 1) if wanted else size - 1
        with self.lock:
            self.counted[0] += 1
            self.counted[1] += (last - first + 1) * body
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(first)
                self.wfile.write(file.read(last - first + 1))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    """Serve until terminated; prints the port."""
    _Handler.folder, _Handler.latency = Path(sys.argv[1]), float(sys.argv[2])
    with _Server(("127.0.0.1", 0), _Handler) as http:
        print(http.server_address[1], flush=True)
        http.serve_forever()


if __name__ == "__main__":
    main()
