"""What is counted over a dataset: matrices that are summed picture by picture, and the pictures that went worst."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tilewright.errors import InputError

from .confusion import binary_scores, class_scores, confusion, mean, per_class
from .fidelity import luma, psnr, ssim
from .layout import IGNORED
from .semantic import sek37_scores, semantic_scores, transitions

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassTally", "Found", "PictureTally", "SemanticTally", "Shown", "Tally", "Worst"]

_LONGEST = 384
"""Pixels a side of what is kept of a picture to show it."""


@dataclass(frozen=True)
class Found:
    """What a kernel found on one picture, beside its label."""

    name: str
    """Name of the picture."""
    maps: tuple[NDArray[Any], ...]
    """Class maps ``[rows, columns]``, one or one a date; or a finer picture ``[3, rows, columns]``."""
    labels: tuple[NDArray[Any], ...]
    """The same of the label; `IGNORED` where a pixel does not count."""
    there: NDArray[np.bool_]
    """True where the kernel gave a result."""
    dates: NDArray[Any] | None = None
    """The pictures themselves ``[T, C, rows, columns]``, to be shown."""
    bands: tuple[str, ...] = ()
    """Names of their bands."""


class Tally(Protocol):
    """Sums over a dataset, and the scores that follow from them."""

    ignored: int
    """Pixels whose label does not count."""
    missing: int
    """Pixels that would count, for which the kernel gave no result."""

    def add(self, found: Found) -> dict[str, float]:
        """Count a picture; return its own ``pixels``, ``errors`` and ``badness``, 0 where nothing is wrong."""
        ...

    def scores(self) -> dict[str, float]:
        """Return the scores of all pictures so far; the first is the one to look at."""
        ...


class ClassTally:
    """One class map against one label; with two classes, scores of class 1."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)
        self.ignored = self.missing = 0

    def add(self, found: Found) -> dict[str, float]:
        """Count a picture."""
        total = np.zeros_like(self.counts)
        for label, predicted in zip(found.labels, found.maps, strict=True):
            asked = label != IGNORED
            self.ignored += int((~asked).sum())
            self.missing += int((asked & ~found.there).sum())
            total += confusion(label, predicted, len(self.counts), asked & found.there)
        self.counts += total
        return _errors(total)

    def scores(self) -> dict[str, float]:
        """Return the scores of all pictures so far."""
        return binary_scores(self.counts) if len(self.counts) == 2 else class_scores(self.counts)

    def rows(self) -> list[dict[str, float]]:
        """Return the scores of each class."""
        return per_class(self.counts)


class SemanticTally(ClassTally):
    """A class map of each of two dates, 0 for unchanged: both count in one matrix, and transitions in another."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        count = (classes - 1) ** 2 + 1
        self.moves = np.zeros((count, count), np.int64)

    def add(self, found: Found) -> dict[str, float]:
        """Count a picture."""
        classes = len(self.counts) - 1
        counted = found.there & np.logical_and.reduce([label != IGNORED for label in found.labels])
        labels = [np.where(counted, label, 0) for label in found.labels]
        maps = [np.where(counted, one, 0) for one in found.maps]
        self.moves += confusion(
            transitions(labels[0], labels[1], classes),
            transitions(maps[0], maps[1], classes),
            len(self.moves),
            counted,
        )
        return super().add(found)

    def scores(self) -> dict[str, float]:
        """Return the scores of all pictures so far; SeK over seven and over 37 classes by their names."""
        found = semantic_scores(self.counts)
        other = sek37_scores(self.moves)
        if len(self.counts) == 7:
            return found | other
        classes, moves = len(self.counts), len(self.moves)
        named = {"sek7": f"sek{classes}", "sek37": f"sek{moves}", "score37": f"score{moves}"}
        return {named.get(name, name): value for name, value in (found | other).items()}


class PictureTally:
    """A finer picture against its truth: means of PSNR and SSIM over the pictures, on Y of three bands."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.ignored = self.missing = 0
        self._scores: list[dict[str, float]] = []

    def add(self, found: Found) -> dict[str, float]:
        """Count a picture."""
        made, truth = (
            np.clip((np.asarray(x, np.float64) - self.low) / (self.high - self.low), 0, 1)
            for x in (found.maps[0], found.labels[0])
        )
        if made.shape != truth.shape or len(made) != 3:
            raise InputError(
                f"the kernel gives {made.shape}, the truth is {truth.shape}",
                place=found.name,
                remedy="both are three bands of one size",
            )
        self.missing += int((~found.there).sum())
        made = np.where(found.there, made, 0)
        one = {
            "psnr_y": psnr(luma(made), luma(truth)),
            "ssim_y": ssim(luma(made), luma(truth)),
            "psnr_rgb": psnr(made, truth),
        }
        self._scores.append(one)
        return {"pixels": float(made[0].size), **one, "badness": 1 / max(one["psnr_y"], 1e-3)}

    def scores(self) -> dict[str, float]:
        """Return the means over the pictures so far."""
        names = self._scores[0] if self._scores else {}
        return {name: mean([one[name] for one in self._scores]) for name in names}


