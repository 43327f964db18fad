"""A Cloud Optimized GeoTIFF from a finished result: the same pixels at every scale, proved before it appears.

Each tile is compressed once. A `CogWriter` takes pieces of the sweep over the result (`sweep`), GDAL compresses
their tiles in as many threads as there are (libdeflate, without Python's lock), and the tiles lie in a scratch
file until `tiffs` copies them into their places. Before, every level was written as a scratch GeoTIFF, decoded
and encoded again by GDAL's COG driver, and compared with the store: three times the work, most of it in one
thread. The overviews are those of the Zarr, mode for classes and average for values. (rasterio's and
rioxarray's own ways make them anew from the whole raster, or none: rioxarray #220, #410.)

What is proved: while a tile is copied, that its bytes are those that were compressed; afterwards, by GDAL, from
the finished file, that every tile at every level decodes to the very pixels that went in (CRC-32 of their bits);
that it is a valid COG by rio-cogeo's strict rules; and that no tile is missing.

Same pixels give the same bytes, whatever the shard size and the threads.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tilewright.errors import StoreError

from .ahead import map_ahead
from .grid import Window
from .objects import fsync_path, is_remote, local_path, upload
from .overviews import level_count, level_shape
from .reduce import quantisation
from .source import Reason
from .store import REASON
from .sweep import Piece, square_side, sweep
from .tiffs import Level, Spool, cog_bytes, cog_size, encode_tiles, needs_bigtiff, tags_like
from .zarrmeta import fill_value, level_transform

if TYPE_CHECKING:
    from tilewright.kernels.contract import OutputSpec

    from .store import ResultStore

__all__ = ["CogWriter", "class_colours", "cog_scratch_bytes", "remove_scratch", "write_cog"]

SCRATCH = ".tilewright-scratch-"
"""First letters of the folders that hold unfinished files; their process gone, they may be removed."""

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

GDAL_OPTIONS = {"GDAL_CACHEMAX": 64 * 2**20, "GDAL_PAM_ENABLED": "NO"}
"""For the time of writing: 64 MiB of block cache (rasterio takes bytes) instead of 5 % of the machine, and no
``.aux.xml`` beside files."""


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return ``count`` colours for labels 0, 1, ...; where there are two, label 0 is a pale background."""
    if count <= 2:
        return [(222, 222, 222), (204, 51, 17)][:count]
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def cog_scratch_bytes(shape: tuple[int, int], dtype: str, bands: int) -> int:
    """Return the most bytes that `write_cog` needs beside the output, the unpublished file included.

    The compressed tiles of all levels, and all of them once more in the new file: ``2 * 4/3`` of the raw pixels,
    with whole tiles at the edges. An upper bound, reached by what does not compress.
    """
    block = _block_side(shape)
    pixels = 0
    for level in range(level_count(shape)):
        rows, cols = level_shape(shape, level)
        pixels += math.ceil(rows / block) * math.ceil(cols / block) * block**2
    # Incompressible tiles grow by their deflate frames; the header lists each tile.
    return 2 * math.ceil(pixels * bands * np.dtype(dtype).itemsize * 1.01) + 1_000_000


def remove_scratch(folder: Path) -> None:
    """Remove what a process that is gone left of unfinished files. The caller knows that nobody works there."""
    for path in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


def write_cog(store: ResultStore, name: str, path: str | Path, *, threads: int = 2) -> Path | str:
    """Write one output of a store as ``path``; nothing is there before it is whole and proved.

    Parameters
    ----------
    store
        A store with all its shards; its pyramid is not needed.
    name
        An output, or ``reason``.
    path
        The GeoTIFF to write, or an object-store URL. Scratch files lie in its folder (for a URL in the
        system's temporary folder), at most `cog_scratch_bytes` of them.
    threads
        Threads that read, compress and check; they do not change the bytes.

    Returns
    -------
    Path or str
        ``path``.

    Raises
    ------
    StoreError
        If the disk is full, the file is no valid COG, or a pixel at any level does not come back from it.
    """
    with CogWriter(store, name, path, threads=threads) as writer:
        sweep(store, (name,), (writer,), threads=threads)
        return writer.finish()


