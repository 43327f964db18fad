"""Regressions of many pixels at once from sums: a trend and waves of the year, by least squares or the lasso.

Everything is in float64 and pixel by pixel, so a pixel's bits do not depend on which others are fitted with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["YEAR", "Sums", "design", "lasso", "least_squares", "solve"]

YEAR = 365.25
"""Days."""
SWEEPS = 60
"""Rounds of coordinate descent of the lasso: always as many, so that no pixel waits for another."""


def design(days: list[float], harmonics: int) -> Tensor:
    """Return the regressors of each date, ``[T, 2 + 2 harmonics]`` float64.

    1, years since the first date, and for each harmonic h cosine and sine of ``2 pi h day / 365.25``, where the days
    are those since 1970: the phase of a wave is that of the calendar, whatever the first date.
    """
    import torch

    day = torch.tensor(days, dtype=torch.float64)
    angle = 2 * math.pi * day / YEAR
    waves = [wave(h * angle) for h in range(1, harmonics + 1) for wave in (torch.cos, torch.sin)]
    return torch.stack([torch.ones_like(day), (day - day[0]) / YEAR, *waves], dim=1)


@dataclass
class Sums:
    """What a regression needs of the observations so far, of each pixel."""

    gram: Tensor
    """Sum of x x', ``[P, K, K]``."""
    moment: Tensor
    """Sum of x y, ``[P, C, K]``."""
    square: Tensor
    """Sum of y^2, ``[P, C]``."""
    count: Tensor
    """Number of observations, ``[P]`` float64."""

    @classmethod
    def empty(cls, pixels: int, bands: int, regressors: int, like: Tensor) -> Sums:
        """Return the sums of no observation."""
        return cls(
            like.new_zeros(pixels, regressors, regressors),
            like.new_zeros(pixels, bands, regressors),
            like.new_zeros(pixels, bands),
            like.new_zeros(pixels),
        )

    def add(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Add an observation a pixel: regressors ``[K]`` or ``[P, K]``, ``y`` ``[P, C]``, weights ``[P]``: 0, 1, -1."""
        outer = x[..., :, None] * x[..., None, :]
        weighted = weight[:, None] * y
        self.gram += weight[:, None, None] * outer
        self.moment += weighted[:, :, None] * (x if x.ndim == 1 else x[:, None])
        self.square += weighted * y
        self.count += weight

    def add_at(self, pixels: Tensor, x: Tensor, y: Tensor, weight: float) -> None:
        """Add an observation of ``pixels``, numbers ``[n]``: regressors ``[K]`` or ``[n, K]``, ``y`` ``[n, C]``."""
        part = self.of(pixels)
        part.add(x, y, y.new_full((len(y),), weight))
        for name in ("gram", "moment", "square", "count"):
            getattr(self, name)[pixels] = getattr(part, name)

    def take(self, other: Sums, where: Tensor) -> None:
        """Become ``other`` at the pixels ``where`` ``[P]`` bool."""
        for name in ("gram", "moment", "square", "count"):
            getattr(self, name)[where] = getattr(other, name)[where]

    def clear(self, where: Tensor) -> None:
        """Forget the observations of the pixels ``where`` ``[P]`` bool."""
        for name in ("gram", "moment", "square", "count"):
            getattr(self, name)[where] = 0.0

    def of(self, where: Tensor) -> Sums:
        """Return the sums of the pixels ``where`` alone: ``[P]`` bool, or their numbers."""
        return Sums(self.gram[where], self.moment[where], self.square[where], self.count[where])

    def rmse(self, beta: Tensor, used: Tensor) -> Tensor:
        """Return the root mean square error ``[P, C]`` of ``beta`` ``[P, C, K]``, of which ``used`` ``[P]`` count."""
        import torch

        curved = (self.gram[:, None] * beta[:, :, None, :]).sum(-1)
        rss = self.square + (beta * (curved - 2 * self.moment)).sum(-1)
        return torch.sqrt(rss.clamp(min=0) / (self.count - used).clamp(min=1)[:, None])


def least_squares(sums: Sums, used: Tensor) -> Tensor:
    """Return the coefficients ``[P, C, K]`` of least squares with the first ``used`` ``[P]`` regressors alone."""
    import torch

    size = sums.gram.shape[-1]
    on = (torch.arange(size, device=used.device) < used[:, None]).to(sums.gram)
    gram = sums.gram * on[:, :, None] * on[:, None, :] + torch.diag_embed(1 - on)
    # A ridge of 1e-9 of the diagonal keeps dates that repeat one phase from a singular matrix.
    gram = gram + torch.diag_embed(1e-9 * gram.diagonal(dim1=-2, dim2=-1))
    factor, _ = torch.linalg.cholesky_ex(gram)
    solved = torch.cholesky_solve((sums.moment * on[:, None]).transpose(1, 2), factor)
    return solved.transpose(1, 2)


def lasso(sums: Sums, used: Tensor, penalty: float) -> Tensor:
    """Return the coefficients ``[P, C, K]`` that minimise ``RSS / 2n + penalty * sum |b_j s_j|``.

    ``s_j`` is the standard deviation of regressor j; the intercept is free. Friedman, Hastie and Tibshirani 2010,
    Regularization paths for generalized linear models via coordinate descent, Journal of Statistical Software 33(1).
    """
    import torch

    n = sums.count.clamp(min=1)
    mean_x, mean_y = sums.gram[:, 0] / n[:, None], sums.moment[..., 0] / n[:, None]
    gram = sums.gram / n[:, None, None] - mean_x[:, :, None] * mean_x[:, None, :]
    moment = sums.moment / n[:, None, None] - mean_y[..., None] * mean_x[:, None]
    deviation = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    size = gram.shape[-1]
    on = torch.arange(size, device=used.device) < used[:, None]
    on = on & (deviation > 1e-9) & (torch.arange(size, device=used.device) > 0)
    unit = torch.where(on, deviation, 1.0)
    gram, moment = gram / (unit[:, :, None] * unit[:, None]), moment / unit[:, None]
    beta, rest = torch.zeros_like(moment), moment.clone()  # rest: moment - gram beta
    for _ in range(SWEEPS):
        for j in range(1, size):
            own = rest[..., j] + beta[..., j]
            shrunk = torch.sign(own) * (own.abs() - penalty).clamp(min=0)
            step = torch.where(on[:, j, None], shrunk - beta[..., j], 0.0)
            beta[..., j] += step
            rest = rest - gram[:, None, j] * step[..., None]
    slopes = beta / unit[:, None]
    slopes[..., 0] = mean_y - (slopes * mean_x[:, None]).sum(-1)
    return slopes


def solve(sums: Sums, used: Tensor, penalty: float) -> Tensor:
    """Return `least_squares`, or the `lasso` where ``penalty`` is above 0."""
    return lasso(sums, used, penalty) if penalty > 0 else least_squares(sums, used)
