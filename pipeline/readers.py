"""Reading one band of one Item into the grid: the part that both readers share.

Where file and grid agree up to whole pixels a plain window is read, and no reader is asked. Else a `Reader`
warps blocks of the lattice of :mod:`tilewright.pipeline.warp`, and windows are cut from those.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tilewright.errors import InputError, ReadError, nearest_name

from .grid import Grid, Window
from .handles import Handles, is_local, plain_href, read_retrying
from .reading import strip_rows
from .warp import BlockCache, Placement, blocks_of, place, runs_of, source_window, unit_boxes

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from tilewright.catalogs.signing import Signer

__all__ = ["RESAMPLINGS", "BandFile", "BandReader", "Reader", "make_reader", "masked_floats"]

RESAMPLINGS = (
    "nearest",
    "bilinear",
    "cubic",
    "cubic_spline",
    "lanczos",
    "average",
    "mode",
    "max",
    "min",
    "med",
)
"""Ways to resample, by rasterio's names."""
CACHE_BYTES = 256 << 20
"""Bytes of warped blocks that a source keeps."""


@dataclass(frozen=True, slots=True)
class BandFile:
    """One band of one file, as a reader is given it."""

    href: str
    """Path or URL, unsigned."""
    index: int
    """Band in the file, from 1."""
    nodata: float | None
    """Marks an invalid pixel where `nodata_wins` or the file states none; None leaves it to the file."""
    nodata_wins: bool
    """True where ``nodata`` counts more than what the file states (the recipe or the Item says it)."""
    categorical: bool
    """True for classes and bit fields: nearest neighbour only."""
    place: str
    """Item and band, for messages."""
    stated: tuple[str, tuple[float, ...], tuple[int, int]] | None = None
    """CRS, affine ``(a, b, c, d, e, f)`` and shape as the Item states them; used only where the file itself
    has no CRS, as JPEG 2000 without its boxes. The ground is believed and the pixels are counted in the file:
    Items of resampled copies still state the shape of the original."""


class Reader(Protocol):
    """Warps a band into one block of the grid, by one library or another."""

    @property
    def name(self) -> Literal["odc", "stackstac"]:
        """The name in recipes."""
        ...

    def warp(
        self,
        dataset: rasterio.DatasetReader,
        file: BandFile,
        box: GeoBox,
        unit: GeoBox,
        at: Placement,
        resampling: str,
    ) -> NDArray[Any]:
        """Return the band in the pixels of ``box`` as floats ``[rows, columns]``, NaN where invalid.

        ``box`` are whole rows of ``unit``: a row has the same bits whichever rows of its unit are asked for.
        ``dataset`` is open for the calling thread alone. Positions are within 0.01 raster pixels of the exact
        ones. Raises rasterio's errors.
        """
        ...


def make_reader(name: str) -> Reader:
    """Return the reader of that name: ``odc`` or ``stackstac``."""
    if name == "odc":
        from .reader_odc import OdcReader

        return OdcReader()
    if name == "stackstac":
        from .reader_stackstac import StackstacReader

        return StackstacReader()
    raise InputError(
        f"unknown reader {name!r}", place="reader", remedy=nearest_name(name, ["odc", "stackstac"])
    )


def working_dtype(dtype: str) -> str:
    """Return the float type that holds every value of ``dtype`` exactly, or of 32 bits where none does."""
    kind = np.dtype(dtype)
    return "float32" if kind.itemsize < 4 or kind == np.float32 else "float64"


def file_nodata(dataset: rasterio.DatasetReader, file: BandFile) -> float | None:
    """Return the nodata value to use: of recipe or Item, else of the file, else of the product."""
    own = dataset.nodatavals[file.index - 1]
    if file.nodata is not None and (file.nodata_wins or own is None):
        return file.nodata
    return None if own is None else float(own)


def masked_floats(dataset: rasterio.DatasetReader, file: BandFile, window: Window) -> NDArray[Any]:
    """Read a window of the file's own pixels as floats, NaN where nodata, masked by the file, or not finite."""
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window as RioWindow

    region = RioWindow(window.col0, window.row0, window.width, window.height)
    raw = dataset.read(file.index, window=region)
    values: NDArray[Any] = raw.astype(working_dtype(str(raw.dtype)))
    nodata = file_nodata(dataset, file)
    if nodata is not None and not math.isnan(nodata):
        np.copyto(values, np.nan, where=equal_to(raw, nodata))
    flags = dataset.mask_flag_enums[file.index - 1]
    if MaskFlags.alpha in flags or MaskFlags.per_dataset in flags:
        np.copyto(values, np.nan, where=dataset.read_masks(file.index, window=region) == 0)
    if raw.dtype.kind == "f":
        np.copyto(values, np.nan, where=np.isinf(values))
    return values


