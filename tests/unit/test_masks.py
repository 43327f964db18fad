"""Valid planes: every class and bit, and nodata in every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.catalogs.masks import (
    QA_PIXEL_BITS,
    Validity,
    valid_from_layover_shadow,
    valid_from_mask_band,
    valid_from_nodata,
    valid_from_qa_pixel,
    valid_from_scl,
)
from tilewright.errors import InputError


def assert_consistent(result: Validity) -> None:
    assert result.valid.dtype == result.cloud.dtype == result.nodata.dtype == np.bool_
    assert not (result.cloud & result.nodata).any()
    np.testing.assert_array_equal(result.valid, ~(result.cloud | result.nodata))


def test_scl_each_class() -> None:
    scl = np.arange(13, dtype=np.uint8).reshape(1, 13)
    result = valid_from_scl(scl)
    assert_consistent(result)
    assert np.flatnonzero(result.nodata[0]).tolist() == [0, 12]
    assert np.flatnonzero(result.cloud[0]).tolist() == [1, 3, 8, 9, 10]
    assert np.flatnonzero(result.valid[0]).tolist() == [2, 4, 5, 6, 7, 11]


def test_scl_other_choice_by_name_and_number() -> None:
    scl = np.arange(12, dtype=np.int16)
    assert np.flatnonzero(valid_from_scl(scl, ["snow", 6]).cloud).tolist() == [6, 11]
    assert np.flatnonzero(valid_from_mask_band("scl", scl, ["snow"]).cloud).tolist() == [11]
    with pytest.raises(InputError, match="did you mean 'thin_cirrus'"):
        valid_from_scl(scl, ["thin_cirus"])
    with pytest.raises(InputError, match="no SCL class 12"):
        valid_from_scl(scl, [12])


def test_interpolated_classes_are_refused() -> None:
    with pytest.raises(InputError, match="SCL is float32"):
        valid_from_scl(np.zeros((2, 2), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "bit"), QA_PIXEL_BITS.items())
def test_qa_pixel_each_bit(name: str, bit: int) -> None:
    result = valid_from_qa_pixel(np.array([1 << bit], np.uint16))
    assert_consistent(result)
    assert bool(result.nodata[0]) == (name == "fill")
    assert bool(result.cloud[0]) == (name in {"dilated_cloud", "cirrus", "cloud", "cloud_shadow"})


def test_qa_pixel_published_values() -> None:
    # LSDS-1619 table 6-3: fill, clear land, clear water, high cloud with shadow-free, cloud shadow, cirrus.
    values = np.array([1, 21824, 21952, 22280, 23888, 54596], np.uint16)
    result = valid_from_qa_pixel(values)
    assert result.nodata.tolist() == [True, False, False, False, False, False]
    assert result.valid.tolist() == [False, True, True, False, False, False]


def test_qa_pixel_cloud_confidence() -> None:
    levels = (np.arange(4) << 8).astype(np.uint16)
    assert valid_from_qa_pixel(levels).valid.all()
    assert valid_from_qa_pixel(levels, cloud_confidence=2).cloud.tolist() == [False, False, True, True]
    with pytest.raises(InputError, match="cloud_confidence 4"):
        valid_from_qa_pixel(levels, cloud_confidence=4)


def test_layover_shadow() -> None:
    mask = np.array([0, 1, 2, 3, 255], np.uint8)
    result = valid_from_layover_shadow(mask)
    assert_consistent(result)
    assert result.valid.tolist() == [True, False, False, False, False]
    assert result.nodata.tolist() == [False, False, False, False, True]
    assert valid_from_mask_band("layover_shadow", mask, (2, 3)).valid.tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("values", "nodata", "valid"),
    [
        (np.array([0, 1, 65535], np.uint16), 0, [False, True, True]),
        (np.array([0, 1, 65535], np.uint16), None, [True, True, True]),
        (np.array([-9999, 0], np.int16), -9999.0, [False, True]),
        (np.array([0, np.nan, -32768], np.float32), -32768, [True, False, False]),
        (np.array([0, np.nan, np.inf], np.float32), np.nan, [True, False, True]),
        (np.array([0, np.nan], np.float64), None, [True, False]),
        (np.array([0.1, 1], np.float32), 0.1, [False, True]),
    ],
)
def test_nodata(values: Any, nodata: float | None, valid: list[bool]) -> None:
    result = valid_from_nodata(values, nodata)
    assert_consistent(result)
    assert result.valid.tolist() == valid
    assert not result.cloud.any()


@pytest.mark.parametrize("nodata", [float("nan"), -1, 0.5, 70000])
def test_nodata_that_cannot_occur_is_refused(nodata: float) -> None:
    with pytest.raises(InputError, match="uint16"):
        valid_from_nodata(np.zeros(3, np.uint16), nodata)
