"""What a policy shows to a model: any box of a scene, at any size, as a picture of three colours.

A box is read at the coarsest level that is still as fine as the picture, in strips of bounded size, and averaged down
by area; so no level is ever held whole, with or without overviews, and the same box gives the same picture however it
is cut into strips. (Tiles for token pruning are read by `tilewright.kernels.vlm.sampling` instead: released weights
were judged with bilinear pixels without antialiasing, which are others.)
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError, nearest_name
from tilewright.kernels.ask import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Scene, View

__all__ = ["Box", "Look", "Painter", "colour_channels", "look", "look_all", "resample", "shares_between"]

type Box = tuple[float, float, float, float]
"""``(col0, row0, col1, row1)`` in full-resolution pixels, edges not centres."""

STRIP = 4_000_000
"""Pixels that are read at a time."""


@dataclass(frozen=True, slots=True)
class Look:
    """A box of the scene at the size that was asked for."""

    pixels: NDArray[np.float32]
    """``[C, rows, columns]`` in the units of the source."""
    valid: NDArray[np.bool_]
    """``[rows, columns]``: True where at least half of what a pixel covers was measured."""
    dtype: np.dtype[Any]
    """Type of the source: bytes are shown as they are, other numbers are stretched."""


def look(scene: Scene, box: Box, shape: tuple[int, int]) -> Generator[list[Request], list[View], Look]:
    """Read a box of the scene at a size of ``(rows, columns)``; use with ``yield from`` in a policy.

    Raises
    ------
    KernelError
        The box is empty or reaches out of the scene.
    """
    rows, cols = shape
    col0, row0, col1, row1 = box
    if not (0 <= col0 < col1 <= scene.shape[1] and 0 <= row0 < row1 <= scene.shape[0]):
        raise KernelError(f"the box {box} is not within the scene of {scene.shape}", place="ask")
    number = scene.level_for(min((row1 - row0) / rows, (col1 - col0) / cols))
    level = scene.levels[number]
    row_edges = np.linspace(row0, row1, rows + 1) / level.factor
    col_edges = np.linspace(col0, col1, cols + 1) / level.factor
    left, right = _span(col_edges[0], col_edges[-1], 0, level.shape[1])
    first, end = _span(row_edges[0], row_edges[-1], 0, level.shape[0])
    each = max(1, int(rows * STRIP / max(1, (row_edges[-1] - row_edges[0]) * (right - left))))
    pixels, valid = [], []
    dtype = np.dtype(np.float32)
    for start in range(0, rows, each):
        edges = row_edges[start : start + each + 1]
        top, bottom = _span(edges[0] - 1, edges[-1] + 1, first, end)
        (view,) = yield [Request(number, top, left, bottom, right)]
        dtype = view.pixels.dtype
        strip, there = resample(view.pixels, view.valid, edges - top, col_edges - left)
        pixels.append(strip)
        valid.append(there)
    return Look(np.concatenate(pixels, axis=1), np.concatenate(valid), dtype)


def look_all(
    scene: Scene, boxes: Sequence[Box], shapes: Sequence[tuple[int, int]]
) -> Generator[list[Request], list[View], list[Look]]:
    """Read several boxes, each at its size; windows are asked for together, so that they can be read side by side."""
    readers = {
        number: look(scene, box, shape) for number, (box, shape) in enumerate(zip(boxes, shapes, strict=True))
    }
    asked = {number: next(reader) for number, reader in readers.items()}
    found: dict[int, Look] = {}
    while asked:
        views = yield [request for requests in asked.values() for request in requests]
        given = iter(views)
        for number in list(asked):
            try:
                asked[number] = readers[number].send([next(given) for _ in asked[number]])
            except StopIteration as done:
                found[number] = done.value
                del asked[number]
    return [found[number] for number in range(len(boxes))]


def _span(low: float, high: float, least: int, most: int) -> tuple[int, int]:
    """Return the whole pixels that hold ``low`` to ``high``, at least one, of those from ``least`` to ``most``."""
    first = min(max(math.floor(low), least), most - 1)
    return first, max(first + 1, min(math.ceil(high), most))


def resample(
    pixels: NDArray[Any], valid: NDArray[np.bool_], row_edges: NDArray[Any], col_edges: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return pixels between the given edges: averaged by area where they are coarser, linear between where finer.

    Parameters
    ----------
    pixels, valid
        ``[C, rows, columns]`` and ``[rows, columns]``; what is not valid has no weight.
    row_edges, col_edges
        Edges of the new rows and columns in pixels of the old.
    """
    weight = valid.astype(np.float64)
    values = np.where(valid, np.nan_to_num(np.asarray(pixels, np.float64)), 0.0)
    for axis, edges in ((-2, row_edges), (-1, col_edges)):
        values, weight = _along(values, axis, edges), _along(weight, axis, edges)
    there = weight >= 0.5
    found = np.where(there, values / np.where(there, weight, 1), 0).astype(np.float32)
    return found, there


