"""Scores of class maps, all from one matrix of counts that is summed over the whole set.

A mean of scores of single pictures is another number, and none of the published ones. The matrix has a row for each
class of the label and a column for each predicted class. A score whose denominator is zero does not exist: it is NaN
here, ``null`` in JSON and a dash in a table, never 0 or 1 by convention; means leave it out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import InputError

__all__ = ["binary_scores", "class_scores", "confusion", "kappa", "per_class", "ratio", "two_classes"]

type Counts = NDArray[np.int64]
"""``[classes, classes]``: rows are labels, columns predictions."""


def confusion(
    label: NDArray[Any], predicted: NDArray[Any], classes: int, counted: NDArray[np.bool_] | None = None
) -> Counts:
    """Return how often each class was predicted where the label has each class.

    Parameters
    ----------
    label, predicted
        Class numbers of the same shape.
    classes
        Number of classes.
    counted
        True where a pixel counts; None counts all.

    Raises
    ------
    InputError
        Shapes differ, or a pixel that counts is of no class.
    """
    if label.shape != predicted.shape:
        raise InputError(
            f"the label is {_size(label)}, the prediction {_size(predicted)}", place="confusion matrix"
        )
    if counted is not None:
        label, predicted = label[counted], predicted[counted]
    for what, values in (("label", label), ("prediction", predicted)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < classes:
            wrong = values[(values < 0) | (values >= classes)].flat[0]
            raise InputError(
                f"{what} {wrong} is none of the classes 0 to {classes - 1}", place="confusion matrix"
            )
    pairs = label.astype(np.int64).ravel() * classes + predicted.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _size(array: NDArray[Any]) -> str:
    return " x ".join(str(n) for n in array.shape)


def ratio(part: Any, whole: Any) -> float:
    """Return ``part / whole``; NaN where there is no whole."""
    return float(part) / float(whole) if whole else math.nan


def kappa(counts: NDArray[Any]) -> float:
    """Return Cohen's kappa; NaN where nothing was counted or chance alone agrees everywhere."""
    total = float(counts.sum())
    if not total:
        return math.nan
    observed = float(np.trace(counts)) / total
    expected = float((counts.sum(axis=0) / total) @ (counts.sum(axis=1) / total))
    return ratio(observed - expected, 1 - expected)


def per_class(counts: Counts) -> list[dict[str, float]]:
    """Return precision, recall, F1, IoU and the number of labelled pixels (support) of each class.

    F1 is ``2 TP / (2 TP + FP + FN)`` and IoU ``TP / (TP + FP + FN)``: 0 where a class was there and never found, and
    NaN only where it is neither in the label nor in the prediction. Precision is NaN where the class was never
    predicted, recall where it is not in the label.
    """
    found = []
    for i in range(len(counts)):
        hit = int(counts[i, i])
        labelled, predicted = int(counts[i].sum()), int(counts[:, i].sum())
        found.append(
            {
                "precision": ratio(hit, predicted),
                "recall": ratio(hit, labelled),
                "f1": ratio(2 * hit, labelled + predicted),
                "iou": ratio(hit, labelled + predicted - hit),
                "support": labelled,
            }
        )
    return found


def binary_scores(counts: Counts) -> dict[str, float]:
    """Return the scores of class 1 of a 2 x 2 matrix: what papers on change detection report."""
    positive = per_class(counts)[1]
    return {
        "f1": positive["f1"],
        "iou": positive["iou"],
        "precision": positive["precision"],
        "recall": positive["recall"],
        "oa": ratio(np.trace(counts), counts.sum()),
        "kappa": kappa(counts),
    }


def class_scores(counts: Counts) -> dict[str, float]:
    """Return overall accuracy, kappa, and the means of F1 and IoU over the classes that occur."""
    rows = per_class(counts)
    return {
        "miou": mean([row["iou"] for row in rows]),
        "mf1": mean([row["f1"] for row in rows]),
        "oa": ratio(np.trace(counts), counts.sum()),
        "kappa": kappa(counts),
    }


def mean(values: list[float]) -> float:
    """Return the mean of the values that exist; NaN where none does."""
    there = [value for value in values if not math.isnan(value)]
    return math.fsum(there) / len(there) if there else math.nan


def two_classes(counts: Counts) -> Counts:
    """Return the 2 x 2 matrix of class 0 against all others together."""
    nothing, missed, false = counts[0, 0], counts[1:, 0].sum(), counts[0, 1:].sum()
    return np.array([[nothing, false], [missed, counts[1:, 1:].sum()]], dtype=np.int64)
