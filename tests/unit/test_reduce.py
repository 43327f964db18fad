"""From final values to stored ones: argmax, thresholds, quantising, nodata, reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.errors import KernelError
from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.reduce import combine_reasons, quantisation, reduce_output
from tilewright.pipeline.source import Reason


def reduce(values: Any, valid: Any = None, **keys: Any) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values, dtype=np.float32)
    ok = np.ones(array.shape[1:], dtype=bool) if valid is None else np.asarray(valid)
    return reduce_output("out", OutputSpec(**keys), array, ok)


def test_the_lowest_label_wins_a_tie() -> None:
    stored, ok = reduce([[[1, 2, 5]], [[1, 3, 5]], [[0, 3, 9]]], kind="class", classes=("a", "b", "c"))
    assert stored.tolist() == [[[0, 1, 2]]]
    assert stored.dtype == np.uint8
    assert ok.all()


def test_labels_given_as_such_and_a_threshold_that_is_met() -> None:
    assert reduce([[[0, 4, 2]]], kind="class")[0].tolist() == [[[0, 4, 2]]]
    assert reduce([[[0.49, 0.5, 0.51]]], kind="class", threshold=0.5)[0].tolist() == [[[0, 1, 1]]]


def test_a_nan_among_the_channels_and_an_invalid_pixel_are_nodata() -> None:
    nan = float("nan")
    values = [[[1, 1, nan, 1]], [[0, nan, 0, 0]]]
    stored, ok = reduce(values, [[True, True, True, False]], kind="value", bands=2)
    assert ok.tolist() == [[True, False, False, False]]
    assert np.isnan(stored[:, 0, 1:]).all()
    stored, ok = reduce(values, [[True, True, True, False]], kind="class", classes=("a", "b"))
    assert stored.tolist() == [[[0, 255, 255, 255]]]


def test_an_infinite_value_is_kept_as_what_it_is() -> None:
    stored, ok = reduce([[[np.inf, 1]]], kind="value")
    assert ok.all()
    assert np.isinf(stored[0, 0, 0])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_quantised_values_come_back_to_half_a_step_and_never_meet_nodata(dtype: str) -> None:
    spec = OutputSpec(kind="value", range=(-3, 7), dtype=dtype)
    scale, offset = quantisation(spec)
    values = np.linspace(-3, 7, 10_001, dtype=np.float32)[None, None]
    stored, ok = reduce_output("out", spec, values, np.ones((1, 10_001), dtype=bool))
    assert ok.all()
    assert stored.dtype == np.dtype(dtype)
    assert not (stored == spec.stored_nodata).any()
    assert np.abs(stored.astype(float) * scale + offset - values).max() <= scale / 2 * 1.001
    beyond, _ = reduce_output("out", spec, np.float32([[[-9, 99]]]), np.ones((1, 2), dtype=bool))
    assert (beyond.astype(float) * scale + offset).ravel() == pytest.approx([-3, 7])


def test_floats_and_classes_are_stored_as_they_are() -> None:
    assert quantisation(OutputSpec(kind="score")) == (1, 0)
    assert quantisation(OutputSpec(kind="class")) == (1, 0)


def test_a_number_of_channels_that_does_not_fit() -> None:
    with pytest.raises(KernelError, match="gave 2 channels, expected 1 or 3"):
        reduce([[[1]], [[1]]], kind="class", classes=("a", "b", "c"))


def test_the_reason_of_several_dates_and_inputs() -> None:
    first = np.array([[[[0, 0, 1, 3]]], [[[0, 2, 1, 0]]]], dtype=np.uint8)
    second = np.array([[[[0, 0, 4, 0]]]], dtype=np.uint8)
    inside = np.ones((1, 4), dtype=bool)
    assert combine_reasons([first, second], inside, "all").tolist() == [[0, 2, 4, 3]]
    assert combine_reasons([first, second], inside, "any").tolist() == [[0, 0, 4, 0]]
    assert combine_reasons([first], inside, "own").tolist() == [[0, 0, 1, 0]]
    inside[0, 0] = False
    assert combine_reasons([first], inside, "any")[0, 0] == Reason.OUTSIDE
