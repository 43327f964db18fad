"""An object store that refuses, fails, or is shared: what is said, and that the same bits come out in the end."""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from commands import command, write_tif

from tilewright.api import apply
from tilewright.errors import ReadError, ResumeError, StoreError
from tilewright.kernels.user import kernel
from tilewright.pipeline import lease, objects
from tilewright.pipeline.ledger import Ledger
from tilewright.pipeline.rasters import RasterSource

if TYPE_CHECKING:
    from .conftest import S3

pytestmark = pytest.mark.integration

SIDE = 1152
WISHES: dict[str, Any] = {"device": "cpu", "threads": 1, "batch": 1, "tile": 256, "shard": 512}


@kernel(name="twice", inputs={"image": {"dates": 1, "bands": 1}}, radius=0, outputs={"o": {"kind": "value"}})
def twice(x: Any) -> Any:
    """Twice the value."""
    return 2 * x


@dataclass
class Proxy:
    """Stands before the object store and refuses what ``rule`` says: a status, or None to let it through."""

    target: str
    rule: Callable[[str, str], int | None] = lambda _method, _path: None
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def decide(self, method: str, path: str) -> int | None:
        with self.lock:
            status = self.rule(method, path)
            if status is not None:
                self.seen[method, status] += 1
        return status


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a small server in one piece
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = proxy.decide(self.command, self.path)
            if status is not None:
                self._answer(status, b"<Error><Code>Refused</Code><Message>as told</Message></Error>", {})
                return
            host = urlsplit(proxy.target).netloc
            ahead = http.client.HTTPConnection(host, timeout=60)
            # The signature covers the Host header, so the store must see the one that was signed.
            ahead.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    ahead.putheader(name, value)
            ahead.endheaders(body or None)
            answer = ahead.getresponse()
            data = answer.read()
            headers = {
                k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")
            }
            self._answer(answer.status, data, headers)
            ahead.close()

        def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if self.command == "HEAD" or name.lower() != "content-length":
                    self.send_header(name, value)
            if self.command != "HEAD" and status != 204:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    return Handler


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is no news."""


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy to which the environment points, with short waits between tries."""
    state = Proxy(s3.endpoint)
    with _QuietServer(("127.0.0.1", 0), _handler(state)) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        for name in ("AWS_ALLOW_HTTP", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, s3.environment[name])
        monkeypatch.setenv("AWS_ENDPOINT_URL", state.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(objects, "PART", 5 << 20)  # the least that S3 takes
        monkeypatch.setattr(objects, "FIRST_WAIT", timedelta(milliseconds=5))
        monkeypatch.setattr(objects, "LONGEST_WAIT", timedelta(milliseconds=40))
        yield state
        server.shutdown()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that no codec makes small: the COG goes up in several parts."""
    data = np.random.default_rng(2).random((1, SIDE, SIDE), dtype="float32")
    return write_tif(tmp_path_factory.mktemp("scene") / "scene.tif", data, tiled=True)


@pytest.fixture(scope="module")
def undisturbed(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """Digest of the local run, and the bytes of its COG."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    report = apply(twice, [scene], out=out, **WISHES)
    return report.digest, (out / "o.tif").read_bytes()


def parts_of(path: str) -> int | None:
    """Return the part's number where a request uploads one of ``o.tif``."""
    query = parse_qs(urlsplit(path).query)
    return int(query["partNumber"][0]) if "o.tif" in path and "partNumber" in query else None


def test_a_part_that_is_refused_once(s3: S3, proxy: Proxy, scene: Path, undisturbed: Any) -> None:
    left = [500]

    def rule(method: str, path: str) -> int | None:
        return left.pop() if method == "PUT" and parts_of(path) == 2 and left else None

    proxy.rule = rule
    out = f"{s3.url}/faults/part-once"
    report = apply(twice, [scene], out=out, **WISHES)
    assert proxy.seen == {("PUT", 500): 1}
    assert (report.digest, objects.fetch(f"{out}/o.tif")) == undisturbed


def test_a_part_that_is_always_refused(s3: S3, proxy: Proxy, scene: Path, undisturbed: Any) -> None:
    """One line; nothing at the address looks finished; the same command goes on without computing anything."""
    proxy.rule = lambda method, path: 503 if method == "PUT" and parts_of(path) == 2 else None
    out = f"{s3.url}/faults/part-always"
    with pytest.raises(StoreError, match=r"o\.tif: the upload of o\.tif failed") as caught:
        apply(twice, [scene], out=out, **WISHES)
    assert "\n" not in str(caught.value)
    assert proxy.seen["PUT", 503] == objects.RETRIES + 1
    proxy.rule = lambda _method, _path: None
    assert objects.fetch(f"{out}/report.json") is None
    assert objects.fetch(f"{out}/o.tif") is None, "an upload that failed leaves no object"
    report = apply(twice, [scene], out=out, **WISHES)
    assert report.shards_reused == report.shards
    assert (report.digest, objects.fetch(f"{out}/o.tif")) == undisturbed


def test_a_tenth_of_all_requests_fails(s3: S3, proxy: Proxy, scene: Path, undisturbed: Any) -> None:
    chance = random.Random(7)
    proxy.rule = lambda _method, _path: chance.choice((500, 503)) if chance.random() < 0.1 else None
    out = f"{s3.url}/faults/tenth"
    report = apply(twice, [scene], out=out, **WISHES)
    assert sum(proxy.seen.values()) > 5
    assert (report.digest, objects.fetch(f"{out}/o.tif")) == undisturbed


def test_shards_that_are_refused_are_one_line(
    s3: S3, proxy: Proxy, scene: Path, undisturbed: Any, tmp_path: Path
) -> None:
    from commands import KERNELS

    (tmp_path / "mine.py").write_text(KERNELS)
    proxy.rule = lambda method, path: 503 if method == "PUT" and "/0/o/c/1" in path else None
    out = f"{s3.url}/faults/shards"
    run = ("apply", tmp_path / "mine.py:twice", scene, "--tile", 256, "--shard", 512, "--out", out)
    done = command(*run)
    assert done.status == 1
    assert len(done.err.splitlines()) == 1
    assert re.search(r"shard 1\.0: writing o failed: .*503", done.err), done.err
    assert "finished shards are kept, and the same command goes on" in done.err
    proxy.rule = lambda _method, _path: None
    assert command(*run).status == 0
    report = json.loads(objects.fetch(f"{out}/report.json") or b"")
    assert report["shards_reused"] >= 3
    assert report["digest"] == undisturbed[0]


def test_a_store_that_is_away_is_one_line(
    s3: S3, proxy: Proxy, scene: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="check the address, the keys and the endpoint") as caught:
        apply(twice, [scene], out=f"{s3.url}/faults/away", **WISHES)
    assert "\n" not in str(caught.value)


# -- another machine -----------------------------------------------------------------------------------------


def interrupted(scene: Path, out: str, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Run until ``after`` blocks are read."""
    real, reads = RasterSource.read, Counter[str]()

    def read(self: RasterSource, window: Any) -> Any:
        reads["all"] += 1
        if reads["all"] > after:
            raise ReadError("cannot be read", place="scene")
        return real(self, window)

    with monkeypatch.context() as patched:
        patched.setattr(RasterSource, "read", read)
        with pytest.raises(ReadError):
            apply(twice, [scene], out=out, **WISHES)


def test_another_machine_goes_on(
    s3: S3, proxy: Proxy, scene: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = f"{s3.url}/faults/machines"
    interrupted(scene, out, monkeypatch, 5)
    kept = len(Ledger.read(objects.work_folder(out)).entries)
    assert kept > 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-machine"))
    with pytest.raises(ResumeError, match="the address holds another run, which is not finished"):
        apply(twice, [scene], out=out, **{**WISHES, "batch": 2})
    report = apply(twice, [scene], out=out, **WISHES)
    assert report.shards_reused == kept
    assert (report.digest, objects.fetch(f"{out}/o.tif")) == undisturbed
    assert objects.fetch(f"{out}/{lease.NAME}") is None


def test_a_ledger_never_speaks_of_a_zarr_that_was_laid_out_anew(
    s3: S3, proxy: Proxy, scene: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Machine A finishes some shards; B starts over and dies; A comes back with its old ledger."""
    out = f"{s3.url}/faults/anew"
    interrupted(scene, out, monkeypatch, 6)
    mine = objects.work_folder(out) / "ledger.jsonl"
    old = mine.read_bytes()
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(tmp_path / "another-machine"))
        real, reads = RasterSource.read, Counter[str]()

        def read(self: RasterSource, window: Any) -> Any:
            reads["all"] += 1
            if reads["all"] > 2:
                raise ReadError("cannot be read", place="scene")
            return real(self, window)

        other.setattr(RasterSource, "read", read)
        with pytest.raises(ReadError):
            apply(twice, [scene], out=out, fresh=True, **WISHES)
    assert mine.read_bytes() == old
    report = apply(twice, [scene], out=out, **WISHES)
    assert report.shards_reused < 5
    assert (report.digest, objects.fetch(f"{out}/o.tif")) == undisturbed


def test_two_machines_at_one_address(s3: S3, proxy: Proxy, scene: Path, tmp_path: Path) -> None:
    out = f"{s3.url}/faults/two"
    (tmp_path / "b").mkdir()
    other = lease.Lease(tmp_path / "b", out)
    held = r"another run is writing here, on .*holds until.*delete run\.lock"
    with other, pytest.raises(ResumeError, match=held):
        apply(twice, [scene], out=out, **WISHES)
    with lease.Lease(tmp_path / "b", f"{out}-elsewhere"):
        assert objects.fetch(f"{out}/run.lock") is None


def test_the_lock_of_a_machine_that_died(s3: S3, proxy: Proxy, tmp_path: Path) -> None:
    """Its own folder takes it back at once; another one when it has ended; a lock that was taken is noticed."""
    url = f"{s3.url}/faults/died"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    dead = lease.Lease(tmp_path / "a", url)
    dead.__enter__()
    dead._end.set()  # as SIGKILL would: nothing is given back
    with lease.Lease(tmp_path / "a", url):
        held = json.loads(objects.fetch(f"{url}/run.lock") or b"")
        assert datetime.fromisoformat(held["until"]) > datetime.now(UTC) + timedelta(minutes=5)
    ended = {"owner": "gone 1", "pid": 1, "until": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    objects.put(f"{url}/run.lock", json.dumps(ended).encode())
    with lease.Lease(tmp_path / "b", url) as taken:
        taken.check()
    assert objects.fetch(f"{url}/run.lock") is None


def test_a_lock_that_was_taken_over_stops_the_run(
    s3: S3, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    url = f"{s3.url}/faults/taken"
    with lease.Lease(tmp_path, url) as mine:
        until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        objects.put(f"{url}/run.lock", json.dumps({"owner": "other 2", "pid": 1, "until": until}).encode())
        assert mine._thread is not None
        mine._thread.join(10)
        with pytest.raises(ResumeError, match="another machine has taken over: other"):
            mine.check()
    assert objects.fetch(f"{url}/run.lock") is not None, "the other one's lock is left alone"
