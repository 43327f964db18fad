"""How large pixels are on the ellipsoid, and what each class of a result covers, in square metres.

A pixel of a projected grid is not as large as its side squared: in UTM by up to 0.2 %, in Web Mercator at 60 degrees by
a factor of four. So every pixel is weighed with its own area on WGS84.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, nearest_name

from .compare import blocks_of, label_of
from .grid import Grid
from .store import REASON
from .stored import open_rasters
from .warp import through, transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

    from .grid import Window
    from .stored import StoredRasters

__all__ = ["ClassArea", "chosen_output", "class_areas", "pixel_areas"]

NODES = 64
"""Most pixels between two points at which the area of a pixel is computed."""
SPACING = 20_000.0
"""Most metres between them: linear between points so far apart, an area is wrong by at most 2e-6."""


@dataclass(frozen=True, slots=True)
class ClassArea:
    """What a class covers in a region."""

    region: str
    """Name of the region; empty for the whole result."""
    label: str | None
    """Name of the class; None for pixels without a result."""
    value: int | None
    """Its number."""
    pixels: int
    """Pixels whose centre lies in the region."""
    area_m2: float
    """Their area on the ellipsoid in square metres."""


def pixel_areas(box: GeoBox, window: Window) -> NDArray[np.float64]:
    """Return the area of each pixel of ``window`` on the ellipsoid WGS84, in square metres, ``[rows, columns]``.

    The area of a pixel is that of its image in Lambert's azimuthal equal-area projection around the grid's centre, to
    second order in its size: 1e-5 for pixels of 0.25 degrees. It is computed on a lattice of points and linear between.

    Raises
    ------
    InputError
        The grid has no CRS.
    """
    rows, row = _nodes(window.row0, window.row1, _step(box))
    cols, col = _nodes(window.col0, window.col1, _step(box))
    at = _areas_at(box, rows[:, None] + 0.5, cols[None, :] + 0.5)
    across = np.stack([np.interp(col, cols, line) for line in at])
    i = np.clip(np.searchsorted(rows, row, side="right") - 1, 0, max(0, len(rows) - 2))
    j = np.minimum(i + 1, len(rows) - 1)
    share = ((row - rows[i]) / np.maximum(rows[j] - rows[i], 1))[:, None]
    found: NDArray[np.float64] = across[i] * (1 - share) + across[j] * share
    return found


def _nodes(first: int, end: int, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lattice lines around pixels ``first`` to ``end``, at multiples of the step, and the pixels."""
    low, high = first // step * step, math.ceil((end - 1) / step) * step
    return np.arange(low, high + 1, step, dtype=np.float64), np.arange(first, end, dtype=np.float64)


