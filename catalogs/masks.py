"""Valid planes from mask bands: which pixels of a scene may be used, and why the others may not.

All functions take arrays of any shape and return boolean planes of the same shape. They read no files. Validity
comes from what the product says (a class, a bit, a declared nodata value), never from a guess about a value of
an output: 0 is a legal reflectance, and a legal class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.catalogs.sensors import MaskKind

__all__ = [
    "DEFAULT_QA_EXCLUDE",
    "DEFAULT_SCL_EXCLUDE",
    "QA_PIXEL_BITS",
    "SCL_CLASSES",
    "Validity",
    "valid_from_layover_shadow",
    "valid_from_mask_band",
    "valid_from_nodata",
    "valid_from_qa_pixel",
    "valid_from_scl",
]

SCL_CLASSES = {
    "no_data": 0,
    "saturated_or_defective": 1,
    "dark_area": 2,
    "cloud_shadow": 3,
    "vegetation": 4,
    "not_vegetated": 5,
    "water": 6,
    "unclassified": 7,
    "cloud_medium_probability": 8,
    "cloud_high_probability": 9,
    "thin_cirrus": 10,
    "snow": 11,
}
"""Classes of Sentinel-2's scene classification (SCL), Products Specification Document, Level 2A."""

DEFAULT_SCL_EXCLUDE = (
    "saturated_or_defective",
    "cloud_shadow",
    "cloud_medium_probability",
    "cloud_high_probability",
    "thin_cirrus",
)
"""Left out by default besides ``no_data``. ``dark_area`` and ``unclassified`` stay: they are mostly good land."""

QA_PIXEL_BITS = {
    "fill": 0,
    "dilated_cloud": 1,
    "cirrus": 2,
    "cloud": 3,
    "cloud_shadow": 4,
    "snow": 5,
    "clear": 6,
    "water": 7,
}
"""Single bits of Landsat Collection 2's QA_PIXEL (LSDS-1619, table 6-2); bits 8 to 15 are confidences."""

DEFAULT_QA_EXCLUDE = ("dilated_cloud", "cirrus", "cloud", "cloud_shadow")
"""Left out by default besides ``fill``."""

_CLOUD_CONFIDENCE_SHIFT = 8


@dataclass(frozen=True, slots=True)
class Validity:
    """Which pixels may be used, and which of two reasons speaks against the others."""

    valid: NDArray[np.bool_]
    """True where the pixel may be used; always equal to ``~(cloud | nodata)``."""

    cloud: NDArray[np.bool_]
    """True where the sensor saw something, but a class or bit that the caller excludes: cloud, shadow, layover."""

    nodata: NDArray[np.bool_]
    """True where the product holds no data; never True where ``cloud`` is."""


def _validity(nodata: NDArray[np.bool_], excluded: NDArray[np.bool_]) -> Validity:
    cloud = excluded & ~nodata
    return Validity(valid=~(cloud | nodata), cloud=cloud, nodata=nodata)


def valid_from_scl(
    scl: NDArray[np.integer[Any]], exclude: Collection[str | int] = DEFAULT_SCL_EXCLUDE
) -> Validity:
    """Read a plane of Sentinel-2 scene classes.

    Parameters
    ----------
    scl
        Classes 0 to 11, any integer type. Values above 11 are no classes and count as no data.
    exclude
        Names of :data:`SCL_CLASSES` or their numbers. ``no_data`` is always left out.

    Raises
    ------
    InputError
        A name that is no class, or a plane that is not of integers (an SCL that somebody interpolated).
    """
    classes = _integers(scl, "SCL")
    codes = [_code(name, SCL_CLASSES, "SCL class") for name in exclude]
    nodata = (classes == 0) | (classes > max(SCL_CLASSES.values()))
    return _validity(nodata, np.isin(classes, codes))


