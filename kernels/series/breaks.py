"""Breaks in series of many pixels: a model of each segment, watched by the residuals of the dates that follow.

Zhu, Z., Woodcock, C. E. (2014): Continuous change detection and classification of land cover using all available
Landsat data, Remote Sensing of Environment 144, https://doi.org/10.1016/j.rse.2014.01.011. The loop goes over the
dates; all pixels take each step together. docs/kernels/harmonic-breaks.md says where the paper does more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .regression import YEAR, Sums, solve

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rules", "Segments", "find_breaks"]


@dataclass(frozen=True)
class Rules:
    """When a model is fitted, and when it has ended."""

    harmonics: int
    """Waves a year of the largest model."""
    consecutive: int
    """Dates in a row that must deviate."""
    threshold: float
    """Deviation of a date that counts: mean over the bands of abs(residual) / RMSE."""
    least: int
    """Fewest observations of a model; they must span a year."""
    floor: float
    """Smallest RMSE, in the units of the bands."""
    penalty: float
    """Of the lasso; 0 for least squares."""


class Segments:
    """The state of all pixels between two dates; at the end, the result."""

    def __init__(self, pixels: int, bands: int, x: Tensor, days: Tensor, rules: Rules) -> None:
        import torch

        self.x, self.days, self.rules = x, days, rules
        size = x.shape[1]
        self.sums = Sums.empty(pixels, bands, size, x)
        self.waiting = Sums.empty(pixels, bands, size, x)
        """Of the dates in a row that deviate."""
        self.strayed = x.new_zeros(pixels, bands)
        """Sum of their residuals."""
        self.start = torch.zeros(pixels, dtype=torch.int64, device=x.device)
        """Number of the segment's first date."""
        self.waiting_start = torch.zeros_like(self.start)
        self.beta = x.new_full((pixels, bands, size), torch.nan)
        """Coefficients of the latest model."""
        self.rmse = x.new_full((pixels, bands), torch.nan)
        self.fitted = x.new_zeros(pixels)
        """Observations of the current segment at its latest fit; 0 while it has no model."""
        self.since = x.new_full((pixels,), torch.nan)
        """Day on which the segment of the latest model starts."""
        self.breaks = x.new_zeros(pixels)
        self.last = x.new_zeros(pixels)
        self.magnitude = x.new_zeros(pixels, bands)

    def used(self, count: Tensor) -> Tensor:
        """Return how many regressors as many observations allow: 4, 6 from 18 on, 8 from 24 on (as in CCDC)."""
        most = self.x.shape[1]
        return (4 + 2 * (count >= 18) + 2 * (count >= 24)).clamp(max=most).to(count)

    def fit(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Return coefficients and RMSE of the pixels ``where``."""
        part = self.sums.of(where)
        used = self.used(part.count)
        beta = solve(part, used, self.rules.penalty)
        return beta, part.rmse(beta, used).clamp(min=self.rules.floor)

    def accept(self, where: Tensor) -> None:
        """Fit the segment of the pixels ``where`` anew and keep the model."""
        self.beta[where], self.rmse[where] = self.fit(where)
        self.fitted[where] = self.sums.count[where]
        self.since[where] = self.days[self.start[where]]

    def residual(self, t: int, y: Tensor) -> Tensor:
        """Return how far values ``[P, C]`` of date ``t`` are from the model."""
        return y - (self.beta * self.x[t]).sum(-1)


def find_breaks(y: Tensor, seen: Tensor, x: Tensor, days: Tensor, rules: Rules) -> Segments:
    """Follow all pixels through all dates.

    Parameters
    ----------
    y
        Values ``[T, P, C]`` float64, 0 where unseen.
    seen
        ``[T, P]`` bool.
    x
        Regressors ``[T, K]``, see `design`.
    days
        ``[T]`` float64, ascending.
    rules
        When a model is fitted, and when it has ended.
    """
    state = Segments(y.shape[1], y.shape[2], x, days, rules)
    for t in range(len(y)):
        modelled = state.fitted > 0
        _watch(state, t, y[t], seen[t] & modelled)
        _gather(state, t, y, seen, seen[t] & ~modelled)
    state.accept(state.fitted > 0)
    return state


def _watch(state: Segments, t: int, y: Tensor, here: Tensor) -> None:
    """Compare a date with the model: it joins the segment, waits among those that deviate, or breaks."""
    import torch

    rules = state.rules
    residual = state.residual(t, y)
    deviates = here & ((residual.abs() / state.rmse).mean(-1) > rules.threshold)
    fits = here & ~deviates
    ended = fits & (state.waiting.count > 0)  # single dates that deviated were outliers
    state.waiting.clear(ended)
    state.strayed[ended] = 0.0
    state.waiting_start = torch.where(deviates & (state.waiting.count == 0), t, state.waiting_start)
    number = deviates.nonzero()[:, 0]
    state.waiting.add_at(number, state.x[t], y[number], 1.0)
    state.strayed += torch.where(deviates[:, None], residual, 0.0)
    state.sums.add(state.x[t], y, fits.double())
    grown = fits & (state.sums.count >= 4 / 3 * state.fitted)
    if grown.any():
        state.accept(grown)
    broken = deviates & (state.waiting.count >= rules.consecutive)
    if broken.any():
        _break(state, broken)


def _break(state: Segments, where: Tensor) -> None:
    """End the segment: the dates that deviated begin the next one."""
    grown = where & (state.sums.count > state.fitted)
    if grown.any():
        state.accept(grown)
    state.breaks += where
    state.last[where] = state.days[state.waiting_start[where]]
    state.magnitude[where] = state.strayed[where] / state.waiting.count[where, None]
    state.sums.take(state.waiting, where)
    state.start[where] = state.waiting_start[where]
    state.waiting.clear(where)
    state.strayed[where] = 0.0
    state.fitted[where] = 0.0


def _gather(state: Segments, t: int, y: Tensor, seen: Tensor, here: Tensor) -> None:
    """Collect observations until there are enough for a model that is stable; else leave out the oldest."""
    import torch

    state.start = torch.where(here & (state.sums.count == 0), t, state.start)
    number = here.nonzero()[:, 0]
    if not len(number):
        return
    state.sums.add_at(number, state.x[t], y[t, number], 1.0)
    ready = here & (state.sums.count >= state.rules.least)
    ready = ready & (state.days[t] - state.days[state.start] >= YEAR)
    if not ready.any():
        return
    number = ready.nonzero()[:, 0]
    beta, rmse = state.fit(ready)
    first = state.start[number]
    stable = _is_stable(state, beta, rmse, (y[first, number], first), (y[t, number], t))
    unstable = number[~stable]
    if len(unstable):
        oldest = state.start[unstable]
        state.sums.add_at(unstable, state.x[oldest], y[oldest, unstable], -1.0)
        state.start[unstable] = _next_seen(seen, oldest, unstable)
    settled = torch.zeros_like(ready)
    settled[number[stable]] = True
    if settled.any():
        state.accept(settled)


def _is_stable(
    state: Segments, beta: Tensor, rmse: Tensor, first: tuple[Tensor, Tensor], last: tuple[Tensor, int]
) -> Tensor:
    """Return which models ``[n]`` hold: neither trend nor the first or last residual above 3 RMSE, bands averaged."""
    (y0, t0), (y1, t1) = first, last
    span = state.x[t1, 1] - state.x[t0, 1]
    drift = (beta[..., 1] * span[:, None]).abs()
    begin = (y0 - (beta * state.x[t0][:, None]).sum(-1)).abs()
    end = (y1 - (beta * state.x[t1]).sum(-1)).abs()
    held = [(part / (3 * rmse)).mean(-1) <= 1 for part in (drift, begin, end)]
    return held[0] & held[1] & held[2]


def _next_seen(seen: Tensor, after: Tensor, pixels: Tensor) -> Tensor:
    """Return the first date after ``after`` ``[n]`` on which each of ``pixels`` ``[n]`` was seen."""
    import torch

    number = torch.arange(len(seen), device=seen.device)[:, None]
    later = seen[:, pixels] & (number > after)
    return later.to(torch.uint8).argmax(0)