@lru_cache(maxsize=16)
def _step(box: GeoBox) -> int:
    side = math.sqrt(_areas_at(box, np.array([box.height / 2]), np.array([box.width / 2]))[0])
    return int(np.clip(SPACING // side, 1, NODES))


def _areas_at(box: GeoBox, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area of pixels whose centres are at (fractional) rows and columns, broadcast."""
    if box.crs is None:
        raise InputError("the grid has no CRS, so areas are not known", place="areas", remedy="give it one")
    flat = transformer(str(box.crs), _equal_area(box))
    rows, cols = np.broadcast_arrays(rows, cols)

    def placed(down: float, right: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        found: tuple[NDArray[np.float64], NDArray[np.float64]]
        found = flat.transform(*through(box.affine, cols + right, rows + down))
        return found

    (left_x, left_y), (right_x, right_y) = placed(0, -0.5), placed(0, 0.5)
    (top_x, top_y), (low_x, low_y) = placed(-0.5, 0), placed(0.5, 0)
    area: NDArray[np.float64] = np.abs(
        (right_x - left_x) * (low_y - top_y) - (right_y - left_y) * (low_x - top_x)
    )
    return area


@lru_cache(maxsize=16)
def _equal_area(box: GeoBox) -> str:
    lon, lat = transformer(str(box.crs), "OGC:CRS84").transform(
        *through(box.affine, box.width / 2, box.height / 2)
    )
    return f"+proj=laea +lat_0={lat:.6f} +lon_0={lon:.6f} +datum=WGS84 +units=m +type=crs"


def chosen_output(rasters: StoredRasters, name: str | None, place: str) -> str:
    """Return the output of labels that is meant: the named one, or the only one.

    Raises `InputError` where there is no such, or several and none is named.
    """
    known = [n for n, layer in rasters.layers.items() if layer.labels and n != REASON]
    if name is not None:
        if name not in known:
            raise InputError(f"there is no class map {name!r}", place=place, remedy=nearest_name(name, known))
        return name
    if len(known) != 1:
        raise InputError(
            f"it has {len(known)} class maps" + (f": {', '.join(known)}" if known else ""),
            place=place,
            remedy="choose one by --output" if known else "vectors and areas are made of classes",
        )
    return known[0]


def class_areas(
    place: str, output: str | None = None, regions: Mapping[str, BaseGeometry] | None = None
) -> list[ClassArea]:
    """Return what each class of a result covers, a row a region and class, block by block.

    Parameters
    ----------
    place
        Folder of a run, a ``.zarr`` or a ``.tif``, at a path or in an object store.
    output
        Name of a class map; None where there is only one.
    regions
        Name -> outline in longitude and latitude (OGC:CRS84); None takes the whole result. They may overlap: a pixel
        counts in each region that its centre is in.

    Raises
    ------
    InputError
        No such class map, or no CRS.
    """
    with open_rasters(place) as rasters:
        name = chosen_output(rasters, output, place)
        layer = rasters.layers[name]
        box = rasters.geobox
        outlines = {"": None} if regions is None else _projected(regions, box)
        grids = {region: Grid(box, outline) for region, outline in outlines.items()}
        counted: dict[tuple[str, int | None], NDArray[np.float64]] = {}
        for window, value, areas in _valued(rasters, name):
            for region, grid in grids.items():
                inside = grid.inside(window)
                for key, found in _sums(value[inside], areas[inside]).items():
                    counted[region, key] = counted.get((region, key), np.zeros(2)) + found
    order = list(grids)
    return [
        ClassArea(region, None if key is None else label_of(layer, key), key, int(pixels), float(area))
        for (region, key), (pixels, area) in sorted(
            counted.items(),
            key=lambda one: (order.index(one[0][0]), one[0][1] is None, one[0][1] or 0),
        )
    ]


def _valued(
    rasters: StoredRasters, name: str
) -> Iterator[tuple[Window, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield windows with their class numbers, -1 for none, and the areas of their pixels."""
    layer = rasters.layers[name]
    for _, window in blocks_of(rasters):
        stored = rasters.read(name, window)[:1]
        value = np.where(layer.valid(stored), stored.astype(np.int64), -1)[0]
        yield window, value, pixel_areas(rasters.geobox, window)


def _sums(value: NDArray[np.int64], areas: NDArray[np.float64]) -> dict[int | None, NDArray[np.float64]]:
    counts = np.bincount(value + 1)
    sizes = np.bincount(value + 1, weights=areas)
    return {(None if i == 0 else int(i) - 1): np.array([counts[i], sizes[i]]) for i in np.flatnonzero(counts)}


def _projected(regions: Mapping[str, Any], box: GeoBox) -> dict[str, Any]:
    """Return the outlines in the grid's CRS, with points along their edges, which are straight in degrees."""
    import shapely

    if box.crs is None:
        raise InputError("the grid has no CRS, so areas are not known", place="areas", remedy="give it one")
    there = transformer("OGC:CRS84", str(box.crs)).transform
    return {
        name: shapely.transform(shapely.segmentize(outline, 0.01), there, interleaved=False)
        for name, outline in regions.items()
    }
