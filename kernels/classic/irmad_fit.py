"""The numbers behind IR-MAD: canonical correlations of two dates, reweighted until they settle.

Nielsen, A. A., Conradsen, K. and Simpson, J. J. (1998): Multivariate alteration detection (MAD) and MAF
postprocessing in multispectral, bitemporal image data, Remote Sensing of Environment 64.
Nielsen, A. A. (2007): The regularized iteratively reweighted MAD method for change detection in multi- and
hyperspectral data, IEEE Trans. Image Process. 16(2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from .common import band_count, band_label
from .thresholds import automatic_threshold

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Canonical", "canonical", "fit", "reweight", "shrinkage"]

_PLACE = "ir-mad"
_DEPENDENT = 1e-10
"""Share of a band's variance that the bands before it must leave unexplained."""
_LEAST_VARIANCE = 1e-8
"""Floor of a MAD variate's variance, for dates that are an exact linear image of one another."""
_SETTLED = 1e-4
"""Largest move of a canonical correlation between two rounds after which the iteration ends."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """Weighted canonical correlation analysis of two dates; variate i is ``a[i] . x - b[i] . y``."""

    mean: NDArray[np.float64]
    """``[2, C]`` weighted means that are taken off first."""
    a: NDArray[np.float64]
    """``[C, C]`` one row a variate, for the first date; each gives unit weighted variance."""
    b: NDArray[np.float64]
    """``[C, C]`` the same for the second date."""
    rho: NDArray[np.float64]
    """``[C]`` canonical correlations, ascending: the first variate has the largest variance 2 (1 - rho)."""


def canonical(
    x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64], ridge: float = 0.0
) -> Canonical:
    """Return the canonical variates of ``x`` and ``y`` ``[n, C]`` under weights ``[n]``.

    The generalised eigenproblem is S12 S22^-1 S21 a = rho^2 S11 a. ``ridge`` adds that share of each band's
    variance to the diagonals of S11 and S22. Signs are fixed so that the correlations of a variate of the
    first date with the bands of that date sum to a positive number, and each pair correlates positively.
    """
    from scipy import linalg

    total = weight.sum()
    mean = np.stack([weight @ x / total, weight @ y / total])
    dx, dy = x - mean[0], y - mean[1]
    s11, s22 = dx.T @ (weight[:, None] * dx) / total, dy.T @ (weight[:, None] * dy) / total
    s12 = dx.T @ (weight[:, None] * dy) / total
    r11, r22 = s11 + ridge * np.diag(np.diag(s11)), s22 + ridge * np.diag(np.diag(s22))
    to_second = linalg.solve(r22, s12.T, assume_a="pos")
    _, vectors = linalg.eigh(s12 @ to_second, r11)
    a = vectors.T
    a /= np.sqrt(np.einsum("ij,jk,ik->i", a, s11, a))[:, None]
    correlation = a @ s11 / np.sqrt(np.diag(s11))
    a *= np.where(correlation.sum(axis=1) < 0, -1.0, 1.0)[:, None]
    b = a @ to_second.T
    b /= np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", b, s22, b), np.finfo(np.float64).tiny))[:, None]
    rho = np.clip(np.einsum("ij,jk,ik->i", a, s12, b), 0, 1)
    order = np.argsort(rho, kind="stable")
    return Canonical(mean, a[order], b[order], rho[order])


@cache
def shrinkage(bands: int) -> float:
    """Return by how much the weights of IR-MAD make the variance of unchanged pixels look smaller.

    A weight is P(chi2_C > z), so for normal differences E[w z] / (C E[w]) = E[min(z1, z2)] / C with two
    independent chi2_C, and E[min] is the integral of P(chi2_C > z)^2.
    """
    from scipy import integrate, stats

    expected, _ = integrate.quad(lambda z: stats.chi2.sf(z, bands) ** 2, 0, np.inf)
    return float(expected / bands)


def reweight(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    ridge: float = 0.0,
    iterations: int = 30,
    consistent: bool = True,
) -> tuple[Canonical, NDArray[np.float64], NDArray[np.float64], int]:
    """Iterate canonical analysis and weights; return it, the variates' variances ``[C]``, chi2 ``[n]``, rounds.

    Each round weighs a pixel by its probability of no change, P(chi2_C > z) with z the sum of squared
    variates over their variances. With ``consistent`` those variances are divided by `shrinkage`: the weights
    favour pixels near zero, and the published iteration, which does not correct for this, underestimates the
    variance more with each round. The iteration also ends before the weights rest on fewer than 10 C pixels.
    """
    from scipy import stats

    count = x.shape[1]
    weight = np.ones(len(x))
    found: Canonical | None = None
    variance, z = np.ones(count), np.zeros(len(x))
    done = 0
    for step in range(1, iterations + 1):
        if weight.sum() ** 2 < 10 * count * (weight**2).sum():
            break
        previous = found
        found = canonical(x, y, weight, ridge)
        factor = shrinkage(count) if consistent and step > 1 else 1.0
        variance = np.maximum(2 * (1 - found.rho) / factor, _LEAST_VARIANCE)
        variate = (x - found.mean[0]) @ found.a.T - (y - found.mean[1]) @ found.b.T
        z = (variate**2 / variance).sum(axis=1)
        weight = stats.chi2.sf(z, count)
        done = step
        if previous is not None and np.abs(found.rho - previous.rho).max() < _SETTLED:
            break
    assert found is not None
    return found, variance, z, done


def _check(sample: NDArray[np.float64], bands: int | tuple[str, ...], ridge: float) -> None:
    """Raise `KernelError` for a band that has one value, or that the bands before it determine."""
    for date in range(2):
        values = sample[:, date]
        for band in range(values.shape[1]):
            if values[:, band].min() == values[:, band].max():
                raise KernelError(
                    f"{band_label(bands, band)} of date {date + 1} has the one value"
                    f" {values[0, band]:g} in all {len(values)} sampled pixels",
                    place=_PLACE,
                    remedy="leave the band out",
                )
        if ridge > 0:
            continue
        # The squared pivots of a QR of the standardised bands are what each adds to those before it.
        standard = (values - values.mean(axis=0)) / values.std(axis=0)
        added = np.diag(np.linalg.qr(standard, mode="r")) ** 2 / len(values)
        for dependent in np.flatnonzero(added < _DEPENDENT):
            raise KernelError(
                f"{band_label(bands, int(dependent))} of date {date + 1} is a linear combination of those before it",
                place=_PLACE,
                remedy="leave the band out, or give regularisation=1e-3",
            )


def fit(
    samples: Mapping[str, NDArray[np.float64]],
    *,
    bands: int | tuple[str, ...],
    method: str,
    p: float,
    regularisation: float,
    iterations: int,
    consistent: bool,
) -> dict[str, Any]:
    """Return the statistics of a scene from a sample ``{"image": [n, 2, C]}`` in float64.

    ``a`` and ``b`` apply to bands divided by ``std`` after ``mean`` is taken off; ``sigma`` are the standard
    deviations of the variates over unchanged pixels, and ``threshold`` is on chi2.
    """
    from scipy import stats

    sample = np.asarray(samples["image"], dtype=np.float64)
    count = band_count(bands)
    if len(sample) < 20 * count:
        raise KernelError(
            f"{len(sample)} pixels are valid on both dates, {count} bands need at least {20 * count}",
            place=_PLACE,
            remedy="take a larger region or fewer bands",
        )
    _check(sample, bands, regularisation)
    centre, std = sample.mean(axis=0), sample.std(axis=0)
    x, y = np.moveaxis((sample - centre) / std, 1, 0)
    found, variance, z, done = reweight(
        x, y, ridge=regularisation, iterations=iterations, consistent=consistent
    )
    if method == "chi2":
        threshold = float(stats.chi2.isf(p, count))
    else:
        threshold = automatic_threshold(np.sqrt(z), method, _PLACE) ** 2
    return {
        "mean": (centre + found.mean * std).tolist(),
        "std": std.tolist(),
        "a": found.a.tolist(),
        "b": found.b.tolist(),
        "rho": found.rho.tolist(),
        "sigma": np.sqrt(variance).tolist(),
        "threshold": threshold,
        "iterations": done,
        "changed_share": float((z >= threshold).mean()),
    }