def _along(values: NDArray[np.float64], axis: int, edges: NDArray[Any]) -> NDArray[np.float64]:
    count = values.shape[axis]
    if edges[-1] - edges[0] >= (len(edges) - 1) * (1 - 1e-9):
        zero = np.zeros_like(np.take(values, [0], axis))
        sums = np.concatenate([zero, np.cumsum(values, axis)], axis)
        at = np.clip(edges, 0, count)
        means = np.diff(_between(sums, axis, at), axis=axis)
        widths = np.maximum(np.diff(at), 1e-12)
        shaped: NDArray[np.float64] = means / (widths[:, None] if axis == -2 else widths)
        return shaped
    return _between(values, axis, np.clip((edges[:-1] + edges[1:]) / 2 - 0.5, 0, count - 1))


def _between(values: NDArray[np.float64], axis: int, at: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values at fractional positions, linear between their neighbours."""
    low = np.minimum(np.floor(at).astype(np.int64), values.shape[axis] - 1)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (at - low)[:, None] if axis == -2 else at - low
    found: NDArray[np.float64] = (
        np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    )
    return found


class Painter:
    """Makes pictures of one scene that look alike: the same bands, the same stretch.

    Bytes are shown as they are. Other numbers are stretched between ``limits``; without them between the 2nd and the
    98th percentile of the first picture, which the policies take from an overview, and so the same for all that follow.
    """

    def __init__(
        self,
        scene: Scene,
        bands: Sequence[str | int] | None = None,
        limits: tuple[float, float] | None = None,
        date: int = -1,
    ) -> None:
        self.limits = limits
        self._channels = colour_channels(scene.bands, bands or ())
        self._first = (date % scene.dates) * len(scene.bands)

    def paint(self, seen: Look) -> NDArray[np.uint8]:
        """Return ``[rows, columns, 3]``; black where nothing was measured."""
        chosen, valid = seen.pixels[[self._first + channel for channel in self._channels]], seen.valid
        if seen.dtype == np.uint8:
            low, high = 0.0, 255.0
        else:
            if self.limits is None:
                known = chosen[:, valid]
                low, high = np.percentile(known, [2, 98]) if known.size else (0.0, 1.0)
                self.limits = (float(low), float(high))
            low, high = self.limits
        share = shares_between(chosen, low, high)
        painted: NDArray[np.uint8] = np.rint(np.where(valid, share, 0) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(painted, 0, -1))


def colour_channels(bands: Sequence[str], wanted: Sequence[str | int] = ()) -> list[int]:
    """Return the channels that are red, green and blue.

    Those with these names, else the first three, else the first one thrice; or the ``wanted`` ones, by name or number
    from 0: three, or one that is all three. Raises `KernelError` where a wanted one is not there.
    """
    names: Sequence[str | int] = wanted
    if not wanted:
        three = {"red", "green", "blue"} <= set(bands)
        names = ("red", "green", "blue") if three else (0, 1, 2) if len(bands) >= 3 else (0,)
    found = []
    for name in names:
        if isinstance(name, int) and 0 <= name < len(bands):
            found.append(name)
        elif name in bands:
            found.append(list(bands).index(str(name)))
        else:
            raise KernelError(
                f"there is no band {name!r}", place="picture", remedy=nearest_name(str(name), bands)
            )
    if len(found) not in (1, 3):
        raise KernelError(
            f"{len(found)} bands for a picture", place="picture", remedy="name three of them, or one"
        )
    return found * 3 if len(found) == 1 else found


def shares_between(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Return where values lie between black, 0, and white, 1; those beyond are cut off."""
    found: NDArray[np.float32] = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return found
