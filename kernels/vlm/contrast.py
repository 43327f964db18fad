"""What a text says against the ground of a scene: how far vectors stand out from it towards the text.

A cosine between a picture and a text says little by itself: the ground of a scene may be half way to the text already,
and what is looked for may be but a little nearer. So vectors are seen from the scene's mean, along the direction to the
text, and directions in which the ground varies by itself count less: the matched filter of target detection (Robey et
al. 1992, https://doi.org/10.1109/7.135446, with a loaded covariance: Carlson 1988, https://doi.org/10.1109/7.7181).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Contrast", "ruler"]

LOADING = 30.0
"""Mean variances that are added to each direction's variance: the ground weighs little against the text. Between 10
and 1,000 the planted blocks of `benchmarks/ask.py` were found alike; with 1 and below the ground's own directions take
over, and without the ground's mean (cosines alone) 5 of 40 were missed."""


@dataclass(frozen=True)
class Contrast:
    """A direction from the ground of a scene towards a text."""

    mean: NDArray[np.float32]
    """Of the ground, ``[D]``."""
    direction: NDArray[np.float32]
    """``[D]``, of length 1."""
    middle: float
    """Median of the ground's scores."""
    spread: float
    """Their robust standard deviation; see `ruler`."""

    @classmethod
    def between(cls, ground: NDArray[Any], text: NDArray[Any]) -> Contrast:
        """Return the contrast between vectors of a ground ``[n, D]``, of which there is one at least, and ``text``."""
        vectors = np.asarray(ground, np.float32)
        mean = vectors.mean(axis=0, dtype=np.float32)
        centred = vectors - mean
        covariance = (centred.T @ centred / len(vectors)).astype(np.float64)
        loading = LOADING * np.trace(covariance) / len(mean) + 1e-6
        towards = np.linalg.solve(covariance + loading * np.eye(len(mean)), (text - mean).astype(np.float64))
        direction = (towards / max(np.linalg.norm(towards), 1e-12)).astype(np.float32)
        return cls(mean, direction, *ruler(centred @ direction))

    def standing(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """Return by how many robust standard deviations vectors ``[..., D]`` stand out of the ground; NaN stays."""
        scores: NDArray[np.float32] = (vectors - self.mean) @ self.direction
        return (scores - np.float32(self.middle)) / np.float32(self.spread)


def ruler(values: NDArray[Any]) -> tuple[float, float]:
    """Return middle and spread: the median, and 1.4826 times the median distance from it (never 0)."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), 1e-3)
