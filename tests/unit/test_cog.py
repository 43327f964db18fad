"""COGs: valid, the store's pixels at every scale, the same bytes at every shard size, whole or not there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate

from tilewright.errors import StoreError
from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.cog import (
    CogWriter,
    class_colours,
    cog_scratch_bytes,
    remove_scratch,
    write_cog,
)
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.source import Reason
from tilewright.pipeline.store import ResultStore
from tilewright.pipeline.sweep import Piece, sweep

OUTPUTS = {
    "change": OutputSpec(kind="score", threshold=0.4),
    "label": OutputSpec(kind="class", classes=("no change", "water", "burnt & bare")),
    "rgb": OutputSpec(kind="value", bands=("red", "green", "blue"), dtype="uint16", range=(-1, 2), units="1"),
    "deep": OutputSpec(kind="value", bands=6, dtype="int16", range=(-1, 1)),
}


def build(folder, shard, shape=(701, 1103), seed=0):
    grid = Grid(GeoBox(shape, Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633"))
    rng = np.random.default_rng(seed)
    reason = (rng.random(shape) < 0.3).astype(np.uint8) * np.uint8(Reason.CLOUD)
    reason[:, 600:] = Reason.OUTSIDE
    layers = {
        "change": rng.random(shape, dtype=np.float32),
        "label": rng.integers(0, 3, shape).astype(np.uint8),
        "rgb": rng.integers(0, 65535, (3, *shape)).astype(np.uint16),
        "deep": rng.integers(-32767, 32767, (6, *shape)).astype(np.int16),
    }
    for name, spec in OUTPUTS.items():
        layers[name][..., reason > 0] = spec.stored_nodata
    store = ResultStore.create(folder / "result.zarr", grid, OUTPUTS, shard)
    for piece in store.shards():
        rows, cols = piece.window.slices(grid.window)
        store.write(piece, {n: a[..., rows, cols] for n, a in layers.items()}, reason[rows, cols])
    store.finish()
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store"), 320)


def whole(store, name, level):
    rows, cols = store.shape(level)
    values = store.read(name, Window(0, rows, 0, cols), level)
    return values if values.ndim == 3 else values[None]


@pytest.mark.parametrize("name", [*OUTPUTS, "reason"])
def test_a_cog_is_valid_and_has_the_pixels_of_the_zarr_at_every_scale(store, name, tmp_path):
    path = write_cog(store, name, tmp_path / f"{name}.tif")
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.tif"]  # no scratch, no .aux.xml
    for level in range(store.levels):
        with rasterio.open(path, **({"overview_level": level - 1} if level else {})) as dataset:
            np.testing.assert_array_equal(dataset.read(), whole(store, name, level))
    with rasterio.open(path) as dataset:
        assert dataset.crs == "EPSG:32633"
        assert dataset.transform == Affine(10, 0, 500_000, 0, -10, 5_000_000)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_a_cog_says_what_its_values_mean(store, tmp_path):
    with rasterio.open(write_cog(store, "change", tmp_path / "a.tif")) as dataset:
        assert np.isnan(dataset.nodata)
        assert dataset.tags(1)["threshold"] == "0.4"
        assert dataset.read(1, masked=True).mask[0, 700]
    with rasterio.open(write_cog(store, "rgb", tmp_path / "b.tif")) as dataset:
        assert dataset.descriptions == ("red", "green", "blue")
        assert dataset.units == ("1", "1", "1")
        assert dataset.nodata == 65535
        assert dataset.scales == (3 / 65534,) * 3
        assert dataset.offsets == (-1.0,) * 3
    with rasterio.open(write_cog(store, "label", tmp_path / "c.tif")) as dataset:
        assert dataset.nodata == 255
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert dataset.colormap(1)[1] == (*class_colours(3)[1], 255)
        assert dataset.tags(1)["flag_values"] == "0 1 2"
        assert dataset.tags(1)["flag_meanings"] == "no_change water burnt_&_bare"
    with rasterio.open(write_cog(store, "reason", tmp_path / "d.tif")) as dataset:
        assert dataset.nodata is None
        assert dataset.tags(1)["flag_meanings"].split()[Reason.CLOUD] == "cloud"


@pytest.mark.parametrize("name", ["change", "label", "deep"])
def test_the_bytes_do_not_depend_on_the_shard_or_the_threads(store, name, tmp_path):
    other = build(tmp_path, 16 * 11)
    files = [
        write_cog(store, name, tmp_path / "one" / f"{name}.tif", threads=1),
        write_cog(store, name, tmp_path / "two" / f"{name}.tif", threads=4),
        write_cog(other, name, tmp_path / "three" / f"{name}.tif"),
    ]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == 1


@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (512, 512), (513, 40)])
def test_small_and_odd_rasters(tmp_path, shape):
    small = build(tmp_path, 64, shape)
    for name in ("change", "label"):
        with rasterio.open(write_cog(small, name, tmp_path / f"{name}.tif")) as dataset:
            assert dataset.shape == shape
            assert len(dataset.overviews(1)) == small.levels - 1
            np.testing.assert_array_equal(dataset.read(), whole(small, name, 0))


def test_scratch_is_below_what_is_stated(store, tmp_path, monkeypatch):
    """Random floats do not compress: close to the bound, and below it."""
    seen = []
    replace = Path.replace

    def measured(path, target):
        seen.append(path.stat().st_size)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", measured)
    for name, spec in OUTPUTS.items():
        with CogWriter(store, name, tmp_path / f"{name}.tif") as writer:
            sweep(store, (name,), (writer,))
            spooled = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file() and p.name == "tiles")
            writer.finish()
        assert (
            0 < spooled + seen.pop() < cog_scratch_bytes(store.grid.shape, spec.stored_dtype, spec.band_count)
        )


def test_a_file_that_does_not_give_the_pixels_back_is_refused(store, tmp_path, monkeypatch):
    """Another level's pixels, a byte of a tile turned in the scratch file, or in the finished one."""
    target = tmp_path / "change.tif"

    def other_pixels(piece):
        arrays = {"change": piece.arrays["change"] + np.float32(piece.level == 1)}
        return Piece(piece.level, piece.window, arrays)

    with CogWriter(store, "change", target) as writer:
        sweep(store, ("change",), (lambda piece: writer(other_pixels(piece)),))
        writer.levels[1].pixels_crc[0, 1] ^= 1
        with pytest.raises(StoreError, match="differs from the result at level 1, tile 0, 1"):
            writer.finish()
    with CogWriter(store, "change", target) as writer:
        sweep(store, ("change",), (writer,))
        with writer._spool.path.open("r+b") as file:
            file.seek(5000)
            byte = file.read(1)
            file.seek(5000)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(StoreError, match="does not hold what was written to it"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_missed_a_square_gives_no_file(store, tmp_path):
    with CogWriter(store, "label", tmp_path / "label.tif") as writer:
        sweep(store, ("label",), (lambda piece: piece.level != 1 and writer(piece),))
        with pytest.raises(StoreError, match="level 1 lacks 2 tiles"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_files_of_a_dead_process_are_removed(tmp_path):
    (tmp_path / ".tilewright-scratch-abc").mkdir()
    (tmp_path / ".tilewright-scratch-abc" / "tiles").write_bytes(b"1")
    (tmp_path / ".somebody-else").mkdir()
    remove_scratch(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".somebody-else"]


def test_a_full_disk_leaves_nothing_behind_and_the_older_file_in_place(store, tmp_path):
    """A limit on the size of files stands for a full disk: the same write fails, with another number."""
    target = tmp_path / "change.tif"
    target.write_bytes(b"older")
    code = f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from tilewright.errors import StoreError
        from tilewright.pipeline.cog import write_cog
        from tilewright.pipeline.store import ResultStore
        store = ResultStore.open({store.url!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            write_cog(store, "change", {str(target)!r})
        except StoreError as error:
            print("refused:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("refused:")
    assert str(target) in done.stdout
    assert target.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["change.tif"]
