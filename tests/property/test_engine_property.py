"""The engine as a whole: whatever the sizes, radii, cores, shards, masks, chunks and workers, the same bits.

Every case is run in one process with the largest shard, and again cut into other shards and dealt out to other
numbers of engines, between which margins travel as they do between Dask workers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers .rio
import shapely
import torch
import xarray as xr
from fakes import ArraySource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, small_unet
from running import assemble, job_of, make_kernel, one_pass, run_job, same, shards_of

from tilewright.errors import GridError
from tilewright.pipeline.arrays import DataArraySource
from tilewright.pipeline.engine import Engine
from tilewright.pipeline.grid import Grid
from tilewright.pipeline.source import Reason

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.margins import Travelling
    from tilewright.pipeline.source import Source

SIDES = st.one_of(st.sampled_from([1, 2, 16, 17, 31, 61, 97, 127]), st.integers(1, 140))


def box(radius: int, stride: int) -> Kernel:
    """A mean over ``2 radius + 1`` pixels a side; with ``stride`` 8 the U-Net, whose radius is its own."""
    if stride == SMALL_UNET_STRIDE:
        net = small_unet(1, 1, scores=True)
        return make_kernel(net, radius=SMALL_UNET_RADIUS, stride=stride, outputs={"out": {"kind": "score"}})

    def mean(x: torch.Tensor) -> torch.Tensor:
        side = 2 * radius + 1
        taps = torch.full((1, 1, side, side), 1 / side**2)
        return torch.nn.functional.conv2d(x, taps, padding=radius)

    return make_kernel(mean, radius=radius, outputs={"out": {"kind": "value", "range": (-6, 6)}})


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A kernel, a raster with holes, a region or none, and the wishes of a run."""
    shape = draw(SIDES), draw(SIDES)
    stride = draw(st.sampled_from([1, 1, 8]))
    radius = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.standard_normal((1, 1, *shape)).astype(np.float32)
    holes = draw(st.sampled_from(["none", "some", "most", "all", "half"]))
    if holes in ("some", "most"):
        array[0, 0][rng.random(shape) < {"some": 0.1, "most": 0.97}[holes]] = np.nan
    elif holes != "none":
        array[..., : shape[0] if holes == "all" else shape[0] // 2, :] = np.nan
    return {
        "array": array,
        "kernel": box(radius, stride),
        "region": draw(st.booleans()),
        "stitch": draw(st.sampled_from(["cut", "blend"])),
        "tile": draw(st.sampled_from([32, 48, 72, 96])),
        "batch": draw(st.integers(1, 5)),
        "shards": draw(st.lists(st.integers(1, 160), min_size=2, max_size=2)),
        "workers": draw(st.integers(1, 4)),
        "chunks": draw(st.integers(1, 150)),
    }


def source_of(case: dict[str, Any], *, chunked: bool = False) -> Source:
    """The raster in memory, or the same one as a lazy DataArray in dask chunks."""
    plain = ArraySource(case["array"])
    if not chunked:
        rows, cols = plain.grid.shape
        if not case["region"]:
            return plain
        a, _, c, _, e, f = plain.grid.transform
        corners = [(0, 0), (cols, 0), (cols / 2, rows * 0.8)]
        triangle = shapely.Polygon([(c + a * x, f + e * y) for x, y in corners])
        return ArraySource(case["array"], grid=Grid(plain.grid.geobox, triangle))
    a, _, c, _, e, f = plain.grid.transform
    rows, cols = plain.grid.shape
    layer = next(iter(plain.layers.values()))
    array = xr.DataArray(
        case["array"],
        dims=("time", "band", "y", "x"),
        coords={
            "time": list(layer.times),
            "band": list(layer.bands),
            "y": f + e * (np.arange(rows) + 0.5),
            "x": c + a * (np.arange(cols) + 0.5),
        },
    )
    array = array.rio.write_crs(plain.grid.crs).rio.write_transform(plain.grid.geobox.affine)
    return DataArraySource(array.chunk({"y": case["chunks"], "x": case["chunks"]}))


def dealt_out(job: Job, workers: int) -> tuple[Any, list[Engine]]:
    """Run a job on several engines, a group of one shard at a time along anti-diagonals; margins by mail."""
    shards = shards_of(job)
    everyone = {s.index for s in shards}
    engines = [Engine(job, shards[n::workers], everyone) for n in range(workers)]
    mail: list[Travelling] = []
    results = []
    for shard in sorted(shards, key=lambda s: (sum(s.index), s.index)):
        engine = engines[shards.index(shard) % workers]
        engine.receive(m for m in mail if m.target == shard.index)
        results += engine.run([shard])
        mail, engine.outgoing = mail + engine.outgoing, []
    return assemble(job, results), engines


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(cases())
def test_nothing_but_tile_and_batch_changes_a_bit(case: dict[str, Any]) -> None:
    wishes = {"tile": case["tile"], "batch": case["batch"], "stitch": case["stitch"]}
    source = source_of(case)
    try:
        job = job_of(case["kernel"], source, **wishes, shard=case["shards"][0])
    except GridError:  # a halo that leaves no core, and the like: refused with a sentence
        return
    first, (one,) = run_job(job)

    # Coverage: every pixel owned once (`assemble` checks), and valid exactly where the input and the region are.
    inside = source.grid.inside(source.grid.window)
    valid = np.isfinite(case["array"][0, 0]) & inside
    assert ((first["reason"] == Reason.VALID) == valid).all()
    assert ((first["reason"] == Reason.OUTSIDE) == ~inside).all()
    assert (np.isfinite(first["out"][0]) == valid).all()

    # Work: every tile with a pixel to give once, no other, however it is dealt out.
    tiling = job.tiling
    tiles = [t for s in shards_of(job) for t in tiling.tiles(s, source.grid.shape)]
    needed = sum(bool(valid[t.gives.slices(source.grid.window)].any()) for t in tiles)
    assert one.counters.tiles == needed
    assert one.counters.batches <= needed
    for workers in {1, case["workers"]}:
        other = job_of(case["kernel"], source, **wishes, shard=case["shards"][1])
        found, engines = dealt_out(other, workers)
        assert same(found, first)
        assert sum(e.counters.tiles for e in engines) == needed
        assert sum(e.counters.recomputed for e in engines) == 0

    # A resume: shards of an earlier start are kept, and only the strips of margins are computed again.
    shards = shards_of(other)
    cut = math.ceil(len(shards) / 2)
    resumed, _ = run_job(other, [shards[:cut], shards[cut:]])
    assert same(resumed, first)

    # Chunks of a lazy source.
    if not case["region"]:
        lazy = job_of(case["kernel"], source_of(case, chunked=True), **wishes, shard=case["shards"][1])
        assert same(run_job(lazy)[0], first)


@pytest.mark.parametrize("stitch", ["cut", "blend"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases())
def test_a_kernel_with_a_radius_equals_one_big_pass(stitch: str, case: dict[str, Any]) -> None:
    kernel, array = case["kernel"], case["array"]
    try:
        job = job_of(kernel, ArraySource(array), tile=case["tile"], batch=case["batch"], stitch=stitch)
    except GridError:
        return
    found, _ = run_job(job)
    pad = math.ceil((kernel.spec.radius or 0) / kernel.spec.stride) * kernel.spec.stride
    expected = one_pass(kernel, array, pad=pad, multiple=kernel.spec.stride)[0]
    valid = np.isfinite(array[0, 0])
    low, high = kernel.spec.outputs["out"].range or (0, 1)
    bound = 4e-6 + (0 if stitch == "cut" else (high - low) * 2**-20)
    assert np.abs(found["out"][0] - expected)[valid].max(initial=0) <= bound
