"""Which pixels lie in an outline, asked by many threads at once.

GEOS prepares a geometry (builds its index) at the first question and keeps it with the geometry; two threads that
ask a fresh one at the same moment crash the process. So outlines that threads share are asked here, one at a time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

__all__ = ["points_inside", "touches"]

_ONE_AT_A_TIME = threading.Lock()


def points_inside(
    outline: BaseGeometry, box: BaseGeometry, x: NDArray[np.floating], y: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Return a bool for each of the points ``(x, y)`` (broadcast): True where it is in ``outline`` or on its edge.

    ``box`` holds all points, so that a window wholly inside or outside costs one question.
    """
    import shapely

    with _ONE_AT_A_TIME:
        shapely.prepare(outline)
        if shapely.contains_properly(outline, box):
            return np.ones(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        if not shapely.intersects(outline, box):
            return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        inside: NDArray[np.bool_] = shapely.intersects_xy(outline, x, y)
        return inside


def touches(outline: BaseGeometry, box: Any) -> bool:
    """True where ``outline`` and ``box`` have a point in common."""
    import shapely

    with _ONE_AT_A_TIME:
        return bool(shapely.intersects(outline, box))
