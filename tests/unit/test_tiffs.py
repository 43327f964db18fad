"""COGs put together from compressed tiles: every reader finds every level, in classic TIFF and BigTIFF."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from rasterio.shutil import copy
from rio_cogeo.cogeo import cog_validate

from tilewright.pipeline import tiffs
from tilewright.pipeline.overviews import average, level_shape
from tilewright.pipeline.tiffs import (
    Level,
    Spool,
    cog_bytes,
    cog_size,
    encode_tiles,
    needs_bigtiff,
    tags_like,
)

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def describe(dataset):
    dataset.crs, dataset.transform, dataset.nodata = "EPSG:32633", PLACE, 7


def pyramid(bands, shape=(700, 1100), dtype="int16"):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 99, (bands, *shape)).astype(dtype)
    values[:, :512, :512] = 7
    return [values, average(values, 7), average(average(values, 7), 7)]


def assemble(path, pixels, *, interleave="pixel", big=False, order=1):
    """Write ``pixels``, one array a level, tile by tile in row-major or (-1) in the opposite order."""
    options = {"compress": "deflate", "zlevel": 6, "predictor": 2, "interleave": interleave}
    bands, block = pixels[0].shape[0], 256
    planes = bands if interleave == "band" else 1
    levels = [Level(values.shape[1:], block, planes) for values in pixels]
    tags = tags_like(pixels[0].dtype, bands, block, options, describe)
    with Spool(path.with_suffix(".tiles")) as spool:
        for level, values in zip(levels, pixels, strict=True):
            places = [(i, j) for i in range(level.down) for j in range(level.across)]
            for i, j in places[::order]:
                part = values[:, i * block : (i + 1) * block, j * block : (j + 1) * block]
                level.put(spool, i, j, encode_tiles(part, block, options))
        assert not needs_bigtiff(levels, tags)
        path.write_bytes(b"".join(cog_bytes(spool, levels, tags, big=big)))
        assert path.stat().st_size == cog_size(levels, tags, big)
    return path


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("bands", "interleave"), [(1, "pixel"), (3, "pixel"), (5, "band")])
def test_every_reader_finds_every_level(tmp_path, big, bands, interleave):
    pixels = pyramid(bands)
    path = assemble(tmp_path / "a.tif", pixels, interleave=interleave, big=big)
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    for k, expected in enumerate(pixels):
        with rasterio.open(path, **({"overview_level": k - 1} if k else {})) as dataset:
            np.testing.assert_array_equal(dataset.read(), expected)
            assert dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == ("COG" if k == 0 else None)
            assert (dataset.nodata, dataset.crs) == (7, "EPSG:32633")
            np.testing.assert_allclose(
                dataset.transform.a, 10 * expected.shape[-1] ** -1 * pixels[0].shape[-1]
            )
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff is big
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1]
        for page, expected in zip(tiff.pages, pixels, strict=True):
            assert page.imagelength, page.imagewidth == level_shape(expected.shape[1:], 0)
            offsets = [*page.dataoffsets]
            assert offsets == sorted(offsets)  # row-major, band by band
        assert tiff.pages[2].dataoffsets[-1] < tiff.pages[1].dataoffsets[0]
        assert tiff.pages[1].dataoffsets[-1] < tiff.pages[0].dataoffsets[0]


@pytest.mark.parametrize(("bands", "interleave"), [(1, "pixel"), (5, "band")])
def test_the_head_is_that_of_gdals_driver_and_its_promises_hold(tmp_path, bands, interleave):
    pixels = pyramid(bands)
    path = assemble(tmp_path / "a.tif", pixels, interleave=interleave)
    plain, driver = tmp_path / "plain.tif", tmp_path / "driver.tif"
    profile = {"driver": "GTiff", "count": bands, "height": 700, "width": 1100, "dtype": "int16"}
    with rasterio.open(plain, "w", **profile) as dataset:
        describe(dataset)
        dataset.write(pixels[0])
    copy(plain, driver, driver="COG", COMPRESS="DEFLATE", INTERLEAVE=interleave.upper(), BLOCKSIZE="256")
    ours, theirs = path.read_bytes(), driver.read_bytes()
    first = struct.unpack_from("<I", theirs, 4)[0]
    assert ours[:first] == theirs[:first]  # header and ghost area
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                assert struct.unpack_from("<I", ours, offset - 4)[0] == size
                assert ours[offset + size - 4 : offset + size] == ours[offset + size : offset + size + 4]


def test_the_order_of_making_changes_no_byte(tmp_path):
    pixels = pyramid(1)
    files = [assemble(tmp_path / f"{order}.tif", pixels, order=order).read_bytes() for order in (1, -1)]
    assert files[0] == files[1]


def test_a_constant_square_has_the_bytes_that_its_tiles_have(tmp_path):
    options = {"compress": "deflate", "zlevel": 6, "predictor": 3, "interleave": "pixel"}
    blank = np.full((2, 512, 300), np.nan, dtype=np.float32)
    tiles = encode_tiles(blank, 256, options)
    one = tiffs._encode(blank[:, :256, :256], 256, options)
    assert tiles.shape == (1, 2, 2)
    assert set(tiles.ravel().tolist()) == {one[0, 0, 0]}


def test_bigtiff_is_chosen_by_the_true_size():
    tags = tags_like("uint8", 1, 256, {"compress": "deflate", "interleave": "pixel"}, describe)
    level = Level((65_536, 65_536), 256)
    level.sizes[:] = 65_000
    assert not needs_bigtiff([level], tags)
    level.sizes[:] = 65_600
    assert needs_bigtiff([level], tags)
    assert cog_size([level], tags, big=True) > 2**32


@pytest.mark.slow
def test_a_file_above_4_gib(tmp_path):
    """Random tiles, the same ones over and over: 4.5 GiB on the disk, a second of encoding."""
    options = {"compress": "deflate", "zlevel": 1, "predictor": 1, "interleave": "pixel"}
    noise = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024)).astype(np.uint8)
    tiles = encode_tiles(noise, 512, options)
    shape = (70_000, 69_000)
    levels = [Level(level_shape(shape, k), 512) for k in range(2)]
    path = tmp_path / "large.tif"
    with Spool(tmp_path / "tiles") as spool:
        where = Level((1024, 1024), 512)
        where.put(spool, 0, 0, tiles)
        for level in levels:
            for table in ("offsets", "sizes", "bytes_crc"):
                rows, cols = np.indices((level.down, level.across)) % 2
                getattr(level, table)[0] = getattr(where, table)[0][rows, cols]
        tags = tags_like("uint8", 1, 512, options, describe)
        assert needs_bigtiff(levels, tags)
        with path.open("wb") as file:
            for data in cog_bytes(spool, levels, tags, big=True):
                assert len(data) < 2 * tiffs.PIECE
                file.write(data)
    assert path.stat().st_size > 2**32
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as dataset:
        window = rasterio.windows.Window(68_608, 69_632, 392, 368)  # the very last tile
        np.testing.assert_array_equal(dataset.read(1, window=window), noise[0, :368, :392])
