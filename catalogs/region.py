"""A place on Earth: what the user names, checked once, in WGS84 and split at the antimeridian."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "GEOJSON_SUFFIXES",
    "Region",
    "read_geojson",
    "read_table",
    "split_antimeridian",
    "unwrap_footprint",
]

GEOJSON_SUFFIXES = {".geojson", ".json"}
_TABLE_SUFFIXES = {".gpkg", ".shp", ".fgb", ".parquet", ".geoparquet"}
_WIDEST_GUESS = 90.0
"""Degrees: how wide a ring may be for its jumps to be read as crossings of the antimeridian."""
_EDGES = 64
"""Pieces into which the longer side of a projected region is cut before it is moved to WGS84."""
_LONLAT = "OGC:CRS84"


@dataclass(frozen=True, slots=True)
class Region:
    """An area in WGS84, inside longitudes -180..180, valid and not empty.

    A region over the antimeridian is a MultiPolygon that is cut there (RFC 7946, section 3.1.9);
    :meth:`parts` gives its two sides, each of which fits one grid.

    Raises
    ------
    InputError
        The geometry is empty, has no area, crosses itself or leaves the range of longitude and latitude.
    """

    geometry: BaseGeometry
    """Polygon or MultiPolygon; x is longitude, y latitude, degrees, WGS84."""
    name: str = "region"
    """What messages call it: the file, or the numbers as given."""
    notes: tuple[str, ...] = ()
    """What was decided while it was read and a plan should repeat, one sentence each."""

    def __post_init__(self) -> None:
        _check_area(self.geometry, self.name)
        object.__setattr__(self, "geometry", split_antimeridian(self.geometry))

    @classmethod
    def parse(cls, text: str | Path | Mapping[str, Any] | Sequence[float] | Region) -> Region:
        """Read a region in any of its forms.

        Parameters
        ----------
        text
            A file, ``"W,S,E,N"`` or four numbers in degrees, GeoJSON as text or mapping, or a Region.
        """
        if isinstance(text, Region):
            return text
        if isinstance(text, Mapping):
            return cls.from_geojson(text)
        if isinstance(text, Path):
            return cls.from_file(text)
        if not isinstance(text, str):
            return cls._from_numbers([str(value) for value in text])
        if text.lstrip().startswith("{"):
            return cls.from_geojson(_json(text, "region"))
        if text.count(",") == 3 and not Path(text).exists():
            return cls._from_numbers(text.split(","))
        return cls.from_file(Path(text))

    @classmethod
    def from_bbox(cls, west: float, south: float, east: float, north: float) -> Region:
        """Return the rectangle of four edges in degrees; ``west > east`` means over the antimeridian."""
        from shapely import box

        place = f"{west:g},{south:g},{east:g},{north:g}"
        if not all(math.isfinite(value) for value in (west, south, east, north)):
            raise InputError("a bound is not a finite number", place=place, remedy="give W,S,E,N in degrees")
        if south >= north:
            raise InputError(
                f"south {south:g} is not below north {north:g}",
                place=place,
                remedy="the order is W,S,E,N: west, south, east, north",
            )
        if west == east:
            raise InputError("west equals east, so it has no area", place=place, remedy="widen the region")
        _check_range((west, south, east, north), place)
        right = east + 360 if west > east else east
        if right - west > 360:
            raise InputError(
                f"it is {right - west:g} degrees wide",
                place=place,
                remedy="use -180,S,180,N for the whole globe",
            )
        return cls(box(west, south, right, north), place)

    @classmethod
    def from_geojson(cls, data: Mapping[str, Any], name: str = "region") -> Region:
        """Return the union of a GeoJSON geometry, Feature or FeatureCollection.

        Coordinates are WGS84 longitude and latitude (RFC 7946, section 4). The ``crs`` member of the GeoJSON
        of 2008 is honoured where a file still has one; ``"crs": null`` there means *unknown* and is refused.
        A ring with an edge of more than 180 degrees is read as crossing the antimeridian where that makes
        it at most 90 degrees wide, which :attr:`notes` says, and refused otherwise: RFC 7946 would take the
        long way round, which hardly anybody means who draws such a ring.
        """
        crs = _legacy_crs(data, name)
        geometry = _union([_shape(part, name) for part in _geometries(data, name)], name)
        return cls.from_any_crs(geometry, crs, name)

    @classmethod
    def from_file(cls, path: str | Path) -> Region:
        """Return the union of all features of a GeoJSON, GeoPackage, GeoParquet, FlatGeobuf or shapefile.

        Raises
        ------
        InputError
            The file is absent, is no vector file, or is a table without a CRS.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                "no such region file", place=str(path), remedy="give a vector file or W,S,E,N in degrees"
            )
        if path.suffix.lower() in GEOJSON_SUFFIXES:
            return cls.from_geojson(read_geojson(path), name=path.name)
        table = read_table(path)
        shapes = [shape for shape in table.geometry if shape is not None]
        return cls.from_any_crs(_union(shapes, path.name), table.crs, path.name)

    @classmethod
    def _from_numbers(cls, values: Sequence[str]) -> Region:
        try:
            west, south, east, north = (float(value) for value in values)
        except ValueError as error:
            raise InputError(
                "a bbox is four numbers",
                place=",".join(values),
                remedy="write W,S,E,N in degrees, e.g. 15,47,16,48",
            ) from error
        return cls.from_bbox(west, south, east, north)

    @classmethod
    def from_any_crs(cls, geometry: BaseGeometry, crs: object, name: str) -> Region:
        """Return the region of a geometry in ``crs``, whatever pyproj takes; None is WGS84 as GeoJSON writes it."""
        _check_area(geometry, name, degrees=crs is None)
        if crs is not None:
            geometry = _to_lonlat(geometry, crs, name)
        geometry, crossed = _unwrap(geometry, name, certain=crs is not None)
        note = f"{name}: edges longer than 180 degrees were read as crossing the antimeridian"
        return cls(geometry, name, (note,) if crossed and crs is None else ())

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees; west > east over the antimeridian (RFC 7946, section 5.2)."""
        _, south, _, north = self.geometry.bounds
        west, east = _longitudes(self.geometry)
        return west, south, east, north

    @property
    def crosses_antimeridian(self) -> bool:
        """True when the region lies on both sides of the 180th meridian."""
        west, _, east, _ = self.bbox
        return west > east

    @property
    def is_rectangle(self) -> bool:
        """True when a bbox says everything about the region, so that a catalog may be asked by bbox."""
        return not self.crosses_antimeridian and self.geometry.equals(self.geometry.envelope)

    def parts(self) -> tuple[Region, ...]:
        """Return the sides of the antimeridian, the one west of it (eastern longitudes) first.

        A region that does not cross is its own only part.
        """
        from shapely import MultiPolygon

        west, _, east, _ = self.bbox
        if west <= east:
            return (self,)
        polygons = list(getattr(self.geometry, "geoms", [self.geometry]))
        sides = (
            ("west of 180", [p for p in polygons if p.bounds[0] >= west]),
            ("east of 180", [p for p in polygons if p.bounds[0] < west]),
        )
        return tuple(
            Region(side[0] if len(side) == 1 else MultiPolygon(side), f"{self.name} ({label})", self.notes)
            for label, side in sides
        )

    def to_geojson(self) -> dict[str, Any]:
        """Return the geometry as GeoJSON, lists instead of tuples, as it comes back from JSON text."""
        from shapely.geometry import mapping

        result: dict[str, Any] = json.loads(json.dumps(mapping(self.geometry)))
        return result


def split_antimeridian(geometry: BaseGeometry) -> BaseGeometry:
    """Cut what lies beyond +-180 degrees and move it by 360, as RFC 7946, section 3.1.9 asks.

    Longitudes may be in -540..540. Pieces keep their area; what lies inside already is returned as it came.
    """
    from shapely import box, union_all
    from shapely.affinity import translate

    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180:
        return geometry
    pieces: list[BaseGeometry] = []
    for shift in (-360.0, 0.0, 360.0):
        moved = translate(geometry, xoff=shift)
        piece = moved.intersection(box(-180, -90, 180, 90))
        pieces.extend(p for p in getattr(piece, "geoms", [piece]) if p.area > 0 or geometry.area == 0)
    return union_all(pieces)


def unwrap_footprint(geometry: BaseGeometry) -> BaseGeometry:
    """Return the footprint of a scene with rings that jump over the antimeridian continued beyond 180.

    A ring round a pole is returned as it came.
    """
    try:
        return _unwrap(geometry, "footprint", certain=True)[0]
    except InputError:
        return geometry


def _longitudes(geometry: BaseGeometry) -> tuple[float, float]:
    """Return west and east of the shortest arc that holds all polygons; west > east over the antimeridian."""
    spans = sorted((p.bounds[0], p.bounds[2]) for p in getattr(geometry, "geoms", [geometry]))
    merged = [list(spans[0])]
    for west, east in spans[1:]:
        if west <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], east)
        else:
            merged.append([west, east])
    # The widest gap on the circle is what the arc leaves out; the gap over 180 counts with both its sides.
    best = (merged[0][0] + 360 - merged[-1][1], merged[0][0], merged[-1][1])
    for left, right in pairwise(merged):
        if right[0] - left[1] > best[0]:
            best = (right[0] - left[1], right[0], left[1])
    return best[1], best[2]


def _check_area(geometry: BaseGeometry, name: str, *, degrees: bool = True) -> None:
    from shapely import is_valid, is_valid_reason

    if geometry.is_empty:
        raise InputError("the region is empty", place=name, remedy="give a polygon with an area")
    # A symmetric bow tie has a signed area of zero, so a missing area is judged by the envelope.
    if geometry.geom_type not in ("Polygon", "MultiPolygon") or geometry.envelope.area == 0:
        raise InputError(
            f"a {geometry.geom_type} has no area", place=name, remedy="give a polygon, or W,S,E,N in degrees"
        )
    if not all(math.isfinite(value) for value in geometry.bounds):
        raise InputError("a coordinate is not a finite number", place=name, remedy="repair the file")
    if degrees:
        _check_range(geometry.bounds, name)
    if not is_valid(geometry):
        raise InputError(
            f"the region crosses itself: {is_valid_reason(geometry)}",
            place=name,
            remedy="repair it, for example with shapely.make_valid",
        )


def _check_range(bounds: Sequence[float], name: str) -> None:
    west, south, east, north = bounds
    if south < -90 or north > 90 or west < -540 or east > 540:
        raise InputError(
            f"bounds {west:g},{south:g},{east:g},{north:g} are outside longitude and latitude",
            place=name,
            remedy="a region is in degrees WGS84, longitude first; reproject it, or use a file that names its CRS",
        )


def read_geojson(path: Path) -> Mapping[str, Any]:
    """Return the object that a GeoJSON file holds; raises `InputError` for anything else."""
    return _json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _json(text: str, place: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error}", place=place, remedy="give a GeoJSON file") from error
    if not isinstance(data, Mapping):
        raise InputError("not GeoJSON: an object is needed", place=place, remedy="give a GeoJSON file")
    return data


def _geometries(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    kind = data.get("type")
    if kind == "FeatureCollection":
        found = [feature.get("geometry") for feature in data.get("features") or []]
    elif kind == "Feature":
        found = [data.get("geometry")]
    elif kind == "GeometryCollection":
        found = list(data.get("geometries") or [])
    elif kind in ("Polygon", "MultiPolygon", "Point", "MultiPoint", "LineString", "MultiLineString"):
        found = [data]
    else:
        raise InputError(
            f"not GeoJSON: type is {kind!r}",
            place=name,
            remedy="give a geometry, Feature or FeatureCollection",
        )
    return [geometry for geometry in found if geometry]


def _shape(geometry: Mapping[str, Any], name: str) -> BaseGeometry:
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        return shape(geometry)
    except (ShapelyError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"not a GeoJSON geometry: {error}", place=name, remedy="repair the file") from error


def _union(shapes: Iterable[BaseGeometry], name: str) -> BaseGeometry:
    from shapely import Polygon, union_all

    shapes = [shape for shape in shapes if not shape.is_empty]
    if not shapes:
        return Polygon()
    for shape in shapes:
        # A union would quietly repair a bow tie; the user should hear of it.
        _check_area(shape, name, degrees=False)
    return shapes[0] if len(shapes) == 1 else union_all(shapes)


def _legacy_crs(data: Mapping[str, Any], name: str) -> str | None:
    """Return the CRS of a ``crs`` member (GeoJSON of 2008, section 3), or None for WGS84."""
    if "crs" not in data:
        return None
    crs = data["crs"]
    label = (crs.get("properties") or {}).get("name") if isinstance(crs, Mapping) else None
    if not label:
        raise InputError(
            f"its 'crs' member names no CRS: {crs!r}",
            place=name,
            remedy="remove the member when the coordinates are WGS84 longitude and latitude, else name the CRS",
        )
    plain = str(label).upper().replace("URN:OGC:DEF:CRS:", "")
    return None if (plain.startswith("OGC:") and plain.endswith(":CRS84")) or plain == _LONLAT else str(label)


def read_table(path: Path) -> Any:
    """Return a GeoPackage, GeoParquet, FlatGeobuf or shapefile as a GeoDataFrame; raises `InputError`."""
    import geopandas

    if path.suffix.lower() not in _TABLE_SUFFIXES:
        raise InputError(
            f"unknown kind of region file {path.suffix!r}",
            place=str(path),
            remedy=f"known: {', '.join(sorted(GEOJSON_SUFFIXES | _TABLE_SUFFIXES))}",
        )
    from pyogrio.errors import DataSourceError  # type: ignore[import-untyped, unused-ignore]

    try:
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            table = geopandas.read_parquet(path)
        else:
            table = geopandas.read_file(path)
    except (DataSourceError, ValueError, OSError) as error:
        raise InputError(
            f"not a readable vector file: {error}", place=str(path), remedy="check the file"
        ) from error
    if table.crs is None:
        raise InputError(
            "the region has no CRS", place=str(path), remedy="write the file with its CRS, or use GeoJSON"
        )
    return table


def _to_lonlat(geometry: BaseGeometry, crs: object, name: str) -> BaseGeometry:
    """Move a geometry to WGS84; long edges are cut first, because a straight line does not stay straight."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError
    from shapely import segmentize, transform

    try:
        source = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"unknown CRS {crs}", place=name, remedy="name it as EPSG:code") from error
    west, south, east, north = geometry.bounds
    if not source.is_geographic:
        geometry = segmentize(geometry, max(east - west, north - south) / _EDGES)
    moved = transform(
        geometry, Transformer.from_crs(source, _LONLAT, always_xy=True).transform, interleaved=False
    )
    if not all(math.isfinite(value) for value in moved.bounds):
        raise InputError(
            f"its coordinates lie outside {source.name}", place=name, remedy="check the CRS of the file"
        )
    return moved


