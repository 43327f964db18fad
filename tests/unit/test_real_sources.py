"""The folder of real imagery through cubes and sources: every trap that it holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from scenes import make_item

from tilewright.pipeline.arrays import DataArraySource
from tilewright.pipeline.cube import CubeSource, open_cube
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.rasters import RasterSource, raster_source
from tilewright.pipeline.source import Reason


@pytest.fixture(scope="module")
def sentinel_2(shared_data: Path) -> list[pystac.Item]:
    catalog = pystac.Catalog.from_file(str(shared_data / "01_s2_l2a_stac_120m" / "catalog.json"))
    return list(catalog.get_items(recursive=True))


def _codes(reason: np.ndarray) -> set[int]:
    return {int(code) for code in np.unique(reason)}


def test_sentinel_2_without_georeference_and_with_a_shape_that_lies(sentinel_2: list[pystac.Item]) -> None:
    """JPEG 2000 in .tif, 915 px where the Item says 10980: the Item's ground, the file's pixels."""
    item = next(i for i in sentinel_2 if i.id == "S2A_33TWL_20230815_0_L2A")
    place = Affine(120, 0, 499_980 + 200 * 120, 0, -120, 5_100_000 - 300 * 120)
    grid = Grid(GeoBox((250, 240), place, "EPSG:32633"))
    cube = open_cube([item], grid, bands=["red", "nir"], mask=None).compute()
    with rasterio.open(item.assets["red"].get_absolute_href()) as data:
        assert data.crs is None
        part = data.read(1)[300:550, 200:440]
    expected = np.where(part == 0, np.nan, part * 0.0001)
    np.testing.assert_allclose(cube.values[0, 0], expected, rtol=1e-6)
    assert 0 < np.nanmedian(cube.values) < 1, "the offset is not applied twice"


def test_two_tiles_make_one_mosaic_whatever_the_chunk(sentinel_2: list[pystac.Item]) -> None:
    day = [i for i in sentinel_2 if "20230818" in i.id]
    assert len(day) == 2
    grid = Grid.from_region((15.2, 45.8, 15.5, 46.3), 110, "EPSG:32634")
    options = {"bands": ["red", "nir"], "resampling": "bilinear"}
    source = CubeSource(day, grid, **options)
    whole = source.read(grid.window)
    assert whole.data["image"].shape[0] == 1, "one solar day"
    assert (whole.reason["image"] == 0).mean() > 0.5
    assert not (whole.reason["image"] == Reason.NO_SCENE).any(), "both tiles together cover it"
    for chunks in (100, 333):
        cube = open_cube(day, grid, chunks=chunks, **options).compute()
        np.testing.assert_array_equal(cube.values, whole.data["image"])
        np.testing.assert_array_equal(cube.reason.values, whole.reason["image"][:, 0])
    stac = CubeSource(day, grid, reader="stackstac", **options).read(grid.window)
    np.testing.assert_array_equal(stac.reason["image"], whole.reason["image"])
    np.testing.assert_allclose(stac.data["image"], whole.data["image"], atol=1e-5)


def test_median_of_five_dates_fills_clouds(sentinel_2: list[pystac.Item]) -> None:
    grid = Grid.from_region((15.2, 45.3, 15.5, 45.5), 120)
    dates = open_cube(sentinel_2, grid, bands=["red"]).reason.compute()
    assert dates.sizes["time"] == 5
    one = open_cube(sentinel_2, grid, bands=["red"], composite="median").compute()
    valid = (one.reason.values[0] == 0).mean()
    assert valid >= max((dates.values == 0).mean(axis=(1, 2)))
    assert valid > 0.95


def test_opera_dates_as_plain_rasters(shared_data: Path) -> None:
    folder = shared_data / "04_opera_rtc_s1" / "T009_png" / "T009_019294_IW2_cropped"
    source = raster_source(sorted(folder.glob("*_VH_cropped.tif")))
    layer = source.layers["image"]
    assert len(layer.times) == 10
    whole = source.read(source.grid.window)
    bad = ~np.isfinite(whole.data["image"])
    np.testing.assert_array_equal(whole.reason["image"] == Reason.NODATA, bad)
    window = Window(17, 203, 31, 300)
    np.testing.assert_array_equal(source.read(window).data["image"], whole.data["image"][..., 17:203, 31:300])


def test_opera_bursts_with_other_footprints(shared_data: Path) -> None:
    """Four bursts of one pass on one grid: each NaN outside of its own footprint, together one mosaic."""
    items = []
    for path in sorted((shared_data / "04_opera_rtc_s1" / "T137_la").rglob("*_VV.tif")):
        match = re.match(r"(OPERA_L2_RTC-S1_(T\d+-\d+-IW\d)_(\d{8})T(\d{6})Z_.*)_VV\.tif", path.name)
        if match and match[3].startswith("2022"):
            when = (
                f"{match[3][:4]}-{match[3][4:6]}-{match[3][6:]}T{match[4][:2]}:{match[4][2:4]}:{match[4][4:]}"
            )
            vh = path.with_name(path.name.replace("_VV", "_VH"))
            items.append(
                make_item(match[1], {"VV": path, "VH": vh}, when=when, collection="OPERA_L2_RTC-S1_V1")
            )
    if not items:
        pytest.skip("no bursts of 2022 in the folder")
    with rasterio.open(items[0].assets["VV"].href) as data:
        first = data.read(1)
        from odc.geo.converters import rio_geobox

        grid = Grid(rio_geobox(data))
    groups = open_cube(items, grid, bands=["vv", "vh"])
    day = groups.isel(time=0).compute()
    assert day.attrs["units"] == "gamma0 power"
    assert (day.reason.values == 0).sum() >= (np.isfinite(first) & (first > 0)).sum() * 0.99
    assert np.nanmin(day.values) >= 0, "linear power"


def test_landsat_series_with_fill_16000_and_nodata_undeclared(shared_data: Path) -> None:
    folder = shared_data / "09_landsat" / "L8NY18_mit" / "inst" / "L8NY18"
    scenes = sorted(folder.glob("LC08_L1TP_013032_*"))
    bands = [[next(s.glob(f"*_B{n}.TIF")) for n in (4, 5)] for s in scenes]
    with rasterio.open(bands[0][0]) as data:
        assert data.nodata is None
    items = [
        make_item(
            s.name, {"red": a, "nir": b}, when=f"{s.name[17:21]}-{s.name[21:23]}-{s.name[23:25]}T15:40:00"
        )
        for s, (a, b) in zip(scenes, bands, strict=True)
    ]
    with rasterio.open(bands[0][0]) as data:
        from odc.geo.converters import rio_geobox

        grid = Grid(rio_geobox(data))
    plain = CubeSource(items, grid, bands=["red", "nir"])
    told = CubeSource(items, grid, bands=["red", "nir"], nodata={"red": 16000, "nir": 16000})
    before, after = plain.read(grid.window), told.read(grid.window)
    filled = (before.data["image"] == 16000).any(axis=1, keepdims=True)
    assert filled.any()
    assert (after.reason["image"][filled] != 0).all()
    assert not (after.data["image"] == 16000).any()
    assert "recipe" in str(told.describe())
    one = RasterSource([bands[0]], nodata=16000)
    with rasterio.open(bands[0][0]) as red, rasterio.open(bands[0][1]) as nir:
        expected = (red.read(1) == 16000) | (nir.read(1) == 16000)
    np.testing.assert_array_equal(one.read(one.grid.window).reason["image"][0, 0] == 1, expected)


@pytest.mark.parametrize(
    ("path", "dates"),
    [
        ("02_s1s2_cube_be_apr2023/cdse_sentinel2_l2a.nc", 12),
        ("02_s1s2_cube_be_apr2023/cdse_sentinel1_grd.nc", 10),
        ("02_s1s2_cube_be_apr2023/test_optical_cube.nc", 19),
        ("03_s1s2_cube_worldcereal_12mo/worldcereal_preprocessed_inputs.nc", 12),
    ],
)
def test_netcdf_cubes(shared_data: Path, path: str, dates: int) -> None:
    """openEO's cubes: the dimension is called t, and the CRS is a variable beside the bands."""
    file = shared_data / path
    if file.read_bytes()[:3] != b"CDF":
        pytest.importorskip("h5netcdf")
        pytest.importorskip("h5py")
    with xr.open_dataset(file, decode_coords=None) as dataset:
        source = DataArraySource(dataset)
        layer = source.layers["image"]
        assert source.grid.crs == "EPSG:32631"
        assert len(layer.times) == dates
        assert list(layer.times) == sorted(layer.times)  # type: ignore[type-var]
        whole = source.read(source.grid.window)
        part = source.read(Window(5, 31, 7, 40))
        np.testing.assert_array_equal(part.data["image"], whole.data["image"][..., 5:31, 7:40])
        first = next(v for v in dataset.data_vars if dataset[v].ndim == 3)
        np.testing.assert_array_equal(whole.data["image"][:, 0], dataset[first].values)
        assert _codes(whole.reason["image"]) <= {0, 1}


