"""The two rules of the pyramid against GDAL's own average and mode."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from tilewright.pipeline.overviews import average, level_count, level_shape, mode


def gdal(values, nodata, method, tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1}
    with rasterio.open(
        path, "w", dtype=values.dtype, nodata=nodata, transform=from_origin(0, 0, 1, 1), **profile
    ) as dataset:
        dataset.write(values, 1)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling[method])
    with rasterio.open(path, overview_level=0) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 255), ("uint16", 65535), ("int16", -32768), ("float32", np.nan)]
)
def test_average_is_gdals(dtype, nodata, tmp_path):
    rng = np.random.default_rng(1)
    values = (rng.random((256, 320)) * 250).astype(dtype)
    values[rng.random(values.shape) < 0.4] = nodata
    ours, theirs = average(values, nodata), gdal(values, nodata, "average", tmp_path)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if dtype == "float32":  # GDAL sums in float32
        np.testing.assert_allclose(ours, theirs, rtol=3e-7)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("nodata", [255, None])
def test_mode_is_gdals_ties_included(labels, nodata, tmp_path):
    rng = np.random.default_rng(labels)
    values = rng.integers(0, labels, (256, 320)).astype("uint8")
    if nodata is not None:
        values[rng.random(values.shape) < 0.4] = nodata
    np.testing.assert_array_equal(mode(values, nodata), gdal(values, nodata, "mode", tmp_path))


def test_rules_in_words():
    block = np.array([[1, 2, 255, 255], [2, 1, 255, 7]], dtype="uint8")
    np.testing.assert_array_equal(mode(block, 255), [[2, 7]])  # 2 reaches two first; nodata has no vote
    np.testing.assert_array_equal(average(block, 255), [[2, 7]])  # 1.5 is rounded up
    assert average(np.full((2, 2), np.nan, "float32"), np.nan).item() != 0
    assert np.isnan(average(np.full((2, 2), np.nan, "float32"), np.nan)).all()


def test_odd_sides_use_the_pixels_that_exist():
    block = np.arange(15, dtype="float32").reshape(3, 5)
    expected = [[3, 5, 6.5], [10.5, 12.5, 14]]
    np.testing.assert_array_equal(average(block, np.nan), expected)
    assert average(np.stack([block, block]), np.nan).shape == (2, 2, 3)
    np.testing.assert_array_equal(mode(np.array([[1], [4], [9]], "uint8"), 255), [[1], [9]])


def test_a_level_does_not_depend_on_how_it_is_cut():
    rng = np.random.default_rng(3)
    values = rng.random((41, 37)).astype("float32")
    whole = average(values, np.nan)
    parts = [np.concatenate([average(values[r : r + 6, c : c + 10], np.nan) for c in range(0, 37, 10)], 1)
             for r in range(0, 41, 6)]  # fmt: skip
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(
    ("shape", "levels"), [((512, 512), 1), ((513, 2), 2), ((100_000, 7), 9), ((1, 1), 1)]
)
def test_levels_end_at_512(shape, levels):
    assert level_count(shape) == levels
    assert max(level_shape(shape, levels - 1)) <= 512
