"""Shapes that a model found become GeoJSON where they lie."""

from __future__ import annotations

import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely.geometry import shape

from tilewright.errors import InputError
from tilewright.pipeline.found import shapes_geojson


def test_corners_lie_where_the_grid_says() -> None:
    box = GeoBox((1000, 1000), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
    found = shapes_geojson([(100, 200, 150, 200, 150, 260)], [{"label": "ship"}], box)
    (feature,) = found["features"]
    assert feature["properties"] == {"label": "ship"}
    lonlat = Transformer.from_crs(32633, "OGC:CRS84", always_xy=True)
    wanted = [
        lonlat.transform(500_000 + 10 * x, 5_000_000 - 10 * y)
        for x, y in ((100, 200), (150, 200), (150, 260))
    ]
    got = feature["geometry"]["coordinates"][0]
    assert len(got) == 4
    for corner in wanted:
        assert any(corner == pytest.approx(tuple(other), abs=1e-9) for other in got)


def test_a_shape_over_the_antimeridian_is_cut() -> None:
    box = GeoBox((100, 100), Affine(1000, 0, 3_290_000, 0, -1000, 1_000_000), "EPSG:3832")  # from 150 east
    found = shapes_geojson([(0, 40, 100, 40, 100, 60, 0, 60)], [{}], box)
    assert found["type"] == "FeatureCollection"
    geometry = shape(found["features"][0]["geometry"])
    west, _, east, _ = geometry.bounds
    assert geometry.is_valid
    assert geometry.geom_type == "MultiPolygon"
    assert (west, east) == (-180, 180)


def test_what_cannot_be_placed_is_refused() -> None:
    bare = GeoBox((10, 10), Affine.identity(), None)
    with pytest.raises(InputError, match="no CRS"):
        shapes_geojson([], [], bare)
    box = GeoBox((10, 10), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
    with pytest.raises(InputError, match="0 properties for 1 polygons"):
        shapes_geojson([(0, 0, 1, 0, 1, 1)], [], box)
