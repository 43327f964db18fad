"""Regions become grids: cut at the antimeridian and at UTM zones, anchored to whole pixels."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from tilewright.errors import GridError
from tilewright.pipeline.grid import Grid
from tilewright.pipeline.regions import region_grids


@pytest.mark.parametrize(
    ("bbox", "codes"),
    [
        ((177.0, -19.0, -178.0, -16.0), ["EPSG:32760", "EPSG:32701"]),  # Fiji
        ((178.0, 66.0, -172.0, 68.0), ["EPSG:32660", "EPSG:32601", "EPSG:32602"]),  # Chukotka
        ((14.0, 46.0, 16.0, 48.0), ["EPSG:32633"]),
        ((11.0, 46.0, 13.0, 47.0), ["EPSG:32632", "EPSG:32633"]),
        ((12.0, 46.0, 18.0, 47.0), ["EPSG:32633"]),  # edges on the borders of a zone
        ((30.5, -2.0, 31.0, 0.5), ["EPSG:32736"]),  # most of it in the south
        ((30.5, -0.5, 31.0, 2.0), ["EPSG:32636"]),
    ],
)
def test_utm_zones(bbox: tuple[float, float, float, float], codes: list[str]) -> None:
    grids = Grid.split(bbox, 100, "utm")
    assert [g.crs for g in grids] == codes
    assert all(g.region is None for g in grids), "of a rectangle every pixel is wanted"


def test_from_region_says_how_to_split() -> None:
    with pytest.raises(GridError, match=r"needs 2 grids .*EPSG:32760, EPSG:32701.*Grid\.split"):
        Grid.from_region((177.0, -19.0, -178.0, -16.0), 100)


def test_pacific_and_polar_crs_are_not_split() -> None:
    fiji = (177.0, -19.0, -178.0, -16.0)
    (grid,) = Grid.split(fiji, 1000, "EPSG:3832")
    assert grid.shape[1] < 600, "the grid spans 5 degrees, not the other 355"
    assert len(Grid.split(fiji, 1000, "EPSG:3857")) == 2
    assert len(Grid.split(fiji, 0.01, "EPSG:4326")) == 2
    assert len(Grid.split((170.0, 70.0, -170.0, 75.0), 1000, "EPSG:3413")) == 1


@pytest.mark.parametrize(
    ("bbox", "resolution", "crs", "text"),
    [
        ((10.0, 84.5, 12.0, 85.0), 10, "utm", r"beyond UTM.*EPSG:3413"),
        ((10.0, -85.0, 12.0, -79.0), 10, "utm", r"beyond UTM.*EPSG:3031"),
        ((10.0, 45.0, 11.0, 46.0), 0, "utm", r"resolution is 0"),
        ((10.0, 45.0, 11.0, 46.0), 10, "EPSG:999999", r"no CRS that PROJ knows"),
        ((10.0, 45.0, 11.0, 46.0), 10, "EPSG:4326", r"10 degrees"),
    ],
)
def test_refusals(bbox: tuple[float, ...], resolution: float, crs: str, text: str) -> None:
    with pytest.raises(GridError, match=text):
        region_grids(bbox, resolution, crs)


def test_polygon_keeps_its_shape() -> None:
    ring = [[15.0, 47.0], [15.4, 47.0], [15.2, 47.3], [15.0, 47.0]]
    grid = Grid.from_region({"type": "Polygon", "coordinates": [ring]}, 100)
    inside = grid.inside(grid.window)
    assert 0.4 < inside.mean() < 0.6, "a triangle fills half of its box"
    area = shapely.area(grid.region)
    assert inside.sum() * 100 * 100 == pytest.approx(area, rel=0.01)


def test_tiny_region_gives_one_pixel() -> None:
    grid = Grid.from_region((15.00001, 47.00001, 15.00002, 47.00002), 100)
    assert grid.shape == (1, 1)


def test_edges_on_multiples_are_not_widened() -> None:
    """A region whose corners are pixel edges, up to rounding, gets exactly those pixels."""
    from pyproj import Transformer

    back = Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True)
    corners = [(500000, 5200000), (501000, 5200000), (501000, 5201000), (500000, 5201000), (500000, 5200000)]
    ring = [list(back.transform(x, y)) for x, y in corners]
    grid = Grid.from_region({"type": "Polygon", "coordinates": [ring]}, 10)
    assert grid.transform == (10, 0, 500000, 0, -10, 5201000)
    assert np.abs(np.array(grid.shape) - 100).max() <= 1, "the curved edge may need one more row"
