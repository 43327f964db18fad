"""Kernels over series against slow twins, written from the papers without the kernels' code, and a real pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.series import breaks

PIXEL = Path(__file__).parent / "series" / "landsat_pixel"
DAY = 86_400 * 10**9


def run(kernel: Kernel, stack: np.ndarray, seen: np.ndarray, days: np.ndarray | None = None) -> dict:
    """Map ``[T, C, H, W]`` with ``[T, H, W]`` observed."""
    name = next(iter(kernel.spec.inputs))
    times = torch.zeros(1, len(stack), dtype=torch.int64)
    if days is not None:
        times = torch.from_numpy((days * DAY).astype(np.int64))[None]
    context = Context(torch.zeros(1, 2, dtype=torch.int64), times, torch.zeros(1, 2).double(), 30.0)
    image, valid = torch.from_numpy(stack.astype(np.float32))[None], torch.from_numpy(seen)[None, :, None]
    return {n: v[0].double().numpy() for n, v in kernel.apply({name: image}, {name: valid}, context).items()}


# --- omnibus ------------------------------------------------------------------------------------------------


def tail(z: float, f: float, omega2: float) -> float:
    return float((1 - omega2) * chi2.sf(z, f) + omega2 * chi2.sf(z, f + 4))


def omnibus_p(x: np.ndarray, n: float) -> float:
    """The test of k dates ``[k, m]`` of m independent intensities."""
    k, m = x.shape
    ln_q = n * sum(k * math.log(k) + np.log(x[:, i]).sum() - k * math.log(x[:, i].sum()) for i in range(m))
    rho = 1 - (k / n - 1 / (n * k)) / (6 * (k - 1))
    return tail(-2 * rho * ln_q, m * (k - 1), -m * (k - 1) / 4 * (1 - 1 / rho) ** 2)


def factor_p(x: np.ndarray, n: float) -> float:
    """The test of the last of j dates against the others."""
    j, m = x.shape
    ln_r = n * sum(
        j * math.log(j)
        - (j - 1) * math.log(j - 1)
        + (j - 1) * math.log(x[:-1, i].sum())
        + math.log(x[-1, i])
        - j * math.log(x[:, i].sum())
        for i in range(m)
    )
    rho = 1 - (1 + 1 / (j * (j - 1))) / (6 * n)
    return tail(-2 * rho * ln_r, m, -m / 4 * (1 - 1 / rho) ** 2)


def changes_of(x: np.ndarray, n: float, alpha: float) -> list[int]:
    """The changed dates, from 0: Conradsen et al. 2016, section on the points of change."""
    found, start = [], 0
    while start < len(x) - 1 and omnibus_p(x[start:], n) < alpha:
        for j in range(start + 2, len(x) + 1):
            if factor_p(x[start:j], n) < alpha:
                found.append(j - 1)
                start = j - 1
                break
        else:
            break
    return found


@pytest.mark.parametrize(("bands", "looks"), [("vv", 4.4), ("vv,vh", 12.0)])
def test_the_omnibus_is_its_twin(bands: str, looks: float) -> None:
    rng, count, dates, side, alpha = np.random.default_rng(5), len(bands.split(",")), 9, 12, 0.05
    stack = 0.1 * rng.gamma(looks, 1 / looks, (dates, count, side, side))
    steps = rng.integers(1, dates + 1, (side, side))
    stack *= np.where(np.arange(dates)[:, None, None] >= steps, rng.uniform(1, 6, (side, side)), 1)[:, None]
    stack = stack.astype(np.float32)
    seen = rng.random((dates, side, side)) > 0.2
    found = run(load_kernel("omnibus", looks=looks, alpha=alpha, bands=bands), stack, seen)
    several = 0
    for row, col in np.ndindex(side, side):
        number = np.flatnonzero(seen[:, row, col])
        x = stack[number, :, row, col].astype(float)
        want = changes_of(x, looks, alpha)
        several += len(want) > 1
        assert found["pvalue"][0, row, col] == pytest.approx(omnibus_p(x, looks), rel=1e-5, abs=1e-12)
        assert found["changes"][0, row, col] == len(want)
        assert found["first"][0, row, col] == (number[want[0]] + 1 if want else 0)
    assert several > 5


def test_the_factors_make_up_the_omnibus() -> None:
    """ln Q is the sum of all ln R_j: so two dates have one and the same test."""
    x = np.random.default_rng(0).gamma(5, 0.02, (2, 2))
    assert omnibus_p(x, 5) == pytest.approx(factor_p(x, 5), rel=1e-12)


# --- breaks -------------------------------------------------------------------------------------------------


class Twin:
    """One pixel and one band, with lists: least squares, three RMSE, six in a row, as the page says."""

    def __init__(self, days: np.ndarray, y: np.ndarray) -> None:
        self.days, self.y = days, y
        angle = 2 * np.pi * days / 365.25
        waves = [wave(h * angle) for h in (1, 2, 3) for wave in (np.cos, np.sin)]
        self.x = np.stack([np.ones_like(days), (days - days[0]) / 365.25, *waves], axis=1)
        self.breaks: list[int] = []
        self.model: tuple[np.ndarray, float] | None = None
        self.used: list[int] = []
        self.waiting: list[int] = []
        self.fitted = 0

    def fit(self) -> tuple[np.ndarray, float]:
        size = 8 if len(self.used) >= 24 else 6 if len(self.used) >= 18 else 4
        x, y = self.x[self.used], self.y[self.used]
        beta = np.zeros(8)
        beta[:size] = np.linalg.lstsq(x[:, :size], y, rcond=None)[0]
        rmse = math.sqrt(((y - x @ beta) ** 2).sum() / (len(y) - size))
        return beta, rmse

    def follow(self, seen: np.ndarray) -> None:
        for t in np.flatnonzero(seen):
            if self.fitted:
                self.watch(int(t))
            else:
                self.gather(int(t))
        if self.fitted:
            self.model = self.fit()

    def gather(self, t: int) -> None:
        self.used.append(t)
        if len(self.used) < 12 or self.days[t] - self.days[self.used[0]] < 365.25:
            return
        beta, rmse = self.fit()
        drift = abs(beta[1]) * (self.x[t, 1] - self.x[self.used[0], 1])
        ends = [abs(self.y[i] - self.x[i] @ beta) for i in (self.used[0], t)]
        if max(drift, *ends) > 3 * rmse:
            self.used.pop(0)
        else:
            self.model, self.fitted = (beta, rmse), len(self.used)

    def watch(self, t: int) -> None:
        assert self.model is not None
        beta, rmse = self.model
        if abs(self.y[t] - self.x[t] @ beta) > 3 * rmse:
            self.waiting.append(t)
            if len(self.waiting) == 6:
                if len(self.used) > self.fitted:
                    self.model = self.fit()
                self.breaks.append(self.waiting[0])
                self.used, self.waiting, self.fitted = self.waiting, [], 0
            return
        self.waiting = []
        self.used.append(t)
        if len(self.used) >= 4 / 3 * self.fitted:
            self.model, self.fitted = self.fit(), len(self.used)


def test_breaks_are_those_of_the_twin() -> None:
    rng, pixels = np.random.default_rng(2), 40
    days = np.sort(rng.choice(3000, 180, replace=False)) + 13_000.0
    angle = 2 * np.pi * days / 365.25
    y = 0.3 + 0.1 * np.cos(angle)[:, None] + rng.normal(0, 0.02, (len(days), pixels))
    for pixel in range(pixels):
        for start in rng.integers(10, 175, pixel % 4):
            y[start:, pixel] += rng.uniform(-0.4, 0.4)
    y = y.astype(np.float32).astype(float)
    seen = rng.random(y.shape) > 0.15
    found = run(load_kernel("harmonic-breaks"), y[:, None, None], seen[:, None], days)
    counts = []
    for pixel in range(pixels):
        twin = Twin(days, y[:, pixel])
        twin.follow(seen[:, pixel])
        counts.append(len(twin.breaks))
        assert found["breaks"][0, 0, pixel] == len(twin.breaks)
        assert found["last_break"][0, 0, pixel] == (days[twin.breaks[-1]] if twin.breaks else 0)
        assert twin.model is not None
        beta, rmse = twin.model
        # Coefficients of a short segment can be large and cancel: what they predict is compared.
        span = slice(twin.used[0], twin.used[-1] + 1) if twin.fitted else slice(0, 0)
        got = found["coefficients"][:, 0, pixel]
        np.testing.assert_allclose((twin.x @ got)[span], (twin.x @ beta)[span], atol=1e-4)
        assert found["rmse"][0, 0, pixel] == pytest.approx(rmse, rel=1e-4)
    assert max(counts) >= 3


def published() -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Observations with days since 1970, CCDC's coefficients, and its segments, of one Landsat pixel."""
    rows = np.loadtxt(PIXEL / "observations.csv", delimiter=",")
    rows[:, 0] -= 719_163  # ordinals of Python
    segments = np.loadtxt(PIXEL / "coefficients.csv", delimiter=",")[::8, :2] + 2 - 719_163
    usable = (rows[:, 8] <= 1) & (rows[:, 1:7] > 0).all(1) & (rows[:, 1:7] < 10_000).all(1)
    return rows, usable, [(int(first), int(last)) for first, last in segments]


def test_breaks_of_a_real_pixel_lie_where_ccdc_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """An irrigated field from 1982 to 2014. CCDC with its cloud screening finds nine segments that begin with a break;
    this finds eight with a comparable sensitivity, three of them within 50 days of CCDC's, the last one too."""
    rows, usable, segments = published()
    kernel = load_kernel("harmonic-breaks", bands="blue,green,red,nir,swir16,swir22", threshold=1.5)
    stack = rows[:, 1:7, None, None]
    starts = [first for first, _ in segments[1:]]
    mine: list[float] = []
    end_segment = breaks._break

    def noted(state: breaks.Segments, where: torch.Tensor) -> None:
        mine.append(float(state.days[state.waiting_start[0]]))
        end_segment(state, where)

    monkeypatch.setattr(breaks, "_break", noted)
    out = run(kernel, stack, usable[:, None, None], rows[:, 0])
    assert out["breaks"][0, 0, 0] == len(mine) == 8
    assert out["last_break"][0, 0, 0] == mine[-1]
    near = [day for day in mine if min(abs(day - start) for start in starts) <= 50]
    assert len(near) >= 3
    assert mine[-1] in near
