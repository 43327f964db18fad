"""Where a run stands: no promise before there is evidence, and none that empty or kept shards would flatter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from fakes import ArraySource
from running import image, job_of, make_kernel, shards_of

from tilewright.pipeline.grid import Grid
from tilewright.pipeline.progress import Meter, Status

SIDE = 64
PIXELS = SIDE * SIDE


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(needed: int = 4) -> dict[str, Any]:
    return {"pixels": PIXELS, "tiles_needed": needed, "reasons": {}}


def meter_over(entries: dict[str, Any], clock: Clock, region: Any = None) -> tuple[Meter, list[str]]:
    source = ArraySource(image(SIDE * 4, SIDE * 4))
    if region is not None:
        source.grid = Grid(source.grid.geobox, region)
    job = job_of(make_kernel(lambda x: x), source, tile=32, shard=SIDE)
    shards = shards_of(job)
    meter = Meter(job, shards, entries, clock)
    meter.begin()
    return meter, [shard.name for shard in shards]


def finish(
    meter: Meter, entries: dict[str, Any], name: str, clock: Clock, seconds: float, needed: int = 4
) -> Status:
    clock.now += seconds
    entries[name] = entry(needed)
    return meter.status()


def test_nothing_is_promised_without_evidence() -> None:
    entries: dict[str, Any] = {}
    clock = Clock()
    meter, names = meter_over(entries, clock)
    first = finish(meter, entries, names[0], clock, 9)
    assert (first.done, first.total, first.seconds_left) == (1, 16, None)
    second = finish(meter, entries, names[1], clock, 1)
    assert second.seconds_left == pytest.approx(14 * 5)
    third = finish(meter, entries, names[2], clock, 1)  # from here the time to fill the pipeline is left out
    assert third.seconds_left == pytest.approx(13 * 1)
    assert third.pixels_per_second == pytest.approx(PIXELS)
    assert (third.pixels, third.pixels_total) == (3 * PIXELS, 16 * PIXELS)
    assert third.gpu_busy is None
    assert third.cpu_busy is not None


def test_shards_of_an_earlier_start_do_not_count_for_speed() -> None:
    clock = Clock()
    source_names = [f"{i}.{j}" for i in range(4) for j in range(4)]
    entries = {name: entry() for name in source_names[:10]}
    meter, names = meter_over(entries, clock)
    for name in names[10:13]:
        status = finish(meter, entries, name, clock, 2)
    assert (status.done, status.kept) == (13, 10)
    assert status.seconds_left == pytest.approx(3 * 2)
    assert status.pixels_per_second == pytest.approx(PIXELS / 2)


def test_empty_shards_do_not_make_the_rest_look_quick() -> None:
    """Half of the shards hold nothing and take no time: the other half sets the speed."""
    entries: dict[str, Any] = {}
    clock = Clock()
    meter, names = meter_over(entries, clock)
    for i, name in enumerate(names[:8]):
        status = finish(meter, entries, name, clock, 4 if i % 2 else 0.01, needed=4 if i % 2 else 0)
    assert status.seconds_left == pytest.approx(8 / 2 * 4, rel=0.2)


def test_shards_beyond_the_region_are_no_work_that_is_left() -> None:
    entries: dict[str, Any] = {}
    clock = Clock()
    box = ArraySource(np.zeros((1, 1, SIDE * 4, SIDE * 4), "float32")).grid.geobox.extent.boundingbox
    half = shapely.box(box.left + 1, (box.top + box.bottom) / 2 + 1, box.right - 1, box.top - 1)
    meter, names = meter_over(entries, clock, half)
    for name in names[:4]:
        status = finish(meter, entries, name, clock, 3)
    assert status.seconds_left == pytest.approx(4 * 3)


def test_old_speed_is_forgotten() -> None:
    entries: dict[str, Any] = {}
    clock = Clock()
    meter, names = meter_over(entries, clock)
    for i, name in enumerate(names[:14]):
        status = finish(meter, entries, name, clock, 1 if i < 6 else 40)
    assert status.seconds_left == pytest.approx(2 * 40)


def test_words() -> None:
    plain = Status("shards", 12, 50, 3, pixels_per_second=4.2e6, seconds_left=200, cpu_busy=0.97)
    assert str(plain) == "12 of 50 shards (3 kept), 4.2 Mpx/s, about 3 min left, CPU 97%"
    assert str(Status("pyramid", 0, 5)) == "pyramid (1 of 5 steps of the end)"
