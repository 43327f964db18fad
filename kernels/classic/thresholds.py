"""Automatic thresholds on a sample of values in which most pixels are unchanged and some are not.

Otsu, N. (1979): A threshold selection method from gray-level histograms, IEEE Trans. SMC 9(1).
Bruzzone, L. and Prieto, D. F. (2000): Automatic analysis of the difference image for unsupervised change
detection, IEEE Trans. Geosci. Remote Sens. 38(3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Mixture", "automatic_threshold", "em_mixture", "otsu"]

_TAIL = 0.1
"""Percent of the sample cut from each end before the extremes of the magnitudes are taken for the start."""


def otsu(values: NDArray[np.float64]) -> float:
    """Return the cut that maximises the variance between the two classes.

    Every gap between two neighbouring values ``[n]`` is tried, so the result depends on no number of bins.
    """
    ordered = np.sort(values)
    gaps = np.flatnonzero(np.diff(ordered) > 0)
    count = np.arange(1, ordered.size + 1, dtype=np.float64)
    total = np.cumsum(ordered)
    below, above = count[gaps], ordered.size - count[gaps]
    difference = total[gaps] / below - (total[-1] - total[gaps]) / above
    best = gaps[int(np.argmax(below * above * difference**2))]
    return float((ordered[best] + ordered[best + 1]) / 2)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Two normal densities fitted to a sample: first no-change, then change."""

    share: tuple[float, float]
    """Prior probability of each class; their sum is 1."""
    mean: tuple[float, float]
    """Mean of each class, ascending."""
    std: tuple[float, float]
    """Standard deviation of each class."""
    iterations: int
    """Rounds until the log-likelihood settled."""

    def threshold(self) -> float:
        """Return the value between the means at which both classes are equally probable (Bayes' rule for the
        least error); where the densities do not cross there, the mean of the means."""
        (p0, p1), (m0, m1), (s0, s1) = self.share, self.mean, self.std
        a = 1 / s0**2 - 1 / s1**2
        b = -2 * (m0 / s0**2 - m1 / s1**2)
        c = m0**2 / s0**2 - m1**2 / s1**2 + 2 * math.log((p1 * s0) / (p0 * s1))
        # p0 N(x; m0, s0) = p1 N(x; m1, s1)  <=>  a x^2 + b x + c = 0
        roots = np.roots([a, b, c]) if abs(a) > 1e-12 else np.array([-c / b])
        between = [float(r.real) for r in roots if abs(r.imag) < 1e-9 and m0 <= r.real <= m1]
        return between[0] if between else (m0 + m1) / 2


def em_mixture(values: NDArray[np.float64], *, alpha: float = 0.5, rounds: int = 500) -> Mixture:
    """Fit no-change and change as two normal densities by expectation-maximisation.

    The start is the paper's: pixels below ``(1 - alpha)`` of the mid-range are taken for no-change and above
    ``(1 + alpha)`` for change; the range leaves out 0.1 % at both ends, so that one outlier does not set it.
    ``values`` is ``[n]``, magnitudes of change.
    """
    low, high = np.percentile(values, [_TAIL, 100 - _TAIL])
    middle = (low + high) / 2
    unchanged = values[values <= low + (middle - low) * (1 - alpha)]
    changed = values[values >= low + (middle - low) * (1 + alpha)]
    floor = max(float(values.std()) * 1e-3, np.finfo(np.float64).tiny)
    mean = np.array([unchanged.mean(), changed.mean()])
    std = np.maximum([unchanged.std(), changed.std()], floor)
    share = np.array([unchanged.size, changed.size], dtype=np.float64)
    share /= share.sum()
    previous = -math.inf
    done = 0
    for done in range(1, rounds + 1):  # noqa: B007 - the count is part of the result
        scaled = (values[None] - mean[:, None]) / std[:, None]
        log_density = np.log(share / std)[:, None] - 0.5 * scaled**2
        log_total = np.logaddexp(log_density[0], log_density[1])
        posterior = np.exp(log_density - log_total)
        weight = posterior.sum(axis=1)
        if weight.min() < 2:
            break
        share = weight / values.size
        mean = (posterior @ values) / weight
        std = np.maximum(
            np.sqrt((posterior * (values[None] - mean[:, None]) ** 2).sum(axis=1) / weight), floor
        )
        likelihood = float(log_total.mean())
        if abs(likelihood - previous) < 1e-9:
            break
        previous = likelihood
    first, second = np.argsort(mean)
    share_, mean_, std_ = ((float(v[first]), float(v[second])) for v in (share, mean, std))
    return Mixture(share_, mean_, std_, done)


def automatic_threshold(values: NDArray[np.float64], method: str, place: str) -> float:
    """Return the threshold of a sample ``[n]`` by ``otsu`` or ``em``.

    Raises
    ------
    KernelError
        The sample has fewer than two different values, so that nothing separates two classes.
    """
    if values.size < 2 or float(values.min()) == float(values.max()):
        raise KernelError(
            f"{values.size} sampled pixels with one and the same magnitude leave no threshold to find",
            place=place,
            remedy="give a fixed one with threshold=",
        )
    return otsu(values) if method == "otsu" else em_mixture(values).threshold()
