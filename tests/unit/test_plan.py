"""The plan: no pixel is read, the terms add up, and a refusal names the worst term and what to turn."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from fakes import ArraySource
from networks import gaussian33
from running import image, job_of, make_kernel

from tilewright.errors import PlanError
from tilewright.pipeline.memory import PeakMemory, projected_memory, resident_bytes
from tilewright.pipeline.order import LEAST_CACHE, MOST_CACHE, cache_bytes, in_order, panel_width
from tilewright.pipeline.plan import Plan, compare_tiles, make_plan


def plan_of(**wishes: object) -> tuple[Plan, ArraySource]:
    source = ArraySource(image(700, 500))
    kernel = make_kernel(gaussian33, radius=16, outputs={"out": {"kind": "value", "range": (-9, 9)}})
    return make_plan(job_of(kernel, source, **{"tile": 96, "shard": 192, "batch": 2, **wishes})), source


def test_a_plan_reads_no_pixel_and_counts_what_a_run_does() -> None:
    plan, source = plan_of()
    assert source.reads == []
    assert plan.shape == (700, 500)
    assert plan.pixels == 350_000
    assert (plan.core, plan.halo, plan.shard_size) == (64, 16, 192)
    assert plan.tiles == 11 * 8
    assert plan.shards == 4 * 3
    assert plan.waste == (96 / 64) ** 2
    assert plan.passes == 1
    assert plan.bytes_read >= 350_000 * 5
    assert plan.seconds_forward > 0


def test_the_terms_add_up() -> None:
    plan, _ = plan_of()
    terms = asdict(plan.memory)
    assert plan.memory.total == sum(terms.values())
    assert plan.as_dict()["projected_memory_bytes"] == plan.memory.total
    assert terms["gdal_cache"] == LEAST_CACHE
    assert all(v >= 0 for v in terms.values())


def test_memory_does_not_grow_with_the_raster() -> None:
    """Promise 1: no term knows the raster, once it is larger than what is held of it."""
    kernel = make_kernel(gaussian33, radius=16, outputs={"out": {"kind": "value", "range": (-9, 9)}})
    for stitch in ("cut", "blend"):
        jobs = [job_of(kernel, vast(side), tile=288, shard=2048, batch=2, stitch=stitch) for side in (9, 50)]
        a, b = (asdict(projected_memory(job, 1 << 20, 1 << 20)) for job in jobs)
        assert a | {"gdal_cache": 0} == b | {"gdal_cache": 0}
        assert all(LEAST_CACHE <= terms["gdal_cache"] <= MOST_CACHE for terms in (a, b))


def vast(thousands: int) -> ArraySource:
    """A source of twice so many thousand and one pixels a side, of which none is ever read."""
    source = ArraySource(image(1, 1))
    source.grid = replace(source.grid, geobox=source.grid.geobox.pad(thousands * 1000))
    return source


def test_panels_are_as_wide_as_the_cache_allows_and_keep_neighbours_in_order() -> None:
    kernel = make_kernel(gaussian33, radius=16)
    job = job_of(kernel, vast(20), tile=288, shard=2048)
    width, shards = panel_width(job), list(job.tiling.shards(job.grid.shape))
    columns = 1 + max(s.index[1] for s in shards)
    assert 1 < width < columns
    assert LEAST_CACHE <= cache_bytes(job) <= MOST_CACHE
    assert width * job.tiling.shard * job.tiling.shard * job.bytes_per_pixel <= cache_bytes(job)
    ordered = in_order(job, shards)
    assert sorted(s.index for s in ordered) == sorted(s.index for s in shards)
    place = {s.index: n for n, s in enumerate(ordered)}
    for i, j in place:
        before = [p for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in place]
        assert all(place[p] < place[i, j] for p in before)
    # What memory the user allows bounds the cache; without a halo rows share no block.
    tight = job_of(kernel, vast(20), tile=288, shard=2048, memory=1 << 30)
    assert panel_width(tight) < width
    assert cache_bytes(tight) == LEAST_CACHE
    free = job_of(make_kernel(gaussian33, radius=0), vast(20), tile=256, shard=2048)
    rows = list(free.tiling.shards(free.grid.shape))
    assert in_order(free, rows) == rows


def test_classes_are_counted_as_they_are_stored() -> None:
    source = ArraySource(image(1000, 1000))
    names = tuple(str(i) for i in range(100))
    one = make_kernel(lambda x: x, outputs={"out": {"kind": "class", "threshold": 0}})
    many = make_kernel(lambda x: x.repeat(1, 100, 1, 1), outputs={"out": {"kind": "class", "classes": names}})
    a, b = (projected_memory(job_of(k, source), 0, 0).stitching for k in (one, many))
    assert a == b


def test_what_does_not_fit_is_refused_with_the_worst_term_and_the_knob() -> None:
    plan, _ = plan_of()
    floor = plan.memory.reserved + plan.memory.gdal_cache
    tight = replace(plan, memory_allowed=plan.memory.total - 1)
    with pytest.raises(PlanError) as caught:
        tight.check()
    terms = {k: v for k, v in asdict(plan.memory).items() if k not in ("reserved", "gdal_cache")}
    worst = max(terms, key=lambda k: terms[k])
    assert f"of which {worst}" in str(caught.value)
    assert "--memory" in str(caught.value)
    assert "smaller --" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    with pytest.raises(PlanError, match="--memory"):
        replace(plan, memory_allowed=floor).check()
    replace(plan, memory_allowed=plan.memory.total).check()


@pytest.mark.parametrize("term", ["reads", "batch", "forward", "stitching", "shard", "overviews"])
def test_every_term_can_be_the_worst(term: str) -> None:
    plan, _ = plan_of()
    memory = replace(plan.memory, **{term: 1 << 50})
    with pytest.raises(PlanError, match=f"of which {term} .*use a smaller --"):
        replace(plan, memory=memory).check()


def test_too_many_shards_are_refused() -> None:
    plan, _ = plan_of()
    with pytest.raises(PlanError, match="use a larger --shard"):
        replace(plan, shards=10_001, memory_allowed=1 << 60).check()


def test_a_statistics_pass_counts_as_a_second_reading() -> None:
    source = ArraySource(image(700, 500))
    kernel = make_kernel(lambda x: x, statistics={}, fit=lambda sample: {})
    plan = make_plan(job_of(kernel, source, tile=96))
    assert plan.passes == 2
    assert plan.bytes_read >= 2 * 350_000 * 4
    assert source.reads == []


def test_the_table_marks_the_fastest_that_fits() -> None:
    source = ArraySource(image(700, 500))
    kernel = make_kernel(gaussian33, radius=16)
    rows = compare_tiles(job_of(kernel, source, tile=96, batch=2), tiles=(32, 64, 128), batches=(1, 2))
    assert {(r.tile, r.batch) for r in rows} == {(t, b) for t in (64, 96, 128) for b in (1, 2)}  # 32: no core
    (best,) = [r for r in rows if r.best]
    assert best.fits
    assert best.seconds == min(r.seconds for r in rows if r.fits)
    assert rows[0].waste > rows[-1].waste
    assert source.reads == []


def test_the_peak_is_seen() -> None:
    import numpy as np

    with PeakMemory() as memory:
        before = resident_bytes()  # after entering, which gives freed memory back
        held = np.ones(64 << 20, dtype=np.uint8)
        del held
    assert memory.peak - before > 50 << 20
