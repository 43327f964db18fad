"""Buckets with settings of their own, read through GDAL beside another store: real servers on loopback."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from commands import command, write_recipe
from odc.geo.geobox import GeoBox
from scenes import write_scene

from tilewright.catalogs.endpoints import endpoint
from tilewright.catalogs.hrefs import make_item
from tilewright.catalogs.search import search
from tilewright.errors import InputError, ReadError
from tilewright.pipeline import handles, objects
from tilewright.pipeline.cube_source import CubeSource
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.rasters import RasterSource

from .conftest import S3, RangeServer, free_port, object_store
from .test_stac_api import running

pytestmark = pytest.mark.integration

RECORDED = Path(__file__).resolve().parents[1] / "data" / "stac"
CDSE = json.loads((RECORDED / "cdse-sentinel-2-l2a.json").read_text())
LANDSAT = json.loads((RECORDED / "landsatlook-oli-sr.json").read_text())
SIZE = 256
"""Pixels a side, of 10 m, of what stands for a tile of 10,980: its north-western corner."""
CORNER = Affine(10, 0, 499_980, 0, -10, 5_400_000)
REGION = [15.006, 48.736, 15.018, 48.747]
SECRETS = ("cdse-key-id", "cdse-hidden-half", "tester", "not-a-secret")
"""Keys of both stores; the folder and the words of the tests have none of them."""


@pytest.fixture(scope="module")
def eodata(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A second store, with a bucket and keys of its own."""
    folder = tmp_path_factory.mktemp("second-weed")
    with object_store(folder, "eodata", "cdse-key-id", "cdse-hidden-half") as server:
        yield server


@pytest.fixture
def both(s3: S3, eodata: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual settings speak of one store, those of the data space of the other."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CDSE_S3_ENDPOINT", eodata.endpoint)
    monkeypatch.setenv("CDSE_S3_ACCESS_KEY", eodata.key)
    monkeypatch.setenv("CDSE_S3_SECRET_KEY", eodata.secret)
    monkeypatch.setattr(handles, "_FIRST_WAIT_S", 0.01)


def numbers(seed: int, low: int = 1100, high: int = 5000, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (1, size, size)).astype("uint16")


def upload(store: S3, path: Path, href: str) -> None:
    objects.upload(path, href, options=store.options)


# -- two stores in one process -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(s3: S3, eodata: S3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """A raster in each store: address -> pixels."""
    folder, found = tmp_path_factory.mktemp("pair"), {}
    for seed, store in enumerate((s3, eodata)):
        href = f"{store.url}/pair/scene.tif"
        found[href] = numbers(seed)
        upload(store, write_scene(folder / f"{seed}.tif", found[href], compress="deflate"), href)
    return found


