"""What a raster file says of itself: grid, bands, nodata, masks, and whether it is whole. Headers only."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, ReadError

from .handles import Handles, is_local, plain_href, read_retrying

if TYPE_CHECKING:
    import rasterio
    from odc.geo.geobox import GeoBox

__all__ = [
    "BandInfo",
    "FileInfo",
    "canonical_bands",
    "check_nodata",
    "check_same_grid",
    "grid_difference",
    "inspect_file",
]

_SAME_PX = 1e-6
"""Farthest that the corners of two grids may lie apart, in pixels, to be called the same."""


@dataclass(frozen=True, slots=True)
class BandInfo:
    """A band of a file."""

    name: str
    """Name, in the sensor vocabulary where it is known."""
    index: int
    """Number in the file, from 1."""
    nodata: float | None
    """Marks an invalid pixel; None where nothing does."""
    masked: bool
    """True where a mask or alpha band of the file must be asked."""
    dtype: str
    """Numpy name of the stored type."""
    native: str | None
    """Name that the file itself, or the caller, gives the band; None where nobody names it."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A raster file, as its header describes it."""

    href: str
    """Path or URL as it was given."""
    geobox: GeoBox
    """Its grid."""
    bands: tuple[BandInfo, ...]
    """Its data bands; an alpha band is none."""
    units: str | None
    """Units that the file states, where all its bands agree."""
    record: Mapping[str, Any]
    """What identifies the file's content, as plain data."""
    block: tuple[int, int] = (1, 1)
    """Rows and columns of a stored block."""
    overviews: tuple[int, ...] = ()
    """How many times coarser each of its overviews is, in their order."""
    overview: int | None = None
    """Number of the overview that this describes; None: the file at full resolution."""


def canonical_bands(names: Sequence[str]) -> list[str]:
    """Return ``names`` in the sensor vocabulary, where it knows all of them and all its sensors agree.

    ``B4`` is red to Sentinel-2 and Landsat 8 and near infrared to Landsat 5: such a name stays as it is.
    """
    from tilewright.catalogs.sensors import SENSORS

    stripped = [name.strip() for name in names]
    readings = []
    for sensor in SENSORS:
        found = [next((b.name for b in sensor.bands if b.answers_to(n)), None) for n in stripped]
        if None not in found and len(set(found)) == len(set(stripped)):
            readings.append(found)
    if not readings:
        return stripped
    return [
        str(column[0]) if len(set(column)) == 1 else own
        for own, column in zip(stripped, zip(*readings, strict=True), strict=True)
    ]


def inspect_file(href: str, handles: Handles, overview: int | None = None) -> FileInfo:
    """Read the header of ``href``, or of one of its overviews.

    Raises `InputError` where it is absent, broken, or has no grid.
    """
    place = plain_href(href)
    if is_local(href) and not href.startswith("/vsi") and not Path(href).is_file():
        what = "is a folder" if Path(href).is_dir() else "no such file"
        raise InputError(what, place=place, remedy="name a raster file, a .zarr store or a URL")

    def header(opened_as: Any) -> FileInfo:
        with handles.lend(href, opened_as=opened_as, overview=overview) as dataset:
            return _header(href, dataset, overview)

    try:
        return read_retrying(header, href, handles, place=place)
    except ReadError as error:
        if not is_local(href):
            raise InputError(error.cause, place=place, remedy=error.remedy) from error
        raise InputError(
            f"not a readable raster: {error.cause}",
            place=place,
            remedy="give a GeoTIFF, COG, VRT, Zarr or another file that GDAL opens",
        ) from error


def _header(href: str, dataset: rasterio.DatasetReader, overview: int | None) -> FileInfo:
    from odc.geo.geobox import GeoBox
    from rasterio.enums import ColorInterp

    place = plain_href(href)
    if dataset.count == 0:
        raise InputError(
            "it holds no bands, only subdatasets", place=place, remedy="name one of the subdatasets"
        )
    if dataset.crs is None:
        georeferenced = dataset.gcps[0] or dataset.rpcs
        raise InputError(
            "it has ground control points but no grid" if georeferenced else "it has no CRS",
            place=place,
            remedy="rectify it by gdalwarp"
            if georeferenced
            else "set one by: rio edit-info --crs EPSG:n FILE",
        )
    _check_whole(dataset, href)
    nodata = _stated_nodata(dataset)
    planes = [i for i in dataset.indexes if dataset.colorinterp[i - 1] != ColorInterp.alpha] or list(
        dataset.indexes
    )
    natives = [dataset.descriptions[i - 1] or None for i in planes]
    if len(set(natives)) < len(natives):  # a stack written under one title names no band
        natives = [None] * len(natives)
    known = canonical_bands([n for n in natives if n])
    names = iter(known)
    bands = tuple(
        _band(dataset, i, nodata[i - 1], native, next(names) if native else f"band_{i}", place)
        for i, native in zip(planes, natives, strict=True)
    )
    units = {dataset.units[i - 1] or None for i in planes}
    return FileInfo(
        href=href,
        geobox=GeoBox(dataset.shape, dataset.transform, _crs_text(dataset)),
        bands=bands,
        units=units.pop() if len(units) == 1 else None,
        record=_record(href, dataset) | ({} if overview is None else {"overview": overview}),
        block=tuple(dataset.block_shapes[planes[0] - 1]),
        overviews=tuple(dataset.overviews(planes[0])),
        overview=overview,
    )


