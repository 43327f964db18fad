"""A Cloud Optimized GeoTIFF from a finished result: the same pixels at every scale, validated before it appears.

GDAL's COG driver writes the file (tiles, header first, BigTIFF where needed). What it is given are the levels
of our own pyramid, each as a plain tiled GeoTIFF, tied together by a VRT; so the overviews are those of the
Zarr, mode for classes and average for values, and GDAL resamples nothing. (rasterio's and rioxarray's own
ways make the overviews anew from the whole raster, or none: rioxarray #220, #410.)

Same pixels give the same bytes, whatever the shard size: windows are read by a lattice of their own.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from tilewright.errors import StoreError

from .grid import Window
from .objects import fsync_path, is_remote, local_path, upload
from .overviews import level_count, level_shape
from .reduce import quantisation
from .source import Reason
from .store import REASON
from .zarrmeta import fill_value, level_transform

if TYPE_CHECKING:
    from tilewright.kernels.contract import OutputSpec

    from .store import ResultStore

__all__ = ["class_colours", "cog_scratch_bytes", "write_cog"]

READ_SIDE = 2048
"""Pixels a side that are held at a time; a multiple of every block side."""

PALETTE = (
    (68, 119, 170),
    (238, 102, 119),
    (34, 136, 51),
    (204, 187, 68),
    (102, 204, 238),
    (170, 51, 119),
    (238, 119, 51),
    (0, 153, 136),
    (187, 187, 187),
    (136, 34, 85),
)
"""Colours of labels, apart for colour-blind eyes as well (Tol, Colour Schemes, SRON/EPS/TN/09-002, 2021)."""

_GDAL_CACHE = 64 * 2**20
GDAL_OPTIONS = {"GDAL_CACHEMAX": _GDAL_CACHE, "GDAL_PAM_ENABLED": "NO"}
"""For the time of writing: 64 MiB of block cache (rasterio takes bytes) instead of 5 % of the machine, and no
``.aux.xml`` beside files."""


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return ``count`` colours for labels 0, 1, ...; where there are two, label 0 is a pale background."""
    if count <= 2:
        return [(222, 222, 222), (204, 51, 17)][:count]
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def cog_scratch_bytes(shape: tuple[int, int], dtype: str, bands: int) -> int:
    """Return the most bytes that `write_cog` needs beside the output, the unpublished file included.

    All levels as tiled scratch files, and all of them once more in the new file: ``2 * 4/3`` of the raw
    pixels, with whole tiles at the edges. Both are compressed, so this is an upper bound.
    """
    block = _block_side(shape)
    pixels = 0
    for level in range(level_count(shape)):
        rows, cols = level_shape(shape, level)
        pixels += math.ceil(rows / block) * math.ceil(cols / block) * block**2
    # Incompressible tiles grow by their deflate frames; headers list each tile twice.
    return 2 * math.ceil(pixels * bands * np.dtype(dtype).itemsize * 1.01) + 1_000_000


def write_cog(store: ResultStore, name: str, path: str | Path, *, threads: int = 2) -> Path | str:
    """Write one output of a finished store as ``path``; nothing is there before it is whole and proved.

    Parameters
    ----------
    store
        A store after `ResultStore.finish`.
    name
        An output, or ``reason``.
    path
        The GeoTIFF to write, or an object-store URL. Scratch files lie in its folder (for a URL in the
        system's temporary folder), at most `cog_scratch_bytes` of them.
    threads
        Threads that compress; they do not change the bytes.

    Returns
    -------
    Path or str
        ``path``.

    Raises
    ------
    StoreError
        If the disk is full, the file is no valid COG, its overviews are not those of the store, or a pixel
        at any level differs from the store.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    remote = is_remote(path)
    target = Path(tempfile.gettempdir()) / "upload.tif" if remote else local_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.stem}.", dir=target.parent))
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            levels = [_write_level(store, name, level, scratch) for level in range(store.levels)]
            vrt = scratch / "levels.vrt"
            vrt.write_text(_vrt(store, name, levels), encoding="utf-8")
            finished = scratch / target.name
            _check_room(scratch, sum(level.stat().st_size for level in levels) * 5 // 4)
            _copy_to_cog(vrt, finished, store, name, threads)
            _validate(finished, store, name, str(path))
        if remote:
            upload(finished, str(path), options=store.options)
            return str(path)
        fsync_path(finished)
        finished.replace(target)
        fsync_path(target.parent)
    except (OSError, RasterioError, CPLE_BaseError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        remedy = "free space or choose another disk" if full else None
        raise StoreError(f"the COG could not be written: {error}", place=str(path), remedy=remedy) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check_room(folder: Path, needed: int) -> None:
    """Raise before the disk is full: GDAL would print its troubles on the terminal, and fail with a riddle."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        told = f"{os.strerror(errno.ENOSPC)}: {free / 2**20:,.1f} MiB are free, {needed / 2**20:,.1f} MiB are needed"
        raise OSError(errno.ENOSPC, told)