def _errors(counts: NDArray[np.int64]) -> dict[str, float]:
    pixels = int(counts.sum())
    errors = pixels - int(np.trace(counts))
    return {"pixels": pixels, "errors": errors, "badness": errors / pixels if pixels else 0.0}


@dataclass(frozen=True)
class Shown:
    """A picture as it is drawn, made smaller."""

    name: str
    """Name of the picture."""
    badness: float
    """Share of wrong pixels; by which pictures are ranked."""
    facts: dict[str, float]
    """What `Tally.add` returned."""
    dates: list[NDArray[np.float32]]
    """``[rows, columns, 3]`` of 0 to 1 for each date."""
    labels: list[NDArray[Any]]
    """The label, one or one a date."""
    maps: list[NDArray[Any]]
    """What the kernel found; `IGNORED` where it gave no result."""


@dataclass
class Worst:
    """The few pictures on which most went wrong."""

    most: int
    """How many are kept."""
    _heap: list[tuple[float, int, Shown]] = field(default_factory=list)
    _count: int = 0

    def offer(self, found: Found, facts: dict[str, float]) -> None:
        """Keep a picture where it is among the worst so far and something went wrong on it."""
        self._count += 1
        badness = facts["badness"]
        if self.most < 1 or not badness > 0 or found.dates is None:
            return
        if len(self._heap) < self.most or badness > self._heap[0][0]:
            item = (badness, -self._count, _shown(found, facts))
            (heapq.heappush if len(self._heap) < self.most else heapq.heapreplace)(self._heap, item)

    def pictures(self) -> list[Shown]:
        """Return them, the worst first."""
        return [shown for *_, shown in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _shown(found: Found, facts: dict[str, float]) -> Shown:
    assert found.dates is not None
    maps = [np.where(found.there, one, IGNORED) if one.ndim == 2 else one for one in found.maps]
    return Shown(
        found.name,
        facts["badness"],
        {name: value for name, value in facts.items() if name != "badness"},
        [_composite(date, found.bands) for date in found.dates],
        [_smaller(one) for one in found.labels],
        [_smaller(one) for one in maps],
    )


def _smaller(array: NDArray[Any]) -> NDArray[Any]:
    step = max(1, math.ceil(max(array.shape[-2:]) / _LONGEST))
    return array[..., ::step, ::step].copy()


def _composite(date: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32]:
    """Return red, green and blue (or the first three bands, or the first one in grey) as a picture of 0 to 1.

    What is not 8-bit is stretched between its 2nd and 98th percentile.
    """
    colours = ("red", "green", "blue")
    if set(colours) <= set(names):
        picked = [names.index(colour) for colour in colours]
    else:
        picked = [0, 1, 2] if len(date) >= 3 else [0, 0, 0]
    bands: NDArray[np.float32] = _smaller(date[picked]).astype(np.float32)
    known = np.isfinite(bands)
    low, high = 0.0, 255.0
    if date.dtype != np.uint8:
        low, high = np.percentile(bands[known], [2, 98]) if known.any() else (0.0, 1.0)
    stretched = np.clip((bands - low) / max(high - low, 1e-9), 0, 1)
    shown: NDArray[np.float32] = np.where(known, stretched, 0).astype(np.float32)
    return np.moveaxis(shown, 0, -1)