class CogWriter:
    """Makes a COG from the pieces of a sweep: enter it, let it see every piece, `finish` it.

    Left without `finish`, it leaves nothing behind. Called from several threads.
    """

    def __init__(self, store: ResultStore, name: str, path: str | Path, *, threads: int = 2) -> None:
        self.store, self.name, self.path, self.threads = store, name, path, threads
        self.block = _block_side(store.grid.shape)
        self.bands, self.dtype = _bands(store, name), _dtype(store, name)
        self.options = _encoding(store, name)
        planes = self.bands if self.options["interleave"] == "band" else 1
        self.levels = [Level(store.shape(k), self.block, planes) for k in range(store.levels)]
        remote = is_remote(path)
        self._target = Path(tempfile.gettempdir()) / "upload.tif" if remote else local_path(path)

    def __enter__(self) -> Self:
        import rasterio

        with self._said():
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=self._target.parent))
            with ExitStack() as stack:
                stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
                self._spool = stack.enter_context(Spool(self._scratch / "tiles"))
                with rasterio.Env(**GDAL_OPTIONS):
                    describe = partial(_describe, store=self.store, name=self.name)
                    self._tags = tags_like(self.dtype, self.bands, self.block, self.options, describe)
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, piece: Piece) -> None:
        """Compress a piece's tiles into the scratch file."""
        values = piece.arrays[self.name]
        values = values if values.ndim == 3 else values[None]
        level, block = self.levels[piece.level], self.block
        row, col = piece.window.row0 // block, piece.window.col0 // block
        with self._said():
            _check_room(self._scratch, values.nbytes)
            tiles = encode_tiles(values, block, self.options)
            level.put(self._spool, row, col, tiles)
        for i, j, crc in _tile_checksums(values, block):
            level.pixels_crc[row + i, col + j] = crc

    def finish(self) -> Path | str:
        """Put the file together, prove it and give it its name; return where it is."""
        import rasterio

        with self._said(), rasterio.Env(**GDAL_OPTIONS):
            finished = self._scratch / self._target.name
            big = needs_bigtiff(self.levels, self._tags)
            _check_room(self._scratch, cog_size(self.levels, self._tags, big))
            with finished.open("wb") as file:
                for data in cog_bytes(self._spool, self.levels, self._tags, big=big):
                    file.write(data)
            self._spool.close()
            self._prove(finished)
            if is_remote(self.path):
                upload(finished, str(self.path), options=self.store.options)
                return str(self.path)
            fsync_path(finished)
            finished.replace(self._target)
            fsync_path(self._target.parent)
        return self._target

    def _said(self) -> _Said:
        return _Said(str(self.path))

    def _prove(self, finished: Path) -> None:
        _validate_layout(finished, self.store, str(self.path))
        side = square_side(self.bands * self.dtype.itemsize)
        proof = _Proof(finished, self.levels, self.block, str(self.path))
        try:
            with ThreadPoolExecutor(self.threads, thread_name_prefix="tilewright-proof") as pool:
                for _ in map_ahead(pool, proof.check, proof.windows(side), 2 * self.threads):
                    pass
        finally:
            proof.close()


class _Said:
    """Turn the errors of disks and of GDAL into `StoreError` with the file and, where the disk is full, a remedy."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from rasterio._err import CPLE_BaseError
        from rasterio.errors import RasterioError

        if isinstance(error, (OSError, RasterioError, CPLE_BaseError)):
            full = getattr(error, "errno", None) == errno.ENOSPC
            remedy = "free space or choose another disk" if full else None
            cause = f"the COG could not be written: {error}"
            raise StoreError(cause, place=self.place, remedy=remedy) from error


def _check_room(folder: Path, needed: int) -> None:
    """Raise before the disk is full, and say how much is missing."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        told = f"{os.strerror(errno.ENOSPC)}: {free / 2**20:,.1f} MiB are free, {needed / 2**20:,.1f} MiB are needed"
        raise OSError(errno.ENOSPC, told)


# -- how it is encoded ---------------------------------------------------------------------------------------


def _block_side(shape: tuple[int, int]) -> int:
    """Return the side of the COG's blocks: 512, or 256 where the whole raster is smaller than that."""
    return 512 if max(shape) > 512 else 256


def _bands(store: ResultStore, name: str) -> int:
    return 1 if name == REASON else store.outputs[name].band_count


def _dtype(store: ResultStore, name: str) -> np.dtype[Any]:
    return np.dtype("uint8" if name == REASON else store.outputs[name].stored_dtype)


def _encoding(store: ResultStore, name: str) -> dict[str, Any]:
    """Return GDAL's creation options of the tiles."""
    spec, dtype = store.outputs.get(name), _dtype(store, name)
    labels = spec is None or spec.kind == "class"
    return {
        # DEFLATE is read by everything that reads TIFF; ZSTD is missing in many desktop and browser builds.
        # Level 6, measured on 4,096 px: smooth labels 0.30 s at ratio 0.057 (level 4: 0.11 s, 0.075; level 9:
        # 4.1 s, 0.050; ZSTD 9: 0.41 s, 0.057), noisy scores 1.7 s at 0.794 (level 4: 1.2 s, 0.799; 9: 9.3 s).
        "compress": "deflate",
        "zlevel": 6,
        # Neighbouring labels have no small differences, so a predictor only costs.
        "predictor": 1 if labels else 3 if dtype.kind == "f" else 2,
        # A pixel-interleaved tile of many bands would be too large to read for one of them.
        "interleave": "pixel" if _bands(store, name) <= 4 else "band",
    }


# -- what it says of itself ----------------------------------------------------------------------------------


