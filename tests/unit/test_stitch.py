"""Fixed point: tapers, margins, and sums that do not depend on their order."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import GridError, KernelError
from tilewright.pipeline.grid import Tiling, Window
from tilewright.pipeline.stitch import QUANTUM, TAPER_SUM, Accumulator, Seam, check_blendable, ramp, take

TILING = Tiling(tile=24, halo=6, taper=4, stride=1, shard=24)
SHAPE = (61, 53)


def test_neighbouring_ramps_sum_to_one() -> None:
    left, middle, right = (ramp(k, 3, 28, 20, 8) for k in range(3))
    assert (left[20:] + middle[:8] == TAPER_SUM).all()
    assert (middle[20:] + right[:8] == TAPER_SUM).all()
    assert (left[:20] == TAPER_SUM).all()
    assert (right[8:] == TAPER_SUM).all()
    assert (np.diff(middle[:8]) >= 0).all()
    assert min(r.min() for r in (left, middle, right)) >= 1


def test_the_largest_sum_fits_int32() -> None:
    assert QUANTUM * TAPER_SUM**2 < 2**31


def _blend(order: list[int], values: dict[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, dict]:
    """Blend one shard of 48 px out of its four tiles in the given order."""
    tiling = Tiling(tile=24, halo=6, taper=4, stride=1, shard=60)
    shard = tiling.shard_at(0, 0, (28, 28))
    sums = Accumulator(shard, (28, 28), tiling, 1, 1, (-2, 2))
    tiles = list(tiling.tiles(shard, (28, 28)))
    for i in order:
        tile = tiles[i]
        sums.add(tile, values[tile.index], np.ones(tile.gives.shape, dtype=bool))
    seam = Seam(-2, 2)
    return sums.result(seam)[0], seam.summary()


def test_the_order_of_tiles_changes_no_bit() -> None:
    tiling = Tiling(tile=24, halo=6, taper=4, stride=1, shard=60)
    generator = np.random.default_rng(0)
    tiles = list(tiling.tiles(tiling.shard_at(0, 0, (28, 28)), (28, 28)))
    assert len(tiles) == 4
    values = {t.index: generator.normal(0, 0.4, (1, *t.gives.shape)).astype(np.float32) for t in tiles}
    first, seam = _blend([0, 1, 2, 3], values)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        again, other = _blend(order, values)
        assert again.tobytes() == first.tobytes()
        assert other == seam


def test_nan_and_invalid_pixels_have_no_weight() -> None:
    shard = TILING.shard_at(0, 0, SHAPE)
    sums = Accumulator(shard, SHAPE, TILING, 1, 1, (0, 1))
    for tile in TILING.tiles(shard, SHAPE):
        values = np.full((1, *tile.gives.shape), 0.25, dtype=np.float32)
        valid = np.ones(tile.gives.shape, dtype=bool)
        rows = np.arange(tile.gives.row0, tile.gives.row1)
        values[:, rows == 3] = np.nan
        valid[rows == 5] = False
        sums.add(tile, values, valid)
    values, valid = sums.result(Seam(0, 1))
    assert sorted(set(np.flatnonzero(~valid.all(axis=1)))) == [3, 5]
    assert np.isnan(values[0][~valid]).all()
    assert (values[0][valid] == 0.25).all()
    assert sums.clipped == 0


def test_a_margin_is_a_strip_and_goes_three_ways() -> None:
    sums = Accumulator(TILING.shard_at(0, 0, SHAPE), SHAPE, TILING, 2, 3, (0, 1))
    windows = {m.window for m in sums.margins()}
    assert windows == {Window(0, 48, 48, 64), Window(48, 64, 0, 48), Window(48, 64, 48, 64)}
    assert sum(m.total.size for m in sums.margins()) < sums.total.size


def test_the_seam_has_the_moments_of_its_differences() -> None:
    generator = np.random.default_rng(1)
    low = generator.integers(0, QUANTUM // 2, 10_000).astype(np.int32)
    difference = (generator.random(10_000) ** 3 * QUANTUM / 4).astype(np.int32)
    seam = Seam(0, 10)
    seam.add(low, low + difference)
    real = difference / QUANTUM * 10
    found = seam.summary()
    assert found["pixels"] == 10_000
    assert found["mean"] == pytest.approx(real.mean(), rel=1e-5)
    assert found["max"] == pytest.approx(real.max(), rel=1e-5)
    assert np.quantile(real, 0.99) * 0.999 <= found["p99"] <= np.quantile(real, 0.99) * 2 ** (1 / 8) * 1.001


def test_no_seam() -> None:
    seam = Seam(0, 1)
    assert seam.summary() == {"mean": 0, "p99": 0, "max": 0, "pixels": 0}
    seam.add(np.ones(5, dtype=np.int32), np.ones(5, dtype=np.int32))
    assert seam.summary() == {"mean": 0, "p99": 0, "max": 0, "pixels": 5}


def test_take_beyond_what_was_read_is_an_error() -> None:
    with pytest.raises(GridError, match="outside of what was read"):
        take(np.zeros((1, 5, 5)), Window(0, 5, 0, 5), Window(3, 8, 0, 5), (20, 20))


def test_without_a_range() -> None:
    with pytest.raises(KernelError, match="output depth: an output without a range can not be blended"):
        check_blendable("depth", None)
