"""Many regions with names in one file, as a monitor watches them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.region import GEOJSON_SUFFIXES, Region, read_geojson, read_table
from tilewright.errors import InputError

if TYPE_CHECKING:
    type Row = tuple[Mapping[str, Any], Any]

__all__ = ["read_named_regions"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def read_named_regions(path: str | Path, key: str = "name") -> dict[str, Region]:
    """Return the regions of a file by name, in the order of the file.

    Parameters
    ----------
    path
        A GeoJSON FeatureCollection (WGS84), or a GeoParquet, GeoPackage, FlatGeobuf or shapefile with its CRS.
    key
        The property, or the column, that holds the name. Of a GeoJSON Feature without it the ``id`` is taken.

    Raises
    ------
    InputError
        No such file, no feature, a feature without a name or of a name that another has, a name that cannot be
        a folder's, or a geometry that is no region.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file of regions", place=str(path), remedy="give GeoJSON or GeoParquet")
    rows = _features(path, key) if path.suffix.lower() in GEOJSON_SUFFIXES else _table(path, key)
    found: dict[str, Region] = {}
    for number, (properties, make) in enumerate(rows, 1):
        place = f"{path}, feature {number}"
        name = _name(properties, key, place)
        if any(name.lower() == other.lower() for other in found):
            raise InputError(
                f"two regions are named {name!r}",
                place=place,
                remedy="give each its own name: results and alerts are kept by it",
            )
        found[name] = make(name)
    if not found:
        raise InputError("holds no feature", place=str(path), remedy="give a feature a region, with a name")
    return found


def _name(properties: Mapping[str, Any], key: str, place: str) -> str:
    value = properties.get(key)
    if value is None or value != value:  # NaN is how a table says that there is none
        known = ", ".join(sorted(str(name) for name in properties)) or "none"
        raise InputError(
            f"has no {key!r} (properties: {known})", place=place, remedy=f"give each feature a {key!r}"
        )
    name = str(value).strip()
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be the name of a folder",
            place=place,
            remedy="use letters, digits, '.', '_' and '-', not first a '.' or '-'",
        )
    return name


def _features(path: Path, key: str) -> Iterator[Row]:
    data = read_geojson(path)
    if data.get("type") != "FeatureCollection":
        raise InputError(
            f"type is {data.get('type')!r}",
            place=str(path),
            remedy="give a FeatureCollection, a feature a region",
        )
    crs = {"crs": data["crs"]} if "crs" in data else {}
    for feature in data.get("features") or []:
        properties = {} if feature.get("id") is None else {key: feature["id"]}
        properties |= {k: v for k, v in (feature.get("properties") or {}).items() if v is not None}
        yield properties, lambda name, one=feature: Region.from_geojson({**one, **crs}, name)


def _table(path: Path, key: str) -> Iterator[Row]:
    table = read_table(path)
    columns = [column for column in table.columns if column != table.geometry.name]
    for _, row in table.iterrows():
        geometry = row[table.geometry.name]
        if geometry is None:
            raise InputError(f"{row.get(key)!r} has no geometry", place=str(path), remedy="repair the file")
        yield (
            {column: row[column] for column in columns},
            lambda name, one=geometry: Region.from_any_crs(one, table.crs, name),
        )
