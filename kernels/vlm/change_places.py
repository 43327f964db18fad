"""The tools ``count`` and ``area``: maps of change in pieces become places, joined over the edges of the pieces.

A place is a set of changed pixels that share edges. Pieces lie on a lattice and may be missing; where two are
neighbours, pixels that face each other over their edge belong to one place, so the number of places and their areas do
not depend on how the image was cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from tilewright.kernels.ask import Request, Scene

__all__ = ["ChangedPlace", "Piece", "area_of", "join_places"]


@dataclass(frozen=True)
class Piece:
    """A part of the map of change."""

    window: Request
    """Where it lies; all pieces of a map are of one level and do not overlap."""
    change: NDArray[np.bool_]
    """``[rows, columns]``."""
    strength: NDArray[np.float32]
    """``[rows, columns]``."""
    kinds: NDArray[np.int64] | None = None
    """``[rows, columns]``, as `Changed` has them."""


@dataclass
class ChangedPlace:
    """A connected place that changed."""

    box: tuple[float, float, float, float]
    """``(col0, row0, col1, row1)`` at full resolution."""
    centre: tuple[float, float]
    """(row, column) at full resolution: the mean of its pixels."""
    pixels: int
    """Pixels of the level that was looked at."""
    area: float | None
    """Square metres; None where the image does not say how large its pixels are."""
    strength: float
    """Mean over its pixels."""
    outline: BaseGeometry | None = None
    """Along the edges of its pixels, in (column, row) at full resolution; the largest places have one."""
    kinds: Counter[int] = field(default_factory=Counter)
    """Pixels of each kind, see `Changed`."""
    classes: tuple[str, str] | None = None
    """What it was before, and what it is now, where something has said so."""


type _Part = tuple[int, int, tuple[slice, slice]]
"""Number of a piece, the label of an area in it, and the rows and columns around that."""


@dataclass
class _Sums:
    """What is added up over the pieces of a place."""

    pixels: int = 0
    area: float = 0.0
    strength: float = 0.0
    rows: float = 0.0
    cols: float = 0.0
    box: tuple[int, int, int, int] | None = None
    parts: list[_Part] = field(default_factory=list)
    kinds: Counter[int] = field(default_factory=Counter)


def area_of(scene: Scene, window: Request) -> NDArray[np.float64] | None:
    """Return the square metres of each pixel of a window: on the ellipsoid, else by the side of a pixel, else None."""
    if scene.areas is not None:
        return scene.areas(window)
    if scene.resolution is None:
        return None
    return np.full(window.shape, (scene.resolution * scene.levels[window.level].factor) ** 2)


def join_places(
    scene: Scene, pieces: Sequence[Piece], smallest: int = 1, outlined: int = 0
) -> list[ChangedPlace]:
    """Return the places of a map of change, the largest first.

    Parameters
    ----------
    scene
        Whose map it is.
    pieces
        Its parts.
    smallest
        Places of fewer pixels are left out.
    outlined
        So many of the largest places are given their outline.
    """
    labels, first = _labelled(pieces)
    roots = _roots(pieces, labels, first)
    sums: dict[int, _Sums] = {}
    for number, piece in enumerate(pieces):
        _add(sums, scene, piece, labels[number], roots[first[number] : first[number + 1]], number)
    factor = scene.levels[pieces[0].window.level].factor if pieces else 1.0
    kept = sorted((one for one in sums.values() if one.pixels >= smallest), key=lambda one: -one.pixels)
    places = [_place(one, scene, factor) for one in kept]
    for place, one in zip(places[:outlined], kept, strict=False):
        place.outline = _outline(one.parts, pieces, labels, factor)
    return places


def _labelled(pieces: Sequence[Piece]) -> tuple[list[NDArray[np.int32]], list[int]]:
    """Return the numbers of each piece's own areas, from 1, and how many all pieces before it have."""
    from scipy.ndimage import label

    labels, first = [], [0]
    for piece in pieces:
        numbers, count = label(piece.change)
        labels.append(np.asarray(numbers, np.int32))
        first.append(first[-1] + count)
    return labels, first


