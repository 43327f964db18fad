"""Boxes that lie askew: corners and angles, overlap, and which of many boxes is kept.

An oriented box is ``(cx, cy, width, height, degrees)`` in the convention that papers call le90: the width is the
longer side, and the angle from the x axis to it, clockwise on the screen, is in [-90, 90); of a square it is in
[-90, 0). A polygon is its corners ``(x0, y0, x1, y1, ...)``. Overlaps are those of shapely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import InputError

if TYPE_CHECKING:
    from shapely import Polygon

__all__ = ["box_polygon", "corners_of", "join_pieces", "obb_of", "ordered_polygon", "overlap", "suppress"]

type Obb = tuple[float, float, float, float, float]
type Corners = tuple[float, ...]


def box_polygon(box: Sequence[float]) -> Corners:
    """Return the corners of an upright box ``(x0, y0, x1, y1)``, clockwise on the screen from the top left."""
    x0, y0, x1, y1 = box
    return x0, y0, x1, y0, x1, y1, x0, y1


def corners_of(obb: Sequence[float]) -> Corners:
    """Return the corners of an oriented box, clockwise on the screen."""
    cx, cy, width, height, degrees = obb
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    found: list[float] = []
    for across, down in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        x, y = across * width, down * height
        found += [cx + x * cos - y * sin, cy + x * sin + y * cos]
    return tuple(found)


def obb_of(polygon: Sequence[float]) -> Obb:
    """Return the smallest oriented box around a polygon.

    Raises `InputError` where the polygon has no area.
    """
    import shapely

    shape = shapely.minimum_rotated_rectangle(_shape(polygon))
    if shape.geom_type != "Polygon":
        raise InputError(f"the polygon {tuple(polygon)} has no area", place="box")
    points = np.asarray(shape.exterior.coords)[:4]
    sides = np.roll(points, -1, axis=0) - points
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    longer = int(lengths[1] > lengths[0])
    degrees = _le90(math.degrees(math.atan2(sides[longer, 1], sides[longer, 0])))
    if math.isclose(lengths[0], lengths[1], rel_tol=1e-6) and degrees >= 0:
        degrees -= 90
    cx, cy = (points[0] + points[2]) / 2
    return float(cx), float(cy), float(lengths[longer]), float(lengths[1 - longer]), degrees


def _le90(degrees: float) -> float:
    turned = (degrees + 90) % 180 - 90
    return -90.0 if math.isclose(turned, 90, abs_tol=1e-9) else turned


def ordered_polygon(polygon: Sequence[float], *, clockwise: bool = True) -> Corners:
    """Return the corners from the top one on (of several the left one), clockwise on the screen or against it."""
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    turned = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, points[1:] + points[:1], strict=True))
    if (turned > 0) != clockwise:
        points.reverse()
    first = min(range(len(points)), key=lambda n: (points[n][1], points[n][0]))
    return tuple(value for point in points[first:] + points[:first] for value in point)


def _shape(polygon: Sequence[float]) -> Polygon:
    import shapely

    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(
            f"{len(polygon)} numbers are no polygon", place="box", remedy="give x and y of each corner"
        )
    return shapely.Polygon(np.reshape(np.asarray(polygon, float), (-1, 2)))


def overlap(first: Sequence[float], second: Sequence[float], *, of_smaller: bool = False) -> float:
    """Return the intersection of two polygons over their union, or over the smaller of them; 0 without area."""
    a, b = _shape(first), _shape(second)
    if not (a.is_valid and b.is_valid):
        raise InputError("a polygon crosses itself", place="box", remedy="give corners in their order")
    shared = a.intersection(b).area
    whole = min(a.area, b.area) if of_smaller else a.area + b.area - shared
    return float(shared / whole) if whole > 0 else 0.0


def suppress(
    polygons: Sequence[Sequence[float]],
    scores: Sequence[float],
    threshold: float = 0.5,
    labels: Sequence[str] = (),
) -> list[int]:
    """Return which polygons are kept, best first: one goes where a better one of its label overlaps it by more.

    Non-maximum suppression of any shapes: neighbours are found by a tree, so thousands of boxes take seconds.
    """
    import shapely

    if len(polygons) != len(scores) or (labels and len(labels) != len(scores)):
        raise InputError(f"{len(polygons)} boxes, {len(scores)} scores, {len(labels)} labels", place="boxes")
    if not polygons:
        return []
    tree = shapely.STRtree([_shape(one) for one in polygons])
    gone = np.zeros(len(polygons), bool)
    kept = []
    for number in np.argsort(-np.asarray(scores, float), kind="stable"):
        if gone[number]:
            continue
        kept.append(int(number))
        for other in tree.query(tree.geometries[number]):
            same = not labels or labels[other] == labels[number]
            if other != number and same and not gone[other]:
                gone[other] = overlap(polygons[number], polygons[other]) > threshold
    return kept


def join_pieces(
    boxes: Sequence[Sequence[float]], labels: Sequence[str], gap: float = 1.0, least: float = 0.5
) -> list[list[int]]:
    """Return which upright boxes are pieces of one object that was cut at the edges of tiles, as groups of numbers.

    Two of one label belong together where they come within ``gap`` pixels of each other along one side and share at
    least ``least`` of the shorter one's length along the other, or overlap so along both; and so do all in a chain.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not boxes:
        return []
    edges = np.asarray(boxes, float)
    touching: list[tuple[int, int]] = []
    for number in range(len(edges)):
        later = edges[number + 1 :]
        shares = []
        meets = np.ones(len(later), bool)
        for axis in (0, 1):
            low = np.maximum(edges[number, axis], later[:, axis])
            high = np.minimum(edges[number, axis + 2], later[:, axis + 2])
            length = np.minimum(
                edges[number, axis + 2] - edges[number, axis], later[:, axis + 2] - later[:, axis]
            )
            shares.append((high - low) / np.maximum(length, 1e-9))
            meets &= high - low >= -gap
        together = meets & (np.maximum(*shares) >= least)
        touching += [(number, number + 1 + int(n)) for n in np.flatnonzero(together)]
    pairs = np.array([pair for pair in touching if labels[pair[0]] == labels[pair[1]]], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(edges), len(edges)))
    _, groups = connected_components(graph, directed=False)
    return [[int(n) for n in np.flatnonzero(groups == group)] for group in dict.fromkeys(groups.tolist())]
