"""Search against real STAC APIs on loopback: rustac, pgstac where it is installed, and rustac behind a bad gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from prefect_server import free_port

from tilewright.catalogs import api
from tilewright.catalogs.search import search
from tilewright.catalogs.snapshot import read_snapshot, write_snapshot
from tilewright.errors import CatalogError

pytestmark = pytest.mark.integration

COUNT = 130
"""More than one page of 100."""


def feature(number: int) -> dict[str, Any]:
    """A Sentinel-2 Item of a grid of footprints, one a day; every tenth comes in two processings."""
    west, south = number % 20 - 10.0, number // 20 * 1.0
    ring = [[west, south], [west + 0.9, south], [west + 0.9, south + 0.9], [west, south + 0.9], [west, south]]
    day = f"2023-{number // 28 % 12 + 1:02d}-{number % 28 + 1:02d}"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [],
        "id": f"S2A_31UAA_{day.replace('-', '')}_{number}_L2A",
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, west + 0.9, south + 0.9],
        "properties": {
            "datetime": f"{day}T10:00:00Z",
            "platform": "sentinel-2a" if number % 2 else "sentinel-2b",
            "eo:cloud_cover": float(number % 100),
            "created": f"{day}T20:00:00Z",
        },
        "links": [],
        "assets": {
            "red": {"href": f"https://example.com/{number}.tif?sig=SECRET&sv=1", "type": "image/tiff"}
        },
    }


def collection(name: str) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": "for tests",
        "license": "proprietary",
        "extent": {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2015-01-01T00:00:00Z", None]]},
        },
        "links": [],
    }


@pytest.fixture(scope="module")
def features(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Generated Items, and the real ones of Earth Search where the folder of real imagery is present."""
    made = [feature(number) for number in range(COUNT)]
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "10_stac_items"
    real = folder / "rustac/crates/server/data/sentinel-2/item-collection.json"
    return made + (json.loads(real.read_text())["features"] if real.is_file() else [])


