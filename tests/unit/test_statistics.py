"""The statistics pass: the same sample however the scene is cut, and never more of it than was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fakes import ArraySource
from running import image, job_of, make_kernel, run_job, same, shards_of, with_holes

from tilewright.errors import InputError
from tilewright.pipeline.grid import Window
from tilewright.pipeline.statistics import (
    gather_statistics,
    hash_positions,
    merge_samples,
    plain,
    sample_block,
)

if TYPE_CHECKING:
    from tilewright.kernels.contract import Context, Kernel
    from tilewright.pipeline.progress import Status

SAMPLES: list[dict[str, np.ndarray]] = []


def fit(sample: Any) -> dict[str, Any]:
    """Mean of every date and band, and how many pixels there were."""
    SAMPLES.append(dict(sample))
    x = sample["image"]
    return {"mean": x.mean(axis=(0, 1)), "count": np.int64(len(x))}


def centre(x: torch.Tensor, context: Context) -> torch.Tensor:
    """Subtract the scene's mean from each band."""
    mean = torch.tensor(context.statistics["mean"], dtype=torch.float32)
    return x - mean[:, None, None]


def kernel(sample: int = 300) -> Kernel:
    return make_kernel(
        centre,
        bands=2,
        radius=3,
        outputs={"out": {"kind": "value", "bands": 2}},
        statistics={"sample": sample, "names": ("mean", "count")},
        fit=fit,
    )


@pytest.fixture(autouse=True)
def _forget() -> None:
    SAMPLES.clear()


def test_the_sample_does_not_depend_on_the_shard_and_is_bounded() -> None:
    source = ArraySource(with_holes(image(131, 97, bands=2)) + 3)
    found = [gather_statistics(job_of(kernel(), source, tile=38, shard=s)) for s in (1, 64, 1000)]
    assert found[0] == found[1] == found[2]
    assert found[0]["count"] == 300
    assert all(s["image"].tobytes() == SAMPLES[0]["image"].tobytes() for s in SAMPLES)
    assert SAMPLES[0]["image"].shape == (300, 1, 2)
    assert SAMPLES[0]["image"].dtype == np.float64


def test_the_sample_is_the_valid_pixels_of_smallest_hash() -> None:
    array = with_holes(image(61, 53, bands=2))
    gather_statistics(job_of(kernel(100), ArraySource(array), tile=38, shard=32))
    hashes = hash_positions(Window(0, 61, 0, 53))
    hashes[np.isnan(array[0, 0])] = np.iinfo(np.uint64).max
    rows, cols = np.unravel_index(np.argsort(hashes, axis=None)[:100], hashes.shape)
    assert (SAMPLES[0]["image"][:, 0] == array[0][:, rows, cols].T).all()


def test_a_small_scene_is_taken_whole() -> None:
    array = with_holes(image(20, 20, bands=2))
    found = gather_statistics(job_of(kernel(10_000), ArraySource(array)))
    assert found["count"] == np.isfinite(array[0, 0]).sum()
    assert found["mean"] == pytest.approx(
        np.nanmean(array[0].astype(np.float64), axis=(1, 2)).tolist(), abs=1e-12
    )


def test_the_scene_is_read_once_and_without_halo() -> None:
    source = ArraySource(image(131, 97, bands=2))
    gather_statistics(job_of(kernel(), source, tile=38, shard=64))
    assert sum(w.size for w in source.reads) == 131 * 97


def test_merging_is_exact_in_any_order_and_grouping() -> None:
    source = ArraySource(image(131, 97, bands=2))
    job = job_of(kernel(), source, tile=38, shard=1)
    parts = [sample_block(job, s, source.read(s.window), 300) for s in shards_of(job)]
    assert max(len(h) for h, _ in parts) <= 300
    whole = merge_samples(parts, 300)
    backwards = merge_samples(reversed(parts), 300)
    halves = merge_samples([merge_samples(parts[1::2], 300), merge_samples(parts[::2], 300)], 300)
    for other in (backwards, halves):
        assert (other[0] == whole[0]).all()
        assert (other[1]["image"] == whole[1]["image"]).all()


def test_the_pass_tells_how_far_it_is() -> None:
    told: list[Status] = []
    job = job_of(kernel(), ArraySource(image(100, 70, bands=2)), tile=38, shard=38)
    gather_statistics(job, told.append)
    total = len(shards_of(job))
    assert total > 2
    assert [(s.phase, s.done, s.total) for s in told] == [("statistics", i + 1, total) for i in range(total)]
    assert str(told[0]) == f"statistics: 1 of {total} shards read"


def test_hashes_belong_to_the_ground_and_spread_evenly() -> None:
    whole = hash_positions(Window(0, 200, 0, 300))
    assert (hash_positions(Window(50, 90, 100, 140)) == whole[50:90, 100:140]).all()
    assert len(np.unique(whole)) == whole.size
    chosen = whole < np.quantile(whole, 0.1)
    for axis in (0, 1):  # no row, column or parity is favoured: 10 % with a standard error of 1.7 and 2.1 %
        assert np.abs(chosen.mean(axis=axis) - 0.1).max() < 0.09
    assert abs(chosen[::2, ::2].mean() - 0.1) < 0.01


def test_the_kernel_is_given_the_numbers() -> None:
    source = ArraySource(with_holes(image(131, 97, bands=2)) + 3)
    job = job_of(kernel(), source, tile=32, shard=1)
    results = []
    for shard in (1, 500):
        job = job_of(kernel(), source, tile=38, shard=shard)
        numbers = gather_statistics(job)
        results.append(run_job(job.with_statistics(numbers))[0])
    assert same(*results)
    mean = np.float32(numbers["mean"])[:, None, None]
    ok = results[0]["reason"] == 0
    assert (results[0]["out"] == source.arrays["image"][0] - mean)[:, ok].all()


def test_a_region_counts_only_its_own_pixels() -> None:
    import shapely

    from tilewright.pipeline.grid import Grid

    array = image(64, 64, bands=2)
    array[..., 32:] += 100
    grid = Grid(ArraySource(array).grid.geobox, shapely.box(500_000, 4_999_360, 500_320, 5_000_000))
    source = ArraySource(array, grid=grid)
    found = gather_statistics(job_of(kernel(10_000), source, tile=22, shard=16))
    assert found["count"] == 64 * 32
    assert max(found["mean"]) < 1
    assert all(w.col0 < 32 for w in source.reads)


def test_nothing_valid_is_one_line() -> None:
    source = ArraySource(np.full((1, 2, 40, 40), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="no pixel is valid in all dates"):
        gather_statistics(job_of(kernel(), source))


def test_numbers_become_plain_data() -> None:
    found = plain({"a": np.float32(1.5), "b": np.arange(3), "c": [np.int64(2), (1,)], 4: "d"})
    assert found == {"a": 1.5, "b": [0, 1, 2], "c": [2, [1]], "4": "d"}
