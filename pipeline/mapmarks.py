"""Where north is and how long a kilometre is, at the centre of a grid, measured on the ellipsoid."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tilewright.errors import GridError

if TYPE_CHECKING:
    from .grid import Grid

__all__ = ["ground_size", "nice_length", "north"]


def _centre(grid: Grid) -> tuple[float, float]:
    rows, cols = grid.shape
    return rows / 2, cols / 2


def _lonlat(grid: Grid, row: float, col: float) -> tuple[float, float]:
    import pyproj

    if grid.geobox.crs is None:
        raise GridError("the grid has no CRS", place="quicklook")
    a, b, c, d, e, f = grid.transform
    to_wgs84 = pyproj.Transformer.from_crs(str(grid.geobox.crs), 4326, always_xy=True)
    lon, lat = to_wgs84.transform(a * col + b * row + c, d * col + e * row + f)
    return float(lon), float(lat)


def ground_size(grid: Grid) -> tuple[float, float]:
    """Return ``(height, width)`` of the centre pixel in metres on the WGS84 ellipsoid.

    Measured, not taken from the transform: a degree of longitude shrinks with latitude, a Mercator metre is
    longer than a metre, and a foot is not one.
    """
    import pyproj

    geod = pyproj.Geod(ellps="WGS84")
    row, col = _centre(grid)
    sizes = []
    for drow, dcol in ((0.5, 0.0), (0.0, 0.5)):
        start, end = _lonlat(grid, row - drow, col - dcol), _lonlat(grid, row + drow, col + dcol)
        sizes.append(float(geod.inv(*start, *end)[2]))
    return sizes[0], sizes[1]


def north(grid: Grid) -> tuple[float, float]:
    """Return the direction of true north at the centre, on the ground: ``(up, right)`` of length 1.

    ``up`` is towards row 0, ``right`` towards higher columns; (1, 0) where north is straight up.
    """
    import pyproj

    row, col = _centre(grid)
    lon, lat = _lonlat(grid, row, col)
    height, width = ground_size(grid)
    geod = pyproj.Geod(ellps="WGS84")
    step = min(height, width)
    farther_lon, farther_lat, _ = geod.fwd(lon, lat, 0.0, step)
    from_wgs84 = pyproj.Transformer.from_crs(4326, str(grid.geobox.crs), always_xy=True)
    x, y = from_wgs84.transform(farther_lon, farther_lat)
    end_col, end_row = ~grid.geobox.affine @ (x, y)
    up, right = (row - end_row) * height, (end_col - col) * width
    length = math.hypot(up, right)
    return up / length, right / length


def nice_length(longest: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is at most ``longest``."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(n * power for n in (1, 2, 5) if n * power <= longest * (1 + 1e-9))
