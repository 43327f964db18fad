"""User-made DataArrays as a source: grids however a library writes them, nodata, reason, laziness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from rasterio.transform import from_origin

from tilewright.errors import InputError
from tilewright.pipeline.arrays import DataArraySource
from tilewright.pipeline.grid import Window
from tilewright.pipeline.rasters import raster_source
from tilewright.pipeline.source import Reason

A = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def cube(times: int | None = 3, bands: int | None = 2, shape: tuple[int, int] = (40, 50)) -> xr.DataArray:
    sizes = [n for n in (times, bands) if n is not None]
    values = np.random.default_rng(1).normal(size=(*sizes, *shape)).astype("float32")
    dims = [d for d, n in (("time", times), ("band", bands)) if n is not None]
    coords: dict[str, object] = {
        "y": 5_000_000 - 10 * (np.arange(shape[0]) + 0.5),
        "x": 500_000 + 10 * (np.arange(shape[1]) + 0.5),
    }
    if times is not None:
        coords["time"] = np.array(["2024-03-01", "2024-01-01", "2024-02-01"][:times], "datetime64[ns]")
    if bands is not None:
        coords["band"] = ["B04", "B08"][:bands]
    return xr.DataArray(values, dims=[*dims, "y", "x"], coords=coords).rio.write_crs("EPSG:32633")


def test_dates_are_sorted_and_bands_named() -> None:
    array = cube()
    source = DataArraySource(array)
    layer = source.layers["image"]
    assert layer.bands == ("red", "nir")
    assert [str(t)[:10] for t in layer.times] == ["2024-01-01", "2024-02-01", "2024-03-01"]
    assert source.grid.transform == tuple(A)[:6]
    block = source.read(Window(3, 9, 4, 44))
    np.testing.assert_array_equal(block.data["image"], array.values[[1, 2, 0], :, 3:9, 4:44])


@pytest.mark.parametrize(("times", "bands"), [(None, None), (None, 2), (3, None), (3, 2)])
@pytest.mark.parametrize("lazy", [False, True])
def test_any_dimensions_in_any_order(times: int | None, bands: int | None, lazy: bool) -> None:
    array = cube(times, bands)
    reversed_dims = array.transpose(*array.dims[::-1])
    expected = DataArraySource(array).read(Window(0, 40, 0, 50)).data["image"]
    given = reversed_dims.chunk({"y": 7, "x": 9}) if lazy else reversed_dims
    source = DataArraySource(given)
    assert expected.shape == (times or 1, bands or 1, 40, 50)
    np.testing.assert_array_equal(source.read(Window(5, 30, 8, 40)).data["image"], expected[:, :, 5:30, 8:40])


def test_nodata_nan_and_reason() -> None:
    array = cube(1, 2)
    array[0, 0, 2, 3] = np.nan
    array[0, 1, 4, 5] = -9999
    array.attrs["_FillValue"] = -9999.0
    codes = np.zeros((1, 40, 50), "uint8")
    codes[0, 6, 7], codes[0, 2, 3] = Reason.CLOUD, Reason.OUTSIDE
    array = array.assign_coords(reason=(("time", "y", "x"), codes))
    reason = DataArraySource(array).read(Window(0, 40, 0, 50)).reason["image"][0, 0]
    found = {(int(r), int(c)): int(reason[r, c]) for r, c in zip(*np.nonzero(reason), strict=True)}
    assert found == {(2, 3): Reason.OUTSIDE, (4, 5): Reason.NODATA, (6, 7): Reason.CLOUD}


def test_rows_from_the_south_are_turned() -> None:
    array = cube(None, 2)
    source = DataArraySource(array.isel(y=slice(None, None, -1)))
    assert source.grid.transform == tuple(A)[:6]
    window = Window(3, 21, 5, 9)
    np.testing.assert_array_equal(source.read(window).data["image"][0], array.values[:, 3:21, 5:9])


def test_corner_coordinates_of_stackstac_and_parts_of_it() -> None:
    centres = cube(None, None)
    attrs = {"transform": A, "crs": "epsg:32633", "resolution": 10.0}
    corners = xr.DataArray(
        centres.values,
        dims=("y", "x"),
        coords={"y": centres.y.values + 5, "x": centres.x.values - 5},
        attrs=attrs,
    )
    assert DataArraySource(corners).grid.transform == tuple(A)[:6]
    part = corners.isel(y=slice(4, 20), x=slice(7, 30))
    assert DataArraySource(part).grid.transform == (10, 0, 500_070, 0, -10, 4_999_960)
    centred = corners.assign_coords(y=centres.y.values, x=centres.x.values)
    assert DataArraySource(centred).grid.transform == tuple(A)[:6]


def test_rioxarray_and_its_crops(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 255, (2, 30, 33)).astype("uint8")
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=33, height=30, count=2, dtype="uint8", crs="EPSG:32633",
        transform=from_origin(500_000.3, 5_000_000.7, 10 / 3, 10 / 3), nodata=9,
    ) as out:  # fmt: skip
        out.write(values)
    opened = rioxarray.open_rasterio(path)
    source = DataArraySource(opened)
    assert source.layers["image"].dtype == "uint8"
    assert source.grid.transform == pytest.approx((10 / 3, 0, 500_000.3, 0, -10 / 3, 5_000_000.7), abs=1e-9)
    reason = source.read(source.grid.window).reason["image"][0, 0]
    np.testing.assert_array_equal(reason == 1, (values == 9).any(axis=0))
    crop = DataArraySource(opened.isel(x=slice(5, 20)))
    assert crop.grid.transform[2] == pytest.approx(500_000.3 + 5 * 10 / 3, abs=1e-9)


def test_two_inputs_must_share_the_grid() -> None:
    a, b = cube(None, 2), cube(None, None)
    assert set(DataArraySource({"image": a, "dem": b}).layers) == {"image", "dem"}
    with pytest.raises(InputError, match=r"0\.25 px elsewhere"):
        DataArraySource({"image": a, "dem": b.assign_coords(x=b.x + 2.5)})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a: a.drop_vars("spatial_ref"), "no CRS"),
        (lambda a: a.assign_coords(x=a.x**2), "not evenly spaced"),
        (lambda a: a.rename(band="orbit"), "dimension 'orbit'"),
        (lambda a: a.rename(x="column"), "no y and x"),
        (lambda a: a.astype("uint8").assign_attrs(_FillValue=-9999.5), "uint8 cannot hold"),
        (lambda a: a.isel(x=slice(0, 1)), "one pixel along x"),
    ],
)
def test_refusals(change: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        DataArraySource(change(cube()))  # type: ignore[operator]


def test_dataset_variables_are_bands() -> None:
    array = cube(3, 2)
    dataset = array.to_dataset("band")
    source = DataArraySource(dataset)
    assert source.layers["image"].bands == ("red", "nir")
    np.testing.assert_array_equal(
        source.read(Window(0, 4, 0, 4)).data["image"], array.values[[1, 2, 0], :, :4, :4]
    )


def test_zarr_stores_as_dates(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 255, (2, 40, 50)).astype("uint8")
    for i in range(2):
        dataset = cube(None, None).to_dataset(name="vv").drop_vars("vv")
        dataset["vv"] = (("y", "x"), values[i], {"_FillValue": 255, "grid_mapping": "spatial_ref"})
        dataset["vh"] = (("y", "x"), values[1 - i], {"grid_mapping": "spatial_ref"})
        dataset.to_zarr(tmp_path / f"{i}.zarr", zarr_format=3, consolidated=False)
    source = raster_source([tmp_path / "0.zarr", tmp_path / "1.zarr"], bands=["vh", "vv"])
    assert source.layers["image"].bands == ("vh", "vv")
    assert source.layers["image"].dtype == "uint8"
    block = source.read(Window(1, 11, 2, 22))
    np.testing.assert_array_equal(block.data["image"][0], values[::-1, 1:11, 2:22])
    np.testing.assert_array_equal(block.reason["image"][1, 0] == 1, values[1, 1:11, 2:22] == 255)
    with pytest.raises(InputError, match="mixed"):
        raster_source([tmp_path / "0.zarr", "b.tif"])
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match="not a readable Zarr store"):
        raster_source([tmp_path / "empty.zarr"])


def test_building_computes_nothing() -> None:
    import dask.array

    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    array = cube(None, 2)
    chunked = dask.array.from_array(array.values, chunks=(1, 10, 10))
    meta = np.empty((0, 0, 0), "float32")
    lazy = array.copy(data=chunked.map_blocks(explode, dtype="float32", meta=meta))
    source = DataArraySource(lazy)
    source.describe()
    with pytest.raises(AssertionError):
        source.read(Window(0, 1, 0, 1))
