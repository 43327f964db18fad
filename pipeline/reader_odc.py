"""The reader by odc-stac: odc-loader's rasterio driver with exact coordinates and one scale a raster.

As it comes, the driver warps whatever rectangle it is given with GDAL's default tolerance of an eighth of a
pixel and a scale estimated for the rectangle, and pastes instead of warping where the grids are less than
0.9 px (nearest) or 0.05 px (others) apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from odc.loader import RasterLoadParams, RasterSource, RioDriver, RioReader

from .grid import Grid
from .handles import Handles
from .readers import BandFile, masked_floats, raster_geobox, working_dtype
from .warp import TOLERANCE, WARP_OPTIONS, Placement, place, source_window

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from rasterio.crs import CRS

__all__ = ["ExactDriver", "OdcReader"]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What `OdcReader` knows already and hands through the driver."""

    dataset: rasterio.DatasetReader
    file: BandFile
    unit: GeoBox
    at: Placement


class ExactDriver(RioDriver):
    """odc-loader's rasterio driver, warping exactly. Fit for ``odc.stac.load(..., driver=ExactDriver())``.

    The blocks that odc-stac asks for are its chunks, so there the pixels at block edges still depend on the
    chunk by rounding; only through `tilewright.open_cube` are blocks anchored to the grid.
    """

    def open(self, src: RasterSource, ctx: Any) -> ExactReader:
        """Return the reader of one band."""
        return ExactReader(src, ctx)


class ExactReader(RioReader):
    """Reads one band into a GeoBox, as `odc.loader.RioReader` does, without its approximations."""

    def read(
        self,
        cfg: RasterLoadParams,
        dst_geobox: GeoBox,
        *,
        dst: NDArray[Any] | None = None,
        selection: Any = None,
    ) -> tuple[tuple[slice, slice], NDArray[Any]]:
        """Return ``(roi, pixels)``: the part of ``dst_geobox`` that is given, here all of it, and its pixels."""
        if isinstance(self._src.driver_data, _Opened):
            opened = self._src.driver_data
            pixels = _warp(opened.dataset, opened.file, dst_geobox, opened.unit, opened.at, cfg.resampling)
        else:
            pixels = self._read_fresh(cfg, dst_geobox)
        fill = cfg.fill_value if cfg.fill_value is not None else np.nan
        if not np.isnan(fill):
            pixels = np.where(np.isnan(pixels), fill, pixels)
        pixels = pixels.astype(cfg.dtype or pixels.dtype, copy=False)
        if dst is not None:
            dst[...] = pixels
        return (slice(0, pixels.shape[0]), slice(0, pixels.shape[1])), pixels

    def _read_fresh(self, cfg: RasterLoadParams, box: GeoBox) -> NDArray[Any]:
        override = cfg.src_nodata_override
        nodata = override if override is not None else cfg.src_nodata_fallback
        file = BandFile(
            self._src.uri, self._src.band, nodata, override is not None, cfg.nearest, self._src.uri
        )
        handles = Handles()
        with handles.lend(self._src.uri) as dataset:
            at = place(raster_geobox(dataset, file), Grid(box))
            pixels = _warp(dataset, file, box, box, at, cfg.resampling)
        handles.close()
        return pixels


class OdcReader:
    """`tilewright.pipeline.readers.Reader` by odc-loader."""

    name: Literal["odc"] = "odc"

    def warp(
        self,
        dataset: rasterio.DatasetReader,
        file: BandFile,
        box: GeoBox,
        unit: GeoBox,
        at: Placement,
        resampling: str,
    ) -> NDArray[Any]:
        """Warp by ``rasterio.warp.reproject`` from just the source pixels that the box looks at."""
        opened = _Opened(dataset, file, unit, at)
        source = RasterSource(dataset.name, band=file.index, driver_data=opened)
        dtype = working_dtype(dataset.dtypes[file.index - 1])
        params = RasterLoadParams(dtype=dtype, fill_value=float("nan"), resampling=resampling)
        _, pixels = ExactDriver().open(source, None).read(params, box)
        return pixels


def _warp(
    dataset: rasterio.DatasetReader,
    file: BandFile,
    box: GeoBox,
    unit: GeoBox,
    at: Placement,
    resampling: str,
) -> NDArray[Any]:
    """Warp from an array that begins where the whole unit's would: its corner rounds the coordinates."""
    import rasterio.warp
    from rasterio.enums import Resampling

    dtype = working_dtype(dataset.dtypes[file.index - 1])
    out = np.full(box.shape, np.nan, dtype)
    window, looked_at = source_window(at, unit), source_window(at, box)
    needed = None if window is None or looked_at is None else looked_at.overlap(window)
    if window is None or needed is None:
        return out
    found = masked_floats(dataset, file, needed)
    if np.isnan(found).all():
        return out
    pixels = np.full(window.shape, np.nan, dtype)
    pixels[needed.slices(window)] = found
    raster = at.raster[window.row0 : window.row1, window.col0 : window.col1]
    rasterio.warp.reproject(
        pixels,
        out,
        src_transform=raster.affine,
        src_crs=_crs(str(raster.crs)),
        src_nodata=np.nan,
        dst_transform=box.affine,
        dst_crs=_crs(str(box.crs)),
        dst_nodata=np.nan,
        resampling=Resampling[resampling],
        num_threads=1,
        tolerance=TOLERANCE,
        XSCALE=repr(at.scale[0]),
        YSCALE=repr(at.scale[1]),
        **WARP_OPTIONS,
    )
    return out


@lru_cache(maxsize=256)
def _crs(text: str) -> CRS:
    """Return rasterio's CRS: to parse it takes a millisecond."""
    from rasterio.crs import CRS

    return CRS.from_user_input(text)
