"""A kernel that costs next to nothing: what the way from one file to another takes, beside a plain rasterio loop.

Both ways read the same COG (uint16, deflate, blocks of 512), compute NDVI, and write the same COG: float32, DEFLATE
level 6, floating-point predictor, blocks of 512, average overviews down to 512 px, both cores for compression.

``loop``
    rasterio as a competent user writes it: windows of 2,048 px that are whole blocks, numpy, a plain tiled GeoTIFF,
    overviews by GDAL with all cores, and GDAL's COG driver over both. No masks beyond nodata, no ledger, no check.
``tilewright``
    ``tilewright.apply("index", ..., only="cog")``: sharded Zarr, ledger, digest, every tile read back and compared,
    quicklook, Item and report included.
``work``
    Seconds from the first read to the finished file, everything imported before.
``wall``
    Seconds of the whole process: interpreter, imports (of torch, on tilewright's side) and work.

Pixels of both files are compared at every level: NaN in the same places, values within 1e-6. (GDAL sums overviews in
float32, tilewright in float64.)
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .sources import into_page_cache, make_cog

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BENCHMARK"]

SIDE = 2048
"""Pixels a side of the loop's windows."""
TOLERANCE = 1e-6


def by_tilewright(clock: Clock, raster: str, out: str) -> dict[str, Any]:
    """Run tilewright; in a child process."""
    import matplotlib.backends.backend_agg
    import rio_cogeo.cogeo
    import torch
    import zarr

    import tilewright
    import tilewright.pipeline.run

    _ = matplotlib, rio_cogeo, torch, zarr  # what the run would import at first use
    with clock:
        report = tilewright.apply("index", raster, out=out, only="cog", options={"name": "NDVI"})
    return {"cog": f"{out}/{next(n for n in report.outputs.values() if n.endswith('.tif'))}"}


def by_loop(clock: Clock, raster: str, out: str) -> dict[str, Any]:
    """Read, compute and write block by block with rasterio; in a child process."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.shutil import copy

    Path(out).mkdir(parents=True)
    plain, cog = f"{out}/plain.tif", f"{out}/ndvi.tif"
    with clock, rasterio.Env(GDAL_NUM_THREADS="2", GDAL_CACHEMAX=256 << 20):
        with rasterio.open(raster) as source:
            red, nir = (source.descriptions.index(name) + 1 for name in ("red", "nir"))
            profile = {
                "driver": "GTiff", "height": source.height, "width": source.width, "count": 1, "dtype": "float32",
                "crs": source.crs, "transform": source.transform, "nodata": np.nan, "tiled": True,
                "blockxsize": 512, "blockysize": 512, "bigtiff": "if_safer",
            }  # fmt: skip
            with rasterio.open(plain, "w", **profile) as target:
                for window in _windows(source.height, source.width):
                    pair = source.read((red, nir), window=window)
                    missing = (pair == source.nodata).any(axis=0)
                    r, n = pair.astype(np.float32)
                    with np.errstate(invalid="ignore", divide="ignore"):
                        ndvi = (n - r) / (n + r)
                    ndvi[missing] = np.nan
                    target.write(ndvi, 1, window=window)
        with rasterio.open(plain, "r+") as target:
            factors = [2**k for k in range(1, 20) if max(target.shape) > 512 * 2 ** (k - 1)]
            target.build_overviews(factors, Resampling.average)
        copy(
            plain, cog, driver="COG", COMPRESS="DEFLATE", LEVEL="6", PREDICTOR="YES", BLOCKSIZE="512",
            OVERVIEWS="FORCE_USE_EXISTING", NUM_THREADS="2", BIGTIFF="IF_SAFER", STATISTICS="NO",
        )  # fmt: skip
    Path(plain).unlink()
    return {"cog": cog}


def _windows(rows: int, cols: int) -> Iterator[Any]:
    from rasterio.windows import Window

    for row in range(0, rows, SIDE):
        for col in range(0, cols, SIDE):
            yield Window(col, row, min(SIDE, cols - col), min(SIDE, rows - row))


def _difference(ours: str, theirs: str) -> float:
    """Return the largest difference at any level; infinite where levels, shapes or missing pixels differ."""
    import rasterio

    with rasterio.open(ours) as a, rasterio.open(theirs) as b:
        if a.shape != b.shape or a.overviews(1) != b.overviews(1):
            return float("inf")
        levels = len(a.overviews(1))
    found = 0.0
    for level in range(levels + 1):
        more = {"overview_level": level - 1} if level else {}
        with rasterio.open(ours, **more) as a, rasterio.open(theirs, **more) as b:
            for window in _windows(*a.shape):
                x, y = a.read(1, window=window), b.read(1, window=window)
                if not np.array_equal(np.isnan(x), np.isnan(y)):
                    return float("inf")
                found = max(found, float(np.nanmax(np.abs(x - y), initial=0)))
    return found


def measure(bench: Bench) -> dict[str, Any]:
    """Run both ways in turn, as often as asked; the fastest of each counts."""
    side, repeats = bench.parameters["side"], bench.parameters["repeats"]
    raster = make_cog(bench.folder / f"{side}.tif", side)
    into_page_cache(raster)
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(repeats):
        for way in ("loop", "tilewright"):
            bench.say(f"{way}, {side:,} px, {turn + 1} of {repeats}")
            out = bench.folder / f"{way}-{turn}"

            def one(way: str = way, out: Path = out) -> dict[str, Any]:
                tick = perf_counter()
                found = measured(f"light:by_{way}", raster=str(raster), out=str(out))
                return {**found, "whole": round(perf_counter() - tick, 3)}

            found = bench.once(f"{way} {turn}", one)
            if way not in rows or found["wall"] < rows[way]["wall"]:
                rows[way] = found
    for row in rows.values():
        row["bytes"] = Path(row["cog"]).stat().st_size
    return {
        "side": side,
        "rows": rows,
        "difference": _difference(rows["tilewright"]["cog"], rows["loop"]["cog"]),
    }


def table(data: dict[str, Any]) -> str:
    """Return the two ways side by side."""
    names = ["way", "work s", "wall s", "processor s", "Mpx/s", "peak MiB", "COG MiB"]
    pixels = data["side"] ** 2 / 1e6
    return markdown(
        names,
        [
            [way, r["wall"], r["whole"], r["cpu"], pixels / r["wall"], r["peak"] / 2**20, r["bytes"] / 2**20]
            for way, r in data["rows"].items()
        ],
    )


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return the speed against the loop, and whether both files hold the same pixels."""
    ours, theirs = data["rows"]["tilewright"], data["rows"]["loop"]
    speed, whole = theirs["wall"] / ours["wall"], theirs["whole"] / ours["whole"]
    far = data["difference"]
    return [
        Goal("work at least 1.0x the speed of the loop", f"{speed:.2f}x", speed >= 1.0),
        Goal("whole process at least 1.0x the speed of the loop", f"{whole:.2f}x", whole >= 1.0),
        Goal("the same pixels at every level, to 1e-6", f"{far:.1e}", far <= TOLERANCE, promise=True),
    ]


BENCHMARK = Benchmark(
    name="light",
    title="A kernel that costs nothing",
    about=(__doc__ or "").split("\n", 2)[2].strip(),
    small={"side": 8192, "repeats": 1},
    full={"side": 16384, "repeats": 1},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1.5, 4),
)
