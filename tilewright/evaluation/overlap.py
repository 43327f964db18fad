"""How well masks and boxes lie on the truth: gIoU, cIoU and P@t of masks, accuracy of boxes.

Masks as in SegEarth-R1 and the papers on referring segmentation: gIoU is the mean over the pictures, cIoU the sum of
intersections over the sum of unions; where a picture and its truth are both empty, its IoU is 1. Boxes as in the
evaluation of RSCoVLM, with its rule of touching boxes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import InputError

from .confusion import mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MaskTally", "box_accuracy", "box_iou", "said_box"]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_EACH, _ALL = 1e-5, 1e-10
"""Added to a union, and to the sum of unions, as published: a perfect mask has a hair less than 1."""


class MaskTally:
    """Sums over pictures of binary masks."""

    def __init__(self) -> None:
        self.each: list[float] = []
        """IoU of each picture."""
        self._sums = np.zeros((2, 2), np.int64)

    def add(self, predicted: NDArray[Any], truth: NDArray[Any]) -> float:
        """Count a picture, masks of one shape that are true where not 0; return its IoU."""
        own, known = np.asarray(predicted) != 0, np.asarray(truth) != 0
        if own.shape != known.shape:
            raise InputError(f"a mask of {own.shape} beside a truth of {known.shape}", place="masks")
        for row, (a, b) in enumerate(((own, known), (~own, ~known))):
            self._sums[row] += int((a & b).sum()), int((a | b).sum())
        shared, either = int((own & known).sum()), int((own | known).sum())
        self.each.append(shared / (either + _EACH) if either else 1.0)
        return self.each[-1]

    def scores(self) -> dict[str, float]:
        """Return ``giou``, ``ciou``, ``ciou_background`` and ``p@0.5`` to ``p@0.9`` (IoU strictly above)."""
        found = {"giou": mean(self.each)}
        for name, (shared, either) in zip(("ciou", "ciou_background"), self._sums, strict=True):
            found[name] = float(shared / (either + _ALL))
        return found | {f"p@{t:g}": mean([float(one > t) for one in self.each]) for t in THRESHOLDS}


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of boxes ``(x0, y0, x1, y1)`` as the evaluation of RSCoVLM computes it.

    Boxes that overlap by a pixel or less along a side have 0, even a box of one pixel with itself.
    """
    x0, y0, x1, y1 = (f(a, b) for f, a, b in zip((max, max, min, min), first, second, strict=True))
    if not (x0 < x1 - 1 and y0 < y1 - 1):
        return 0.0
    shared = (x1 - x0) * (y1 - y0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def said_box(
    text: str, form: Literal["json", "plain"] = "json"
) -> tuple[tuple[float, float, float, float], bool]:
    """Return the first box of an answer, and whether it was given in shares of the image.

    ``json`` finds four numbers in brackets; all of them 1 or less are shares, and come back in thousandths.
    ``plain`` wants the answer to begin with four whole numbers between commas, a blank and a label. No box is (0, 0,
    0, 0), which is counted as wrong.
    """
    number = r"-?\d+(?:\.\d+)?"
    if form == "plain":
        plain = re.match(r"(\d+),(\d+),(\d+),(\d+) \S", text)
        found = [float(value) for value in plain.groups()] if plain else []
    else:
        listed = re.search(rf"\[\s*{number}(?:\s*,\s*{number}){{3}}\s*\]", text)
        found = [float(value) for value in json.loads(listed.group())] if listed else []
    if not found:
        return (0.0, 0.0, 0.0, 0.0), False
    shares = form == "json" and all(value <= 1 for value in found)
    x0, y0, x1, y1 = (value * 1000 for value in found) if shares else found
    return (x0, y0, x1, y1), shares


def box_accuracy(
    boxes: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], threshold: float = 0.5
) -> float:
    """Return the share of boxes whose IoU is strictly above ``threshold``."""
    if len(boxes) != len(truth):
        raise InputError(f"{len(boxes)} boxes for {len(truth)} truths", place="boxes")
    return mean([float(box_iou(one, other) > threshold) for one, other in zip(boxes, truth, strict=True)])
