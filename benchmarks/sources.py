"""Rasters of any size for the benchmarks, the same bytes on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

__all__ = ["BASE_SIDE", "into_page_cache", "make_cog", "make_mosaic"]

BLOCK = 512
BASE_SIDE = 5120
"""Side in pixels of the raster that `make_mosaic` repeats: it divides 10,240, 51,200 and 102,400."""
BAND_NAMES = ("red", "green", "blue", "nir", "swir1", "swir2")
TRANSFORM = (10.0, 0.0, 300_000.0, 0.0, -10.0, 5_100_000.0)
CRS = "EPSG:32633"


def reflectance(row0: int, rows: int, side: int, bands: int, seed: int) -> np.ndarray:
    """Return rows of a scene ``[bands, rows, side]`` as uint16 reflectance x 10,000, never 0.

    Fields of constant reflectance, a slow wave and six bits of noise: deflate with predictor 2 brings it to a bit
    more than half, as it does with Sentinel-2.
    """
    random = np.random.default_rng((seed, row0))
    y, x = np.arange(row0, row0 + rows)[:, None], np.arange(side)[None]
    field = ((y // 83) * 7919 + (x // 61) * 104_729) % 23
    wave = np.sin(y / 310 + seed) * 300 + np.cos(x / 270) * 300
    noise = random.integers(0, 64, (bands, rows, side))
    levels = 900 + 140 * field[None] * (1 + np.arange(bands)[:, None, None] / 3) + wave[None]
    pixels: np.ndarray = (levels + noise).clip(1, 10_000).astype(np.uint16)
    return pixels


def make_cog(path: Path, side: int, *, bands: int = 4, seed: int = 0) -> Path:
    """Write a COG of ``side`` px a side, uint16, deflate with predictor 2, blocks of 512; return its path.

    Made strip by strip; a file that is there already is taken as it is.
    """
    import rasterio
    from rasterio.shutil import copy
    from rasterio.windows import Window

    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": side, "height": side, "count": bands, "dtype": "uint16", "nodata": 0,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "IF_SAFER",
        "crs": CRS, "transform": rasterio.Affine(*TRANSFORM),
    }  # fmt: skip
    plain, partial = path.with_suffix(".plain.tif"), path.with_suffix(".partial.tif")
    with rasterio.open(plain, "w", **profile) as out:
        out.descriptions = BAND_NAMES[:bands]
        for row in range(0, side, BLOCK):
            rows = min(BLOCK, side - row)
            out.write(reflectance(row, rows, side, bands, seed), window=Window(0, row, side, rows))
    options = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": str(BLOCK), "NUM_THREADS": "2"}
    copy(plain, partial, driver="COG", OVERVIEWS="NONE", BIGTIFF="IF_SAFER", **options)
    plain.unlink()
    partial.rename(path)
    return path


def make_mosaic(folder: Path, side: int, *, bands: int = 2, dates: int = 2) -> list[Path]:
    """Return one VRT a date, each of ``side`` px a side, that repeats a COG of `BASE_SIDE` px over the square.

    So a raster of 102,400 px costs 100 MB of disk. Every pixel is read, decompressed and computed as if it were
    its own; only the disk is spared, for the COG is in the page cache after the first pass.
    """
    import rasterio

    made = []
    for date in range(dates):
        base = make_cog(folder / f"base-{date}.tif", BASE_SIDE, bands=bands, seed=date)
        with rasterio.open(base) as source:
            srs = escape(source.crs.to_wkt())
        lines = [
            f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">',
            f"<SRS>{srs}</SRS>",
            f"<GeoTransform>{', '.join(str(TRANSFORM[i]) for i in (2, 0, 1, 5, 3, 4))}</GeoTransform>",
        ]
        for band in range(1, bands + 1):
            lines.append(
                f'<VRTRasterBand dataType="UInt16" band="{band}" blockXSize="{BLOCK}" blockYSize="{BLOCK}">'
            )
            lines.append(f"<Description>{BAND_NAMES[band - 1]}</Description><NoDataValue>0</NoDataValue>")
            lines += [
                _simple_source(base.name, band, row, col, side)
                for row in range(0, side, BASE_SIDE)
                for col in range(0, side, BASE_SIDE)
            ]
            lines.append("</VRTRasterBand>")
        path = folder / f"date-{date}-{side}.vrt"
        path.write_text("\n".join([*lines, "</VRTDataset>\n"]))
        made.append(path)
    return made


def _simple_source(name: str, band: int, row: int, col: int, side: int) -> str:
    width, height = min(BASE_SIDE, side - col), min(BASE_SIDE, side - row)
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1" shared="1">{escape(name)}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{BASE_SIDE}" RasterYSize="{BASE_SIDE}" DataType="UInt16"'
        f' BlockXSize="{BLOCK}" BlockYSize="{BLOCK}"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
        f'<DstRect xOff="{col}" yOff="{row}" xSize="{width}" ySize="{height}"/></SimpleSource>'
    )


def into_page_cache(*paths: Path) -> None:
    """Read files once, so that no way of reading them is the one that waits for the disk."""
    for path in paths:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
