"""The reader by stackstac: its raster reader over a WarpedVRT with exact coordinates and one scale a raster.

stackstac is asked for one block at a time through its ``reader`` protocol; its metadata code, which reads only
``proj:epsg`` and may fall back on a lon/lat bbox, is not used at all.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import InputError

from .readers import BandFile, file_nodata, working_dtype
from .warp import TOLERANCE, WARP_OPTIONS, Placement

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = ["StackstacReader"]

_classes: dict[str, type] = {}
_lock = threading.Lock()


class StackstacReader:
    """`tilewright.pipeline.readers.Reader` by stackstac. Grids must be north-up, in a CRS with an EPSG code."""

    name: Literal["stackstac"] = "stackstac"

    def warp(
        self,
        dataset: rasterio.DatasetReader,
        file: BandFile,
        box: GeoBox,
        unit: GeoBox,
        at: Placement,
        resampling: str,
    ) -> NDArray[Any]:
        """Warp by stackstac's ``AutoParallelRioReader``; a VRT begins where the file does, whatever the unit."""
        from rasterio.enums import Resampling
        from rasterio.windows import Window as RioWindow

        _refuse_masks(dataset, file)
        dtype = np.dtype(working_dtype(dataset.dtypes[file.index - 1]))
        reader = _reader_class()(
            url=dataset.name,
            spec=_spec(box),
            resampling=Resampling[resampling],
            dtype=dtype,
            fill_value=dtype.type(np.nan),
            scale_offset=(1, 0),
        )
        reader.borrow(dataset, file, at)
        try:
            pixels: NDArray[Any] = reader.read(RioWindow(0, 0, box.shape[1], box.shape[0]))
        except RuntimeError as error:
            # stackstac wraps every error; rasterio's own says what can be done about it.
            raise (error.__cause__ or error) from None
        finally:
            reader.close()
        return np.array(pixels, dtype)


def _refuse_masks(dataset: rasterio.DatasetReader, file: BandFile) -> None:
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[file.index - 1]
    if MaskFlags.alpha in flags or MaskFlags.per_dataset in flags:
        raise InputError(
            "the file has a mask or alpha band, which a warp by stackstac would not heed",
            place=file.place,
            remedy="use the reader odc",
        )


def _spec(box: GeoBox) -> Any:
    from stackstac.raster_spec import RasterSpec

    a, b, c, d, e, f = tuple(box.affine)[:6]
    epsg = box.crs.epsg if box.crs is not None else None
    if epsg is None or b or d or a <= 0 or e >= 0:
        raise InputError(
            "stackstac reads only into north-up grids of a CRS with an EPSG code",
            place="reader",
            remedy="use the reader odc",
        )
    rows, cols = (int(n) for n in box.shape)
    return RasterSpec(epsg=epsg, bounds=(c, f + e * rows, c + a * cols, f), resolutions_xy=(a, -e))


def _reader_class() -> Any:
    with _lock:
        if "reader" not in _classes:
            _classes["reader"] = _make_class()
        return _classes["reader"]


def _make_class() -> type:
    """Return the subclass of stackstac's reader; made at first use, since stackstac is an extra."""
    try:
        from stackstac.rio_reader import AutoParallelRioReader
    except ImportError as error:
        raise InputError(
            "stackstac is not installed",
            place="reader",
            remedy="pip install 'tilewright[stackstac]', or use the reader odc",
        ) from error
    from rasterio.vrt import WarpedVRT

    class BorrowingReader(AutoParallelRioReader):  # type: ignore[misc]
        """Reads through a dataset that is open already, and closes only its own VRT."""

        def borrow(self, dataset: Any, file: BandFile, at: Placement) -> None:
            self._given = (dataset, file, at)

        def _open(self) -> Any:
            dataset, file, at = self._given
            nodata = file_nodata(dataset, file)
            has_mask = nodata is None and not np.issubdtype(dataset.dtypes[file.index - 1], np.floating)
            vrt = WarpedVRT(
                dataset,
                src_crs=str(at.raster.crs),
                src_transform=at.raster.affine,
                resampling=self.resampling,
                src_nodata=nodata if nodata is not None else (None if has_mask else np.nan),
                nodata=None if has_mask else np.nan,
                add_alpha=has_mask,
                dtype=self.dtype.name,
                tolerance=TOLERANCE,
                XSCALE=repr(at.scale[0]),
                YSCALE=repr(at.scale[1]),
                **WARP_OPTIONS,
                **self.spec.vrt_params,
            )
            return _BorrowedVRT(vrt, file.index)

    return BorrowingReader


class _BorrowedVRT:
    """stackstac's ``ThreadsafeRioDataset`` over one band of a VRT, for one thread."""

    scale_offset = (1, 0)

    def __init__(self, vrt: Any, index: int) -> None:
        self._vrt = vrt
        self._index = index

    def read(self, window: Any, **kwargs: Any) -> Any:
        masked = self._vrt.read(self._index, window=window, **kwargs)
        return masked[np.newaxis]

    def close(self) -> None:
        self._vrt.close()