def valid_from_qa_pixel(
    qa: NDArray[np.integer[Any]],
    exclude: Collection[str] = DEFAULT_QA_EXCLUDE,
    *,
    cloud_confidence: int | None = None,
) -> Validity:
    """Read a plane of Landsat Collection 2 QA_PIXEL bits.

    Parameters
    ----------
    qa
        Bit field, uint16 as published. TM has no cirrus band: its bit is never set.
    exclude
        Names of :data:`QA_PIXEL_BITS`. ``fill`` is always left out.
    cloud_confidence
        Leave out pixels whose cloud confidence (bits 8 and 9: 1 low, 2 medium, 3 high) is at least this;
        None looks at the single bits alone.
    """
    bits = _integers(qa, "QA_PIXEL").astype(np.uint16, copy=False)
    flags = 0
    for name in exclude:
        flags |= 1 << _code(name, QA_PIXEL_BITS, "QA_PIXEL bit")
    excluded = (bits & np.uint16(flags)) != 0
    if cloud_confidence is not None:
        if cloud_confidence not in (1, 2, 3):
            raise InputError(f"cloud_confidence {cloud_confidence} is not 1, 2 or 3", place="mask")
        excluded |= ((bits >> _CLOUD_CONFIDENCE_SHIFT) & 3) >= cloud_confidence
    return _validity((bits & 1) != 0, excluded)


def valid_from_layover_shadow(
    mask: NDArray[np.integer[Any]], exclude: Collection[int] = (1, 2, 3)
) -> Validity:
    """Read OPERA RTC-S1's mask layer: 0 clear, 1 shadow, 2 layover, 3 both, 255 outside the swath.

    Terrain correction divides by the illuminated area, which goes to zero there: the power is not wrong by
    some per cent but without meaning.
    """
    codes = _integers(mask, "layover/shadow mask")
    return _validity(codes > 3, np.isin(codes, list(exclude)))


def valid_from_nodata(values: NDArray[Any], nodata: float | None) -> Validity:
    """Compare values with a declared nodata value; NaN is never data.

    Raises
    ------
    InputError
        ``nodata`` cannot occur in the type of ``values``: a comparison would silently find nothing.
    """
    array = np.asarray(values)
    if nodata is None or np.isnan(nodata):
        if nodata is not None and not np.issubdtype(array.dtype, np.inexact):
            raise InputError(
                f"nodata is NaN but the data are {array.dtype}",
                place="nodata",
                remedy="declare an integer nodata value, or none",
            )
        missing = np.isnan(array) if np.issubdtype(array.dtype, np.inexact) else np.zeros(array.shape, bool)
    elif np.issubdtype(array.dtype, np.inexact):
        missing = np.isnan(array) | (array == np.asarray(nodata, array.dtype))
    else:
        limits = np.iinfo(array.dtype) if array.dtype != np.bool_ else np.iinfo(np.uint8)
        if int(nodata) != nodata or not limits.min <= nodata <= limits.max:
            raise InputError(
                f"nodata {nodata} cannot occur in {array.dtype}",
                place="nodata",
                remedy=f"declare an integer between {limits.min} and {limits.max}, or none",
            )
        missing = array == array.dtype.type(int(nodata))
    return _validity(missing, np.zeros(array.shape, bool))


def valid_from_mask_band(
    kind: MaskKind, values: NDArray[np.integer[Any]], exclude: Collection[Any] | None = None
) -> Validity:
    """Read a mask band by the kind that its :class:`~tilewright.catalogs.sensors.Sensor` names.

    ``exclude`` replaces the default of that kind; None keeps it.
    """
    readers: dict[str, Callable[..., Validity]] = {
        "scl": valid_from_scl,
        "qa_pixel": valid_from_qa_pixel,
        "layover_shadow": valid_from_layover_shadow,
    }
    reader = readers[kind]
    return reader(values) if exclude is None else reader(values, exclude)


def _code(name: str | int, known: dict[str, int], what: str) -> int:
    if isinstance(name, int):
        if name in known.values():
            return name
        raise InputError(f"no {what} {name}", place="mask", remedy=f"known: {sorted(known.values())}")
    if name not in known:
        raise InputError(f"no {what} {name!r}; {nearest_name(name, known)}", place="mask")
    return known[name]


def _integers(values: NDArray[Any], what: str) -> NDArray[Any]:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{what} is {array.dtype}: classes and bits are integers",
            place="mask",
            remedy="read the mask band by nearest neighbour and without scaling",
        )
    return array
