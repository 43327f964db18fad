"""The Zarr and the COG in an S3-compatible store, and COGs over HTTP ranges; all real servers on loopback."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from tilewright.errors import StoreError
from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.cog import write_cog
from tilewright.pipeline.digest import result_digest
from tilewright.pipeline.grid import Grid, Shard, Window
from tilewright.pipeline.objects import upload, zarr_store
from tilewright.pipeline.store import ResultStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import S3, RangeServer

pytestmark = pytest.mark.integration


def test_s3_fixture_keeps_an_object(s3: S3) -> None:
    import obstore
    from obstore.store import from_url

    store = from_url(f"{s3.url}/fixture", **s3.options)
    obstore.put(store, "a/b.bin", b"0123456789")
    assert bytes(obstore.get_range(store, "a/b.bin", start=2, length=3)) == b"234"


def _get(url: str, span: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Range": span} if span else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_range_server_answers_ranges_and_fails_as_told(http_ranges: RangeServer) -> None:
    (http_ranges.folder / "a.bin").write_bytes(bytes(range(100)))
    url = f"{http_ranges.url}/a.bin"
    assert _get(url) == (200, bytes(range(100)))
    assert _get(url, "bytes=10-19") == (206, bytes(range(10, 20)))
    assert _get(url, "bytes=-5") == (206, bytes(range(95, 100)))
    assert _get(url, "bytes=200-") == (416, b"")
    assert _get(f"{http_ranges.url}/../conftest.py")[0] == 404
    http_ranges.fail(503, nth=1, times=2, match=r"\.bin")
    assert [_get(url)[0] for _ in range(4)] == [200, 503, 503, 200]
    assert [r.status for r in http_ranges.log][-4:] == [200, 503, 503, 200]
    http_ranges.fail(0)
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        _get(url)


OUTPUTS = {"change": OutputSpec(kind="score"), "label": OutputSpec(kind="class", classes=("no", "yes"))}


def a_grid(shape: tuple[int, int] = (700, 900)) -> Grid:
    return Grid(GeoBox(shape, Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633"))


def layers(shape: tuple[int, int] = (700, 900)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "change": rng.random(shape, dtype=np.float32),
        "label": rng.integers(0, 2, shape).astype(np.uint8),
        "reason": np.zeros(shape, np.uint8),
    }


def pieces(store: ResultStore) -> Iterator[tuple[Shard, dict[str, np.ndarray], np.ndarray]]:
    """Yield what `ResultStore.write` takes for each shard."""
    made = layers(store.grid.shape)
    for shard in store.shards():
        rows, cols = shard.window.slices(store.grid.window)
        yield shard, {n: made[n][rows, cols] for n in OUTPUTS}, made["reason"][rows, cols]


def write_shards(store: ResultStore) -> ResultStore:
    for piece in pieces(store):
        store.write(*piece)
    return store


def test_zarr_and_cog_in_an_object_store(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio
    import rioxarray  # noqa: F401
    import xarray as xr

    url = f"{s3.url}/run-1/result.zarr"
    store = ResultStore.create(url, a_grid(), OUTPUTS, 320, options=s3.options)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for written in [pool.submit(store.write, *piece) for piece in pieces(store)]:  # it travels pickled
            written.result()
    assert not ResultStore.open(url, options=s3.options).complete
    store.finish()
    store.publish()
    again = ResultStore.open(url, options=s3.options)
    assert again.complete
    local = write_shards(ResultStore.create(tmp_path / "result.zarr", a_grid(), OUTPUTS, 320))
    local.finish()
    assert result_digest(again) == result_digest(local)

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    ds = xr.open_zarr(zarr_store(url, read_only=True), group="1")  # keys and endpoint from the environment
    assert ds.change.rio.crs == "EPSG:32633"
    np.testing.assert_array_equal(ds.change.values, local.read("change", Window(0, 350, 0, 450), 1))

    remote = write_cog(again, "change", f"{s3.url}/run-1/change.tif")
    beside = write_cog(local, "change", tmp_path / "change.tif")
    with rasterio.open(f"/vsis3/{s3.bucket}/run-1/change.tif") as dataset:
        assert dataset.overviews(1) == [2]
        np.testing.assert_array_equal(dataset.read(1), layers()["change"])
    assert remote == f"{s3.url}/run-1/change.tif"
    import obstore
    from obstore.store import from_url

    found = obstore.get(from_url(f"{s3.url}/run-1", **s3.options), "change.tif").bytes()
    assert bytes(found) == Path(beside).read_bytes()


def test_a_large_file_goes_up_in_parts(s3: S3, tmp_path: Path) -> None:
    import obstore
    from obstore.store import from_url

    file = tmp_path / "large.bin"
    file.write_bytes(np.random.default_rng(0).bytes(23 * 2**20 + 7))
    upload(file, f"{s3.url}/parts/large.bin", options=s3.options)
    found = obstore.get(from_url(f"{s3.url}/parts", **s3.options), "large.bin").bytes()
    assert bytes(found) == file.read_bytes()


def test_a_refused_write_says_where(s3: S3, tmp_path: Path) -> None:
    wrong = {**s3.options, "secret_access_key": "another", "retry_config": {"max_retries": 0}}
    with pytest.raises(StoreError, match="creating the result failed"):
        ResultStore.create(f"{s3.url}/denied/result.zarr", a_grid(), OUTPUTS, 320, options=wrong)
    file = tmp_path / "a.tif"
    file.write_bytes(b"a")
    with pytest.raises(StoreError, match=r"the upload of a\.tif failed") as caught:
        upload(file, f"{s3.url}/denied/a.tif", options=wrong)
    assert caught.value.place == f"{s3.url}/denied/a.tif"


def test_a_cog_is_read_over_http_by_ranges(http_ranges: RangeServer) -> None:
    import rasterio

    store = write_shards(
        ResultStore.create(http_ranges.folder / "r.zarr", a_grid((1500, 2000)), OUTPUTS, 640)
    )
    store.finish()
    path = Path(write_cog(store, "change", http_ranges.folder / "change.tif"))
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", CPL_VSIL_CURL_CACHE_SIZE=0),
        rasterio.open(f"/vsicurl/{http_ranges.url}/change.tif", overview_level=1) as dataset,
    ):
        np.testing.assert_array_equal(dataset.read(1), store.read("change", Window(0, 375, 0, 500), 2))
    spans = [r.span for r in http_ranges.log if r.method == "GET"]
    assert all(spans)
    ends = [tuple(int(n) for n in span.removeprefix("bytes=").split("-")) for span in spans if span]
    fetched = sum(end - start + 1 for start, end in ends)
    assert (
        fetched < path.stat().st_size / 3
    )  # the small overview lies at the front: no full resolution is touched
