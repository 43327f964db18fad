"""Kernels over series of dates: options, masks, errors, planted changes, and what does not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import KernelError
from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.series.regression import Sums, design, lasso, least_squares
from tilewright.kernels.series.sar_optical import fuse
from tilewright.testing import check_kernel

DAY = 86_400 * 10**9
Found = dict[str, np.ndarray]


def context(days: np.ndarray | None = None, lonlat: tuple[float, float] = (11.0, 47.0)) -> Context:
    times = torch.zeros(1, 1000, dtype=torch.int64)
    if days is not None:
        times = torch.from_numpy((np.asarray(days, float) * DAY).astype(np.int64))[None]
    place = torch.tensor([lonlat], dtype=torch.float64)
    return Context(torch.zeros(1, 2, dtype=torch.int64), times, place, 10.0)


def run(kernel: Kernel, *stacks: np.ndarray, days: np.ndarray | None = None) -> Found:
    """Map stacks ``[T, C, H, W]``, NaN where nothing was observed; each output ``[C, H, W]``."""
    inputs, valid = {}, {}
    for name, stack in zip(kernel.spec.inputs, stacks, strict=True):
        seen = np.isfinite(stack).all(axis=1, keepdims=True)
        filled = np.where(np.isfinite(stack), stack, kernel.spec.inputs[name].fill)
        inputs[name] = torch.from_numpy(filled.astype(np.float32))[None]
        valid[name] = torch.from_numpy(seen)[None]
    out = kernel.apply(inputs, valid, context(days))
    return {name: values[0].numpy() for name, values in out.items()}


def speckle(rng: np.random.Generator, shape: tuple[int, ...], looks: float) -> np.ndarray:
    """Power of mean 0.1."""
    return 0.1 * rng.gamma(looks, 1 / looks, shape)


# --- omnibus ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "bands", "looks"), [(2, "vv", 4.4), (7, "vv,vh", 4.4), (15, "vv,vh", 12.0)]
)
def test_false_alarms_of_the_omnibus_are_alpha(dates: int, bands: str, looks: float) -> None:
    """40,000 unchanged pixels: the share called changed is alpha within four standard errors, at three levels."""
    rng, count = np.random.default_rng(dates), len(bands.split(","))
    stack = speckle(rng, (dates, count, 200, 200), looks)
    p = run(load_kernel("omnibus", looks=looks, bands=bands), stack)["pvalue"][0]
    for alpha in (0.01, 0.05, 0.5):
        share = float((p < alpha).mean())
        assert abs(share - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / p.size), (alpha, share)


def test_every_band_may_have_looks_of_its_own() -> None:
    """False alarms are alpha where each band has its own speckle; equal numbers are one number."""
    rng = np.random.default_rng(9)
    stack = np.concatenate([speckle(rng, (8, 1, 200, 200), looks) for looks in (18, 4.3)], axis=1)
    p = run(load_kernel("omnibus", looks="18,4.3"), stack)["pvalue"][0]
    assert abs(float((p < 0.05).mean()) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / p.size)
    one, two = (run(load_kernel("omnibus", looks=looks), stack[..., :9, :9]) for looks in (6.0, "6,6"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("step", [2, 5, 8])
def test_the_omnibus_finds_a_step_where_it_is(step: int) -> None:
    """Ten dates of 60 looks, 6 dB more from date ``step`` on."""
    stack = speckle(np.random.default_rng(step), (10, 2, 40, 40), 60)
    stack[step - 1 :] *= 4
    found = run(load_kernel("omnibus", looks=60.0, alpha=1e-4), stack)
    assert (found["change"] == 1).all()
    assert (found["score"] > 0.9999).all()
    assert (found["first"] == step).mean() > 0.99
    assert (found["changes"] == 1).mean() > 0.99


def test_the_omnibus_counts_changes() -> None:
    stack = speckle(np.random.default_rng(0), (12, 2, 30, 30), 60)
    stack[3:7] *= 4
    stack[10:] *= 5
    found = run(load_kernel("omnibus", looks=60.0, alpha=1e-4), stack)
    assert (found["changes"] == 3).mean() > 0.98
    assert (found["first"] == 4).mean() > 0.99


def test_the_omnibus_leaves_out_what_was_not_observed() -> None:
    """A pixel with gaps is the pixel of its own dates; below two there is nothing; numbers are those of the stack."""
    rng = np.random.default_rng(4)
    short = speckle(rng, (5, 2, 6, 6), 20)
    short[3:] *= 8
    stack = np.full((8, 2, 6, 6), np.nan)
    dates = [0, 2, 3, 6, 7]
    stack[dates] = short
    stack[1, 0] = 0.3  # one polarisation alone does not count
    stack[4] = 0  # nor does no power
    kernel = load_kernel("omnibus", looks=20.0)
    full, gaps = run(kernel, short), run(kernel, stack)
    for name in ("pvalue", "change", "changes"):
        np.testing.assert_array_equal(gaps[name], full[name])
    numbers = np.array([0, *(date + 1 for date in dates)])
    np.testing.assert_array_equal(gaps["first"], numbers[full["first"].astype(int)])
    assert (gaps["first"] == 7).mean() > 0.9
    stack[2:] = np.nan
    assert all(np.isnan(values).all() for values in run(kernel, stack).values())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(1e-4, 1e3))
def test_the_omnibus_has_no_units(seed: int, dates: int, gain: float) -> None:
    """The test does not change where all powers are multiplied, or where dates change their order."""
    rng = np.random.default_rng(seed)
    stack = speckle(rng, (dates, 2, 3, 3), 5).astype(np.float32).astype(float)
    kernel = load_kernel("omnibus", looks=5.0)
    p = run(kernel, stack)["pvalue"]
    np.testing.assert_allclose(run(kernel, stack * gain)["pvalue"], p, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(run(kernel, rng.permutation(stack))["pvalue"], p, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["omnibus", "log-ratio"])
def test_decibels_are_refused(name: str) -> None:
    with pytest.raises(KernelError, match="no linear power"):
        run(load_kernel(name), np.full((2, 2, 2, 2), -12.0))


# --- log-ratio ----------------------------------------------------------------------------------------------


def test_log_ratio_is_that_of_the_ends() -> None:
    stack = np.array([0.1, 0.3, 5.0, 0.02, 0.06])[:, None, None, None] * np.ones((1, 2, 1, 2))
    stack[:, 1] = 0.1
    stack[1, :, 0, 1] = np.nan
    found = run(load_kernel("log-ratio", ends=2, threshold=5.0), stack)
    want = 10 * np.log10([0.2 / 0.04, 0.1 / 0.04])
    np.testing.assert_allclose(found["ratio"][0, 0], want, rtol=1e-6)
    np.testing.assert_array_equal(found["ratio"][1], 0)
    assert found["change"][0, 0].tolist() == [1, 0]
    signed = run(load_kernel("log-ratio", ends=2, signed=True), stack)
    np.testing.assert_allclose(signed["ratio"][0, 0], -want, rtol=1e-6)
    assert signed["change"][0, 0].tolist() == [1, 1]


def test_log_ratio_without_an_end_is_nothing() -> None:
    stack = np.full((4, 2, 1, 2), 0.1)
    stack[3, :, 0, 0] = np.nan
    found = run(load_kernel("log-ratio"), stack)
    assert np.isnan(found["ratio"][:, 0, 0]).all()
    assert np.isnan(found["change"][0, 0, 0])
    assert (found["ratio"][:, 0, 1] == 0).all()


# --- radar and optical --------------------------------------------------------------------------------------


def test_fused_scores() -> None:
    a = torch.tensor([0.5, 0.2, torch.nan, torch.nan], dtype=torch.float64)
    b = torch.tensor([0.5, torch.nan, 0.7, torch.nan], dtype=torch.float64)
    np.testing.assert_allclose(fuse(a, b, "noisy-or"), [0.75, 0.2, 0.7, np.nan])
    np.testing.assert_allclose(fuse(a, b, "mean"), [0.5, 0.2, 0.7, np.nan])


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["noisy-or", "mean"]))
def test_fusion_is_symmetric_and_stays_in_range(a: float, b: float, rule: str) -> None:
    x, y = (torch.tensor([one], dtype=torch.float64) for one in (a, b))
    both = float(fuse(x, y, rule))
    assert both == pytest.approx(float(fuse(y, x, rule)), abs=1e-12)
    assert (max(a, b) if rule == "noisy-or" else min(a, b)) - 1e-12 <= both <= 1


def test_one_sensor_decides_where_the_other_did_not_look() -> None:
    sar, optical = np.full((3, 2, 1, 4), 0.1), np.full((2, 4, 1, 4), 0.2)
    sar[-1, 0, 0, :] *= 10**0.3  # 3 dB: a score of one half
    optical[-1, :, 0, :] += 0.05  # a vector of 0.1: one half
    optical[0, :, 0, 1] = np.nan
    sar[-1, :, 0, 2] = np.nan
    optical[1, :, 0, 3] = np.nan
    sar[0, :, 0, 3] = np.nan
    found = run(load_kernel("sar-optical"), sar, optical)
    np.testing.assert_allclose(found["score"][0, 0], [0.75, 0.5, 0.5, np.nan], rtol=1e-5)
    np.testing.assert_array_equal(found["sensors"][0, 0], [2, 0, 1, np.nan])
    np.testing.assert_allclose(found["sar"][0, 0], [0.5, 0.5, np.nan, np.nan], rtol=1e-5)
    mean = run(load_kernel("sar-optical", rule="mean", sar_scale=1.0), sar, optical)
    np.testing.assert_allclose(mean["score"][0, 0], [0.7, 0.9, 0.5, np.nan], rtol=1e-5)


# --- regressions --------------------------------------------------------------------------------------------


def observations(
    seed: int, count: int, pixels: int = 4, bands: int = 2
) -> tuple[Sums, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = design(list(np.sort(rng.choice(1500, count, replace=False)) + 12_000.0), 3)
    y = torch.from_numpy(rng.normal(size=(count, pixels, bands)) * 100 + 1000)
    sums = Sums.empty(pixels, bands, x.shape[1], x)
    for row, values in zip(x, y, strict=True):
        sums.add(row, values, torch.ones(pixels, dtype=torch.float64))
    return sums, x.numpy(), y.numpy()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 60), st.sampled_from([4, 6, 8]))
def test_least_squares_are_those_of_numpy(seed: int, count: int, used: int) -> None:
    sums, x, y = observations(seed, count)
    free = torch.full((4,), float(used), dtype=torch.float64)
    beta = least_squares(sums, free)
    for pixel in range(4):
        want, rss, *_ = np.linalg.lstsq(x[:, :used], y[:, pixel], rcond=None)
        np.testing.assert_allclose(
            x[:, :used] @ beta[pixel, :, :used].T.numpy(), x[:, :used] @ want, atol=1e-2
        )
        np.testing.assert_allclose(sums.rmse(beta, free)[pixel], np.sqrt(rss / (count - used)), rtol=1e-5)
    assert (beta[..., used:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(24, 60), st.sampled_from([5.0, 20.0]))
def test_the_lasso_is_at_its_minimum(seed: int, count: int, penalty: float) -> None:
    """The conditions of the minimum: slopes of the squares equal the penalty where a coefficient is not 0."""
    sums, x, y = observations(seed, count)
    beta = lasso(sums, torch.full((4,), 8.0, dtype=torch.float64), penalty).numpy()
    unit = (x[:, 1:] - x[:, 1:].mean(0)) / x[:, 1:].std(0)
    for pixel in range(4):
        residual = y[:, pixel] - x @ beta[pixel].T
        slopes = unit.T @ residual / count
        on = beta[pixel, :, 1:].T != 0
        np.testing.assert_allclose(residual.mean(0), 0, atol=1e-8)
        np.testing.assert_allclose(slopes[on], penalty * np.sign(beta[pixel, :, 1:].T[on]), atol=1e-3)
        assert (np.abs(slopes[~on]) <= penalty + 1e-3).all()


# --- breaks -------------------------------------------------------------------------------------------------


def course(days: np.ndarray, level: float = 0.3) -> np.ndarray:
    angle = 2 * np.pi * days / 365.25
    return level + 0.02 * (days - days[0]) / 365.25 + 0.1 * np.cos(angle) - 0.05 * np.sin(2 * angle)


def test_harmonic_breaks_gives_the_course_back() -> None:
    """Without noise and without a break: level, trend and waves as they were made."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.choice(2000, 90, replace=False)) + 14_000.0
    stack = np.stack([course(days), course(days, 0.5)], axis=1)[:, :, None, None] * np.ones((1, 1, 1, 2))
    stack[5:20, :, 0, 1] = np.nan
    found = run(load_kernel("harmonic-breaks", bands="red,nir", floor=0.01), stack, days=days)
    want = np.zeros((2, 8))
    want[:, 0], want[:, 1], want[:, 2], want[:, 5] = (0.3, 0.5), 0.02, 0.1, -0.05
    for pixel in range(2):
        np.testing.assert_allclose(found["coefficients"][:, 0, pixel].reshape(2, 8), want, atol=2e-6)
    assert (found["breaks"] == 0).all()
    assert (found["last_break"] == 0).all()
    assert (found["rmse"] == np.float32(0.01)).all()
    assert (found["start"] == days[0]).all()


