"""Reading one band of one Item into the grid: the part that both readers share.

Where file and grid agree up to whole pixels a plain window is read, and no reader is asked. Else a `Reader`
warps blocks of the lattice of :mod:`tilewright.pipeline.warp`, and windows are cut from those.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from tilewright.errors import InputError, ReadError, nearest_name

from .grid import Grid, Window
from .handles import Handles, plain_href, read_retrying
from .warp import BlockCache, Placement, blocks_of, place

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
        self, dataset: rasterio.DatasetReader, file: BandFile, box: GeoBox, at: Placement, resampling: str
    ) -> NDArray[Any]:
        """Return the band in the pixels of ``box`` as floats ``[rows, columns]``, NaN where invalid.

        ``dataset`` is open for the calling thread alone. The same arguments give the same bits. Positions are
        within 0.01 raster pixels of the exact ones. Raises rasterio's errors.
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
        values[raw == nodata] = np.nan
    flags = dataset.mask_flag_enums[file.index - 1]
    if MaskFlags.alpha in flags or MaskFlags.per_dataset in flags:
        values[dataset.read_masks(file.index, window=region) == 0] = np.nan
    if raw.dtype.kind == "f":
        values[np.isinf(values)] = np.nan
    return values


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
        self._lock = threading.Lock()
        self._counted = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"grid": self.grid, "reader": self.reader, "cache": self.cache.limit, "signer": self._signer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def bytes_read(self) -> int:
        """Bytes of decoded source pixels that the calling thread has read."""
        return int(getattr(self._counted, "bytes", 0))

    def _signed_by(self, href: str) -> Signer:
        from tilewright.catalogs.signing import signer_for

        return self._signer or signer_for(href)

    def _with_dataset[T](self, file: BandFile, use: Callable[[rasterio.DatasetReader], T], what: str) -> T:
        def once(opened_as: Callable[[], str]) -> T:
            return use(self._handles.get(file.href, opened_as=opened_as))

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
        return place(raster_geobox(dataset, file), self.grid)

    def read(self, file: BandFile, window: Window, resampling: str) -> NDArray[Any]:
        """Return the band over ``window`` as floats ``[rows, columns]``, NaN where invalid or not covered.

        Raises `ReadError` naming Item, band and file after the retries.
        """
        at = self.placement(file)
        if not at.touches(window):
            return np.full(window.shape, np.nan, np.float32)
        if at.shift is not None:
            return self._plain(file, at.shift, at, window)
        method = "nearest" if file.categorical else resampling
        out: NDArray[Any] | None = None
        for block in blocks_of(window, at.block):
            pixels = self._block(file, at, block, method)
            if out is None:
                out = np.empty(window.shape, pixels.dtype)
            common = block.overlap(window)
            assert common is not None
            out[common.slices(window)] = pixels[common.slices(block)]
        assert out is not None
        return out

    def _plain(self, file: BandFile, shift: tuple[int, int], at: Placement, window: Window) -> NDArray[Any]:
        rows, cols = (int(n) for n in at.raster.shape)
        wanted = Window(
            window.row0 + shift[0], window.row1 + shift[0], window.col0 + shift[1], window.col1 + shift[1]
        )
        common = wanted.overlap(Window(0, rows, 0, cols))
        if common is None:
            return np.full(window.shape, np.nan, np.float32)
        pixels = self._with_dataset(
            file, lambda dataset: masked_floats(dataset, file, common), f" {_text(window)}"
        )
        self._count(pixels.size, pixels.dtype)
        if common == wanted:
            return pixels
        out = np.full(window.shape, np.nan, pixels.dtype)
        out[common.slices(wanted)] = pixels
        return out

    def _block(self, file: BandFile, at: Placement, block: Window, resampling: str) -> NDArray[Any]:
        if not at.touches(block):
            return np.full(block.shape, np.nan, np.float32)
        box = self.grid.crop(block)

        def make() -> NDArray[Any]:
            pixels = self._with_dataset(
                file, lambda dataset: self.reader.warp(dataset, file, box, at, resampling), f" {_text(block)}"
            )
            self._count(pixels.size / (at.scale[0] * at.scale[1]), pixels.dtype)
            return pixels

        return self.cache.get((file.href, file.index, file.nodata, resampling, block), make)

    def _count(self, pixels: float, dtype: np.dtype[Any]) -> None:
        self._counted.bytes = self.bytes_read + int(pixels) * dtype.itemsize


def _text(window: Window) -> str:
    return f"rows {window.row0}..{window.row1}, columns {window.col0}..{window.col1}"
