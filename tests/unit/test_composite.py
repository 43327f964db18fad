"""Composites against numpy, over random valid planes; reasons; no date at all."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.errors import InputError
from tilewright.pipeline.composite import Composite, first_valid, merge_scenes
from tilewright.pipeline.source import Reason


def _planes(seed: int, dates: int, shape: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    planes = []
    for _ in range(dates):
        codes = rng.choice([0, 0, 1, 2, 3], shape[1:]).astype(np.uint8)
        values = rng.normal(size=shape).astype("float32")
        values[:, codes > 0] = np.nan
        planes.append((values, codes))
    return planes


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    dates=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    q=st.floats(0, 100),
)
def test_equals_numpy(seed: int, dates: int, shape: tuple[int, int, int], q: float) -> None:
    planes = _planes(seed, dates, shape)
    stack = np.stack([values for values, _ in planes]).astype("float64")
    codes = np.stack([c for _, c in planes])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = {
            Composite("mean"): np.nanmean(stack, axis=0),
            Composite("median"): np.nanmedian(stack, axis=0),
            Composite("percentile", q): np.nanpercentile(stack, q, axis=0),
        }
    for composite, values in expected.items():
        got, reason = composite.apply(iter(planes), shape, "float32")
        np.testing.assert_allclose(got, values, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(reason, np.where((codes == 0).any(axis=0), 0, codes.max(axis=0)))
        np.testing.assert_array_equal(np.isnan(got).all(axis=0), reason > 0)


def test_no_date_is_no_scene() -> None:
    for name in ("mean", "median", "first_valid"):
        values, reason = Composite(name).apply(iter([]), (2, 3, 4), "float32")  # type: ignore[arg-type]
        assert np.isnan(values).all()
        assert (reason == Reason.NO_SCENE).all()


def test_first_valid_stops_reading_when_full() -> None:
    full = (np.ones((1, 2, 2), "float32"), np.zeros((2, 2), np.uint8))

    def planes() -> object:
        yield full
        raise AssertionError("read on")

    values, reason = first_valid(planes(), (1, 2, 2), "float32")  # type: ignore[arg-type]
    assert (values == 1).all()
    assert not reason.any()


def test_a_scene_beside_a_pixel_says_nothing() -> None:
    """A mosaic's reasons do not change whether or not scenes that miss the pixel were looked at."""
    codes = np.arange(6, dtype=np.uint8)
    nothing = np.full(6, Reason.NO_SCENE, np.uint8)
    np.testing.assert_array_equal(merge_scenes(nothing, codes), codes)
    np.testing.assert_array_equal(merge_scenes(codes, nothing), codes)
    assert (
        merge_scenes(np.array([Reason.NODATA], np.uint8), np.array([Reason.CLOUD], np.uint8))[0]
        == Reason.CLOUD
    )


@pytest.mark.parametrize("text", ["percentile:x", "percentile", "median:3", "best"])
def test_nonsense(text: str) -> None:
    with pytest.raises(InputError):
        Composite.parse(text)
    assert str(Composite.parse("percentile:12.5")) == "percentile:12.5"