def _unwrap(geometry: BaseGeometry, name: str, *, certain: bool) -> tuple[BaseGeometry, bool]:
    """Undo jumps of more than 180 degrees inside rings; return the geometry and whether there were any.

    ``certain`` says that the edges are known to be short (they were cut before reprojecting), so a jump
    can only be the antimeridian and the width of the result does not matter.
    """
    from shapely import MultiPolygon, Polygon

    crossed = False
    polygons = []
    for polygon in getattr(geometry, "geoms", [geometry]):
        rings = [list(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]
        # An edge of exactly 360 degrees is one side of the whole globe, not a crossing.
        if not any(_jumps(ring) for ring in rings):
            polygons.append(polygon)
            continue
        crossed = True
        shell, *holes = (_unwrap_ring(ring, name) for ring in rings)
        middle = sum(point[0] for point in shell) / len(shell)
        holes = [[(x + 360 * round((middle - hole[0][0]) / 360), y) for x, y in hole] for hole in holes]
        polygon = Polygon(shell, holes)
        width = polygon.bounds[2] - polygon.bounds[0]
        if not certain and width > _WIDEST_GUESS:
            raise InputError(
                "an edge is longer than 180 degrees, which can mean either way round the globe",
                place=name,
                remedy="over the antimeridian write longitudes beyond 180; for a wide region put points between",
            )
        polygons.append(polygon)
    return (geometry if not crossed else _joined(MultiPolygon, polygons)), crossed


def _joined(kind: Any, polygons: list[BaseGeometry]) -> BaseGeometry:
    joined: BaseGeometry = polygons[0] if len(polygons) == 1 else kind(polygons)
    return joined


def _jumps(ring: Sequence[tuple[float, ...]]) -> bool:
    return any(180 < abs(b[0] - a[0]) < 360 for a, b in pairwise(ring))


def _unwrap_ring(ring: Sequence[tuple[float, ...]], name: str) -> list[tuple[float, float]]:
    shift = 0.0
    points = [(ring[0][0], ring[0][1])]
    for before, after in pairwise(ring):
        step = after[0] - before[0]
        if 180 < abs(step) < 360:
            shift -= math.copysign(360, step)
        points.append((after[0] + shift, after[1]))
    if not math.isclose(points[0][0], points[-1][0], abs_tol=1e-9):
        raise InputError(
            "the region goes round a pole", place=name, remedy="cut it at the antimeridian and along the pole"
        )
    return points
