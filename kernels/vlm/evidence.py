"""Places of an image that a question made the region focus module look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..ask import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .dynamic_pyramid import PyramidLevel
    from .selection import TokenMap

__all__ = ["evidence_of"]


def evidence_of(
    view: PyramidLevel,
    tokens: TokenMap,
    kept: NDArray[np.int64],
    score: NDArray[np.float32],
    most: int,
) -> list[Evidence]:
    """Return the kept image tokens of a level as boxes: one around each group of tokens that share an edge.

    Parameters
    ----------
    view, tokens
        The level, and what of it is there.
    kept
        Indices into the ``places`` of ``tokens``.
    score
        ``[n]``: relevance of each token; empty where nothing was scored, and then there is no evidence.
    most
        Boxes at most, those with the largest score.

    Returns
    -------
    list
        By falling score: the share of the attention that the group's tokens have together.
    """
    image = kept[~tokens.newline[kept]]
    if not len(score) or not len(image):
        return []
    rows, cols = tokens.rows[image], tokens.cols[image]
    group = _groups(tokens.places[image], tokens.width)
    sums = np.bincount(group, weights=score[image].astype(np.float64))
    found = []
    for number in np.argsort(-sums, kind="stable")[:most].tolist():
        here = group == number
        col0, row0, _, _ = view.token_box(int(rows[here].min()), int(cols[here].min()))
        _, _, col1, row1 = view.token_box(int(rows[here].max()), int(cols[here].max()))
        found.append(
            Evidence((col0, row0, col1, row1), float(sums[number]), properties={"tokens": int(here.sum())})
        )
    return found


def _groups(places: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Number of the group of each token; ``places`` ascend, and hold no newline, so that rows do not touch."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = []
    for step in (1, width):
        other = np.searchsorted(places, places + step)
        there = other < len(places)
        there[there] = places[other[there]] == places[there] + step
        joined.append(np.stack((np.flatnonzero(there), other[there])))
    one, two = np.concatenate(joined, axis=1)
    links = coo_array((np.ones(len(one), np.int8), (one, two)), shape=(len(places), len(places)))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)
