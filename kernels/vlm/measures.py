"""How much ground boxes cover, and areas in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tilewright.kernels.ask import Request

if TYPE_CHECKING:
    from tilewright.kernels.ask import Scene

__all__ = ["Box", "area_words", "covered_pixels", "pixel_area"]

type Box = tuple[float, float, float, float]
"""``(col0, row0, col1, row1)`` in full-resolution pixels, edges not centres."""


def area_words(square_metres: float) -> str:
    """Return an area in m2, ha or km2, with three digits.

    >>> area_words(1_234_567)
    '1.23 km2'
    """
    for size, unit in ((1e6, "km2"), (1e4, "ha")):
        if square_metres >= size:
            value = square_metres / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{square_metres:,.0f} m2"


def covered_pixels(boxes: Sequence[Box]) -> float:
    """Return how many pixels boxes ``(col0, row0, col1, row1)`` cover together; what they share counts once."""
    import shapely

    return float(shapely.union_all([shapely.box(*box) for box in boxes]).area)


def pixel_area(scene: Scene, boxes: Sequence[Box]) -> float | None:
    """Return the square metres of a full-resolution pixel in boxes; None where the scene does not say.

    On the ellipsoid where the scene knows its place: the mean of the pixels in the middle of the boxes, weighed by
    their sizes. Else by the side of a pixel.
    """
    if scene.areas is None:
        return None if scene.resolution is None else scene.resolution**2
    rows, cols = scene.shape
    total = weight = 0.0
    for col0, row0, col1, row1 in boxes:
        row = min(max(int((row0 + row1) / 2), 0), rows - 1)
        col = min(max(int((col0 + col1) / 2), 0), cols - 1)
        size = max((col1 - col0) * (row1 - row0), 1e-9)
        total += size * float(scene.areas(Request(0, row, col, row + 1, col + 1))[0, 0])
        weight += size
    return total / weight if weight else None
