"""Areas that are found block by block are those of the whole raster, wherever blocks are cut."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import shapes
from shapely.geometry import shape

from tilewright.pipeline.grid import Window
from tilewright.pipeline.joined import Joiner


def whole(kinds: np.ndarray) -> list[tuple[int, shapely.Geometry]]:
    """The areas of a raster in one pass, by GDAL's polygonize."""
    found = shapes(kinds.astype(np.int32), mask=kinds > 0, connectivity=4)
    return [(int(kind), shapely.normalize(shape(polygon))) for polygon, kind in found]


@settings(deadline=None)
@given(
    st.integers(1, 37), st.integers(1, 37), st.integers(1, 41), st.integers(1, 3), st.integers(0, 2**32 - 1)
)
def test_blocks_join_to_the_areas_of_one_pass(rows: int, cols: int, side: int, kinds: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    raster = draw.integers(0, kinds + 1, (rows, cols)).astype(np.int32)
    weight = draw.uniform(1, 2, (rows, cols))
    joiner = Joiner(cols)
    for row in range(0, rows, side):
        for col in range(0, cols, side):
            window = Window(row, min(row + side, rows), col, min(col + side, cols))
            at = window.slices(Window(0, rows, 0, cols))
            joiner.add(window, raster[at], {"w": weight[at]})
    found = joiner.finish()

    expected = whole(raster)
    assert len(found) == len(expected)
    keyed = {(kind, geometry.wkb) for kind, geometry in expected}
    for area in found:
        one = area.geometry
        assert one.geom_type == "Polygon"
        assert one.area == area.pixels
        assert any(k == area.kind and g.equals(one) for k, g in expected) or (area.kind, one.wkb) in keyed
    assert sum(area.pixels for area in found) == (raster > 0).sum()
    np.testing.assert_allclose(sum(a.sums["w"] for a in found), weight[raster > 0].sum(), rtol=1e-12)
