"""What holds for every picture of a multispectral or radar image, and for every ramp of colours."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tilewright.kernels.ask import LevelInfo, Scene
from tilewright.kernels.vlm.looks import Look
from tilewright.kernels.vlm.renderings import RAMPS, RENDERINGS, SPANS, Index, Renderer, available

BANDS = ("blue", "green", "red", "nir", "nir08", "swir16", "swir22", "vv", "vh")
VALUES = st.floats(-10, 10, width=32) | st.sampled_from([0.0, -0.0, 1e-20, 1e20, -1e20])
SCENE = Scene((LevelInfo(1, (4, 5)),), BANDS)


def looks(share_valid: bool = True) -> st.SearchStrategy[Look]:
    shape = (len(BANDS), 4, 5)
    pixels = arrays.arrays(np.float32, shape, elements=VALUES)
    valid = arrays.arrays(bool, shape[1:]) if share_valid else st.just(np.ones(shape[1:], bool))
    return st.builds(lambda p, v: Look(p, v, np.dtype(np.float32)), pixels, valid)


@settings(deadline=None)
@given(st.sampled_from(sorted(RAMPS)), arrays.arrays(np.float64, 50, elements=st.floats(-1, 1)))
def test_ramps_can_be_read_backwards(name: str, values: np.ndarray) -> None:
    colours = RAMPS[name].paint(values)
    assert colours.dtype == np.uint8
    assert colours.sum(axis=-1).min() > 80  # black is what was not measured
    np.testing.assert_allclose(RAMPS[name].values(colours), values, atol=0.005)


@settings(deadline=None)
@given(looks())
def test_every_rendering_is_bytes_and_black_where_nothing_was_measured(look: Look) -> None:
    rendered = Renderer(SCENE).render(look)
    assert len(rendered.pictures) == len(available(BANDS)) - 1 + 3  # the triplets of nine bands
    assert len(rendered.text.splitlines()) == len(rendered.pictures) + 1
    for picture in rendered.pictures:
        assert picture.shape == (4, 5, 3)
        assert picture.dtype == np.uint8
        assert (picture[~look.valid] == 0).all()


@settings(deadline=None)
@given(looks(), st.integers(0, 3), st.integers(0, 4))
def test_a_pixel_looks_the_same_in_every_picture(look: Look, row: int, col: int) -> None:
    """The stretch is never that of the picture, so tiles agree."""
    renderer = Renderer(SCENE)
    whole = renderer.render(look).pictures
    alone = Look(
        look.pixels[:, row : row + 1, col : col + 1], look.valid[row : row + 1, col : col + 1], look.dtype
    )
    for picture, one in zip(whole, renderer.render(alone).pictures, strict=True):
        assert (picture[row, col] == one[0, 0]).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=9, max_size=9), st.floats(0.01, 0.2))
def test_more_of_a_band_is_never_less_of_its_colour(values: list[float], more: float) -> None:
    before = np.array(values, np.float32).reshape(-1, 1, 1)
    valid = np.ones((1, 1), bool)
    for name, rendering in RENDERINGS.items():
        first = next(band for band in rendering.bands[0] if band in BANDS)
        after = before.copy()
        after[BANDS.index(first)] += more
        low, high = (
            Renderer(SCENE, name).render(Look(one, valid, np.dtype(np.float32))).pictures[0][0, 0]
            for one in (before, after)
        )
        if isinstance(rendering, Index):
            if low.any():
                ramp = RAMPS[rendering.ramp]
                assert ramp.values(high) >= ramp.values(low) - 0.01
        else:
            assert high[0] >= low[0]


@given(st.sampled_from(sorted(SPANS)))
def test_spans_run_upwards(band: str) -> None:
    low, high = SPANS[band]
    assert low < high


@settings(deadline=None)
@given(st.lists(st.floats(2**-9, 1, width=32), min_size=2, max_size=2), st.floats(0.1, 100))
def test_indices_do_not_depend_on_the_scale(values: list[float], factor: float) -> None:
    """So bytes and digital numbers without an offset show the same index as reflectance."""
    scene = Scene((LevelInfo(1, (1, 1)),), ("red", "nir"))
    pixels = np.array(values, np.float32).reshape(-1, 1, 1)
    shown = [
        Renderer(scene, "ndvi", scale=scale)
        .render(Look(pixels, np.ones((1, 1), bool), np.dtype(np.float32)))
        .pictures[0]
        .astype(int)
        for scale in (1.0, factor)
    ]
    assert np.abs(shown[0] - shown[1]).max() <= 1
