"""Scores of semantic change and of damage: what changed, and from what into what.

All take matrices of `confusion` (rows labels, columns predictions) that were summed over the whole set.

- SeK, F_scd and Score: Yang et al., Asymmetric Siamese Networks for Semantic Change Detection in Aerial Images
  (https://arxiv.org/abs/2010.05687), as the evaluators of the field compute them.
- BC, SC and SCS: Toker et al., DynamicEarthNet (https://arxiv.org/abs/2203.12560).
- xBD: Gupta et al., xBD (https://arxiv.org/abs/1911.09296), the rule of the xView2 challenge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .confusion import kappa, mean, per_class, ratio, two_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .confusion import Counts

__all__ = ["change_class_scores", "damage_scores", "sek37_scores", "semantic_scores", "transitions"]


def semantic_scores(counts: Counts) -> dict[str, float]:
    """Return mIoU, SeK, F_scd and Score of maps in which 0 is "unchanged".

    Parameters
    ----------
    counts
        Both dates in one matrix: the map of the first date against its label and that of the second against its own.
        For SECOND it is 7 x 7, and the SeK is the one of the papers, ``sek7``.

    Returns
    -------
    dict
        ``miou``: mean of the IoU of unchanged and changed. ``sek7``: kappa of the matrix without its cell
        (unchanged, unchanged), times ``exp(IoU of changed - 1)``. ``f_scd``: harmonic mean of the shares of right
        classes among the pixels predicted as changed and among those labelled so. ``score``: ``0.3 miou + 0.7 sek7``.
        ``iou_unchanged``, ``iou_changed``.
    """
    change = two_classes(counts)
    unchanged, changed = (row["iou"] for row in per_class(change))
    separated = _separated(counts, changed)
    miou = (unchanged + changed) / 2
    right = np.trace(counts[1:, 1:])
    precision, recall = ratio(right, counts[:, 1:].sum()), ratio(right, counts[1:].sum())
    return {
        "sek7": separated,
        "f_scd": _harmonic([precision, recall]),
        "miou": miou,
        "score": 0.3 * miou + 0.7 * separated,
        "iou_changed": changed,
        "iou_unchanged": unchanged,
    }


def _separated(counts: Counts, changed: float) -> float:
    """Return the separated kappa: 0 where kappa does not exist, as the official evaluators have it."""
    without = counts.copy()
    without[0, 0] = 0
    agreement = kappa(without)
    return (0.0 if math.isnan(agreement) else agreement) * math.exp(changed - 1)


def transitions(before: NDArray[Any], after: NDArray[Any], classes: int = 6) -> NDArray[np.int64]:
    """Return the transition of each pixel: 0 for unchanged, else ``(before - 1) * classes + after``.

    ``before`` and ``after`` hold 0 for unchanged and 1 to ``classes``; a pixel is unchanged where either says so.
    """
    first, second = before.astype(np.int64), after.astype(np.int64)
    return np.where((first > 0) & (second > 0), (first - 1) * classes + second, 0)


def sek37_scores(counts: Counts) -> dict[str, float]:
    """Return SeK and Score over transitions: another number than ``sek7``, and not comparable with it.

    Parameters
    ----------
    counts
        The matrix of `transitions`: 37 x 37 for the six classes of SECOND.
    """
    unchanged, changed = (row["iou"] for row in per_class(two_classes(counts)))
    separated = _separated(counts, changed)
    return {"sek37": separated, "score37": 0.3 * (unchanged + changed) / 2 + 0.7 * separated}


def change_class_scores(change: Counts, changed: Counts, everywhere: Counts) -> dict[str, float]:
    """Return BC, SC, SCS and mIoU of maps that say change and class apart.

    Parameters
    ----------
    change
        2 x 2 matrix of the change maps, ignored pixels left out.
    changed
        Matrix of the class maps on pixels whose label says change.
    everywhere
        Matrix of the class maps on all pixels that are not ignored.

    Returns
    -------
    dict
        ``bc``: IoU of change. ``sc``: mean IoU of the classes on changed pixels. ``scs``: their mean. ``miou``: mean
        IoU of the classes everywhere. ``bc_precision`` and ``bc_recall`` of change.
    """
    positive = per_class(change)[1]
    right = mean([row["iou"] for row in per_class(changed)])
    return {
        "scs": (positive["iou"] + right) / 2,
        "bc": positive["iou"],
        "sc": right,
        "miou": mean([row["iou"] for row in per_class(everywhere)]),
        "bc_precision": positive["precision"],
        "bc_recall": positive["recall"],
    }


def damage_scores(location: Counts, damage: Counts) -> dict[str, Any]:
    """Return the scores of xBD: where buildings are, and how badly they are damaged.

    Parameters
    ----------
    location
        2 x 2 matrix of "building", over all pixels.
    damage
        5 x 5 matrix of 0 (no building) and the levels 1 to 4, over pixels whose label is a building.

    Returns
    -------
    dict
        ``location_f1``; ``damage_f1``: of the levels 1 to 4; ``damage``: their harmonic mean, NaN where a level does
        not occur; ``overall``: ``0.3 location_f1 + 0.7 damage``.
    """
    found = per_class(location)[1]["f1"]
    levels = [row["f1"] for row in per_class(damage)[1:]]
    together = _harmonic(levels)
    return {
        "overall": 0.3 * found + 0.7 * together,
        "location_f1": found,
        "damage": together,
        "damage_f1": levels,
    }


def _harmonic(values: list[float]) -> float:
    """Return the harmonic mean: 0 where one of the values is 0, NaN where one does not exist."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return 0.0 if 0 in values else len(values) / math.fsum(1 / value for value in values)