def _describe(dataset: Any, store: ResultStore, name: str) -> None:
    """Set place, nodata, descriptions, units, scale, labels and colours of an open GeoTIFF."""
    from affine import Affine

    spec = store.outputs.get(name)
    dataset.crs = store.grid.geobox.crs.to_wkt()  # type: ignore[union-attr]
    dataset.transform = Affine(*level_transform(store.grid, 0))
    dataset.update_tags(AREA_OR_POINT="Area")
    if spec is None:
        labels: dict[int, str] = {int(reason): reason.name.lower() for reason in Reason}
        dataset.set_band_description(1, name)
        dataset.update_tags(1, **_flags(labels))
        dataset.write_colormap(1, _colours(labels))
        return
    dataset.nodata = fill_value(spec).item()
    labels = dict(enumerate(spec.classes or ())) if spec.kind == "class" else {}
    more = {"kind": spec.kind, "description": spec.description}
    if spec.kind == "score" and spec.threshold is not None:
        more["threshold"] = repr(spec.threshold)
    told = {key: value for key, value in more.items() if value} | _flags(labels)
    for band in range(1, spec.band_count + 1):
        dataset.set_band_description(band, name if spec.band_count == 1 else _band_name(name, spec, band))
        dataset.update_tags(band, **told)
        if spec.units:
            dataset.set_band_unit(band, spec.units)
    scale, offset = quantisation(spec)
    if (scale, offset) != (1.0, 0.0):
        dataset.scales, dataset.offsets = (scale,) * spec.band_count, (offset,) * spec.band_count
    if labels and spec.stored_dtype == "uint8":
        dataset.write_colormap(1, _colours(labels))


def _band_name(name: str, spec: OutputSpec, band: int) -> str:
    return f"{name}_{band}" if isinstance(spec.bands, int) else spec.bands[band - 1]


def _flags(labels: dict[int, str]) -> dict[str, str]:
    """Return the labels as CF has them: GeoTIFF has no category names (GDAL would put them into a second file)."""
    if not labels:
        return {}
    return {
        "flag_values": " ".join(str(value) for value in labels),
        "flag_meanings": " ".join("_".join(label.split()) for label in labels.values()),
    }


def _colours(labels: dict[int, str]) -> dict[int, tuple[int, int, int, int]]:
    return {i: (*colour, 255) for i, colour in enumerate(class_colours(max(labels) + 1))}


# -- the proof -----------------------------------------------------------------------------------------------


def _validate_layout(path: Path, store: ResultStore, place: str) -> None:
    """Raise `StoreError` unless ``path`` is a valid COG with the store's levels."""
    import rasterio
    from rio_cogeo.cogeo import cog_validate

    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise StoreError(f"what was written is no valid COG: {'; '.join(errors + warnings)}", place=place)
    with rasterio.open(path) as dataset:
        factors = dataset.overviews(1)
        if len(factors) != store.levels - 1:
            raise StoreError(f"the COG has {len(factors)} overviews, not {store.levels - 1}", place=place)


class _Proof:
    """Decodes a finished file and compares the pixels of every tile with what went in."""

    def __init__(self, path: Path, levels: list[Level], block: int, place: str) -> None:
        self.path, self.levels, self.block, self.place = path, levels, block, place
        self._open = threading.local()
        self._all: list[Any] = []

    def windows(self, side: int) -> Iterator[tuple[int, Window]]:
        """Yield ``(level, window)`` of all pixels."""
        for k, level in enumerate(self.levels):
            rows, cols = level.shape
            for row in range(0, rows, side):
                for col in range(0, cols, side):
                    yield k, Window(row, min(row + side, rows), col, min(col + side, cols))

    def check(self, part: tuple[int, Window]) -> None:
        """Raise `StoreError` if a tile of a window differs."""
        from rasterio.windows import Window as RasterWindow

        k, window = part
        dataset, level = self._dataset(k), self.levels[k]
        if dataset.shape != level.shape:
            raise StoreError(f"level {k} is {dataset.shape}, not {level.shape}", place=self.place)
        found = dataset.read(window=RasterWindow(window.col0, window.row0, window.width, window.height))
        row, col = window.row0 // self.block, window.col0 // self.block
        for i, j, crc in _tile_checksums(found, self.block):
            if crc != level.pixels_crc[row + i, col + j]:
                told = f"the COG differs from the result at level {k}, tile {row + i}, {col + j}"
                raise StoreError(told, place=self.place)

    def _dataset(self, level: int) -> Any:
        """Return this thread's own handle of a level."""
        import rasterio

        if not hasattr(self._open, "handles"):
            self._open.handles = {}
        handles: dict[int, Any] = self._open.handles
        if level not in handles:
            more = {"overview_level": level - 1} if level else {}
            handles[level] = rasterio.open(self.path, **more)
            self._all.append(handles[level])
        return handles[level]

    def close(self) -> None:
        """Close all handles."""
        for dataset in self._all:
            dataset.close()


def _tile_checksums(values: Any, block: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(row, column, CRC-32)`` of each tile of ``values [C, rows, columns]``, by its bits."""
    _, rows, cols = values.shape
    for i in range(0, rows, block):
        for j in range(0, cols, block):
            tile = np.ascontiguousarray(values[:, i : i + block, j : j + block])
            yield i // block, j // block, zlib.crc32(tile)
