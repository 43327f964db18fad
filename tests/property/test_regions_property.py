"""Whatever the region, its grids are anchored, cover it, and hold no empty row or column at the edges."""

from __future__ import annotations

import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.pipeline.regions import region_grids

_SIDE = st.floats(1e-4, 7.0)


@settings(max_examples=60, deadline=None)
@given(
    west=st.floats(-180, 179.9),
    south=st.floats(-79.0, 76.0),
    width=_SIDE,
    height=_SIDE,
    resolution=st.sampled_from([10.0, 30.0, 59.7, 120.0, 1000.0]),
)
def test_utm_grids_cover_their_parts(
    west: float, south: float, width: float, height: float, resolution: float
) -> None:
    east = west + width
    east = east - 360 if east > 180 else east
    grids = region_grids((west, south, east, south + height), resolution)
    assert 1 <= len(grids) <= 4
    codes = [str(box.crs) for box, _, _ in grids]
    assert len(set(codes)) == len(codes)
    for box, geometry, rectangle in grids:
        assert rectangle
        a, b, left, d, e, top = tuple(box.affine)[:6]
        assert (a, b, d, e) == (resolution, 0, 0, -resolution)
        for edge in (left, top):
            assert edge == round(edge / resolution) * resolution
        x0, y0, x1, y1 = geometry.bounds
        rows, cols = box.shape
        slack = 1e-5 * resolution
        assert left <= x0 + slack
        assert x1 - slack <= left + cols * resolution
        assert top - rows * resolution <= y0 + slack
        assert y1 - slack <= top
        assert cols == 1 or (left + resolution > x0 and left + (cols - 1) * resolution < x1 + slack)
        assert rows == 1 or (top - resolution < y1 and top - (rows - 1) * resolution > y0 - slack)
        assert shapely.is_valid(geometry)