@pytest.mark.usefixtures("both")
def test_neither_store_opens_with_the_keys_of_the_other(
    pair: dict[str, np.ndarray], s3: S3, eodata: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the tests: were the settings mixed up, reads would fail."""
    monkeypatch.setenv("CDSE_S3_ACCESS_KEY", s3.key)
    monkeypatch.setenv("CDSE_S3_SECRET_KEY", s3.secret)
    with pytest.raises(InputError, match="the server refuses the keys"):
        RasterSource([f"{eodata.url}/pair/scene.tif"])
    monkeypatch.setenv("CDSE_S3_ENDPOINT", s3.endpoint)
    with pytest.raises(InputError, match="cannot be read"):
        RasterSource([f"{eodata.url}/pair/scene.tif"])


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("first", [0, 1])
def test_two_stores_are_read_at_the_same_time(pair: dict[str, np.ndarray], first: int) -> None:
    """One by the main thread, whose options GDAL holds for the whole process, the other by threads beside it."""
    mine, other = (list(pair.items())[first], list(pair.items())[1 - first])
    done = threading.Event()

    def once(href: str, expected: np.ndarray, row: int) -> None:
        window = Window(row, row + 40, 20, 90)
        got = RasterSource([href]).read(window).data["image"][0]
        np.testing.assert_array_equal(got, expected[:, row : row + 40, 20:90])

    def again_and_again() -> int:
        count = 0
        while not done.is_set() or count < 5:
            once(*other, row=count % 200)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(again_and_again) for _ in range(2)]
        try:
            for row in range(0, 200, 8):
                once(*mine, row=row)
        finally:
            done.set()
        assert all(future.result() >= 5 for future in beside)


@pytest.mark.usefixtures("both")
def test_settings_of_a_bucket_end_with_the_read(pair: dict[str, np.ndarray], eodata: S3) -> None:
    from rasterio.env import get_gdal_config

    seen: list[str | None] = []

    def read(opened_as: Any) -> None:
        seen.append(get_gdal_config("AWS_ACCESS_KEY_ID"))

    href = f"{eodata.url}/pair/scene.tif"
    before = get_gdal_config("AWS_ACCESS_KEY_ID")
    with rasterio.Env():
        handles.read_retrying(read, href, handles.Handles(), place="x")
        assert get_gdal_config("AWS_S3_ENDPOINT") != eodata.endpoint.removeprefix("http://")
    assert seen == [eodata.key]
    assert get_gdal_config("AWS_ACCESS_KEY_ID") == before != eodata.key


# -- the Copernicus Data Space -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tile(eodata: S3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Band -> pixels of the corner of the recorded tile, as JPEG 2000 under the very names in the bucket."""
    folder = tmp_path_factory.mktemp("tile")
    classes = np.full((1, SIZE // 2, SIZE // 2), 4, np.uint8)
    classes[:, 40:70, 40:60] = 9
    bands = {"B04_10m": numbers(1), "B08_10m": numbers(2, 3000), "SCL_20m": classes}
    for name, pixels in bands.items():
        path = write_scene(
            folder / f"{name}.jp2",
            pixels,
            driver="JP2OpenJPEG",
            transform=CORNER if name != "SCL_20m" else CORNER * Affine.scale(2),
            QUALITY="100",
            REVERSIBLE="YES",
        )
        with rasterio.open(path) as written:
            np.testing.assert_array_equal(written.read(), pixels)
        upload(eodata, path, CDSE["assets"][name]["href"])
    return bands


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A STAC API that has the recorded Item."""
    program = Path(sys.executable).with_name("rustac")
    if not program.exists():
        pytest.skip("rustac is not installed")
    folder = tmp_path_factory.mktemp("api")
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [CDSE]}))
    port = free_port()
    serve = [str(program), "serve", "-a", f"127.0.0.1:{port}", "--create-collections"]
    with running([*serve, str(folder / "items.json")], f"http://127.0.0.1:{port}", folder / "log") as url:
        yield url


@pytest.mark.usefixtures("both")
def test_from_a_search_to_reflectance(api: str, tile: dict[str, np.ndarray]) -> None:
    found = search(
        replace(endpoint("cdse"), url=api), collections="sentinel-2-l2a", region=REGION, datetime="2025-03-30"
    )
    assert [item.id for item in found.items] == [CDSE["id"]]
    grid = Grid(GeoBox((SIZE, SIZE), CORNER, "EPSG:32633"))
    block = CubeSource(found.items, grid, bands=["red", "nir"]).read(grid.window)
    cloud = np.kron(tile["SCL_20m"][0] == 9, np.ones((2, 2), bool))
    for got, name in zip(block.data["image"][0], ("B04_10m", "B08_10m"), strict=True):
        expected = np.where(cloud, np.nan, tile[name][0] * 1e-4 - 0.1)
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.usefixtures("both")
def test_a_run_leaves_no_key_anywhere(
    api: str, tile: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(
        tmp_path / "r.yaml",
        catalog=api,
        collections="sentinel-2-l2a",
        region=REGION,
        dates="2025-03-30",
        grid={"resolution": 10},
        kernel={"name": "index", "options": {"name": "NDVI"}},
    )
    out = tmp_path / "out"
    with caplog.at_level(logging.DEBUG):
        done = command("run", recipe, "--out", out)
    assert done.status in (0, None), done
    with rasterio.open(out / "ndvi.tif") as result:
        got, place = result.read(1), ~CORNER * result.transform
    row, col = round(place.f), round(place.c)
    window = np.s_[row : row + got.shape[0], col : col + got.shape[1]]
    red, nir = (tile[name][0].astype("f8") * 1e-4 - 0.1 for name in ("B04_10m", "B08_10m"))
    expected = ((nir - red) / (nir + red))[window]
    cloud = np.kron(tile["SCL_20m"][0] == 9, np.ones((2, 2), bool))[window]
    assert 0 < cloud.sum() < cloud.size
    np.testing.assert_array_equal(np.isnan(got), cloud)
    np.testing.assert_allclose(got[~cloud], expected[~cloud], atol=1e-5)
    left = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"items.json", "ledger.jsonl", "report.json", "item.json"} <= set(left)
    assert b"s3://eodata/Sentinel-2" in left["items.json"]
    texts = left | {"output": (done.out + done.err).encode(), "log": caplog.text.encode()}
    for name, text in texts.items():
        for secret in SECRETS:
            assert secret.encode() not in text, name


@pytest.mark.usefixtures("both")
def test_keys_that_are_refused_are_one_error_without_the_keys(
    api: str, tile: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    item = make_item(CDSE, None, remote=True)
    grid = Grid(GeoBox((SIZE, SIZE), CORNER, "EPSG:32633"))
    for key, secret in (("cdse-key-id", "a-wrong-half"), ("nobody-known", "a-wrong-half")):
        monkeypatch.setenv("CDSE_S3_ACCESS_KEY", key)
        monkeypatch.setenv("CDSE_S3_SECRET_KEY", secret)
        item.assets["B04_10m"].href = f"s3://eodata/not-seen-yet/{key}.jp2"  # GDAL remembers what it has read
        with caplog.at_level(logging.DEBUG), pytest.raises(ReadError) as caught:
            CubeSource([item], grid, bands=["red"], mask=None).read(grid.window)
        text = str(caught.value)
        assert text.startswith(f"{CDSE['id']}, band red, s3://eodata/not-seen-yet/")
        assert "the server refuses the keys: set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY" in text
        assert secret not in text + caplog.text
        assert key not in text.replace(f"{key}.jp2", "") + caplog.text.replace(f"{key}.jp2", "")


# -- LandsatLook ---------------------------------------------------------------------------------------------


def test_requests_say_who_pays_and_only_where_they_must(
    http_ranges: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both buckets behind one server that looks at nothing, so that each request can be looked at here."""
    for name, value in {
        "LANDSATLOOK_S3_ENDPOINT": http_ranges.url,
        "LANDSATLOOK_S3_ACCESS_KEY": "landsat-key-id",
        "LANDSATLOOK_S3_SECRET_KEY": "landsat-secret",
        "LANDSATLOOK_S3_SESSION_TOKEN": "landsat-token",
        "CDSE_S3_ENDPOINT": http_ranges.url,
        "CDSE_S3_ACCESS_KEY": "cdse-key-id",
        "CDSE_S3_SECRET_KEY": "cdse-secret",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
        "AWS_SESSION_TOKEN": "another",
    }.items():
        monkeypatch.setenv(name, value)
    item = make_item(LANDSAT, None, remote=True)
    corner = Affine(*LANDSAT["properties"]["proj:transform"][:6])
    grid = Grid(GeoBox((SIZE, SIZE), corner, "EPSG:32615"))
    quality = np.full((1, SIZE, SIZE), 21824, np.uint16)  # clear land
    quality[:, :50, :50] = 22280  # cloud, with high confidence
    red = numbers(3, 8000, 20000)
    for name, pixels in (("red", red), ("qa_pixel", quality)):
        href = LANDSAT["assets"][name]["alternate"]["s3"]["href"]
        file = http_ranges.folder / href.removeprefix("s3://")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_scene(file, pixels, crs="EPSG:32615", transform=corner)
    got = CubeSource([item], grid, bands=["red"]).read(grid.window).data["image"][0, 0]
    expected = np.where(quality[0] == 22280, np.nan, red[0] * 2.75e-5 - 0.2)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert len(http_ranges.log) >= 2
    for request in http_ranges.log:
        assert request.path.startswith("/usgs-landsat/collection02/")
        assert request.headers["x-amz-request-payer"] == "requester"
        assert request.headers["x-amz-security-token"] == "landsat-token"
        assert "Credential=landsat-key-id/" in request.headers["authorization"]
        assert "/us-west-2/s3/aws4_request" in request.headers["authorization"]
    http_ranges.reset()
    (http_ranges.folder / "eodata").mkdir()
    write_scene(http_ranges.folder / "eodata/a.tif", numbers(4))
    RasterSource(["s3://eodata/a.tif"]).read(Window(0, 10, 0, 10))
    assert http_ranges.log
    for request in http_ranges.log:
        assert request.path.startswith("/eodata/a.tif")
        assert "x-amz-request-payer" not in request.headers
        assert "x-amz-security-token" not in request.headers
        assert "Credential=cdse-key-id/" in request.headers["authorization"]
        assert "/default/s3/aws4_request" in request.headers["authorization"]


@pytest.mark.usefixtures("both")
def test_a_read_that_fails_is_tried_again_with_the_settings_of_its_bucket(
    http_ranges: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDSE_S3_ENDPOINT", http_ranges.url)
    monkeypatch.setitem(handles._GDAL, "GDAL_HTTP_MAX_RETRY", "0")
    (http_ranges.folder / "eodata").mkdir()
    pixels = numbers(5)
    write_scene(http_ranges.folder / "eodata/again.tif", pixels)
    http_ranges.fail(503, times=2)
    got = RasterSource(["s3://eodata/again.tif"]).read(Window(0, 64, 0, 64)).data["image"][0]
    np.testing.assert_array_equal(got, pixels[:, :64, :64])
    assert [request.status for request in http_ranges.log][:2] == [503, 503]


def test_the_command_line_in_a_process_of_its_own(
    eodata: S3, pair: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDSE_S3_ENDPOINT", eodata.endpoint)
    monkeypatch.setenv("CDSE_S3_ACCESS_KEY", eodata.key)
    monkeypatch.delenv("CDSE_S3_SECRET_KEY", raising=False)
    href = f"{eodata.url}/pair/scene.tif"
    asked = [sys.executable, "-m", "tilewright", "apply", "refined-lee", href, "--out", str(tmp_path / "out")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "CDSE_S3_SECRET_KEY is not set and CDSE_S3_ACCESS_KEY is" in done.stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("CDSE_S3_SECRET_KEY", eodata.secret)
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert eodata.secret not in done.stdout + done.stderr
