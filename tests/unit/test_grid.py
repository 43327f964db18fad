"""Windows, tilings and grids: what they are, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from tilewright.errors import GridError
from tilewright.pipeline.grid import Grid, Tiling, Window

BOX = GeoBox((60, 40), Affine(10, 0, 500_005, 0, -10, 5_000_015), "EPSG:32633")


def test_windows() -> None:
    a, b = Window(0, 10, 5, 20), Window(8, 12, 0, 6)
    assert (a.shape, a.size) == ((10, 15), 150)
    assert a.overlap(b) == b.overlap(a) == Window(8, 10, 5, 6)
    assert a.overlap(Window(10, 11, 5, 6)) is None
    assert a.grow(2) == Window(-2, 12, 3, 22)
    assert a.times(3) == Window(0, 30, 15, 60)
    assert a.contains(a)
    assert not a.contains(a.grow(1))
    array = np.arange(60 * 40).reshape(60, 40)
    assert (array[a.slices(Window(0, 60, 0, 40))] == array[0:10, 5:20]).all()


@pytest.mark.parametrize("edges", [(0, 0, 0, 1), (3, 2, 0, 1), (0, 1, 5, 5)])
def test_an_empty_window_can_not_be_made(edges: tuple[int, int, int, int]) -> None:
    with pytest.raises(GridError, match=f"rows {edges[0]}..{edges[1]}"):
        Window(*edges)


def test_slices_of_a_window_outside_are_refused() -> None:
    with pytest.raises(GridError, match="is not inside"):
        Window(0, 5, 0, 5).slices(Window(1, 9, 0, 9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((32, 16, 0, 1, 64), "a halo of 16 px leaves no core in a tile of 32 px; use a tile above 32 px"),
        ((64, 8, 12, 1, 48), "taper of 12 px fits neither halo 8"),
        ((40, 12, 10, 1, 64), "half of core 16"),
        ((64, 10, 0, 8, 44), "core 44 and lead 10 are not multiples of stride 8"),
        ((64, 8, 0, 8, 50), "shard 50 is not a multiple of core 48"),
        ((64, -1, 0, 1, 66), "halo -1"),
    ],
)
def test_a_tiling_that_contradicts_itself_says_with_which_numbers(
    fields: tuple[int, ...], message: str
) -> None:
    with pytest.raises(GridError) as caught:
        Tiling(*fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_waste_is_the_square_of_tile_over_core() -> None:
    assert Tiling(256, 64, 0, 1, 128).waste() == 4.0
    assert Tiling.choose(tile=512, radius=64).waste() == pytest.approx(1.78, abs=0.01)


def test_a_crop_keeps_the_ground_under_every_pixel() -> None:
    grid = Grid(BOX)
    crop = grid.crop(Window(-3, 7, 11, 50))
    assert tuple(crop.affine)[:6] == (10, 0, 500_115, 0, -10, 5_000_045)
    assert crop.shape == (10, 39)
    assert grid.crop(grid.window) == BOX


def test_zoom_is_the_same_ground_in_smaller_pixels() -> None:
    fine = Grid(BOX).zoom(3)
    assert fine.shape == (180, 120)
    assert fine.geobox.extent.geom.equals(BOX.extent.geom)
    assert Grid(BOX).zoom(1).geobox == BOX


def test_inside_is_decided_by_the_pixels_centre_in_whatever_window() -> None:
    triangle = shapely.Polygon([(500_005, 5_000_015), (500_405, 5_000_015), (500_005, 4_999_415)])
    grid = Grid(BOX, triangle)
    whole = grid.inside(grid.window)
    rows, cols = np.mgrid[:60, :40] + 0.5
    expected = cols / 40 + rows / 60 < 1
    sure = np.abs(cols / 40 + rows / 60 - 1) > 1e-9
    assert (whole == expected)[sure].all()
    parts = [grid.inside(Window(r, r + 7, c, c + 9)) for r in range(-7, 63, 7) for c in range(-9, 45, 9)]
    corners = [(r, c) for r in range(-7, 63, 7) for c in range(-9, 45, 9)]
    again = np.zeros((200, 200), dtype=bool)
    for (r, c), part in zip(corners, parts, strict=True):
        again[r + 20 : r + 27, c + 20 : c + 29] = part
    assert (again[20:80, 20:60] == whole).all()
    assert again.sum() == whole.sum()  # nothing beyond the grid is inside
    assert Grid(BOX).inside(Window(-1, 61, -1, 41)).sum() == 60 * 40


def test_many_threads_may_ask_a_region_at_once() -> None:
    """The engine asks while its reader asks; GEOS alone would crash when two ask a fresh region first."""
    from concurrent.futures import ThreadPoolExecutor

    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    radius = 2000 + 400 * np.cos(37 * angles)
    ring = np.column_stack([502_500 + radius * np.cos(angles), 4_997_500 + radius * np.sin(angles)])
    geobox = GeoBox((500, 500), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
    windows = [Window(r, r + 50, c, c + 50) for r in range(0, 500, 50) for c in range(0, 500, 50)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            grid = Grid(geobox, shapely.Polygon(ring))
            counts = list(pool.map(lambda w, g=grid: int(g.inside(w).sum()), windows))
            assert sum(counts) == int(grid.inside(grid.window).sum())