# -- the levels ----------------------------------------------------------------------------------------------


def _block_side(shape: tuple[int, int]) -> int:
    """Return the side of the COG's blocks: 512, or 256 where the whole raster is smaller than that."""
    return 512 if max(shape) > 512 else 256


def _windows(shape: tuple[int, int]) -> Iterator[Window]:
    rows, cols = shape
    for row in range(0, rows, READ_SIDE):
        for col in range(0, cols, READ_SIDE):
            yield Window(row, min(row + READ_SIDE, rows), col, min(col + READ_SIDE, cols))


def _bands(store: ResultStore, name: str) -> int:
    return 1 if name == REASON else store.outputs[name].band_count


def _dtype(store: ResultStore, name: str) -> np.dtype[Any]:
    return np.dtype("uint8" if name == REASON else store.outputs[name].stored_dtype)


def _write_level(store: ResultStore, name: str, level: int, folder: Path) -> Path:
    """Write one level of the store as a tiled GeoTIFF without overviews."""
    import rasterio
    from affine import Affine
    from rasterio.windows import Window as RasterWindow

    shape = store.shape(level)
    path = folder / f"{level}.tif"
    # Nobody asks a level for its place, but GDAL warns of a raster without one.
    transform = Affine(*level_transform(store.grid, level))
    block = _block_side(store.grid.shape)
    profile = {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": _bands(store, name),
        "dtype": _dtype(store, name),
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "zstd",
        "zstd_level": 1,
        "bigtiff": "if_safer",
        "interleave": "band",
        "transform": transform,
    }
    raw = 0
    with rasterio.open(path, "w", **profile) as dataset:
        for window in _windows(shape):
            values = store.read(name, window, level)
            raw += values.nbytes
            _check_room(folder, min(raw, _GDAL_CACHE + values.nbytes))  # what GDAL may still have to write
            place = RasterWindow(window.col0, window.row0, window.width, window.height)
            dataset.write(values if values.ndim == 3 else values[None], window=place)
    return path


# -- how the levels belong together --------------------------------------------------------------------------


def _vrt(store: ResultStore, name: str, levels: list[Path]) -> str:
    """Return a VRT of level 0 with the other levels as its overviews, and all that is known of the bands."""
    rows, cols = store.grid.shape
    a, b, c, d, e, f = level_transform(store.grid, 0)
    spec = store.outputs.get(name)
    lines = [
        f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}">',
        f"<SRS>{escape(str(store.grid.geobox.crs.to_wkt()))}</SRS>",  # type: ignore[union-attr]
        f"<GeoTransform>{', '.join(repr(float(n)) for n in (c, a, b, f, d, e))}</GeoTransform>",
        '<Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata>',
    ]
    for band in range(1, _bands(store, name) + 1):
        kind = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
        lines.append(f'<VRTRasterBand dataType="{kind[str(_dtype(store, name))]}" band="{band}">')
        lines += _described(name, spec, band)
        lines.append(_source("SimpleSource", levels[0], band))
        lines += [_source("Overview", level, band) for level in levels[1:]]
        lines.append("</VRTRasterBand>")
    return "\n".join([*lines, "</VRTDataset>"])


def _source(tag: str, path: Path, band: int) -> str:
    return (
        f'<{tag}><SourceFilename relativeToVRT="1">{path.name}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></{tag}>"
    )


def _described(name: str, spec: OutputSpec | None, band: int) -> list[str]:
    """Return the description, nodata, units, scale, labels and colours of a band, in the VRT's order."""
    if spec is None:
        labels: dict[int, str] = {int(reason): reason.name.lower() for reason in Reason}
        return [f"<Description>{name}</Description>", _labels_metadata(labels, {}), _colour_table(labels)]
    label = name if spec.band_count == 1 else _band_name(name, spec, band)
    nodata = fill_value(spec)
    lines = [f"<Description>{escape(label)}</Description>"]
    metadata = {"kind": spec.kind, "description": spec.description}
    if spec.kind == "score" and spec.threshold is not None:
        metadata["threshold"] = repr(spec.threshold)
    labels = dict(enumerate(spec.classes or ())) if spec.kind == "class" else {}
    lines.append(_labels_metadata(labels, metadata))
    lines.append(f"<NoDataValue>{nodata.item()!r}</NoDataValue>")
    if spec.units:
        lines.append(f"<UnitType>{escape(spec.units)}</UnitType>")
    scale, offset = quantisation(spec)
    if (scale, offset) != (1.0, 0.0):
        lines += [f"<Offset>{offset!r}</Offset>", f"<Scale>{scale!r}</Scale>"]
    if labels and spec.stored_dtype == "uint8":
        lines.append(_colour_table(labels))
    return lines


