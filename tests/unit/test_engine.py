"""The engine against one big pass and a slow twin, and against itself: shards, batches, resumes change no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fakes import ArraySource
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, gaussian33, small_unet
from running import assemble, image, job_of, make_kernel, one_pass, run_job, same, shards_of, with_holes

from tilewright.errors import GridError, KernelError
from tilewright.pipeline.engine import Engine
from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.margins import MarginStore, Travelling
from tilewright.pipeline.source import Block, Reason
from tilewright.pipeline.stitch import Margins

if TYPE_CHECKING:
    from tilewright.kernels.contract import Context, Kernel
    from tilewright.pipeline.job import Job

PRIME = (131, 97)


def blur(**keys: object) -> Kernel:
    """The 33-tap filter as a kernel."""
    outputs = {"out": {"kind": "value", "range": (-4, 4), **keys.pop("output", {})}}  # type: ignore[dict-item]
    return make_kernel(gaussian33, radius=16, outputs=outputs, **keys)


def unet(classes: int = 1, **keys: object) -> Kernel:
    """The stride-8 U-Net as a kernel of scores."""
    keys = {"outputs": {"out": {"kind": "score", "bands": classes}}, **keys}
    net = small_unet(2, classes, scores=True)
    return make_kernel(net, bands=2, radius=SMALL_UNET_RADIUS, stride=SMALL_UNET_STRIDE, **keys)


# --- cut equals one big pass (pains 11 and 12: the halo is real neighbours, never a mirrored tile edge) ---


@pytest.mark.parametrize("tile", [48, 64, 112])
@pytest.mark.parametrize("boundary", ["reflect", "fill"])
def test_cut_equals_one_big_pass(tile: int, boundary: str) -> None:
    array = with_holes(image(*PRIME))
    kernel = blur()
    job = job_of(kernel, ArraySource(array), tile=tile, shard=96, boundary=boundary)
    found, _ = run_job(job)
    expected = one_pass(kernel, array, pad=16, boundary=boundary)
    holes = np.isnan(array[0, 0])
    assert np.abs(np.where(holes, 0, found["out"][0] - expected[0])).max() <= 8e-6
    assert np.isnan(found["out"][0][holes]).all()
    assert (found["reason"] == np.where(holes, Reason.NODATA, Reason.VALID)).all()


@pytest.mark.parametrize("tile", [72, 96, 136])
@pytest.mark.parametrize("boundary", ["reflect", "fill"])
def test_cut_of_a_strided_network_equals_one_big_pass(tile: int, boundary: str) -> None:
    array = with_holes(image(*PRIME, bands=2))
    kernel = unet(3)
    job = job_of(kernel, ArraySource(array), tile=tile, shard=64, boundary=boundary)
    assert (job.tiling.halo, job.tiling.tile) == (32, tile)
    found, _ = run_job(job)
    expected = one_pass(kernel, array, pad=32, boundary=boundary, multiple=8)
    ok = np.isfinite(array).all(axis=(0, 1))
    assert np.abs(found["out"] - expected)[:, ok].max() <= 1e-6


def test_a_halo_of_mirrored_pixels_would_be_found() -> None:
    """The reference can fail: with the halo one pixel short, the result leaves the bound by far."""
    array = image(*PRIME)
    short = make_kernel(gaussian33, radius=15, outputs={"out": {"kind": "value"}})
    found, _ = run_job(job_of(short, ArraySource(array), tile=64, shard=96))
    assert np.abs(found["out"] - one_pass(blur(), array, pad=16)).max() > 1e-3


@pytest.mark.parametrize(
    ("rule", "where"),
    [("all", "both dates"), ("any", "one date"), ("own", "one date")],
)
def test_valid_rules(rule: str, where: str) -> None:
    array = image(61, 53, dates=2)
    array[0, 0, 10:20] = np.nan
    array[1, 0, 15:30] = np.nan
    kernel = make_kernel(
        lambda x: x.sum(dim=1), dates=2, outputs={"out": {"kind": "value", "valid_rule": rule}}
    )
    found, _ = run_job(job_of(kernel, ArraySource(array), tile=32))
    lost = range(10, 30) if where == "both dates" else range(15, 20)
    assert set(np.flatnonzero(found["reason"].any(axis=1))) == set(lost)
    assert (np.isnan(found["out"][0]) == (found["reason"] != 0)).all()
    ok = found["reason"] == 0
    assert (found["out"][0] == np.nansum(array, axis=0, dtype=np.float32)[0])[ok].all()


def test_own_rule_takes_the_kernels_nan_for_nodata() -> None:
    array = np.abs(image(40, 40))
    kernel = make_kernel(
        lambda x: torch.where(x > 1, float("nan"), x), outputs={"out": {"kind": "value", "valid_rule": "own"}}
    )
    found, _ = run_job(job_of(kernel, ArraySource(array), tile=32))
    assert ((found["reason"] == Reason.NODATA) == (array[0, 0] > 1)).all()


# --- the same bits however it ran (promise 3) ---


def _kernels() -> dict[str, Kernel]:
    return {"blur": blur(), "unet": unet(2)}


@pytest.mark.parametrize("name", ["blur", "unet"])
@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_shard_size_and_resume_change_no_bit(name: str, stitch: str) -> None:
    kernel = _kernels()[name]
    source = ArraySource(with_holes(image(*PRIME, bands=2 if name == "unet" else 1)))
    tile = 64 if name == "blur" else 112
    jobs = [job_of(kernel, source, tile=tile, shard=s, stitch=stitch, batch=2) for s in (1, 96, 1000)]
    assert len({j.tiling.shard for j in jobs}) == 3
    first, engines = run_job(jobs[0])
    for job in jobs[1:]:
        found, again = run_job(job)
        assert same(found, first)
        assert [s.summary() for s in again[0].seams.values()] == [
            s.summary() for s in engines[0].seams.values()
        ]
    # A crash after the fifth shard, and a resume; and every shard on its own, as a lazy cube computes it.
    shards = shards_of(jobs[0])
    assert len(shards) > 5
    for groups in ([shards[:5], shards[5:]], [[s] for s in shards]):
        found, parts = run_job(jobs[0], groups)
        assert same(found, first)
        assert (sum(e.counters.recomputed for e in parts) > 0) == (stitch == "blend")


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_scattered_shards_in_any_order_of_engines_change_no_bit(stitch: str) -> None:
    job = job_of(blur(), ArraySource(with_holes(image(*PRIME))), tile=64, shard=1, stitch=stitch)
    first, _ = run_job(job)
    shards = shards_of(job)
    even, odd = shards[::2], shards[1::2]
    assert same(run_job(job, [odd, even])[0], first)


def test_an_engine_told_to_blend_out_of_order_refuses() -> None:
    """Margins travel to higher rows and columns; the other way round they would silently be lost."""
    job = job_of(blur(), ArraySource(image(*PRIME)), tile=64, shard=1, stitch="blend")
    shards = shards_of(job)
    with pytest.raises(GridError, match="order"):
        list(Engine(job, shards).run(shards[::-1]))


def test_cutting_works_in_any_order() -> None:
    job = job_of(blur(), ArraySource(image(*PRIME)), tile=64, shard=1)
    first, _ = run_job(job)
    shards = shards_of(job)
    assert same(assemble(job, Engine(job, shards[::-1]).run(shards[::-1])), first)


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_companions_in_the_batch_change_no_bit(stitch: str) -> None:
    array = image(96, 192)
    other = array.copy()
    other[..., 128:] = np.nan  # other neighbours in the batch, and fewer of them
    jobs = [
        job_of(blur(), ArraySource(a), tile=48, shard=192, stitch=stitch, batch=5) for a in (array, other)
    ]
    a, b = (run_job(job)[0]["out"] for job in jobs)
    assert a[..., :96].tobytes() == b[..., :96].tobytes()


def test_batches_always_have_the_same_shape() -> None:
    seen: list[tuple[int, ...]] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    job = job_of(make_kernel(watch), ArraySource(image(100, 70)), tile=32, shard=64, batch=5)
    _, (engine,) = run_job(job)
    assert set(seen) == {(5, 1, 32, 32)}
    assert engine.counters.batches == len(seen)
    assert engine.counters.pixels == len(seen) * 5 * 32 * 32
    assert engine.counters.tiles == 4 * 3


# --- blend ---


def minus_mean(x: torch.Tensor) -> torch.Tensor:
    """Global context: every pixel depends on the whole tile."""
    return x - x.mean(dim=(2, 3), keepdim=True)


def _global_kernel(span: tuple[float, float] | None = (-8, 8)) -> Kernel:
    return make_kernel(minus_mean, radius=None, outputs={"out": {"kind": "value", "range": span}})


def _twin(job: Job, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blend in float64, pixel by pixel of every tile: weighted mean, and the spread of the predictions."""
    t, (rows, cols) = job.tiling, job.grid.shape
    big = np.pad(array[0, 0], t.tile, mode="reflect")
    ok = np.pad(np.isfinite(array[0, 0]), t.tile, mode="reflect")
    total, weight = np.zeros((rows, cols)), np.zeros((rows, cols))
    low, high = np.full((rows, cols), np.inf), np.full((rows, cols), -np.inf)

    def taper(k: int, n: int) -> np.ndarray:
        """Linear ramps over the overlap with a neighbour, in 32 steps as the engine has them."""
        start, count = k * t.core, max(1, -(-(n - t.overlap) // t.core))
        stop = min(start + t.core + t.overlap, n)
        up = [min(max(np.floor(32 * (i + 0.5) / t.overlap + 0.5), 1), 31) for i in range(t.overlap)]
        w = []
        for p in range(start, stop):
            if k > 0 and p - start < t.overlap:
                w.append(up[p - start])
            elif k < count - 1 and p - start >= t.core:
                w.append(32 - up[p - start - t.core])
            else:
                w.append(32)
        return np.array(w)

    for r in range(-(-max(1, rows - t.overlap) // t.core)):
        for c in range(-(-max(1, cols - t.overlap) // t.core)):
            top, left = r * t.core - t.lead + t.tile, c * t.core - t.lead + t.tile
            see = (slice(top, top + t.tile), slice(left, left + t.tile))
            x = torch.from_numpy(np.where(ok[see], big[see], 0).astype(np.float32))[None, None]
            y = minus_mean(x)[0, 0].double().numpy()
            wr, wc = taper(r, rows), taper(c, cols)
            at = (slice(r * t.core, r * t.core + len(wr)), slice(c * t.core, c * t.core + len(wc)))
            y = y[t.lead : t.lead + len(wr), t.lead : t.lead + len(wc)]
            good = np.isfinite(array[0, 0][at])
            w = wr[:, None] * wc[None, :] * good
            total[at] += w * y
            weight[at] += w
            low[at] = np.where(good, np.minimum(low[at], y), low[at])
            high[at] = np.where(good, np.maximum(high[at], y), high[at])
    with np.errstate(invalid="ignore"):
        return total / weight, high - low


def test_blend_equals_its_slow_twin_in_float64() -> None:
    array = with_holes(image(131, 97))
    job = job_of(_global_kernel(), ArraySource(array), tile=48, shard=96)
    assert job.settings.stitch == "blend"
    found, (engine,) = run_job(job)
    expected, spread = _twin(job, array)
    assert np.array_equal(np.isnan(found["out"][0]), np.isnan(expected))
    assert np.nanmax(np.abs(found["out"][0] - expected)) <= 16 * 2**-19
    seam = engine.seams["out"].summary()
    overlap = spread[np.isfinite(expected) & (spread > 0)]
    assert seam["max"] == pytest.approx(overlap.max(), abs=16 * 2**-19)
    assert seam["mean"] == pytest.approx(overlap.mean(), abs=16 * 2**-19)
    assert seam["p99"] == pytest.approx(np.quantile(overlap, 0.99), abs=16 / 4096 * 1.5)
    assert seam["pixels"] == overlap.size
    assert seam["mean"] > 0.01


def test_blending_a_kernel_with_a_radius_finds_no_seam_and_equals_cutting() -> None:
    array = with_holes(image(*PRIME))
    kernel = blur()
    cut, _ = run_job(job_of(kernel, ArraySource(array), tile=64, stitch="cut"))
    found, (engine,) = run_job(job_of(kernel, ArraySource(array), tile=64, stitch="blend"))
    assert np.array_equal(np.isnan(found["out"]), np.isnan(cut["out"]))
    assert np.nanmax(np.abs(found["out"] - cut["out"])) <= 8 * 2**-19
    assert engine.seams["out"].summary()["max"] <= 8 * 2**-19


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_a_constant_stays_constant(stitch: str) -> None:
    """Weights sum to one everywhere: no grid of tiles shines through."""
    kernel = make_kernel(
        lambda x: torch.full_like(x, 0.375), outputs={"out": {"kind": "score"}}, radius=4, scale=1
    )
    found, _ = run_job(job_of(kernel, ArraySource(image(131, 97)), tile=48, stitch=stitch))
    assert (found["out"] == np.float32(0.375)).all()


def test_values_outside_the_range_raise_or_are_counted() -> None:
    array = image(64, 64) * 0
    array[0, 0, 3, 4:7] = 100
    kernel = make_kernel(lambda x: x, outputs={"out": {"kind": "value", "range": (0, 1)}}, radius=0)
    source = ArraySource(array)
    with pytest.raises(KernelError, match=r"3 values lie outside of the declared range 0\.\.1"):
        run_job(job_of(kernel, source, tile=32, stitch="blend"))
    found, (engine,) = run_job(job_of(kernel, source, tile=32, stitch="blend", allow_clipping=True))
    assert engine.counters.bad == {"out": 3}
    assert (found["out"][0, 3, 4:7] == 1).all()


def test_an_output_without_a_range_is_not_blended() -> None:
    with pytest.raises(KernelError, match="without a range"):
        job_of(_global_kernel(None), ArraySource(image(64, 64)))


# --- dates, inputs, scales ---


def test_dates_and_inputs_and_their_normalisation() -> None:
    generator = np.random.default_rng(3)
    a = generator.normal(5, 2, (3, 2, 67, 59)).astype(np.float32)
    b = generator.normal(0, 1, (1, 1, 67, 59)).astype(np.float32)
    b[..., 5, :] = np.nan
    mean = ((1, 2), (3, 4), (5, 6))
    std = ((1, 2), (2, 1), (4, 3))

    def forward(stack: torch.Tensor, dem: torch.Tensor, valid: dict, context: Context) -> dict:
        assert stack.shape[1:3] == (3, 2)
        assert dem.shape[1:3] == (1, 1)
        assert valid["dem"].dtype == torch.bool
        assert valid["dem"].shape == (*dem.shape[:2], 1, *dem.shape[3:])
        assert (dem[~valid["dem"]] == -7).all()
        return {"flat": stack.flatten(1, 2), "sum": stack.sum(dim=(1, 2)) + dem[:, 0, 0]}

    kernel = make_kernel(
        forward,
        inputs={
            "stack": {"dates": "2-3", "bands": 2, "mean": mean, "std": std},
            "dem": {"fill": -7},
        },
        outputs={"sum": {"kind": "value"}, "flat": {"kind": "value", "bands": 6, "valid_rule": "any"}},
    )
    found, _ = run_job(job_of(kernel, ArraySource({"dem": b, "stack": a}), tile=32, shard=64))
    normal = (a - np.float32(mean)[..., None, None]) / np.float32(std)[..., None, None]
    assert np.allclose(found["flat"], normal.reshape(6, 67, 59), atol=1e-6)
    assert np.isnan(found["sum"][0, 5]).all()
    ok = np.isfinite(b[0, 0])
    assert np.allclose(found["sum"][0][ok], (normal.sum(axis=(0, 1)) + b[0, 0])[ok], atol=1e-5)


def test_bands_are_found_by_name() -> None:
    array = image(40, 40, bands=3)
    source = ArraySource(array, bands=("nir", "red", "blue"))
    found, _ = run_job(job_of(make_kernel(lambda x: x[:, :1] - x[:, 1:], bands=("red", "nir")), source))
    assert (found["out"][0] == array[0, 1] - array[0, 0]).all()


def nearest(x: torch.Tensor, scale: int) -> torch.Tensor:
    """Repeat every pixel ``scale`` times along both axes."""
    return x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_a_finer_output_lies_on_its_input(scale: int, stitch: str) -> None:
    array = with_holes(image(71, 53))
    kernel = make_kernel(
        lambda x: nearest(x, scale),
        scale=scale,
        radius=3,
        outputs={"out": {"kind": "value", "range": (-8, 8)}},
    )
    results = []
    for shard in (1, 1000):
        job = job_of(kernel, ArraySource(array), tile=32, shard=shard, stitch=stitch)
        assert job.output_grid.shape == (71 * scale, 53 * scale)
        assert job.output_grid.resolution == pytest.approx(10 / scale)
        results.append(run_job(job)[0])
    found = results[0]
    assert same(*results)
    expected = array[0, 0].repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(np.isnan(found["out"][0]), np.isnan(expected))
    assert np.nanmax(np.abs(found["out"][0] - expected)) <= (0 if stitch == "cut" else 16 * 2**-19)
    assert (found["reason"] == np.isnan(expected)).all()


@pytest.mark.parametrize("scale", [2, 3])
def test_pixel_shuffle_equals_one_big_pass(scale: int) -> None:
    generator = torch.Generator().manual_seed(scale)
    weight = torch.randn(scale**2, 1, 5, 5, generator=generator) / 5

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(x, weight, padding=2), scale)

    array = image(71, 53)
    kernel = make_kernel(forward, scale=scale, radius=2)
    found, _ = run_job(job_of(kernel, ArraySource(array), tile=24, shard=48))
    assert np.abs(found["out"] - one_pass(kernel, array, pad=2)).max() <= 1e-6 * np.ptp(array)


# --- classes, thresholds, quantised scores ---


def test_a_hundred_classes_leave_the_engine_as_one_byte() -> None:
    """The planes of classes are reduced a core at a time (pain 8): memory does not grow with their number."""
    import tracemalloc

    names = tuple(f"class {i}" for i in range(100))
    weight = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(100, generator=torch.Generator().manual_seed(1))

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,nchw->nkhw", weight, x) + bias[:, None, None]

    array = with_holes(image(320, 320))
    kernel = make_kernel(forward, outputs={"out": {"kind": "class", "classes": names}})
    job = job_of(kernel, ArraySource(array), tile=64, shard=320, batch=1)
    tracemalloc.start()
    found, _ = run_job(job)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["out"].dtype == np.uint8
    assert found["out"].shape == (1, 320, 320)
    expected = one_pass(kernel, array, pad=0).argmax(axis=0)
    ok = np.isfinite(array[0, 0])
    assert (found["out"][0][ok] == expected[ok]).all()
    assert (found["out"][0][~ok] == 255).all()
    assert peak < 320 * 320 * 4 * 40  # the planes of a hundred classes alone would be 100 x 320 x 320 x 4


def test_threshold_and_quantised_scores() -> None:
    array = image(50, 50)
    array[0, 0, 7] = np.nan

    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        score = torch.sigmoid(x)
        return score, score, score

    kernel = make_kernel(
        forward,
        outputs={
            "mask": {"kind": "class", "threshold": 0.5, "classes": ("no", "yes")},
            "byte": {"kind": "score", "dtype": "uint8"},
            "short": {"kind": "score", "dtype": "int16", "range": (-1, 1)},
        },
    )
    found, _ = run_job(job_of(kernel, ArraySource(array), tile=32))
    score = 1 / (1 + np.exp(-array[0, 0].astype(np.float64)))
    ok = np.isfinite(score)
    assert {n: str(found[n].dtype) for n in kernel.spec.outputs} == {
        "mask": "uint8",
        "byte": "uint8",
        "short": "int16",
    }
    assert (found["mask"][0][ok] == (array[0, 0][ok] >= 0)).all()
    assert np.abs(found["byte"][0][ok] / 254 - score[ok]).max() <= 0.5 / 254 + 1e-6
    steps = 65534  # all int16 but the nodata mark
    assert np.abs((found["short"][0][ok] + 32767.0) / steps * 2 - 1 - score[ok]).max() <= 1 / steps + 1e-6
    assert all(
        (found[n][0][~ok] == mark).all() for n, mark in (("mask", 255), ("byte", 255), ("short", -32768))
    )


def test_a_wrong_number_of_channels_or_shape_is_one_line() -> None:
    source = ArraySource(image(40, 40))
    for function, message in (
        (lambda x: x.repeat(1, 3, 1, 1), "3 channels, expected 1"),
        (lambda x: x[:, :, 1:], "expected"),
    ):
        with pytest.raises(KernelError, match=message) as caught:
            run_job(job_of(make_kernel(function), source, tile=32))
        assert "\n" not in str(caught.value)


# --- regions, holes, and tiny rasters ---


class Calls:
    """A kernel's function that counts real tiles by what they hold: a filler is a repeat of the last one."""

    def __init__(self) -> None:
        self.origins: set[tuple[int, int]] = set()

    def __call__(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        self.origins |= {(int(r), int(c)) for r, c in context.origin}
        return x


def test_tiles_without_a_wanted_pixel_never_reach_the_kernel() -> None:
    import shapely
    from affine import Affine
    from odc.geo.geobox import GeoBox

    box = GeoBox((160, 160), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
    triangle = shapely.Polygon([(500_000, 5_000_000), (501_005, 5_000_000), (500_000, 4_998_995)])
    array = image(160, 160)
    array[..., :32, :32] = np.nan
    calls = Calls()
    kernel = make_kernel(calls, radius=0)
    job = job_of(kernel, ArraySource(array, grid=Grid(box, triangle)), tile=16, shard=64, batch=4)
    results = list(Engine(job, shards_of(job)).run(shards_of(job)))
    found = assemble(job, results)
    rows, cols = np.mgrid[:160, :160]
    inside = (cols + 0.5) + (rows + 0.5) <= 100.5
    nodata = inside & np.isnan(array[0, 0])
    expected = np.where(inside, np.where(nodata, Reason.NODATA, Reason.VALID), Reason.OUTSIDE)
    assert (found["reason"] == expected).all()
    assert np.array_equal(np.isfinite(found["out"][0]), expected == Reason.VALID)
    wanted = {
        (r, c)
        for r in range(0, 160, 16)
        for c in range(0, 160, 16)
        if (expected[r : r + 16, c : c + 16] == Reason.VALID).any()
    }
    assert calls.origins == wanted
    assert sum(r.tiles for r in results) == sum(r.tiles_needed for r in results) == len(wanted)
    counts = sum(np.bincount(r.reason.ravel(), minlength=6) for r in results)
    assert counts.sum() == 160 * 160
    outside = [r for r in results if (r.reason == Reason.OUTSIDE).all()]
    assert outside
    assert all(r.bytes_read == 0 for r in outside)


def test_reasons_of_the_source_come_through_and_the_worst_date_wins() -> None:
    array = image(40, 40, dates=2)
    why = np.zeros((2, 1, 40, 40), dtype=np.uint8)
    why[0, 0, :10] = Reason.CLOUD
    why[1, 0, 5:15] = Reason.NO_SCENE
    why[1, 0, 20] = Reason.READ_ERROR
    kernel = make_kernel(lambda x: x.sum(dim=1), dates=2)
    found, _ = run_job(job_of(kernel, ArraySource(array, reason=why), tile=32))
    expected = np.zeros((40, 40), dtype=np.uint8)
    expected[:10], expected[10:15], expected[20] = Reason.CLOUD, Reason.NO_SCENE, Reason.READ_ERROR
    assert (found["reason"] == expected).all()


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_a_raster_of_nodata_alone(stitch: str) -> None:
    calls = Calls()
    kernel = make_kernel(calls, radius=5, outputs={"out": {"kind": "value", "range": (-9, 9)}})
    array = np.full((1, 1, 70, 50), np.nan, dtype=np.float32)
    found, (engine,) = run_job(job_of(kernel, ArraySource(array), tile=32, stitch=stitch))
    assert not calls.origins
    assert engine.counters.batches == 0
    assert np.isnan(found["out"]).all()
    assert (found["reason"] == Reason.NODATA).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (9, 12), (17, 16), (33, 200)])
@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_rasters_smaller_than_the_halo(shape: tuple[int, int], stitch: str) -> None:
    """Beyond a short axis the boundary is mirrored several times, as numpy.pad does."""
    array = image(*shape)
    kernel = blur()
    for wishes in ({}, {"tile": 48}):
        job = job_of(kernel, ArraySource(array), stitch=stitch, **wishes)
        found, _ = run_job(job)
        bound = 8e-6 if stitch == "cut" else 8e-6 + 8 * 2**-19
        assert np.abs(found["out"] - one_pass(kernel, array, pad=16)).max() <= bound


# --- context ---


def test_origin_is_the_global_pixel() -> None:
    def where(x: torch.Tensor, context: Context) -> torch.Tensor:
        rows = context.origin[:, 0, None, None] + torch.arange(x.shape[2])[:, None]
        cols = context.origin[:, 1, None, None] + torch.arange(x.shape[3])
        return torch.stack([rows + 0 * cols, cols + 0 * rows], dim=1).float()

    kernel = make_kernel(where, radius=5, outputs={"out": {"kind": "value", "bands": 2}})
    found, _ = run_job(job_of(kernel, ArraySource(image(97, 53)), tile=32, shard=64))
    assert (found["out"] == np.mgrid[:97, :53]).all()


def noisy(x: torch.Tensor, context: Context) -> torch.Tensor:
    """Add noise that belongs to the ground."""
    return x + context.noise(*x.shape[-2:], channels=x.shape[1])


def test_noise_is_tied_to_the_ground() -> None:
    array = image(97, 53, bands=2)
    kernel = make_kernel(noisy, bands=2, radius=4, seed=7, outputs={"out": {"kind": "value", "bands": 2}})
    whole = one_pass(kernel, array, pad=4)
    for tile, shard in ((32, 1), (32, 500), (48, 64)):
        found, _ = run_job(job_of(kernel, ArraySource(array), tile=tile, shard=shard, batch=3))
        assert found["out"].tobytes() == np.ascontiguousarray(whole).tobytes()
    other = make_kernel(noisy, bands=2, radius=4, seed=8, outputs={"out": {"kind": "value", "bands": 2}})
    found, _ = run_job(job_of(other, ArraySource(array), tile=32))
    assert np.abs(found["out"] - whole).max() > 1
    drawn = whole - array[0]
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05


def test_times_lonlat_and_resolution() -> None:
    from pyproj import Transformer

    seen: list[Context] = []

    def watch(x: torch.Tensor, context: Context) -> torch.Tensor:
        seen.append(context)
        return x.sum(dim=1)

    source = ArraySource(image(64, 64, dates=2))
    run_job(job_of(make_kernel(watch, dates=2), source, tile=32, batch=4))
    (context,) = seen
    days = context.times.numpy().astype("datetime64[ns]").astype("datetime64[D]")
    assert (days == np.array(["2024-01-01", "2024-01-13"], dtype="datetime64[D]")).all()
    assert context.resolution == 10
    lon, lat = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(500_160, 4_999_840)
    assert context.lonlat[0].tolist() == pytest.approx([lon, lat], abs=1e-9)
    assert context.lonlat[1, 0] > context.lonlat[0, 0]
    assert context.lonlat[2, 1] < context.lonlat[0, 1]


# --- margins that travel between engines ---


def test_margins_travel_between_engines_so_that_no_tile_is_computed_twice() -> None:
    """Shards dealt out to three engines along anti-diagonals: the bits and the work of a single one."""
    array = with_holes(image(210, 170))
    job = job_of(_global_kernel(), ArraySource(array), tile=48, shard=1)
    first, (one,) = run_job(job)
    shards = shards_of(job)
    everyone = {s.index for s in shards}
    engines = [Engine(job, [s for k, s in enumerate(shards) if k % 3 == n], everyone) for n in range(3)]
    mail: list[Travelling] = []
    results = []
    for shard in sorted(shards, key=lambda s: (sum(s.index), s.index)):
        engine = engines[shards.index(shard) % 3]
        engine.receive(m for m in mail if m.target == shard.index)
        results += engine.run([shard])
        mail, engine.outgoing = mail + engine.outgoing, []
    assert same(assemble(job, results), first)
    assert sum(e.counters.recomputed for e in engines) == 0
    assert sum(e.counters.tiles for e in engines) == one.counters.tiles


def test_margins_beyond_the_bound_wait_in_files_that_leave_nothing_behind(tmp_path: Path) -> None:
    job = job_of(_global_kernel(), ArraySource(with_holes(image(210, 170))), tile=48, shard=1)
    first, _ = run_job(job)
    engine = Engine(job, shards_of(job), scratch=tmp_path)
    engine._margins = MarginStore(tmp_path, limit=3000)
    assert same(assemble(job, engine.run(shards_of(job))), first)
    assert engine._margins.held == 0
    assert not list(tmp_path.iterdir())


def test_a_margin_store_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    store = MarginStore(tmp_path, limit=4 * 4 * 4 * 3)
    given = [
        Travelling(
            (0, k), "out", Margins(Window(0, 4, 4 * k, 4 * k + 4), *np.full((4, 4, 4), k, np.int32)[:, None])
        )
        for k in range(5)
    ]
    store.leave(given)
    assert store.held <= 4 * 4 * 4 * 3
    for k in range(5):
        ((name, margins),) = store.take((0, k))
        assert name == "out"
        assert margins.window == given[k].margins.window
        assert (margins.total == k).all()
        assert (margins.high == k).all()
    assert store.take((0, 0)) == []


# --- memory that is too small ---


class Tight:
    """A forward for which more than so many tiles at a time are too many."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.error, self.calls = most, error, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x))
        if len(x) > self.most:
            raise self.error("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return gaussian33(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(error: type[Exception], stitch: str) -> None:
    source = ArraySource(with_holes(image(*PRIME)))
    outputs = {"out": {"kind": "value", "range": (-4, 4)}}
    roomy, tight = (make_kernel(Tight(n, error), radius=16, outputs=outputs) for n in (9, 2))
    expected, _ = run_job(job_of(roomy, source, tile=64, batch=5, stitch=stitch))
    side_by_side, _ = run_job(job_of(tight, source, tile=64, batch=5, stitch=stitch, cores=3))
    assert same(side_by_side, expected)
    tight.function.calls.clear()
    found, (engine,) = run_job(job_of(tight, source, tile=64, batch=5, stitch=stitch, cores=1))
    assert same(found, expected)
    assert engine.forward.size == 2
    calls = tight.function.calls
    assert calls[:2] == [5, 3]
    assert set(calls[2:]) == {2}


def test_a_tile_that_does_not_fit_says_so() -> None:
    job = job_of(make_kernel(Tight(0), radius=16), ArraySource(image(*PRIME)), tile=64, batch=4)
    with pytest.raises(KernelError, match=r"a single tile does not fit .* smaller --tile"):
        run_job(job)


def test_what_a_forward_raises_in_the_middle_names_its_line() -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if float(x.max()) > 50:
            raise ValueError("too bright\nand more")
        return x

    array = image(64, 64)
    array[0, 0, 60, 60] = 99
    job = job_of(make_kernel(picky), ArraySource(array), tile=16, batch=1)
    with pytest.raises(
        KernelError, match=r"its forward raises ValueError: too bright \(test_engine.py, line"
    ):
        run_job(job)


# --- streaming ---


def test_no_window_holds_the_whole_raster_and_no_pixel_is_read_much_more_than_once() -> None:
    """Pains 1 and 7: windows are the shard and its halo; three of them are alive at a time, never more."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    class Watched(ArraySource):
        def read(self, window: Window) -> Block:
            nonlocal most
            block = super().read(window)
            data = {name: values.copy() for name, values in block.data.items()}
            alive.append(weakref.ref(next(iter(data.values()))))
            most = max(most, sum(ref() is not None for ref in alive))
            return replace(block, data=data)

    source = Watched(image(480, 480))
    job = job_of(blur(), source, tile=64, shard=96, batch=2)
    engine = Engine(job, shards_of(job))
    for count, _ in enumerate(engine.run(shards_of(job)), start=1):
        assert len(source.reads) <= count + 5
    assert count == 25
    assert most <= 3  # being cut, read, being read
    largest = max(w.size for w in source.reads)
    assert largest <= (96 + 2 * 16) ** 2
    assert len(source.reads) == 25
    assert sum(w.size for w in source.reads) <= 480**2 * (128 / 96) ** 2


def test_an_error_of_the_source_is_raised_in_its_place() -> None:
    from tilewright.errors import ReadError

    class Broken(ArraySource):
        def read(self, window):
            if window.row0 > 100:
                raise ReadError("gone", place="file")
            return super().read(window)

    job = job_of(make_kernel(lambda x: x), Broken(image(200, 64)), tile=32, shard=64, batch=4)
    engine = Engine(job, shards_of(job))
    results = engine.run(shards_of(job))
    assert [next(results).shard.index for _ in range(2)] == [(0, 0), (1, 0)]
    with pytest.raises(ReadError, match="gone"):
        next(results)


def test_a_band_that_nobody_asked_for_masks_nothing(tmp_path: Path) -> None:
    """A file of three bands, a kernel of one: nodata in the others is not its business."""
    from scenes import write_scene

    from tilewright.pipeline.arrays import DataArraySource
    from tilewright.pipeline.rasters import RasterSource

    values = np.arange(1, 1 + 3 * 20 * 30, dtype=np.uint16).reshape(3, 20, 30)
    values[0, :5], values[2, 10:] = 0, 0
    path = write_scene(tmp_path / "three.tif", values, nodata=0)
    kernel = make_kernel(lambda x: x, bands=["b"])
    files = RasterSource([path], bands=["a", "b", "c"])
    import rioxarray

    array = rioxarray.open_rasterio(path).assign_coords(band=["a", "b", "c"])
    for source in (files, DataArraySource(array)):
        arrays, _ = run_job(job_of(kernel, source))
        assert (arrays["reason"] == Reason.VALID).all()
        np.testing.assert_array_equal(arrays["out"].squeeze(), values[1].astype(np.float32))