def _roots(
    pieces: Sequence[Piece], labels: Sequence[NDArray[np.int32]], first: Sequence[int]
) -> NDArray[np.int64]:
    """Return for each area the number of the place that it belongs to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    corners = {(piece.window.row0, piece.window.col0): number for number, piece in enumerate(pieces)}
    pairs = [np.zeros((0, 2), np.int64)]
    for number, piece in enumerate(pieces):
        window = piece.window
        for corner, own, facing in (
            ((window.row0, window.col1), labels[number][:, -1], (slice(None), 0)),
            ((window.row1, window.col0), labels[number][-1], (0, slice(None))),
        ):
            if (other := corners.get(corner)) is None:
                continue
            theirs = labels[other][facing]
            length = min(len(own), len(theirs))
            both = np.stack([own[:length], theirs[:length]], axis=1).astype(np.int64)
            both = np.unique(both[(both > 0).all(axis=1)], axis=0) - 1
            pairs.append(both + np.array([first[number], first[other]]))
    edges = np.concatenate(pairs)
    count = first[-1]
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _add(
    sums: dict[int, _Sums],
    scene: Scene,
    piece: Piece,
    labels: NDArray[np.int32],
    roots: NDArray[np.int64],
    number: int,
) -> None:
    """Add the areas of a piece to the places that they belong to."""
    from scipy.ndimage import find_objects

    if not len(roots):
        return
    rows, cols = np.nonzero(labels)
    own = labels[rows, cols] - 1
    areas = area_of(scene, piece.window)
    weights = [
        np.ones(len(own)) if areas is None else areas[rows, cols],
        np.nan_to_num(piece.strength[rows, cols].astype(np.float64)),
        rows + piece.window.row0 + 0.5,
        cols + piece.window.col0 + 0.5,
    ]
    pixels = np.bincount(own, minlength=len(roots))
    added = np.stack([np.bincount(own, weight, minlength=len(roots)) for weight in weights])
    for label, box in enumerate(find_objects(labels)):
        one = sums.setdefault(int(roots[label]), _Sums())
        one.pixels += int(pixels[label])
        one.area, one.strength, one.rows, one.cols = (
            total + float(more)
            for total, more in zip((one.area, one.strength, one.rows, one.cols), added[:, label], strict=True)
        )
        here = (
            box[1].start + piece.window.col0,
            box[0].start + piece.window.row0,
            box[1].stop + piece.window.col0,
            box[0].stop + piece.window.row0,
        )
        one.box = here if one.box is None else _around(one.box, here)
        one.parts.append((number, label + 1, box))
        if piece.kinds is not None:
            one.kinds.update(piece.kinds[box][labels[box] == label + 1].tolist())


def _around(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _place(one: _Sums, scene: Scene, factor: float) -> ChangedPlace:
    assert one.box is not None
    rows, cols = scene.shape
    col0, row0, col1, row1 = (edge * factor for edge in one.box)
    known = scene.areas is not None or scene.resolution is not None
    return ChangedPlace(
        (col0, row0, min(col1, float(cols)), min(row1, float(rows))),
        (one.rows / one.pixels * factor, one.cols / one.pixels * factor),
        one.pixels,
        one.area if known else None,
        one.strength / one.pixels,
        kinds=one.kinds,
    )


def _outline(
    parts: Sequence[_Part], pieces: Sequence[Piece], labels: Sequence[NDArray[np.int32]], factor: float
) -> BaseGeometry:
    """Return the outline of the areas of a place, joined."""
    import shapely
    from affine import Affine
    from rasterio.features import shapes

    found = []
    for number, label, box in parts:
        window = pieces[number].window
        corner = Affine.translation(window.col0 + box[1].start, window.row0 + box[0].start)
        mask = labels[number][box] == label
        at = Affine.scale(factor) * corner
        found += [
            shapely.geometry.shape(outline)
            for outline, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=at)
        ]
    whole = found[0] if len(found) == 1 else shapely.union_all(found)
    return shapely.normalize(whole)
