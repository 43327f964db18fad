"""The cube: lazy, harmonised, mosaicked and masked, and the same pixels as the source that a run reads."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scenes import make_item, sentinel_2, write_scene

from tilewright.errors import InputError, ReadError
from tilewright.pipeline.arrays import DataArraySource
from tilewright.pipeline.composite import Composite
from tilewright.pipeline.cube import CubeSource, open_cube
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.source import Reason

if TYPE_CHECKING:
    import pystac

A = Affine(10, 0, 500_000, 0, -10, 5_000_000)
GRID = Grid(GeoBox((100, 130), A, "EPSG:32633"))
SHAPE = (90, 80)


def _scene(folder: Path, name: str, when: str, left: int, level: int, cloud: float = 10.0) -> pystac.Item:
    """A Sentinel-2 scene of 90 x 80 px that starts ``left`` pixels from the grid's left edge."""
    rng = np.random.default_rng(level)
    at = A @ Affine.translation(left, 0)
    red = rng.integers(level, level + 100, (1, *SHAPE)).astype("uint16")
    red[0, :5, :7] = 0
    nir = red + 1000
    nir[red == 0] = 0
    scl = np.full((1, *SHAPE), 4, "uint8")
    scl[0, 20:40, 50:] = 9
    scl[0, 60:62] = 6
    return sentinel_2(
        name,
        write_scene(folder / f"{name}_B04.tif", red, transform=at, nodata=0),
        write_scene(folder / f"{name}_B08.tif", nir, transform=at, nodata=0),
        write_scene(folder / f"{name}_SCL.tif", scl, transform=at),
        when,
        cloud,
    )


@pytest.fixture
def items(tmp_path: Path) -> list[pystac.Item]:
    """Two overlapping scenes of one pass, and one of another day."""
    return [
        _scene(tmp_path, "b_left", "2024-06-01T10:00:05", 0, 2000),
        _scene(tmp_path, "a_right", "2024-06-01T10:00:20", 40, 4000),
        _scene(tmp_path, "later", "2024-06-06T10:00:05", 0, 6000, cloud=1.0),
    ]


def _raw(item: pystac.Item, key: str) -> np.ndarray:
    with rasterio.open(item.assets[key].href) as data:
        return data.read(1)


