"""Shapes that a model found in an image, as GeoJSON in longitude and latitude."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

from .vectorise import in_degrees
from .warp import through

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["shapes_geojson"]


def shapes_geojson(
    polygons: Sequence[Sequence[float]], properties: Sequence[Mapping[str, Any]], box: GeoBox
) -> dict[str, Any]:
    """Return polygons as a collection of features, cut at the antimeridian.

    Parameters
    ----------
    polygons
        Corners ``(x0, y0, x1, y1, ...)`` in pixels of the grid, edges not centres.
    properties
        Of each, plain data.
    box
        The grid.

    Raises
    ------
    InputError
        The grid has no CRS, or there are not as many properties as polygons.
    """
    import shapely

    if box.crs is None:
        raise InputError("the grid has no CRS, GeoJSON is in degrees", place="shapes")
    if len(polygons) != len(properties):
        raise InputError(f"{len(properties)} properties for {len(polygons)} polygons", place="shapes")
    pixels = [shapely.Polygon(np.reshape(np.asarray(one, float), (-1, 2))) for one in polygons]
    placed = [
        shapely.transform(one, lambda x, y: through(box.affine, x, y), interleaved=False) for one in pixels
    ]
    features = [
        {"type": "Feature", "geometry": json.loads(shapely.to_geojson(one)), "properties": dict(facts)}
        for one, facts in zip(in_degrees(placed, str(box.crs)), properties, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}
