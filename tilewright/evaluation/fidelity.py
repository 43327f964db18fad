"""How like two pictures are: PSNR and SSIM on the luma, as the papers on super-resolution report them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["luma", "psnr", "ssim"]

_LUMA = (65.481, 128.553, 24.966)
"""Weights of red, green and blue of 0 to 1 in Y of YCbCr (ITU-R BT.601), which then runs from 16 to 235."""
_EPS = 1e-8
"""Added to the mean squared error: two equal pictures have 80 dB."""
_WINDOW, _SIGMA = 11, 1.5


def luma(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Return Y ``[rows, columns]`` of 16/255 to 235/255, for ``[3, rows, columns]`` of 0 to 1."""
    weights = np.asarray(_LUMA)[:, None, None]
    y: NDArray[np.float64] = ((np.asarray(picture, np.float64) * weights).sum(axis=0) + 16) / 255
    return y


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio of two arrays of 0 to 1, in decibels; 80 where they are equal."""
    error = float(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))
    return 10 * math.log10(1 / (error + _EPS))


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the structural similarity of two planes ``[rows, columns]`` of 0 to 1; 1 where they are equal.

    Wang et al. 2004 (https://doi.org/10.1109/TIP.2003.819861): a Gaussian window of 11 pixels with sigma 1.5, only
    where it fits into the picture. As in pyiqa, values are first rounded on the scale of 0 to 255.

    Returns NaN for pictures smaller than the window.
    """
    if min(a.shape) < _WINDOW:
        return math.nan
    first, second = (np.round(np.asarray(x, np.float64) * 255) for x in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean1, mean2 = _smooth(first), _smooth(second)
    var1 = _smooth(first * first) - mean1 * mean1
    var2 = _smooth(second * second) - mean2 * mean2
    both = _smooth(first * second) - mean1 * mean2
    above = (2 * mean1 * mean2 + c1) * (2 * both + c2)
    below = (mean1 * mean1 + mean2 * mean2 + c1) * (var1 + var2 + c2)
    return float((above / below).mean())


def _smooth(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gaussian mean where the window fits, ``[rows - 10, columns - 10]``."""
    from scipy.ndimage import correlate1d

    steps = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(steps**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    smoothed: NDArray[np.float64] = correlate1d(correlate1d(plane, weights, axis=0), weights, axis=1)
    return smoothed[inner, inner]