def test_building_opens_nothing_and_few_tasks(
    items: list[pystac.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    opens: list[object] = []
    real = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **k: (opens.append(a), real(*a, **k))[1])
    cube = open_cube(items, GRID, bands=["red", "nir"], chunks=50)
    assert not opens
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.shape == (2, 2, 100, 130)
    blocks = 2 * 2 * 3
    assert len(cube.data.__dask_graph__()) <= 2 * blocks + 1
    cube.isel(time=0, y=slice(0, 10), x=slice(0, 10)).compute()
    assert len(opens) == 6, "red, nir and scl of the two scenes near by, nothing of the other date"


def test_first_scene_wins_and_the_next_fills(items: list[pystac.Item]) -> None:
    cube = open_cube(items[::-1], GRID, bands=["B04", "B08"], chunks=64).compute()
    assert list(cube.band.values) == ["red", "nir"]
    expected = np.full(GRID.shape, np.nan)
    for item, left in ((items[1], 40), (items[0], 0)):
        red, scl = _raw(item, "red"), _raw(item, "scl")
        good = (red > 0) & (scl != 9)
        expected[:90, left : left + 80][good] = red[good] * 0.0001
    np.testing.assert_allclose(cube.sel(band="red").values[0], expected, rtol=1e-6)
    reason = cube.reason.values[0]
    np.testing.assert_array_equal(reason == 0, np.isfinite(expected))
    assert reason[0, 0] == Reason.NODATA
    assert reason[95, 5] == Reason.NO_SCENE
    assert reason[30, 125] == Reason.NO_SCENE
    assert reason[30, 100] == Reason.CLOUD
    assert reason[30, 60] == Reason.VALID, "cloud of the first scene is filled from the second"


@pytest.mark.parametrize("reader", ["odc", "stackstac"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32634"])
def test_no_chunk_changes_a_bit_and_a_run_reads_the_same(
    items: list[pystac.Item], reader: str, crs: str
) -> None:
    grid = GRID if crs == "EPSG:32633" else Grid.from_region((15.0, 45.14, 15.017, 45.153), 9.1, crs)
    options = {"bands": ["red", "nir"], "reader": reader, "resampling": "cubic"}
    source = CubeSource(items, grid, **options)
    block = source.read(grid.window)
    assert (block.reason["image"] == 0).sum() > 5_000
    for chunks in (17, 64, 4096):
        cube = open_cube(items, grid, chunks=chunks, **options).compute()
        np.testing.assert_array_equal(cube.values, block.data["image"])
        np.testing.assert_array_equal(cube.reason.values, block.reason["image"][:, 0])
    again = DataArraySource(open_cube(items, grid, chunks=40, **options))
    window = Window(3, 61, 5, 77)
    part, own = again.read(window), source.read(window)
    np.testing.assert_array_equal(part.data["image"], own.data["image"])
    np.testing.assert_array_equal(part.reason["image"], own.reason["image"])
    assert again.grid.geobox == grid.geobox
    assert again.layers["image"].times == source.layers["image"].times


def test_rioxarray_just_works(items: list[pystac.Item], tmp_path: Path) -> None:
    cube = open_cube(items, GRID, bands=["red"])
    assert cube.rio.crs.to_epsg() == 32633
    assert cube.rio.transform() == A
    assert np.isnan(cube.rio.nodata)
    assert cube.attrs["units"] == "reflectance"
    assert float(cube.x[0]) == 500_005
    plane = cube.isel(time=0, band=0)
    plane.rio.to_raster(tmp_path / "red.tif")
    with rasterio.open(tmp_path / "red.tif") as data:
        assert data.crs.to_epsg() == 32633
        assert data.transform == A
        np.testing.assert_array_equal(data.read(1), plane.values)
    cube.drop_vars("reason").to_netcdf(tmp_path / "cube.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "cube.nc", engine="scipy", decode_coords="all") as back:
        assert back.rio.crs.to_epsg() == 32633


@pytest.mark.parametrize("groupby", ["solar_day", "time", "id", None])
def test_grouping(items: list[pystac.Item], groupby: str | None) -> None:
    cube = open_cube(items, GRID, bands=["red"], groupby=groupby)  # type: ignore[arg-type]
    assert cube.sizes["time"] == (2 if groupby == "solar_day" else 3)


def test_masks(items: list[pystac.Item]) -> None:
    def count(mask: object) -> int:
        source = CubeSource(items[:1], GRID, bands=["red"], mask=mask)  # type: ignore[arg-type]
        return int((source.read(GRID.window).reason["image"] == Reason.CLOUD).sum())

    assert count("default") == 20 * 30
    assert count(None) == count("none") == 0
    assert count(["water"]) == 2 * 80
    with pytest.raises(InputError, match="unknown mask"):
        count("clouds")
    unmasked = items[0].clone()
    del unmasked.assets["scl"]
    with pytest.raises(InputError, match="set mask to none"):
        CubeSource([unmasked], GRID, bands=["red"])


def test_categorical_bands_are_never_scaled_or_interpolated(items: list[pystac.Item]) -> None:
    grid = Grid.from_region((15.0, 45.14, 15.017, 45.153), 9.1, "EPSG:32634")
    scl = open_cube(items[:1], grid, bands=["scl"], mask=None, resampling="bilinear").compute()
    assert set(np.unique(scl.values[np.isfinite(scl.values)])) == {4.0, 6.0, 9.0}
    with pytest.raises(InputError, match="means nothing"):
        open_cube(items, grid, bands=["scl"], composite="median")


@pytest.mark.parametrize("method", ["median", "mean", "first_valid", "least_cloudy", "percentile:30"])
def test_composites_equal_numpy(items: list[pystac.Item], method: str) -> None:
    dates = open_cube(items, GRID, bands=["red", "nir"]).compute()
    one = open_cube(items, GRID, bands=["red", "nir"], composite=method, chunks=33).compute()
    assert one.sizes["time"] == 1
    stack = dates.values.astype("float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN slices
        expected = {
            "median": np.nanmedian(stack, axis=0),
            "mean": np.nanmean(stack, axis=0),
            "percentile:30": np.nanpercentile(stack, 30, axis=0),
            "first_valid": np.where(np.isnan(stack[0]), stack[1], stack[0]),
            "least_cloudy": np.where(np.isnan(stack[1]), stack[0], stack[1]),
        }[method]
    np.testing.assert_allclose(one.values[0], expected, rtol=1e-6)
    any_valid = (dates.reason.values == 0).any(axis=0)
    np.testing.assert_array_equal(
        one.reason.values[0], np.where(any_valid, 0, dates.reason.values.max(axis=0))
    )


def test_a_window_of_one_pixel_has_the_same_bits(items: list[pystac.Item]) -> None:
    """numpy sums pairwise along a long last axis; the composites must not."""
    red, nir, scl = (Path(items[0].assets[key].href) for key in ("red", "nir", "scl"))
    many = [sentinel_2(f"n{i}", red, nir, scl, f"2024-07-{i + 1:02d}T10:00:00") for i in range(24)]
    for method in ("mean", "median"):
        source = CubeSource(many, GRID, bands=["red"], composite=method)
        whole = source.read(Window(0, 20, 0, 20)).data["image"]
        for row, col in ((9, 9), (19, 0)):
            pixel = source.read(Window(row, row + 1, col, col + 1)).data["image"]
            assert pixel.tobytes() == whole[..., row : row + 1, col : col + 1].tobytes()


def test_periods(items: list[pystac.Item]) -> None:
    source = CubeSource([items[:2], items[2:]], GRID, bands=["red"], composite="median")
    assert len(source.layers["image"].times) == 2
    with pytest.raises(InputError, match="period 2 of 2 has no Items"):
        CubeSource([items, []], GRID, bands=["red"], composite="median")
    with pytest.raises(InputError, match="2 dates and no composite"):
        CubeSource([items, items], GRID, bands=["red"])


def test_strips_of_a_large_composite_do_not_show(
    items: list[pystac.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CubeSource(items, GRID, bands=["red", "nir"], composite="median")
    whole = source.read(GRID.window)
    monkeypatch.setattr("tilewright.pipeline.cube_source._STACK_BYTES", 20_000)
    assert len(list(source._strips(GRID.window, 2))) > 5
    np.testing.assert_array_equal(source.read(GRID.window).data["image"], whole.data["image"])


def test_a_failed_read_raises_or_becomes_a_reason(items: list[pystac.Item]) -> None:
    items[0].assets["nir"].href = items[0].assets["nir"].href.replace("B08", "gone")
    with pytest.raises(ReadError, match=r"b_left, band nir.*gone"):
        CubeSource(items[:1], GRID, bands=["red", "nir"]).read(GRID.window)
    source = CubeSource(items, GRID, bands=["red", "nir"], on_error="reason")
    block = source.read(GRID.window)
    reason = block.reason["image"][0, 0]
    assert reason[50, 20] == Reason.READ_ERROR
    assert reason[50, 60] == Reason.VALID, "the other scene covers it"
    assert [f.source for f in source.failures] == ["b_left"]
    assert "gone" in source.failures[0].message


def test_what_lies_around_the_region_is_read(items: list[pystac.Item]) -> None:
    """The halo of pixels at the region's edge is real ground; what is outside is left out of the result."""
    import shapely

    region = shapely.box(500_000, 4_999_500, 500_500, 5_000_000)
    source = CubeSource(items, Grid(GRID.geobox, region), bands=["red"])
    block = source.read(Window(0, 60, 0, 60))
    everything = CubeSource(items, GRID, bands=["red"]).read(Window(0, 60, 0, 60))
    assert (block.reason["image"] == everything.reason["image"]).all()
    assert (block.reason["image"] == Reason.VALID).any(axis=(0, 1))[50:].any()
    np.testing.assert_array_equal(block.data["image"], everything.data["image"])


def test_source_travels_and_describes_itself(items: list[pystac.Item]) -> None:
    source = CubeSource(items, GRID, bands=["red", "nir"], resampling="bilinear")
    source.read(Window(0, 5, 0, 5))
    again = pickle.loads(pickle.dumps(source))
    window = Window(7, 70, 9, 90)
    np.testing.assert_array_equal(again.read(window).data["image"], source.read(window).data["image"])
    told = json.loads(json.dumps(source.describe()))
    assert told == json.loads(json.dumps(again.describe()))
    first = told["periods"][0][0]["items"][0]["bands"][0]
    assert first["calibration"]["offset"] == 0
    assert first["calibration"]["scale"] == 0.0001
    assert [item["id"] for item in told["periods"][0][0]["items"]] == ["b_left", "a_right"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reader": "gdal"}, "unknown reader 'gdal'"),
        ({"resampling": "bilinaer"}, "did you mean 'bilinear'"),
        ({"groupby": "solarday"}, "did you mean 'solar_day'"),
        ({"composite": "medain"}, "did you mean 'median'"),
        ({"composite": "percentile"}, "needs q"),
        ({"composite": "percentile:120"}, "q is 120"),
        ({"bands": ["rde"]}, "did you mean 'red'"),
        ({"dtype": "uint8"}, "unknown dtype"),
        ({"on_error": "ignore"}, "unknown on_error"),
    ],
)
def test_bad_options(items: list[pystac.Item], options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_cube(items, GRID, **options)  # type: ignore[arg-type]


def test_nothing_to_read(items: list[pystac.Item]) -> None:
    with pytest.raises(InputError, match="no Items are given"):
        open_cube([], GRID)
    far = Grid.from_region((100.0, 10.0, 100.1, 10.1), 100)
    with pytest.raises(InputError, match="none of the 3 Items reaches the grid"):
        open_cube(items, far, bands=["red"])


def test_radar_stays_in_power(tmp_path: Path) -> None:
    power = np.array([[[0.01, 0.1], [1.0, np.nan]]], "float32")
    paths = [write_scene(tmp_path / f"{i}.tif", power * f) for i, f in enumerate((1, 3))]
    radar = [
        make_item(
            f"OPERA_L2_RTC-S1_{i}",
            {"VV": p},
            when=f"2024-06-0{i + 1}T05:00:00",
            collection="OPERA_L2_RTC-S1_V1",
        )
        for i, p in enumerate(paths)
    ]
    grid = Grid(GeoBox((2, 2), A, "EPSG:32633"))
    cube = open_cube(radar, grid, bands=["vv"], composite=Composite("mean")).compute()
    np.testing.assert_allclose(cube.values[0, 0], power[0] * 2, rtol=1e-6)
    assert cube.attrs["units"] == "gamma0 power"
    assert cube.reason.values[0, 1, 1] == Reason.NODATA


def test_a_file_without_georeference_takes_the_items(tmp_path: Path) -> None:
    """JPEG 2000 without its boxes: the Item's ground is spread over the pixels that the file has."""
    values = np.arange(1, 901, dtype="uint16").reshape(1, 30, 30)
    path = tmp_path / "bare.tif"
    with rasterio.open(path, "w", driver="GTiff", width=30, height=30, count=1, dtype="uint16") as out:
        out.write(values)
    item = make_item(
        "bare", {"value": path}, bbox=[14.9, 45.0, 15.1, 45.2],
        value={"proj:epsg": 32633, "proj:shape": [60, 60], "proj:transform": [5, 0, 500_000, 0, -5, 5_000_000]},
    )  # fmt: skip
    for reader in ("odc", "stackstac"):
        cube = open_cube([item], Grid(GeoBox((30, 30), A, "EPSG:32633")), reader=reader).compute()
        np.testing.assert_array_equal(cube.values[0, 0], values[0])
        finer = open_cube([item], Grid(GeoBox((60, 60), A @ Affine.scale(0.5), "EPSG:32633")), reader=reader)
        np.testing.assert_array_equal(finer.values[0, 0], values[0].repeat(2, 0).repeat(2, 1))


def test_many_threads_may_read_a_fresh_source_at_once(items: list[pystac.Item]) -> None:
    """The outlines of Items and rasters are shared by threads; GEOS crashes where two ask a fresh one first."""
    from concurrent.futures import ThreadPoolExecutor

    windows = [Window(r, r + 10, c, c + 10) for r in range(0, 60, 10) for c in range(0, 60, 10)]
    expected = CubeSource(items, GRID, bands=["red"]).read(Window(0, 60, 0, 60)).reason["image"][0, 0]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            source = CubeSource(items, GRID, bands=["red"])
            blocks = pool.map(source.read, windows)
            for window, block in zip(windows, blocks, strict=True):
                at = window.slices(Window(0, 60, 0, 60))
                np.testing.assert_array_equal(block.reason["image"][0, 0], expected[at])