def _band_name(name: str, spec: OutputSpec, band: int) -> str:
    return f"{name}_{band}" if isinstance(spec.bands, int) else spec.bands[band - 1]


def _labels_metadata(labels: dict[int, str], more: dict[str, str]) -> str:
    items = {key: value for key, value in more.items() if value}
    if labels:
        # GeoTIFF has no category names of its own (GDAL would put them into a file beside it).
        items["flag_values"] = " ".join(str(value) for value in labels)
        items["flag_meanings"] = " ".join("_".join(label.split()) for label in labels.values())
    texts = [f'<MDI key="{key}">{escape(value)}</MDI>' for key, value in items.items()]
    return f"<Metadata>{''.join(texts)}</Metadata>" if texts else ""


def _colour_table(labels: dict[int, str]) -> str:
    entries = [f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in class_colours(max(labels) + 1)]
    return f"<ColorInterp>Palette</ColorInterp><ColorTable>{''.join(entries)}</ColorTable>"


# -- the file ------------------------------------------------------------------------------------------------


def _copy_to_cog(vrt: Path, target: Path, store: ResultStore, name: str, threads: int) -> None:
    from rasterio.shutil import copy

    spec = store.outputs.get(name)
    labels = spec is None or spec.kind == "class"
    options = {
        # DEFLATE is read by everything that reads TIFF; ZSTD is missing in many desktop and browser builds.
        # Level 6, measured on 4,096 px: smooth labels 0.30 s at ratio 0.057 (level 4: 0.11 s, 0.075; level 9:
        # 4.1 s, 0.050; ZSTD 9: 0.41 s, 0.057), noisy scores 1.7 s at 0.794 (level 4: 1.2 s, 0.799; 9: 9.3 s).
        "COMPRESS": "DEFLATE",
        "LEVEL": "6",
        # Neighbouring labels have no small differences, so a predictor only costs.
        "PREDICTOR": "NO" if labels else "YES",
        "BLOCKSIZE": str(_block_side(store.grid.shape)),
        "BIGTIFF": "IF_SAFER",
        "OVERVIEWS": "FORCE_USE_EXISTING" if store.levels > 1 else "NONE",
        "NUM_THREADS": str(threads),
        "STATISTICS": "NO",
        # A pixel-interleaved tile of many bands would be too large to read for one of them.
        "INTERLEAVE": "PIXEL" if _bands(store, name) <= 4 else "BAND",
    }
    copy(os.fspath(vrt), os.fspath(target), driver="COG", **options)


def _validate(path: Path, store: ResultStore, name: str, place: str) -> None:
    """Raise `StoreError` unless ``path`` is a valid COG that holds the store's pixels at every level."""
    import rasterio
    from rio_cogeo.cogeo import cog_validate

    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise StoreError(f"what was written is no valid COG: {'; '.join(errors + warnings)}", place=place)
    with rasterio.open(path) as dataset:
        factors = dataset.overviews(1)
        if len(factors) != store.levels - 1:
            raise StoreError(f"the COG has {len(factors)} overviews, not {store.levels - 1}", place=place)
    for level in range(store.levels):
        more = {"overview_level": level - 1} if level else {}
        with rasterio.open(path, **more) as dataset:
            if dataset.shape != store.shape(level):
                raise StoreError(f"level {level} is {dataset.shape}, not {store.shape(level)}", place=place)
            for window in _windows(store.shape(level)):
                _compare(dataset, store, name, level, window, place)


def _compare(dataset: Any, store: ResultStore, name: str, level: int, window: Window, place: str) -> None:
    from rasterio.windows import Window as RasterWindow

    expected = store.read(name, window, level)
    found = dataset.read(window=RasterWindow(window.col0, window.row0, window.width, window.height))
    equal_nan = expected.dtype.kind == "f"
    if not np.array_equal(found, expected.reshape(found.shape), equal_nan=equal_nan):
        raise StoreError(f"the COG differs from the Zarr at level {level}, {window}", place=place)
