"""The grid of a DataArray, from its coordinates and its CRS: where every array library differs a little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from odc.geo.geobox import GeoBox

__all__ = ["array_geobox"]

_EVEN = 1e-3
"""Pixels by which a coordinate may miss its place on an even axis."""
_PHASE = 1e-4
"""Pixels by which coordinates may miss the stated transform and still be its corners or centres."""


def array_geobox(array: xr.DataArray, dims: tuple[str, str], place: str) -> tuple[GeoBox, bool]:
    """Return the GeoBox of ``array`` over the dimensions ``(y, x)``, and True where its rows run upward.

    Coordinates are pixel centres, unless the array states a transform (attribute ``transform``, as stackstac
    writes it, or the grid mapping's ``GeoTransform``) by which they are corners. A stated transform also
    gives the exact numbers, and it may be that of a larger array of which this one is a part. Without
    coordinates it is taken as it is.

    Raises `InputError` for no CRS, no coordinates and no transform, or uneven coordinates.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    crs = _crs(array)
    if crs is None:
        raise InputError("the array has no CRS", place=place, remedy="set one: array.rio.write_crs('EPSG:n')")
    y, x = dims
    stated = _stated(array)
    shape = (array.sizes[y], array.sizes[x])
    if x not in array.coords or y not in array.coords:
        if stated is None:
            raise InputError(
                f"the array has neither coordinates {y}, {x} nor a transform",
                place=place,
                remedy="set one: array.rio.write_transform(...)",
            )
        return GeoBox(shape, stated, crs), False
    c, a = _axis(array.coords[x].values, stated and (stated.c, stated.a), x, place)
    f, e = _axis(array.coords[y].values, stated and (stated.f, stated.e), y, place)
    if e > 0:
        return GeoBox(shape, Affine(a, 0, c, 0, -e, f + e * shape[0]), crs), True
    return GeoBox(shape, Affine(a, 0, c, 0, e, f), crs), False


def _axis(values: Any, stated: tuple[float, float] | None, name: str, place: str) -> tuple[float, float]:
    """Return ``(edge of the first pixel, step)`` of an axis of coordinates."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1 and stated is None:
        raise InputError(
            f"one pixel along {name} leaves its size unknown",
            place=place,
            remedy="set it: array.rio.write_transform(...)",
        )
    step = float((values[-1] - values[0]) / (len(values) - 1)) if len(values) > 1 else float(stated[1])  # type: ignore[index]
    even = values[0] + step * np.arange(len(values))
    if step == 0 or np.abs(values - even).max() > _EVEN * abs(step):
        raise InputError(
            f"the coordinates along {name} are not evenly spaced",
            place=place,
            remedy="bring the array to a regular grid first",
        )
    if (
        stated is None
        or abs(step / stated[1]) - 1 > 1e-6
        or abs(abs(step) - abs(stated[1])) > 1e-6 * abs(step)
    ):
        return float(values[0] - step / 2), step
    origin, size = stated
    if step * size < 0:  # rows turned over since the transform was stated
        size = -size
    position = (values[0] - origin) / size
    for phase in (0.5, 0.0):
        index = round(position - phase)
        if abs(position - phase - index) < _PHASE:
            return origin + index * size, size
    return float(values[0] - step / 2), step


def _stated(array: xr.DataArray) -> Any:
    from affine import Affine

    transform = array.attrs.get("transform")
    if isinstance(transform, Affine):
        return transform
    if isinstance(transform, (tuple, list)) and len(transform) >= 6:
        return Affine(*(float(v) for v in transform[:6]))
    mapping = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "spatial_ref"
    if mapping in array.coords:
        text = array.coords[mapping].attrs.get("GeoTransform")
        if text:
            return Affine.from_gdal(*(float(v) for v in str(text).split()))
    return None


def _crs(array: xr.DataArray) -> str | None:
    import rioxarray  # noqa: F401 - registers the accessor

    crs = array.rio.crs
    if crs is None and array.attrs.get("crs"):  # stackstac: "epsg:32633"
        return str(array.attrs["crs"])
    if crs is None and "epsg" in array.coords and array.coords["epsg"].ndim == 0:
        return f"EPSG:{int(array.coords['epsg'])}"
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())
