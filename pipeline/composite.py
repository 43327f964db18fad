"""Many dates to one: composites of a period, pixel by pixel over the valid dates, in an order that is fixed.

Every way is computed so that a pixel's bits do not depend on the window around it: sums run over the dates one
after another (numpy sums in pairs where the last axis is long, and then a window of one pixel would differ),
and medians and percentiles come from sorted values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tilewright.errors import InputError, nearest_name

from .source import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Composite", "Plane", "first_valid", "mean", "merge_reasons", "merge_scenes", "quantile"]

Method = Literal["median", "mean", "first_valid", "least_cloudy", "percentile"]
Plane = tuple["NDArray[Any]", "NDArray[np.uint8]"]
"""``([C, rows, columns] of values, [rows, columns] of reasons)`` of one date; values of invalid pixels are NaN."""


@dataclass(frozen=True, slots=True)
class Composite:
    """How the dates of a period become one. Radar is averaged in linear power, as it is read."""

    method: Method = "median"
    """``median``, ``mean``, ``percentile``: of the valid dates, band by band. ``first_valid``: the earliest
    valid date. ``least_cloudy``: the valid date with the least ``eo:cloud_cover``, dates without it last."""
    q: float | None = None
    """The percentile, 0 to 100, linearly interpolated between dates."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(
                f"unknown composite {self.method!r}",
                place="composite",
                remedy=nearest_name(str(self.method), get_args(Method)),
            )
        if (self.method == "percentile") != (self.q is not None):
            raise InputError(
                "a percentile needs q, and nothing else takes one",
                place="composite",
                remedy="set q to 0..100",
            )
        if self.q is not None and not 0 <= self.q <= 100:
            raise InputError(f"q is {self.q:g}", place="composite", remedy="give a percentile of 0..100")

    @classmethod
    def parse(cls, value: str | Composite) -> Composite:
        """Return the composite of a name such as ``"median"`` or ``"percentile:25"``."""
        if isinstance(value, Composite):
            return value
        name, _, q = value.partition(":")
        try:
            return cls(name, float(q) if q else None)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(
                f"{q!r} is no percentile", place="composite", remedy="write percentile:25"
            ) from error

    @property
    def keeps_dates(self) -> bool:
        """True where all dates must be in memory at once."""
        return self.method in ("median", "percentile")

    def __str__(self) -> str:
        return self.method if self.q is None else f"{self.method}:{self.q:g}"

    def apply(self, planes: Iterable[Plane], shape: tuple[int, int, int], dtype: str) -> Plane:
        """Return the composite of ``planes``, dates in the order of preference; reads no more than it needs."""
        if self.method in ("first_valid", "least_cloudy"):
            return first_valid(planes, shape, dtype)
        if self.method == "mean":
            return mean(planes, shape, dtype)
        return quantile(planes, shape, dtype, 0.5 if self.q is None else self.q / 100)


def merge_reasons(total: NDArray[np.uint8] | None, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the reason of a composite so far: VALID where any date is, else the highest code."""
    if total is None:
        return codes.copy()
    any_valid = (total == Reason.VALID) | (codes == Reason.VALID)
    merged: NDArray[np.uint8] = np.where(any_valid, np.uint8(Reason.VALID), np.maximum(total, codes))
    return merged


def merge_scenes(total: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the reason of a mosaic so far: as `merge_reasons`, but NO_SCENE only where no scene is at all.

    A scene beside a pixel says nothing about it, so the answer is the same whether or not it was looked at.
    """
    merged = merge_reasons(total, codes)
    merged = np.where(total == Reason.NO_SCENE, codes, merged)
    result: NDArray[np.uint8] = np.where(
        (codes == Reason.NO_SCENE) & (total != Reason.NO_SCENE), total, merged
    )
    return result


def _nothing(shape: tuple[int, int, int], dtype: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    return np.full(shape, np.nan, dtype), np.full(shape[1:], Reason.NO_SCENE, np.uint8)


def first_valid(
    planes: Iterable[Plane],
    shape: tuple[int, int, int],
    dtype: str,
    *,
    scenes: bool = False,
) -> Plane:
    """Return for each pixel the first valid plane, all bands of the same one; stops when none is missing.

    ``scenes`` is True where the planes are the scenes of one date: then reasons go by `merge_scenes`.
    """
    out: NDArray[Any] | None = None
    total: NDArray[np.uint8] | None = None
    own = False
    for values, codes in planes:
        if out is None or total is None:  # the first one is taken as it is: its invalid pixels are NaN
            out, total = values.astype(dtype, copy=False), codes
        else:
            if not own:  # what a plane's maker gave is not written to
                out, own = out.copy(), True
            take = (codes == Reason.VALID) & (total != Reason.VALID)
            np.copyto(out, values, where=take[None], casting="same_kind")
            total = merge_scenes(total, codes) if scenes else merge_reasons(total, codes)
        if not total.any():
            break
    if out is None or total is None:
        return _nothing(shape, dtype)
    return out, total


def mean(planes: Iterable[Plane], shape: tuple[int, int, int], dtype: str) -> Plane:
    """Return the mean over the valid dates, summed in double precision in the order of the dates."""
    total: NDArray[np.uint8] | None = None
    sums = np.zeros(shape, np.float64)
    counts = np.zeros(shape[1:], np.int64)
    for values, codes in planes:
        valid = codes == Reason.VALID
        np.add(sums, values, out=sums, where=valid[None])
        counts += valid
        total = merge_reasons(total, codes)
    if total is None:
        return _nothing(shape, dtype)
    with np.errstate(invalid="ignore"):
        out = (sums / np.where(counts == 0, np.nan, counts)).astype(dtype)
    return out, total


def quantile(planes: Iterable[Plane], shape: tuple[int, int, int], dtype: str, q: float) -> Plane:
    """Return the quantile ``q`` (0..1) over the valid dates of each band, interpolated as numpy's ``linear``."""
    total: NDArray[np.uint8] | None = None
    stack = []
    for values, codes in planes:
        plane = values.astype(dtype, copy=True)
        plane[:, codes != Reason.VALID] = np.nan
        stack.append(plane)
        total = merge_reasons(total, codes)
    if total is None:
        return _nothing(shape, dtype)
    dates = np.stack(stack)
    del stack
    dates.sort(axis=0)  # NaN last
    counts = np.isfinite(dates).sum(axis=0)
    position = np.maximum(counts - 1, 0) * q
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    below = np.take_along_axis(dates, low[None], axis=0)[0].astype(np.float64)
    above = np.take_along_axis(dates, high[None], axis=0)[0].astype(np.float64)
    out = below + (above - below) * (position - low)
    return out.astype(dtype), total