def equal_to(raw: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Return ``raw == value``; integers are compared as such, without a copy as floats."""
    if raw.dtype.kind in "iu" and math.isfinite(value):
        limits = np.iinfo(raw.dtype)
        if not float(value).is_integer() or not limits.min <= int(value) <= limits.max:
            return np.zeros(raw.shape, bool)
        if abs(value) < 2**53:
            value = raw.dtype.type(int(value))
    same: NDArray[np.bool_] = raw == value
    return same


def raster_geobox(dataset: rasterio.DatasetReader, file: BandFile) -> GeoBox:
    """Return the file's grid: its own, or the Item's ground over the file's pixels where it has none."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    if dataset.crs is not None:
        code = dataset.crs.to_epsg(confidence_threshold=90)
        crs = f"EPSG:{code}" if code else dataset.crs.to_wkt()
        return GeoBox(dataset.shape, dataset.transform, crs)
    if file.stated is None:
        raise ReadError(
            "neither the file nor its Item has a CRS and a transform",
            place=file.place,
            remedy="leave the Item out, or repair it",
        )
    crs, transform, (rows, cols) = file.stated
    a, b, c, d, e, f = transform
    x, y = cols / dataset.width, rows / dataset.height
    return GeoBox(dataset.shape, Affine(a * x, b * y, c, d * x, e * y, f), crs)


class Tally:
    """Bytes of decoded source pixels that were read, by all threads that read for one window."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count more bytes."""
        with self._lock:
            self.bytes += count


_tally: ContextVar[Tally | None] = ContextVar("tilewright_tally", default=None)


@contextmanager
def tallied() -> Iterator[Tally]:
    """Count what is read inside the ``with``, also by the threads of `reading.concurrently`."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


class BandReader:
    """Reads windows of a grid from band files. Threads may share it; it pickles without handles and blocks."""

    def __init__(
        self, grid: Grid, reader: Reader, signer: Signer | None = None, cache: int = CACHE_BYTES
    ) -> None:
        self.grid = grid
        self.reader = reader
        self.cache = BlockCache(cache)
        self._signer = signer
        self._handles = Handles()
        self._placements: dict[tuple[str, int], Placement] = {}
        self._block_rows: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"grid": self.grid, "reader": self.reader, "cache": self.cache.limit, "signer": self._signer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _signed_by(self, href: str) -> Signer:
        from tilewright.catalogs.signing import signer_for

        return self._signer or signer_for(href)

    def _with_dataset[T](self, file: BandFile, use: Callable[[rasterio.DatasetReader], T], what: str) -> T:
        def once(opened_as: Callable[[], str]) -> T:
            with self._handles.lend(file.href, opened_as=opened_as) as dataset:
                return use(dataset)

        where = f"{file.place}, {plain_href(file.href)}{what}"
        return read_retrying(once, file.href, self._handles, place=where, signer=self._signed_by(file.href))

    def placement(self, file: BandFile) -> Placement:
        """Return how the file lies on the grid; opens its header at the first call."""
        key = (file.href, file.index)
        found = self._placements.get(key)
        if found is None:
            found = self._with_dataset(file, lambda dataset: self._place(dataset, file), "")
            with self._lock:
                self._placements[key] = found
        return found

    def _place(self, dataset: rasterio.DatasetReader, file: BandFile) -> Placement:
        if file.index > dataset.count:
            raise ReadError(f"band {file.index} is wanted of a file with {dataset.count}", place=file.place)
        self._block_rows[file.href, file.index] = int(dataset.block_shapes[file.index - 1][0])
        return place(raster_geobox(dataset, file), self.grid)

    def read(self, file: BandFile, window: Window, resampling: str) -> NDArray[Any]:
        """Return the band over ``window`` as floats ``[rows, columns]``, NaN where invalid or not covered.

        Raises `ReadError` naming Item, band and file after the retries.
        """
        out: NDArray[Any] | None = None
        for part, pixels in self.parts(file, window, resampling):
            if part == window:
                return pixels
            if out is None:
                out = np.full(window.shape, np.nan, pixels.dtype)
            out[part.slices(window)] = pixels
        return np.full(window.shape, np.nan, np.float32) if out is None else out

    def parts(self, file: BandFile, window: Window, resampling: str) -> Iterator[tuple[Window, NDArray[Any]]]:
        """Yield `read`'s pixels part by part, so that no band is held twice; where no part is there is NaN.

        Parts are not to be written to. They are rows of the file's blocks, or blocks of the lattice.
        """
        at = self.placement(file)
        if not at.touches(window):
            return
        if at.shift is not None:
            yield from self._plain(file, at.shift, at, window)
            return
        method = "nearest" if file.categorical else resampling
        for columns in _row_groups(window, at):
            self._fetch(file, at, method, columns)
            for column in columns:
                for block, pixels in zip(column, self._column(file, at, column, method), strict=True):
                    common = block.overlap(window)
                    assert common is not None
                    yield common, pixels[common.slices(block)]

    def _plain(
        self, file: BandFile, shift: tuple[int, int], at: Placement, window: Window
    ) -> Iterator[tuple[Window, NDArray[Any]]]:
        rows, cols = (int(n) for n in at.raster.shape)
        wanted = Window(
            window.row0 + shift[0], window.row1 + shift[0], window.col0 + shift[1], window.col1 + shift[1]
        )
        common = wanted.overlap(Window(0, rows, 0, cols))
        if common is None:
            return
        for strip in self._strips(file, common, np.dtype("float32").itemsize):
            pixels = self._with_dataset(
                file, partial(masked_floats, file=file, window=strip), f" {_text(window)}"
            )
            self._count(pixels.size, pixels.dtype)
            here = Window(
                strip.row0 - shift[0], strip.row1 - shift[0], strip.col0 - shift[1], strip.col1 - shift[1]
            )
            yield here, pixels

    def _strips(self, file: BandFile, region: Window, itemsize: int) -> Iterator[Window]:
        """Yield ``region``, in pixels of the file, in strips that end with a row of its blocks."""
        height = self._block_rows.get((file.href, file.index), 1)
        step = strip_rows(region.width, itemsize, height)
        start = region.row0
        while start < region.row1:
            stop = min((start // height * height) + step, region.row1)
            yield Window(start, stop, region.col0, region.col1)
            start = stop

    def _fetch(self, file: BandFile, at: Placement, resampling: str, columns: list[list[Window]]) -> None:
        """Read at once what warping the missing blocks of a remote file will need: GDAL keeps it.

        Block by block GDAL would ask for it a source block at a time, and wait for each.
        """
        if is_local(file.href):
            return
        blocks = [
            block
            for column in columns
            for block in column
            if self._key(file, resampling, block) not in self.cache
        ]
        windows = [source_window(at, self.grid.crop(block)) for block in blocks]
        found = [window for window in windows if window is not None]
        if len(blocks) < 2 or not found:
            return
        span = reduce(Window.union, found)
        for strip in self._strips(file, span, 2):
            self._with_dataset(file, partial(_touch, index=file.index, window=strip), f" {_text(span)}")

    def _column(
        self, file: BandFile, at: Placement, blocks: list[Window], resampling: str
    ) -> list[NDArray[Any]]:
        """Return the pixels of ``blocks``, which lie below each other."""

        def make(missing: list[int]) -> Iterator[NDArray[Any]]:
            for run in runs_of([blocks[i] for i in missing]):
                box, unit = unit_boxes(self.grid, run, at)
                warp = partial(self.reader.warp, file=file, box=box, unit=unit, at=at, resampling=resampling)
                pixels = self._with_dataset(file, warp, f" {_text(run)}")
                self._count(pixels.size / (at.scale[0] * at.scale[1]), pixels.dtype)
                # Copies: the cache drops blocks one by one.
                yield from (part.copy() for part in np.split(pixels, run.height // at.block))

        return self.cache.get([self._key(file, resampling, block) for block in blocks], make)

    def _key(self, file: BandFile, resampling: str, block: Window) -> Hashable:
        return (file.href, file.index, file.nodata, resampling, block)

    def _count(self, pixels: float, dtype: np.dtype[Any]) -> None:
        tally = _tally.get()
        if tally is not None:
            tally.add(int(pixels) * dtype.itemsize)


def _row_groups(window: Window, at: Placement) -> Iterator[list[list[Window]]]:
    """Yield the columns of blocks that the raster may touch, unit by unit; see `warp.unit_boxes`."""
    rows = [list(row) for _, row in groupby(blocks_of(window, at.block), key=lambda block: block.row0)]
    for _, group in groupby(rows, key=lambda row: row[0].row0 // (at.run * at.block)):
        columns = ([block for block in column if at.touches(block)] for column in zip(*group, strict=True))
        yield [column for column in columns if column]


def _touch(dataset: rasterio.DatasetReader, index: int, window: Window) -> None:
    from rasterio.windows import Window as RioWindow

    dataset.read(index, window=RioWindow(window.col0, window.row0, window.width, window.height))


def _text(window: Window) -> str:
    return f"rows {window.row0}..{window.row1}, columns {window.col0}..{window.col1}"