def test_harmonic_breaks_finds_steps_where_they_are() -> None:
    """Each pixel has a step of its own date, or none; single dates that deviate are no break."""
    rng = np.random.default_rng(1)
    days = np.arange(15_000.0, 15_000 + 8 * 365, 16)
    at = np.array([60, 90, 120, 150, len(days)])
    stack = course(days)[:, None, None, None] + rng.normal(0, 0.01, (len(days), 1, 1, 5))
    for pixel, start in enumerate(at):
        stack[start:, 0, 0, pixel] += 0.25
    stack[[40, 80, 81, 110], 0, 0, 4] += 1.0
    found = run(load_kernel("harmonic-breaks"), stack, days=days)
    np.testing.assert_array_equal(found["breaks"][0, 0], [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(found["last_break"][0, 0], [*days[at[:4]], 0])
    np.testing.assert_array_equal(found["start"][0, 0, :4], days[at[:4]])
    np.testing.assert_allclose(found["magnitude"][0, 0], [0.25, 0.25, 0.25, 0.25, 0], atol=0.02)
    assert (found["rmse"] < 0.013).all()
    assert (found["rmse"] > 0.007).all()


def test_harmonic_breaks_needs_dates() -> None:
    stack = np.full((12, 1, 1, 1), 0.3)
    with pytest.raises(KernelError, match="does not say when"):
        run(load_kernel("harmonic-breaks"), stack)
    told = ",".join(f"2020-{month:02d}-01" for month in range(1, 13))
    assert np.isnan(run(load_kernel("harmonic-breaks", dates=told), stack)["breaks"]).all()  # below a year
    with pytest.raises(KernelError, match="12 dates are named, the input has 13"):
        run(load_kernel("harmonic-breaks", dates=told), np.full((13, 1, 1, 1), 0.3))
    with pytest.raises(KernelError, match="do not ascend"):
        run(load_kernel("harmonic-breaks"), stack, days=np.full(12, 18_000.0))


def test_times_come_from_the_cube() -> None:
    """Through the engine, from a DataArray."""
    import rioxarray  # noqa: F401 - registers the accessor
    import xarray as xr

    import tilewright

    days = np.arange(15_000, 15_000 + 4 * 365, 16)
    values = np.repeat(course(days.astype(float))[:, None, None], 16, axis=1).repeat(16, axis=2)
    values[60:] += 0.3
    coordinates = {"time": days.astype("datetime64[D]").astype("datetime64[ns]")}
    step = np.arange(16) * 10.0 + 5
    cube = xr.DataArray(
        values.astype(np.float32),
        dims=("time", "y", "x"),
        coords=coordinates | {"y": -step + 5e6, "x": step + 5e5},
    ).rio.write_crs(32632)
    found = tilewright.map_pixels(load_kernel("harmonic-breaks", floor=0.01), cube)
    assert (found["last_break"].values == days[60]).all()


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("omnibus", {"alpha": 0.0}),
        ("omnibus", {"looks": 0.5}),
        ("omnibus", {"looks": "4,5,6"}),
        ("omnibus", {"looks": "many"}),
        ("omnibus", {"bands": "vv,vv"}),
        ("log-ratio", {"threshold": 0.0}),
        ("log-ratio", {"ends": 0}),
        ("sar-optical", {"sar_scale": -1.0}),
        ("harmonic-breaks", {"harmonics": 4}),
        ("harmonic-breaks", {"least": 3}),
        ("harmonic-breaks", {"penalty": -1.0}),
        ("harmonic-breaks", {"dates": "2020-01-05,2019-01-05"}),
        ("harmonic-breaks", {"dates": "soon"}),
        ("presto", {"inputs": "s3"}),
        ("presto", {"inputs": "srtm,s2"}),
        ("presto", {"month": 13}),
        ("presto", {"place": "200,10"}),
    ],
)
def test_options_out_of_range(name: str, options: dict) -> None:
    with pytest.raises(KernelError):
        load_kernel(name, **options)


@pytest.mark.parametrize("name", ["omnibus", "log-ratio", "sar-optical"])
def test_check_kernel_finds_nothing(name: str) -> None:
    report = check_kernel(load_kernel(name), tile=16, skip=("stride", "alignment"))
    report.raise_for_findings()
    assert report.radius == 0


def test_check_kernel_finds_nothing_in_breaks() -> None:
    """Thirty dates 12 days apart, so that models are fitted: with the fewest there are none."""
    rng = np.random.default_rng(3)
    stack = torch.from_numpy(0.3 + 0.05 * rng.normal(size=(40, 1, 8, 8))).float()
    stack[34:] += 1
    kernel = load_kernel("harmonic-breaks", consecutive=3)
    check_kernel(kernel, tile=8, inputs={"image": stack}, skip=("stride", "alignment")).raise_for_findings()
