"""Reading over HTTP from a real server that refuses, fails and forgets: signing at open, retries, clear errors."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from scenes import bbox_of, make_item, write_scene

from tilewright.errors import InputError, ReadError
from tilewright.pipeline.cube import CubeSource
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.rasters import RasterSource

pytestmark = pytest.mark.integration
A = Affine(10, 0, 500_000, 0, -10, 5_000_000)
GRID = Grid(GeoBox((300, 300), A, "EPSG:32633"))


@dataclass
class Server:
    """Serves a folder with ranges; ``fail`` answers some requests with a status instead."""

    folder: Path
    token: str | None = None
    fail: list[int] = field(default_factory=list)
    seen: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def status(self, path: str) -> int:
        with self.lock:
            if self.token is not None and f"token={self.token}" not in path:
                return 403
            return self.fail.pop(0) if self.fail else 200


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            status = server.status(self.path)
            file = server.folder / self.path.split("?")[0].lstrip("/")
            if status == 200 and not file.is_file():
                status = 404
            data = file.read_bytes() if status == 200 else b""
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            total = len(data)
            if status == 200 and wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
                data, status = data[first : last + 1], 206
            with server.lock:
                server.seen[status] += 1
            self.send_response(status)
            if status == 206 and wanted:
                self.send_header(
                    "Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(data) - 1}/{total}"
                )
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    served = Server(tmp_path)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    served.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield served
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.pipeline.handles._FIRST_WAIT_S", 0.01)
    monkeypatch.setitem(
        __import__("tilewright.pipeline.handles", fromlist=["_GDAL"])._GDAL, "GDAL_HTTP_MAX_RETRY", "0"
    )


@pytest.fixture
def pixels(server: Server) -> np.ndarray:
    values = np.random.default_rng(0).integers(1, 255, (1, 300, 300)).astype("uint8")
    write_scene(server.folder / "a.tif", values)
    return values


class Signer:
    """Gives the tokens of its list, one after another."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.refreshed: list[str] = []

    def sign(self, href: str) -> str:
        return f"{href}?token={self.tokens[0]}"

    def refresh(self, href: str) -> str:
        self.refreshed.append(href)
        if len(self.tokens) > 1:
            self.tokens.pop(0)
        return self.sign(href.split("?")[0])


def _source(server: Server, signer: Signer | None = None, on_error: str = "raise") -> CubeSource:
    item = make_item("remote", {"value": f"{server.url}/a.tif"}, bbox=bbox_of(server.folder / "a.tif"))
    return CubeSource([item], GRID, signer=signer, on_error=on_error)  # type: ignore[arg-type]


def test_an_expired_token_is_renewed_once(server: Server, pixels: np.ndarray) -> None:
    server.token = "new"
    signer = Signer("old", "new")
    source = _source(server, signer)
    got = source.read(GRID.window).data["image"][0]
    np.testing.assert_array_equal(got, pixels)
    assert len(signer.refreshed) == 1
    assert "token" not in str(source.describe())


def test_a_token_that_stays_refused_is_an_error_without_the_token(server: Server, pixels: np.ndarray) -> None:
    server.token = "never"
    signer = Signer("secret1", "secret2", "secret3")
    with pytest.raises(ReadError, match=r"remote, band value.*refuses") as caught:
        _source(server, signer).read(GRID.window)
    assert len(signer.refreshed) == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("failures", [[503], [503, 500, 429], [503] * 3])
def test_a_failed_open_is_tried_again_afresh(server: Server, pixels: np.ndarray, failures: list[int]) -> None:
    """GDAL caches a failed open: without forgetting it every further try would fail as well."""
    server.fail = list(failures)
    np.testing.assert_array_equal(_source(server).read(GRID.window).data["image"][0], pixels)
    assert sum(n for status, n in server.seen.items() if status >= 429) == len(failures)


def test_a_server_that_is_down_is_said_with_item_and_band(server: Server, pixels: np.ndarray) -> None:
    server.fail = [503] * 500
    with pytest.raises(ReadError, match=r"remote, band value, http://127.*a\.tif.*after 4 tries"):
        _source(server).read(GRID.window)
    tolerant = _source(server, on_error="reason")
    block = tolerant.read(Window(0, 20, 0, 20))
    assert set(np.unique(block.reason["image"])) == {4}
    assert len(tolerant.failures) == 1


def test_failures_in_the_middle_of_a_read(server: Server, pixels: np.ndarray) -> None:
    source = _source(server)
    source.read(Window(0, 10, 0, 10))
    server.fail = [503, 503]
    np.testing.assert_array_equal(source.read(GRID.window).data["image"][0], pixels)


def test_plain_rasters_by_url(server: Server, pixels: np.ndarray) -> None:
    source = RasterSource([f"{server.url}/a.tif?signature=abc"])
    np.testing.assert_array_equal(source.read(Window(5, 99, 7, 80)).data["image"][0], pixels[:, 5:99, 7:80])
    assert "signature" not in str(source.describe())
    with pytest.raises(InputError, match=r"absent\.tif"):
        RasterSource([f"{server.url}/absent.tif"])