@contextmanager
def running(command: list[str], url: str, log: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server until the block ends; yield its address once it answers."""
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=env) as process:
        try:
            for _ in range(300):
                if process.poll() is not None:
                    pytest.fail(f"{command[0]} ended: {log.read_text()[-2000:]}")
                try:
                    requests.get(url, timeout=2).raise_for_status()
                    break
                except requests.RequestException:
                    time.sleep(0.1)
            else:
                pytest.fail(f"{command[0]} does not answer: {log.read_text()[-2000:]}")
            yield url
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def rustac(features: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = Path(sys.executable).with_name("rustac")
    if not program.exists():
        pytest.skip("rustac is not installed")
    folder = tmp_path_factory.mktemp("rustac")
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    port = free_port()
    command = [
        str(program),
        "serve",
        "-a",
        f"127.0.0.1:{port}",
        "--create-collections",
        str(folder / "items.json"),
    ]
    with running(command, f"http://127.0.0.1:{port}", folder / "log") as url:
        yield url


@pytest.fixture(scope="module")
def pgstac(features: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """stac-fastapi.pgstac over a PostgreSQL cluster of its own.

    It needs PostgreSQL with PostGIS, and a Python that has stac-fastapi.pgstac, pypgstac and uvicorn: the one
    named by TILEWRIGHT_PGSTAC_PYTHON, since its FastAPI is another than Prefect's.
    """
    python = os.environ.get("TILEWRIGHT_PGSTAC_PYTHON", "")
    folders = [Path(found).parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if (
        not python
        or not folders
        or not list(Path("/usr/share/postgresql").glob("*/extension/postgis.control"))
    ):
        pytest.skip("needs PostGIS and TILEWRIGHT_PGSTAC_PYTHON")
    folder = tmp_path_factory.mktemp("pgstac")
    (folder / "collections.ndjson").write_text(
        "\n".join(json.dumps(collection(name)) for name in sorted({item["collection"] for item in features}))
    )
    (folder / "items.ndjson").write_text("\n".join(json.dumps(item) for item in features))
    with postgres(folders[-1]) as settings:
        env = {**os.environ, **settings}
        tool = [str(Path(python).with_name("pypgstac"))]
        loads = [["load", kind, str(folder / f"{kind}.ndjson")] for kind in ("collections", "items")]
        for step in [["migrate"], *loads]:
            subprocess.run([*tool, *step], env=env, check=True, capture_output=True)
        port = free_port()
        app = [
            "uvicorn",
            "stac_fastapi.pgstac.app:create_app",
            "--factory",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with running([python, "-m", *app], f"http://127.0.0.1:{port}", folder / "log", env) as url:
            yield url


@contextmanager
def postgres(programs: Path) -> Iterator[dict[str, str]]:
    """Run a PostgreSQL cluster in a folder of its own; yield the environment that connects to it."""
    # Not below pytest's folders: they are closed to the account that the server needs, which is never root.
    become = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="tilewright-pg-") as folder:
        if become:
            shutil.chown(folder, "postgres")
        control = [*become, str(programs / "pg_ctl"), "-D", f"{folder}/data"]
        make = [*become, str(programs / "initdb"), "-D", f"{folder}/data", "-U", "postgres", "-A", "trust"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        start = [*control, "-o", options, "-l", f"{folder}/log", "-w", "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd="/")
        try:
            yield {f"PG{key}": value for key, value in account(port).items()}
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd="/"
            )


def account(port: str) -> dict[str, str]:
    return {
        "HOST": "127.0.0.1",
        "PORT": port,
        "USER": "postgres",
        "PASSWORD": "unused",
        "DATABASE": "postgres",
    }


@dataclass
class Weather:
    """What a gateway does to requests that pass it."""

    largest_page: int = 10_000
    """Pages above it are answered by 502."""
    refusals: int = 0
    """So many searches are answered by 503 first."""
    post: bool = True
    """False: POST is not allowed."""
    changes: dict[str, str] = field(default_factory=dict)
    """Replaced in every answer."""
    limits: list[int] = field(default_factory=list)
    """The page sizes that were asked for."""


@pytest.fixture
def gateway(rustac: str) -> Iterator[tuple[str, Weather]]:
    """A proxy in front of rustac that fails in the ways that real ones do."""
    weather = Weather()

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass(requests.get(f"{rustac}{self.path}", timeout=10))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            weather.limits.append(body.get("limit", 0))
            if not weather.post:
                self._answer(405, b"no POST here")
            elif weather.refusals:
                weather.refusals -= 1
                self._answer(503, b"come back later")
            elif body.get("limit", 0) > weather.largest_page:
                self._answer(502, b'{"message": "Internal server error"}')
            else:
                self._pass(requests.post(f"{rustac}{self.path}", json=body, timeout=10))

        def _pass(self, answer: requests.Response) -> None:
            text = answer.text.replace(rustac, url)
            for old, new in weather.changes.items():
                text = text.replace(old, new)
            self._answer(answer.status_code, text.encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield url, weather
        server.shutdown()
        thread.join()


@pytest.fixture(params=["rustac", "pgstac"])
def server(request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(request.param)
    return address


ASKED: list[dict[str, Any]] = [
    {},
    {"region": "-5.5,0.5,-2.5,2.5"},
    {"region": {"type": "Polygon", "coordinates": [[[-9.8, 0.1], [-9.2, 0.1], [-9.5, 3.4], [-9.8, 0.1]]]}},
    {"datetime": "2023-02"},
    {"datetime": "2023-01-28/2023-02-02", "region": "-10,0,10,10"},
    {"cloud_cover": 10},
    {"filter": "eo:cloud_cover > 20 AND platform = 'sentinel-2a'", "cloud_cover": 40},
    {"query": {"eo:cloud_cover": {"lt": 3}}},
    {"ids": [feature(5)["id"], feature(77)["id"]]},
]


@pytest.mark.parametrize("asked", ASKED, ids=[",".join(asked) or "all" for asked in ASKED])
def test_an_api_and_a_file_give_the_same_items(
    server: str, asked: dict[str, Any], features: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    by_file = search(tmp_path / "items.json", collections="sentinel-2-l2a", **asked)
    by_api = search(server, collections="sentinel-2-l2a", **asked)
    assert [item.id for item in by_api.items] == [item.id for item in by_file.items]
    assert by_api.items
    if not asked:
        assert len(by_api.items) == COUNT
    assert not any("SECRET" in item.assets["red"].href for item in by_api.items)


def test_pages_smaller_than_the_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE", 7)
    result = search(server, collections=["sentinel-2-l2a"], region="-10,0,10,10")
    assert len(result.items) == COUNT
    assert len({item.id for item in result.items}) == COUNT


def test_max_items_with_and_without_a_filter(server: str) -> None:
    assert len(search(server, collections="sentinel-2-l2a", max_items=12).items) == 12
    few = search(server, collections="sentinel-2-l2a", cloud_cover=50, max_items=12)
    assert len(few.items) == 12
    assert all(item.properties["eo:cloud_cover"] <= 50 for item in few.items)


def test_unknown_collections_and_empty_answers(server: str) -> None:
    with pytest.raises(
        CatalogError, match=r"unknown collection 'sentinel-2l2a'; did you mean 'sentinel-2-l2a'"
    ):
        search(server, collections=["sentinel-2-l2a", "sentinel-2l2a"])
    with pytest.raises(
        CatalogError, match=r"no Items found for collections sentinel-2-l2a; datetime 1999.*bbox 50,50,51,51"
    ):
        search(server, collections="sentinel-2-l2a", region="50,50,51,51", datetime="1999")


def test_a_snapshot_of_an_api_repeats_the_search(server: str, tmp_path: Path) -> None:
    result = search(server, collections="sentinel-2-l2a", datetime="2023-01")
    written = write_snapshot(tmp_path / "a.json", result.items, result.searched)
    assert "SECRET" not in (tmp_path / "a.json").read_text()
    again = search(server, collections="sentinel-2-l2a", datetime="2023-01")
    assert write_snapshot(tmp_path / "b.json", again.items, again.searched).digest == written.digest
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_snapshot(tmp_path / "a.json").digest == written.digest


def test_a_server_that_cannot_filter_is_said(rustac: str) -> None:
    result = search(rustac, collections="sentinel-2-l2a", cloud_cover=3)
    assert "filtered here" in result.notes[0]


def test_real_items_come_through(server: str, features: list[dict[str, Any]]) -> None:
    if len(features) == COUNT:
        pytest.skip("the folder of real imagery is absent")
    result = search(server, collections="sentinel-2-c1-l2a", datetime="2024-04", cloud_cover=100)
    assert len(result.items) == 9
    assert result.items[0].properties["proj:code"] == "EPSG:32613"
    assert not result.dropped


def test_large_pages_are_halved_and_busy_servers_asked_again(gateway: tuple[str, Weather]) -> None:
    url, weather = gateway
    weather.largest_page, weather.refusals = 30, 2
    result = search(url, collections="sentinel-2-l2a")
    assert len(result.items) == COUNT
    # twice 503, then 502 for 100 and 50, then pages of 25 to the end
    assert weather.limits[:5] == [100, 100, 100, 50, 25]
    assert set(weather.limits[5:]) == {25}


def test_a_gateway_that_stays_broken_is_named(
    gateway: tuple[str, Weather], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, weather = gateway
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    weather.largest_page = 0
    with pytest.raises(CatalogError, match=r"HTTP 502.*narrow") as caught:
        search(url, collections="sentinel-2-l2a", datetime="2023")
    assert "collections sentinel-2-l2a; datetime 2023" in str(caught.value)
    assert url in str(caught.value)
    assert caught.value.__cause__ is not None
    assert weather.limits[:7] == [100, 50, 25, 12, 6, 3, 1]


def test_a_server_without_post_is_asked_by_get(gateway: tuple[str, Weather]) -> None:
    url, weather = gateway
    weather.post = False
    assert len(search(url, collections="sentinel-2-l2a", datetime="2023-01").items) == 28


@pytest.mark.parametrize(
    "href", ["file:///etc/passwd", "/etc/passwd", "/vsicurl/http://x", "../../etc/passwd"]
)
def test_a_server_cannot_name_local_files(gateway: tuple[str, Weather], href: str) -> None:
    url, weather = gateway
    weather.changes["https://example.com/7.tif?sig=SECRET&sv=1"] = href
    item = feature(7)["id"]
    if href.startswith(".."):
        assert search(url, ids=item).items[0].assets["red"].href.startswith(url)
        return
    with pytest.raises(CatalogError, match=rf"{item}, asset red: .*would be opened on this machine"):
        search(url, ids=item)


def test_paging_that_repeats_itself_ends(gateway: tuple[str, Weather]) -> None:
    url, weather = gateway
    weather.largest_page = 30
    weather.changes['"skip"'] = '"ignored"'
    with pytest.raises(CatalogError, match="paging repeats itself"):
        search(url, collections="sentinel-2-l2a")


def test_no_server_and_no_stac(gateway: tuple[str, Weather], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    url, weather = gateway
    with pytest.raises(CatalogError, match=r"does not answer.*check the address"):
        search(f"http://127.0.0.1:{free_port()}/stac")
    weather.changes['"stac_version"'] = '"other_version"'
    weather.changes['"Catalog"'] = '"Thing"'
    with pytest.raises(CatalogError, match="not a STAC catalog"):
        search(url)
