"""From a region to grids: cut where one grid cannot follow, projected, and anchored to whole pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tilewright.errors import GridError

if TYPE_CHECKING:
    import pyproj
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

    from tilewright.catalogs.region import Region

__all__ = ["region_grids", "utm_code"]

_UTM_SOUTH, _UTM_NORTH = -80.0, 84.0
"""Latitudes between which UTM is defined (NGA.STND.0037, section 2)."""
_EDGES = 100
"""Pieces into which the longer side of a region is cut before it is projected: straight in degrees is not
straight in metres. The bulge that is left is under a metre for a whole UTM zone."""
_SNAP = 1e-6
"""Pixels by which an edge may miss a multiple of the resolution and still lie on it (rounding)."""
_COARSEST_DEGREES = 1.0


def region_grids(
    region: Region | str | dict[str, Any] | tuple[float, float, float, float],
    resolution: float,
    crs: str = "utm",
    anchor: tuple[float, float] = (0.0, 0.0),
) -> list[tuple[GeoBox, BaseGeometry, bool]]:
    """Return ``(geobox, region in the grid's CRS, rectangle)`` for each part, from west to east.

    The region is cut at the antimeridian, unless ``crs`` runs on over it, and for ``"utm"`` at the borders of
    the 6-degree zones. A part is projected to WGS84 / UTM north or south, by where most of it lies; the wider
    zones of Norway and Svalbard (31V to 37X) are not followed, so a region there may be cut once more than
    on paper maps. Pixel edges lie on whole multiples of ``resolution`` from ``anchor`` (x, y in the grid's CRS); a
    grid has at least one pixel.
    ``rectangle`` is True where the region is a rectangle in degrees: then every pixel of the grid is wanted.

    Raises
    ------
    GridError
        The resolution is not positive, the CRS is unknown or cannot hold the region, or ``"utm"`` is asked
        for a region that reaches beyond 80 S or 84 N.
    InputError
        The region itself is wrong; see `tilewright.catalogs.region.Region`.
    """
    from tilewright.catalogs.region import Region

    if not (math.isfinite(resolution) and resolution > 0):
        raise GridError(f"the resolution is {resolution}", place="resolution", remedy="give a number above 0")
    parsed = Region.parse(region)
    if crs.lower() == "utm":
        pieces = [piece for part in parsed.parts() for piece in _zones(part)]
    else:
        target = _crs(crs)
        _check_units(target, resolution, crs)
        whole = parsed.crosses_antimeridian and _runs_on(target, parsed)
        parts = (parsed,) if whole else parsed.parts()
        pieces = [(crs, part.geometry, _is_rectangle(part)) for part in parts]
    return [
        _grid(name, geometry, rectangle, resolution, anchor, parsed.name)
        for name, geometry, rectangle in pieces
    ]


def utm_code(zone: int, *, south: bool) -> str:
    """Return the EPSG code of a WGS84 / UTM zone (1..60)."""
    return f"EPSG:{(32700 if south else 32600) + zone}"


def _is_rectangle(region: Region) -> bool:
    return bool(region.geometry.equals(region.geometry.envelope))


def _zones(part: Region) -> Iterator[tuple[str, BaseGeometry, bool]]:
    from shapely import box

    geometry = part.geometry
    west, south, east, north = geometry.bounds
    if south < _UTM_SOUTH or north > _UTM_NORTH:
        code = "EPSG:3031 (Antarctic)" if south < _UTM_SOUTH else "EPSG:3413 (Arctic)"
        raise GridError(
            f"latitudes {south:g}..{north:g} reach beyond UTM, which ends at 80 S and 84 N",
            place=part.name,
            remedy=f"name a polar CRS instead of utm, such as {code}",
        )
    first, last = _zone_of(west), _zone_of(east, closed=True)
    for zone in range(first, last + 1):
        edge = -180.0 + 6 * (zone - 1)
        piece = geometry if first == last else _areas(geometry.intersection(box(edge, -90, edge + 6, 90)))
        if piece is None:
            continue
        northern = piece.intersection(box(-180, 0, 180, 90)).area
        yield utm_code(zone, south=northern < piece.area / 2), piece, _is_rectangle(part)


def _zone_of(longitude: float, *, closed: bool = False) -> int:
    """Return the zone of a longitude; an eastern edge on a border belongs to the zone that it ends."""
    position = (longitude + 180) / 6
    zone = math.ceil(position) if closed else math.floor(position) + 1
    return max(1, min(60, zone))


def _areas(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return what of ``geometry`` has an area, or None: cuts along a border leave points and lines."""
    from shapely import MultiPolygon

    polygons = [g for g in getattr(geometry, "geoms", [geometry]) if g.geom_type == "Polygon" and g.area > 0]
    if not polygons:
        return None
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _crs(name: str) -> pyproj.CRS:
    import pyproj

    try:
        crs = pyproj.CRS.from_user_input(name)
    except pyproj.exceptions.CRSError as error:
        raise GridError(
            f"{name!r} is no CRS that PROJ knows", place="crs", remedy="write EPSG:n, WKT, or utm"
        ) from error
    if crs.is_geocentric or crs.is_vertical:
        raise GridError(f"{name!r} has no plane of pixels", place="crs", remedy="name a projected CRS")
    return crs


def _check_units(crs: pyproj.CRS, resolution: float, name: str) -> None:
    if crs.is_geographic and resolution > _COARSEST_DEGREES:
        raise GridError(
            f"a pixel of {resolution:g} degrees in {name}",
            place="resolution",
            remedy="give degrees (10 m are about 0.00009), or name a projected CRS and give metres",
        )


def _runs_on(crs: pyproj.CRS, region: Region) -> bool:
    """True where ``crs`` puts both sides of the antimeridian at the same place: polar and Pacific grids."""
    import numpy as np

    if crs.is_geographic:
        return False
    _, south, _, north = region.geometry.bounds
    latitudes = np.linspace(south, north, 5)
    transformer = _transformer(crs)
    east, west = (np.array(transformer.transform(np.full(5, lon), latitudes)) for lon in (180.0, -180.0))
    return bool(np.isfinite(east).all() and np.isfinite(west).all() and np.abs(east - west).max() < 1.0)


def _transformer(crs: Any) -> pyproj.Transformer:
    import pyproj

    return pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)


def _grid(
    crs: str,
    geometry: BaseGeometry,
    rectangle: bool,
    resolution: float,
    anchor: tuple[float, float],
    place: str,
) -> tuple[GeoBox, BaseGeometry, bool]:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    projected = _project(geometry, crs, place)
    x0, y0, x1, y1 = projected.bounds
    x, y = (math.fmod(value, resolution) for value in anchor)
    left, right = _edges(x0 - x, x1 - x, resolution)
    bottom, top = _edges(y0 - y, y1 - y, resolution)
    # Whole multiples times the resolution, so that grids of one resolution share their pixel edges.
    affine = Affine(resolution, 0, x + left * resolution, 0, -resolution, y + top * resolution)
    return GeoBox((top - bottom, right - left), affine, crs), projected, rectangle


def _edges(low: float, high: float, resolution: float) -> tuple[int, int]:
    first = math.floor(low / resolution + _SNAP)
    return first, max(first + 1, math.ceil(high / resolution - _SNAP))


def _project(geometry: BaseGeometry, crs: str, place: str) -> BaseGeometry:
    import numpy as np
    import shapely

    west, south, east, north = geometry.bounds
    fine = shapely.segmentize(geometry, max(east - west, north - south) / _EDGES)
    transformer = _transformer(crs)

    def move(points: Any) -> Any:
        return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))

    projected = shapely.transform(fine, move)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        raise GridError(
            f"{crs} cannot hold the region {west:g},{south:g},{east:g},{north:g}",
            place=place,
            remedy="name a CRS made for that part of the Earth",
        )
    return projected if projected.is_valid else shapely.make_valid(projected)
