"""Whatever the shape, the shard, the bands and the order of writing: the store holds the pixels it was given."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.digest import result_digest, shard_digest
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.overviews import average, mode
from tilewright.pipeline.reduce import quantisation
from tilewright.pipeline.store import ResultStore

SIDES = st.one_of(st.integers(1, 70), st.sampled_from([127, 131, 256, 257]))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(SIDES, SIDES),
    shard=st.sampled_from([16, 48, 112, 256]),
    bands=st.integers(1, 3),
    valid=st.sampled_from([0.0, 0.5, 1.0]),
    order=st.randoms(use_true_random=False),
)
def test_round_trip_in_any_order(shape, shard, bands, valid, order):
    rng = np.random.default_rng(0)
    reason = (rng.random(shape) >= valid).astype(np.uint8)
    outputs = {"v": OutputSpec(kind="value", bands=bands), "c": OutputSpec(kind="class")}
    values = {
        "v": rng.random((bands, *shape), dtype=np.float32),
        "c": rng.integers(0, 9, shape).astype(np.uint8),
    }
    values["v"][:, reason > 0], values["c"][reason > 0] = np.nan, 255
    grid = Grid(GeoBox(shape, Affine(1, 0, 0, 0, -1, 0), "EPSG:32633"))
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore.create(Path(folder) / "r.zarr", grid, outputs, shard)
        shards = list(store.shards())
        order.shuffle(shards)
        for piece in shards:
            rows, cols = piece.window.slices(grid.window)
            store.write(piece, {n: a[..., rows, cols] for n, a in values.items()}, reason[rows, cols])
        found = {name: store.read(name, grid.window) for name in store.names}
        np.testing.assert_array_equal(found["v"].reshape(values["v"].shape), values["v"])
        np.testing.assert_array_equal(found["c"], values["c"])
        np.testing.assert_array_equal(found["reason"], reason)
        if max(shape) <= 512:  # one leaf: the root is the digest of the whole
            assert result_digest(store) == shard_digest({**values, "reason": reason})


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_an_overview_pixel_lies_among_its_valid_children(shape, seed, share):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 5, shape).astype(np.uint8)
    block[rng.random(shape) < share] = 255
    means, modes = average(block, 255), mode(block, 255)
    assert means.shape == modes.shape == (-(-shape[0] // 2), -(-shape[1] // 2))
    for (r, c), most in np.ndenumerate(modes):
        children = block[2 * r : 2 * r + 2, 2 * c : 2 * c + 2]
        children = children[children != 255]
        if children.size == 0:
            assert (most, means[r, c]) == (255, 255)
        else:
            counts = np.bincount(children)
            assert counts[most] == counts.max()
            assert means[r, c] == np.floor(children.mean() + 0.5)


@given(dtype=st.sampled_from(["uint8", "uint16", "int16"]), seed=st.integers(0, 100))
def test_the_mean_of_stored_integers_is_the_mean_of_what_they_mean(dtype, seed):
    """Within half a step: averaging in stored integers needs no detour by physical values."""
    spec = OutputSpec(kind="value", dtype=dtype, range=(-3.0, 5.0))
    scale, offset = quantisation(spec)
    info = np.iinfo(dtype)
    block = np.random.default_rng(seed).integers(info.min + 1, info.max - 1, (8, 6)).astype(dtype)
    physical = average(block * scale + offset, np.nan)
    assert np.abs(average(block, spec.stored_nodata) * scale + offset - physical).max() <= scale / 2 * (
        1 + 1e-9
    )


def test_windows_outside_are_refused(tmp_path):
    import pytest

    from tilewright.errors import StoreError

    grid = Grid(GeoBox((10, 10), Affine(1, 0, 0, 0, -1, 0), "EPSG:32633"))
    store = ResultStore.create(tmp_path / "r.zarr", grid, {"c": OutputSpec(kind="class")}, 16)
    with pytest.raises(StoreError, match="not inside level 0 of 10 x 10"):
        store.read("c", Window(0, 11, 0, 10))
    with pytest.raises(StoreError, match="did you mean 'c'"):
        store.read("C", grid.window)
