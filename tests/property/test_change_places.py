"""Places of change that are joined from pieces are those of the whole map, wherever it is cut and what is left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from tilewright.kernels.ask import LevelInfo, Request, Scene
from tilewright.kernels.vlm.change_places import Piece, join_places

SHAPE = (60, 80)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 37),
    st.integers(3, 41),
    st.sampled_from([0.2, 0.5, 0.65]),
    st.integers(0, 2**32 - 1),
)
def test_places_do_not_depend_on_the_cuts(rows: int, cols: int, side: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    change = draw.random((rows, cols)) < share
    strength = draw.uniform(0, 5, (rows, cols)).astype(np.float32)
    kinds = draw.integers(0, 6, (rows, cols))
    areas = draw.uniform(90, 110, (rows, cols))
    levels = (LevelInfo(1, (rows * 2, cols * 2)), LevelInfo(2, (rows, cols)))
    scene = Scene(
        levels, ("a",), areas=lambda w: areas[w.row0 : w.row1, w.col0 : w.col1] if w.level == 1 else None
    )
    corners = [(row, col) for row in range(0, rows, side) for col in range(0, cols, side)]
    pieces = []
    for n in draw.permutation(len(corners)):
        row, col = corners[n]
        window = Request(1, row, col, min(row + side, rows), min(col + side, cols))
        at = (slice(row, window.row1), slice(col, window.col1))
        if not change[at].any():
            continue  # a piece that was never read
        pieces.append(Piece(window, change[at], strength[at], kinds[at]))
    found = join_places(scene, pieces, outlined=1000)

    numbers, count = label(change)
    assert len(found) == count
    assert [place.pixels for place in found] == sorted((place.pixels for place in found), reverse=True)
    for place in found:
        row, col = ((int(x / 2)) for x in shapely.get_coordinates(place.outline.point_on_surface())[0][::-1])
        inside = numbers == numbers[row, col]
        assert place.pixels == inside.sum()
        assert place.outline is not None
        assert np.isclose(place.outline.area, 4 * place.pixels)
        assert place.outline.bounds == place.box
        assert place.area is not None
        assert np.isclose(place.area, areas[inside].sum())
        assert np.isclose(place.strength, strength[inside].mean(), rtol=1e-5)
        assert place.kinds == Counter(kinds[inside].tolist())
        assert np.allclose(place.centre, 2 * (np.argwhere(inside) + 0.5).mean(0))
    assert len(join_places(scene, pieces, smallest=3)) == sum(np.bincount(numbers[change])[1:] >= 3)


def test_nothing_is_no_place() -> None:
    scene = Scene((LevelInfo(1, SHAPE),), ("a",))
    empty = Piece(Request(0, 0, 0, *SHAPE), np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32))
    assert join_places(scene, []) == join_places(scene, [empty]) == []


def test_without_a_place_on_earth_an_area_is_that_of_square_pixels_or_unknown() -> None:
    change = np.zeros(SHAPE, bool)
    change[5:7, 9:12] = True
    piece = Piece(Request(0, 0, 0, *SHAPE), change, change.astype(np.float32))
    for resolution, area in ((3.0, 54.0), (None, None)):
        (place,) = join_places(Scene((LevelInfo(1, SHAPE),), ("a",), resolution), [piece])
        assert (place.area, place.box, place.strength) == (area, (9, 5, 12, 7), 1)
        assert place.outline is None