def test_drone_mosaic_by_windows(shared_data: Path) -> None:
    files = sorted((shared_data / "08_uhr_caliterra_cc0").rglob("*.tif"))
    if not files:
        pytest.skip("no mosaic in the folder")
    source = RasterSource([files[0]])
    layer = source.layers["image"]
    assert layer.dtype == "uint8"
    assert len(layer.bands) == 3
    rows, cols = source.grid.shape
    block = source.read(Window(rows // 2, rows // 2 + 700, cols // 2, cols // 2 + 600))
    assert (block.reason["image"] == 0).mean() > 0.5
    corner = Window(0, 64, 0, 64)
    assert not source.read(corner).reason["image"].any(), (
        "nothing declares black as nodata, so nothing is masked"
    )
    told = RasterSource([files[0]], nodata=0)
    assert (told.read(corner).reason["image"] == Reason.NODATA).all()


def test_a_stack_written_under_one_title_names_no_band(shared_data: Path) -> None:
    """Twelve bands of one description each: they are counted, and the caller names them."""
    patches = sorted((shared_data / "05_s2_l2a_12band_10m").glob("*.tif"))
    names = [
        "coastal",
        "blue",
        "green",
        "red",
        "rededge1",
        "rededge2",
        "rededge3",
        "nir",
        "nir08",
        "nir09",
        "swir16",
        "swir22",
    ]
    for patch in patches:
        plain = RasterSource([patch])
        assert plain.layers["image"].bands == tuple(f"band_{i}" for i in range(1, 13))
        named = RasterSource([patch], bands=names).select(["red", "nir"])
        picked = RasterSource([patch], bands=["4", "8"])
        window = named.grid.window
        np.testing.assert_array_equal(named.read(window).data["image"], picked.read(window).data["image"])
        assert named.grid.crs.startswith("EPSG:32")
