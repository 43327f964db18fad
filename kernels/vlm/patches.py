"""How ImageRAG cuts a large image into patches, and what it does with boxes.

Three ways (https://arxiv.org/abs/2411.07688): `vit_patches`, squares of one size; `cc_patches`, windows of many sizes
that slide so that they just cover; `grid_patches`, all grids of n x n. The image is thought to be resized up to a
multiple first, and the boxes are mapped back and cut off to whole pixels; only the boxes are made here, nobody needs
the resized image. Order counts: equal scores are told apart by it. Boxes are ``(x0, y0, x1, y1)`` in pixels of the
image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilewright.errors import KernelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PATCHES",
    "KnownPatches",
    "cc_patches",
    "enclosing_box",
    "grid_patches",
    "location",
    "merged_box",
    "scaled_box",
    "vit_patches",
]

type IntBox = tuple[int, int, int, int]

_ROWS, _COLUMNS = ("Top", "Center", "Bottom"), ("left", "center", "right")


@dataclass(frozen=True, eq=False)
class KnownPatches:
    """Patches that were embedded before, such as the tiles of an index."""

    boxes: Sequence[tuple[float, float, float, float]]
    """``(col0, row0, col1, row1)`` in full-resolution pixels."""
    vectors: NDArray[np.float32]
    """``[patches, D]``, by the embedder that the policy has."""


def vit_patches(cols: int, rows: int, side: int = 448) -> list[IntBox]:
    """Return the squares of ``side`` pixels of the resized image, row by row."""
    wide, high = _up(cols, side), _up(rows, side)
    return [
        _back((x, y, x + side, y + side), (cols, rows), (wide, high))
        for y in range(0, high, side)
        for x in range(0, wide, side)
    ]


def cc_patches(cols: int, rows: int, parts: int = 10) -> list[IntBox]:
    """Return windows of n/``parts`` of the sides, n = ``parts`` to 1, that slide by a little less than their side.

    Of the sizes that give the same number of windows only the smallest counts; the last window of a row ends at the
    edge.
    """
    wide, high = _up(cols, parts), _up(rows, parts)
    levels: dict[int, list[IntBox]] = {1: [(0, 0, wide, high)]}
    for n in range(parts - 1, 0, -1):
        along = [_sliding(side, side // parts, n) for side in (wide, high)]
        kernel_x, kernel_y = wide // parts * n, high // parts * n
        windows = [(x, y, x + kernel_x, y + kernel_y) for y in along[1] for x in along[0]]
        levels[len(windows)] = windows
    every = (_back(box, (cols, rows), (wide, high)) for windows in levels.values() for box in windows)
    return list(dict.fromkeys(every))


def _sliding(side: int, unit: int, n: int) -> list[int]:
    """Return where windows of ``n`` units begin along a side."""
    kernel = unit * n
    stride = math.floor(kernel - (kernel - unit) / unit)
    return [*range(0, side - kernel, max(1, stride)), side - kernel]


def grid_patches(cols: int, rows: int, most: int = 10, enlarge: float = 1.0) -> list[IntBox]:
    """Return the cells of all grids of 1 x 1 to ``most`` x ``most``, each scaled around its centre by ``enlarge``.

    Enlarged cells may reach beyond the image.
    """
    wide, high = _up(cols, most), _up(rows, most)
    found = []
    for n in range(1, most + 1):
        for y in range(n):
            for x in range(n):
                cell = (wide * x / n, high * y / n, wide * (x + 1) / n, high * (y + 1) / n)
                box = _back(cell, (cols, rows), (wide, high))
                found.append(box if enlarge == 1 else _whole(scaled_box(box, enlarge)))
    return found


PATCHES: dict[str, Callable[[int, int], list[IntBox]]] = {
    "vit": vit_patches,
    "cc": cc_patches,
    "grid": grid_patches,
}
"""The ways by name, each with the published settings."""


def _up(side: int, multiple: int) -> int:
    if side < 1:
        raise KernelError(f"an image with a side of {side} px has no patches", place="patches")
    return math.ceil(side / multiple) * multiple


def _back(box: Sequence[float], size: tuple[int, int], resized: tuple[int, int]) -> IntBox:
    """Return a box of the resized image in whole pixels of the image."""
    x0, y0, x1, y1 = (
        int(edge * large / small) for edge, large, small in zip(box, size * 2, resized * 2, strict=True)
    )
    return x0, y0, x1, y1


def _whole(box: Sequence[float]) -> IntBox:
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return x0, y0, x1, y1


def scaled_box(
    box: Sequence[float], factor: float, within: tuple[float, float, float, float] | None = None
) -> tuple[float, float, float, float]:
    """Return a box scaled around its centre, cut off at the box ``within``."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = (box[2] - box[0]) * factor / 2, (box[3] - box[1]) * factor / 2
    found = (x - wide, y - high, x + wide, y + high)
    if within is None:
        return found
    return (
        max(found[0], within[0]),
        max(found[1], within[1]),
        min(found[2], within[2]),
        min(found[3], within[3]),
    )


def enclosing_box(obb: Sequence[float]) -> tuple[float, float, float, float]:
    """Return centre, width and height of the upright box around ``(cx, cy, width, height, degrees)``."""
    cx, cy, width, height, degrees = obb
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    return cx, cy, width * cos + height * sin, width * sin + height * cos


def merged_box(
    boxes: Sequence[Sequence[float]], *, official: bool = False
) -> tuple[float, float, float, float]:
    """Return the box around all boxes.

    ``official`` makes the mistake of the released code: its top is the smaller of the left edge of all and the top of
    the last box.
    """
    left, right = min(box[0] for box in boxes), max(box[2] for box in boxes)
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return left, min(left, boxes[-1][1]) if official else top, right, bottom


def location(box: Sequence[float], size: tuple[float, float]) -> str:
    """Return where in an image of ``(columns, rows)`` a box lies, as one of nine regions such as ``Top-left``.

    The one that it overlaps most; of equal ones the first in reading order.
    """
    best, most = (1, 1), -1.0
    for row in range(3):
        for column in range(3):
            region = [
                size[0] * column / 3,
                size[1] * row / 3,
                size[0] * (column + 1) / 3,
                size[1] * (row + 1) / 3,
            ]
            across = min(box[2], region[2]) - max(box[0], region[0])
            down = min(box[3], region[3]) - max(box[1], region[1])
            overlap = max(across, 0.0) * max(down, 0.0)
            if overlap > most:
                best, most = (row, column), overlap
    return "Center" if best == (1, 1) else f"{_ROWS[best[0]]}-{_COLUMNS[best[1]]}"
