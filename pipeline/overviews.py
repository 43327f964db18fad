"""One step of a pyramid: each pixel of the next level stands for 2 x 2 pixels of this one.

Both rules look at a pixel's own four children only, so a level has the same bits however it is cut into
blocks that start at even rows and columns. Level ``k`` has ``ceil(n / 2**k)`` pixels along an axis of ``n``;
where ``n`` is odd the last one stands for the single row or column that exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LARGEST_TOP", "average", "level_count", "level_shape", "mode"]

LARGEST_TOP = 512
"""Levels are added until no side is longer than this: the block in which a viewer asks for pixels."""


def level_shape(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Return ``(rows, columns)`` of a level; 0 is the full resolution."""
    return -(-shape[0] // 2**level), -(-shape[1] // 2**level)


def level_count(shape: tuple[int, int]) -> int:
    """Return how many levels a raster of ``shape`` has, the full resolution included."""
    level = 0
    while max(level_shape(shape, level)) > LARGEST_TOP:
        level += 1
    return level + 1


def _children(block: NDArray[Any]) -> tuple[list[NDArray[Any]], list[NDArray[np.bool_]]]:
    """Return the four children of each parent in row-major order, and which of them exist."""
    rows, cols = block.shape[-2:]
    exists = np.ones((rows, cols), dtype=bool)
    if rows % 2 or cols % 2:
        grow = [(0, rows % 2), (0, cols % 2)]
        exists = np.pad(exists, grow)
        block = np.pad(block, [(0, 0)] * (block.ndim - 2) + grow)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    return [block[..., r::2, c::2] for r, c in places], [exists[r::2, c::2] for r, c in places]


def _is_nodata(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None:
        return np.zeros(values.shape, dtype=bool)
    if np.isnan(nodata):
        return np.isnan(values)
    found: NDArray[np.bool_] = values == np.array(nodata).astype(values.dtype)
    return found


def average(block: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Return the mean of the valid children ``[..., ceil(rows / 2), ceil(columns / 2)]``, in ``block``'s type.

    Summed in float64; nodata where no child is valid. Integers are rounded half up, as GDAL does. The mean of
    stored integers is the mean of what they mean, because scale and offset are linear: no detour by physical
    values is needed.
    """
    children, exists = _children(block)
    shape = children[0].shape
    total = np.zeros(shape, dtype=np.float64)
    count = np.zeros(shape, dtype=np.uint8)
    for child, there in zip(children, exists, strict=True):
        valid = there & ~_is_nodata(child, nodata)
        np.add(total, child, out=total, where=valid)
        count += valid
    np.divide(total, count, out=total, where=count > 0)
    if block.dtype.kind in "iu":
        np.floor(total + 0.5, out=total)
    result = total.astype(block.dtype)
    if nodata is not None:
        result[count == 0] = np.array(nodata).astype(block.dtype)
    return result


def mode(block: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Return the commonest valid child ``[..., ceil(rows / 2), ceil(columns / 2)]``; nodata where none is valid.

    A tie goes to the label that reaches the highest count first in row-major order, which is GDAL's rule.
    """
    children, exists = _children(block)
    valid = [there & ~_is_nodata(child, nodata) for child, there in zip(children, exists, strict=True)]
    best = children[0].copy()
    best_count = np.broadcast_to(valid[0], best.shape).astype(np.uint8)
    for i in range(1, 4):
        count = np.broadcast_to(valid[i], best.shape).astype(np.uint8)
        for j in range(i):
            count += valid[i] & valid[j] & (children[i] == children[j])
        wins = count > best_count
        np.copyto(best, children[i], where=wins)
        np.copyto(best_count, count, where=wins)
    if nodata is not None:
        best[best_count == 0] = np.array(nodata).astype(block.dtype)
    return best