def _band(
    dataset: rasterio.DatasetReader,
    index: int,
    nodata: float | None,
    native: str | None,
    name: str,
    place: str,
) -> BandInfo:
    from rasterio.enums import MaskFlags

    dtype = np.dtype(dataset.dtypes[index - 1])
    check_nodata(nodata, dtype, f"{place}, band {index}")
    flags = set(dataset.mask_flag_enums[index - 1])
    return BandInfo(
        name=name,
        index=index,
        nodata=None if nodata is None or np.isnan(nodata) else float(nodata),
        masked=bool(flags & {MaskFlags.alpha, MaskFlags.per_dataset}) or flags == set(),
        dtype=str(dtype),
        native=native,
    )


def check_nodata(nodata: float | None, dtype: np.dtype[Any], place: str) -> None:
    """Raise `InputError` for a nodata value that integers of ``dtype`` cannot hold."""
    if nodata is None or dtype.kind not in "iu":
        return
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if not (np.isfinite(nodata) and float(nodata).is_integer() and low <= nodata <= high):
        raise InputError(
            f"nodata is stated as {nodata:g}, which {dtype} cannot hold",
            place=place,
            remedy=f"set a whole number in {low}..{high} (rio edit-info --nodata N FILE), or unset it",
        )


def _stated_nodata(dataset: rasterio.DatasetReader) -> list[float | None]:
    """Return each band's nodata as the file states it.

    rasterio hides a value that the type cannot hold; GDAL writes it out when it describes the file as a VRT.
    """
    import rasterio.shutil

    stated = [None if value is None else float(value) for value in dataset.nodatavals]
    if all(value is not None for value in stated):
        return stated
    path = f"/vsimem/{uuid.uuid4().hex}.vrt"
    rasterio.shutil.copy(dataset, path, driver="VRT")
    try:
        with rasterio.open(path) as described:
            xml = "".join(described.tags(ns="xml:VRT").values())
    finally:
        rasterio.shutil.delete(path, driver="VRT")
    for match in re.finditer(r'<VRTRasterBand[^>]*\bband="(\d+)".*?</VRTRasterBand>', xml, re.DOTALL):
        value = re.search(r"<NoDataValue>([^<]+)</NoDataValue>", match[0])
        if value and stated[int(match[1]) - 1] is None:
            stated[int(match[1]) - 1] = float(value[1])
    return stated


def _crs_text(dataset: rasterio.DatasetReader) -> str:
    code = dataset.crs.to_epsg(confidence_threshold=90)
    return f"EPSG:{code}" if code else str(dataset.crs.to_wkt())


def _check_whole(dataset: rasterio.DatasetReader, href: str) -> None:
    """Refuse a TIFF whose last blocks lie beyond the end of the file; reads the header only."""
    if dataset.driver != "GTiff" or not is_local(href) or not Path(href).is_file():
        return
    size = Path(href).stat().st_size
    height, width = dataset.block_shapes[-1]
    last = ((dataset.height - 1) // height, (dataset.width - 1) // width)
    for row, col in {(0, 0), (last[0] // 2, last[1] // 2), (last[0], 0), last}:
        start = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=dataset.count)
        length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=dataset.count)
        if start and length and int(start) + int(length) > size:
            raise InputError(
                f"the file is truncated: a block ends at byte {int(start) + int(length):,} of {size:,}",
                place=plain_href(href),
                remedy="fetch it again",
            )


def _record(href: str, dataset: rasterio.DatasetReader) -> dict[str, Any]:
    record: dict[str, Any] = {
        "href": plain_href(href),
        "shape": list(dataset.shape),
        "crs": _crs_text(dataset),
        "transform": list(dataset.transform)[:6],
        "dtypes": list(dataset.dtypes),
    }
    if is_local(href) and Path(href).is_file():
        stat = Path(href).stat()
        record |= {"href": str(Path(href).resolve()), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    return record


def check_same_grid(files: Sequence[FileInfo]) -> None:
    """Raise `InputError` where a file lies on another grid than the first."""
    first = files[0]
    for file in files[1:]:
        difference = grid_difference(first.geobox, file.geobox)
        if difference:
            raise InputError(
                f"{difference} than {plain_href(first.href)}",
                place=plain_href(file.href),
                remedy="all inputs must lie on one grid: warp it (gdalwarp, rio warp --like) first",
            )


def grid_difference(first: GeoBox, other: GeoBox) -> str | None:
    """Return how ``other`` differs from ``first``, as the beginning of "... than", or None where it does not.

    Same means: the same CRS, the same shape, and all corners within 1e-6 px.
    """
    if first.crs != other.crs:
        return f"it has another CRS ({_crs_name(other)} against {_crs_name(first)})"
    rows, cols = (int(n) for n in first.shape)
    if tuple(other.shape) != (rows, cols):
        return f"it has another shape ({other.shape[0]} x {other.shape[1]} against {rows} x {cols})"
    to_first = ~first.affine * other.affine
    shift = 0.0
    for x, y in ((0, 0), (cols, 0), (0, rows), (cols, rows)):
        u, v = to_first * (x, y)
        shift = max(shift, abs(u - x), abs(v - y))
    return f"it lies {shift:.6g} px elsewhere" if shift > _SAME_PX else None


def _crs_name(geobox: GeoBox) -> str:
    crs = geobox.crs
    if crs is None:
        return "none"
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)
