"""Levels of rasters, Zarr hierarchies and anything else; windows and what they cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling

from tilewright.errors import InputError, KernelError
from tilewright.kernels.ask import Request
from tilewright.pipeline.arrays import DataArraySource
from tilewright.pipeline.coarse import CoarseSource
from tilewright.pipeline.grid import Window
from tilewright.pipeline.pyramid import Account, open_pyramid
from tilewright.pipeline.rasters import raster_source
from tilewright.pipeline.source import Reason

if TYPE_CHECKING:
    import torch


def write(
    path: Path, pixels: np.ndarray, overviews: list[int], block: int = 128, nodata: float | None = None
) -> Path:
    count, rows, cols = pixels.shape
    transform = rasterio.transform.from_origin(300_000, 6_000_000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", width=cols, height=rows, count=count, dtype=pixels.dtype, crs="EPSG:32632",
        transform=transform, tiled=True, blockxsize=block, blockysize=block, nodata=nodata,
    ) as out:  # fmt: skip
        out.write(pixels)
        if overviews:
            out.build_overviews(overviews, Resampling.average)
    return path


def array_source(pixels: np.ndarray, nodata: float | None = None) -> DataArraySource:
    import rioxarray  # noqa: F401 - registers .rio
    import xarray as xr

    rows, cols = pixels.shape[-2:]
    cube = xr.DataArray(
        pixels,
        dims=("band", "y", "x"),
        coords={"y": 5_000 - 10.0 * np.arange(rows) - 5, "x": 300_000 + 10.0 * np.arange(cols) + 5},
    ).rio.write_crs("EPSG:32632")
    cube = cube.rio.write_transform(rasterio.transform.from_origin(300_000, 5_000, 10, 10))
    return DataArraySource(cube, nodata=nodata)


def test_overviews_are_levels_and_further_ones_are_averaged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1100, 900), np.uint8)
    path = write(tmp_path / "a.tif", pixels, [2, 4])
    pyramid = open_pyramid(raster_source([path]), coarsest=100)
    assert [level.shape for level in pyramid.levels] == [
        (1100, 900),
        (550, 450),
        (275, 225),
        (138, 113),
        (69, 57),
    ]
    assert [level.stored for level in pyramid.levels] == [0, 1, 2, 2, 2]
    with rasterio.open(path, overview_level=1) as overview:
        stored = overview.read()
    (view,) = pyramid.read([Request(2, 10, 20, 60, 90)])
    assert np.array_equal(view.pixels, stored[:, 10:60, 20:90])
    assert view.valid.all()


def test_the_grid_of_every_level_covers_the_same_ground(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros((1, 1031, 997), np.uint8), [2, 4, 8])
    pyramid = open_pyramid(raster_source([path]), coarsest=64)
    corners = [level.source.grid.geobox.extent.boundingbox for level in pyramid.levels]
    for level, corner in zip(pyramid.levels, corners, strict=True):
        assert (corner.left, corner.top) == pytest.approx((corners[0].left, corners[0].top))
        assert abs(corner.right - corners[0].right) <= 10 * level.factor


def test_a_window_costs_the_blocks_that_it_touches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.zeros((3, 1024, 1024), np.uint8), [2])
    pyramid = open_pyramid(raster_source([path]), coarsest=256)
    block = 128 * 128 * 3
    assert pyramid.cost([Request(0, 0, 0, 128, 128)]) == block
    assert pyramid.cost([Request(0, 127, 127, 129, 129)]) == 4 * block
    assert pyramid.cost([Request(0, 0, 0, 10, 10), Request(0, 20, 20, 30, 30)]) == block, "one block, once"
    assert pyramid.cost([Request(2, 0, 0, 64, 64)]) == block, "averaged from 128 squared pixels of level 1"
    assert pyramid.total_bytes == 1024 * 1024 * 3
    account = Account()
    pyramid.read([Request(1, 0, 0, 512, 512)], account)
    pyramid.read([Request(0, 0, 0, 1, 1)], account)
    assert account.bytes_of_level == {1: 512 * 512 * 3, 0: block}
    assert account.bytes_read == 512 * 512 * 3 + block


def test_the_levels_of_our_own_zarr_are_read_where_they_lie(tmp_path: Path) -> None:
    import tilewright

    path = write(tmp_path / "a.tif", np.random.default_rng(1).integers(1, 250, (1, 700, 900), np.uint8), [])

    @tilewright.kernel(inputs={"image": {"bands": 1}}, outputs={"value": {"kind": "value"}}, radius=0)
    def same(x: torch.Tensor) -> torch.Tensor:
        return x

    tilewright.apply(same, path, out=tmp_path / "run", only="zarr")
    pyramid = open_pyramid(raster_source([tmp_path / "run" / "result.zarr"]), coarsest=64)
    assert len(pyramid.levels) > 2
    stored = sum(level.stored == number for number, level in enumerate(pyramid.levels))
    assert stored > 1, "the hierarchy's own levels"
    (whole,) = pyramid.read([Request(0, 0, 0, 700, 900)])
    (half,) = pyramid.read([Request(1, 0, 0, *pyramid.levels[1].shape)])
    means = whole.pixels[:, :700, :900].reshape(1, 350, 2, 450, 2).mean(axis=(2, 4))
    assert np.allclose(half.pixels, means, atol=1e-4)


@given(rows=st.integers(1, 61), cols=st.integers(1, 61), factor=st.sampled_from([1, 2, 3, 8]), data=st.data())
def test_a_coarse_pixel_is_the_mean_of_the_valid_ones_in_every_window(
    rows: int, cols: int, factor: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(rows * 61 + cols)
    pixels = rng.normal(size=(2, rows, cols)).astype(np.float32)
    pixels[:, rng.random((rows, cols)) < 0.4] = np.nan
    coarse = CoarseSource(array_source(pixels), factor)
    height, width = coarse.grid.shape
    assert (height, width) == (-(-rows // factor), -(-cols // factor))
    r0, c0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    r1, c1 = data.draw(st.integers(r0 + 1, height)), data.draw(st.integers(c0 + 1, width))
    block = coarse.read(Window(r0, r1, c0, c1))
    for r in range(r0, r1):
        for c in range(c0, c1):
            part = pixels[:, r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].reshape(2, -1)
            valid = np.isfinite(part).all(axis=0)
            code = block.reason["image"][0, 0, r - r0, c - c0]
            if not valid.any():
                assert code == Reason.NODATA
                continue
            assert code == Reason.VALID
            assert np.allclose(
                block.data["image"][0, :, r - r0, c - c0], part[:, valid].mean(axis=1), atol=1e-5
            )


def test_a_very_coarse_window_is_read_in_squares(tmp_path: Path) -> None:
    """A policy may ask for the whole of a coarse level; the finer pixels beneath are never held together."""
    pixels = np.arange(3000 * 3000, dtype=np.uint32).reshape(1, 3000, 3000)
    source = raster_source([write(tmp_path / "a.tif", pixels, [])])
    largest = 0

    class Spy:
        grid, layers = source.grid, source.layers

        def read(self, window: Window):  # type: ignore[no-untyped-def]
            nonlocal largest
            largest = max(largest, window.size)
            return source.read(window)

    coarse = CoarseSource(Spy(), 1024)  # type: ignore[arg-type]
    block = coarse.read(coarse.grid.window)
    assert block.data["image"].shape == (1, 1, 3, 3)
    assert largest <= 2048 * 2048


def test_windows_outside_and_too_many_pixels_are_refused(tmp_path: Path) -> None:
    pyramid = open_pyramid(raster_source([write(tmp_path / "a.tif", np.zeros((1, 300, 300), np.uint8), [])]))
    with pytest.raises(KernelError, match="not inside"):
        pyramid.read([Request(0, 0, 0, 301, 10)])
    with pytest.raises(KernelError, match="no level 9"):
        pyramid.read([Request(9, 0, 0, 1, 1)])
    with pytest.raises(KernelError, match="asked for at once"):
        pyramid.read([Request(0, 0, 0, 300, 300)] * 1000)
    with pytest.raises(KernelError, match="not empty"):
        Request(0, 5, 5, 5, 9)


def test_one_input_only(tmp_path: Path) -> None:
    one = array_source(np.zeros((1, 8, 8), np.float32))

    two = SimpleNamespace(grid=one.grid, layers={"a": one.layers["image"], "b": one.layers["image"]})
    with pytest.raises(InputError, match="one input"):
        open_pyramid(two)  # type: ignore[arg-type]
