"""How many pixels change when only the chunk changes: the libraries as they come, and tilewright.

    python -m benchmarks reprojection [--full]

A scene of white noise (the hardest case: neighbouring pixels have nothing in common) in UTM zone 33 is read onto
a grid of zone 34, in chunks of 256, 512, 1,000 and 2,048 pixels, by odc-stac, by stackstac, and by tilewright through
either. Counted are the pixels that differ from the same library's own result at 2,048, and those that differ when
a shard in the middle of the grid is read by itself: by the libraries as a cube of its own, by tilewright as a
window of its source. A ramp, whose value is its own x coordinate, tells by how much positions are off pyproj's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from tilewright.pipeline.cube import CubeSource, open_cube
from tilewright.pipeline.grid import Grid, Window

from .common import Bench, Benchmark, Goal

SOURCE = Affine(10, 0, 300_000, 0, -10, 5_100_000)
CHUNKS = (2048, 1000, 512, 256)
METHODS = ("nearest", "bilinear", "cubic")
Read = Callable[[pystac.Item, Grid, str, int], np.ndarray]


def scene(path: Path, values: np.ndarray) -> pystac.Item:
    """Write ``values`` as a COG-like TIFF and return an Item over it."""
    side = values.shape[0]
    profile = {"driver": "GTiff", "count": 1, "height": side, "width": side, "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=SOURCE, tiled=True) as out:
        out.write(values, 1)
        west, south, east, north = out.bounds
    back = Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True)
    bbox = list(back.transform_bounds(west, south, east, north))
    ring = [[bbox[i], bbox[j]] for i, j in ((0, 1), (2, 1), (2, 3), (0, 3), (0, 1))]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    item = pystac.Item(path.stem, geometry, bbox, datetime(2024, 1, 1, tzinfo=UTC), {}, collection="plain")
    fields = {
        "proj:code": "EPSG:32633",
        "proj:shape": [side, side],
        "proj:transform": list(SOURCE)[:6],
        "raster:bands": [{"data_type": str(values.dtype)}],
    }
    item.stac_extensions = [
        "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
        "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    ]
    item.add_asset("value", pystac.Asset(str(path), media_type=pystac.MediaType.COG, extra_fields=fields))
    return item


def by_odc(item: pystac.Item, grid: Grid, method: str, chunk: int) -> np.ndarray:
    """odc-stac as it comes."""
    import odc.stac

    cube = odc.stac.load(
        [item],
        bands=["value"],
        geobox=grid.geobox,
        chunks={"x": chunk, "y": chunk},
        resampling=method,
        dtype="float32",
        nodata=float("nan"),
    )
    return np.asarray(cube["value"].isel(time=0).compute().values)


def by_stackstac(item: pystac.Item, grid: Grid, method: str, chunk: int) -> np.ndarray:
    """stackstac as it comes; it wants dictionaries with ``proj:epsg``."""
    import stackstac
    from rasterio.enums import Resampling

    plain = item.to_dict()
    for asset in plain["assets"].values():
        asset["proj:epsg"] = int(asset.pop("proj:code").split(":")[1])
    rows, cols = grid.shape
    a, _, left, _, e, top = grid.transform
    cube = stackstac.stack(
        [plain],
        assets=["value"],
        epsg=grid.geobox.crs.epsg,
        bounds=(left, top + e * rows, left + a * cols, top),
        resolution=a,
        resampling=Resampling[method],
        chunksize=chunk,
        dtype=np.dtype("float32"),
        fill_value=np.float32(np.nan),
        rescale=False,
        snap_bounds=False,
    )
    return np.asarray(cube.isel(time=0, band=0).compute().values)


def by_tilewright(reader: str) -> Read:
    """tilewright through one of its readers."""

    def read(item: pystac.Item, grid: Grid, method: str, chunk: int) -> np.ndarray:
        cube = open_cube([item], grid, bands=["value"], reader=reader, resampling=method, chunks=chunk)
        return np.asarray(cube.isel(time=0, band=0).compute().values)

    return read


WAYS: dict[str, Read] = {
    "odc-stac as it comes": by_odc,
    "stackstac as it comes": by_stackstac,
    "tilewright, reader odc": by_tilewright("odc"),
    "tilewright, reader stackstac": by_tilewright("stackstac"),
}


def shard_of(way: str, read: Read, item: pystac.Item, grid: Grid, method: str, window: Window) -> np.ndarray:
    """Return the pixels of ``window``, read without the rest of the grid."""
    if way.startswith("tilewright"):
        reader = way.rsplit(" ", 1)[1]
        source = CubeSource([item], grid, bands=["value"], reader=reader, resampling=method)
        return np.asarray(source.read(window).data["image"][0, 0])
    return read(item, Grid(grid.crop(window)), method, 512)


def differing(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of pixels whose values differ, in percent."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return float(100 * (~same).mean())


def position_error(read: Read, item: pystac.Item, grid: Grid, exact: np.ndarray) -> float:
    """Return the largest error of the sampled place along x in source pixels, over all chunks."""
    worst = 0.0
    for chunk in CHUNKS:
        found = read(item, grid, "bilinear", chunk)
        worst = max(worst, float(np.nanmax(np.abs(found - exact))))
    return worst


def run(side: int) -> dict[str, Any]:
    """Return all numbers as plain data."""
    grid_side = side * 7 // 10
    to_grid = Transformer.from_crs("EPSG:32633", "EPSG:32634", always_xy=True)
    x, y = to_grid.transform(300_000 + 1.5 * side, 5_100_000 - 1.5 * side)
    grid = Grid(
        GeoBox((grid_side, grid_side), Affine(10, 0, round(x, -1) + 3.3, 0, -10, round(y, -1)), "EPSG:32634")
    )
    cols, rows = np.meshgrid(np.arange(grid_side) + 0.5, np.arange(grid_side) + 0.5)
    gx, gy = grid.geobox.affine * (cols, rows)
    sx, _ = Transformer.from_crs("EPSG:32634", "EPSG:32633", always_xy=True).transform(gx, gy)
    exact = (np.asarray(sx) - 300_000) / 10
    noise = np.random.default_rng(0).integers(1, 10_000, (side, side)).astype("float32")
    ramp = np.broadcast_to(np.arange(side) + 0.5, (side, side)).astype("float32")
    third = grid_side // 3
    shard = Window(third, 2 * third + 7, third + 5, 2 * third)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        noisy = scene(Path(folder) / "noise.tif", noise)
        ramped = scene(Path(folder) / "ramp.tif", ramp)
        for way, read in WAYS.items():
            row: dict[str, Any] = {}
            for method in METHODS:
                reference, seconds = None, 0.0
                for chunk in CHUNKS:
                    start = time.perf_counter()
                    found = read(noisy, grid, method, chunk)
                    seconds += time.perf_counter() - start
                    reference = found if reference is None else reference
                    row[f"{method} {chunk}"] = differing(found, reference)
                row[f"{method} seconds"] = round(seconds, 2)
                assert reference is not None
                alone = shard_of(way, read, noisy, grid, method, shard)
                row[f"{method} shard"] = differing(alone, reference[shard.slices(grid.window)])
            row["position error px"] = position_error(read, ramped, grid, exact)
            results[way] = row
    return {"pixels": grid_side**2, "results": results}


def table(numbers: dict[str, Any]) -> str:
    """Return the numbers as the Markdown table of ``docs/reprojection.md``."""
    ways = numbers["results"]
    lines = [f"| changed | {' | '.join(ways)} |", "|---|" + "---:|" * len(ways)]
    for method in METHODS:
        for what in (*CHUNKS[1:], "shard"):
            name = "a shard by itself" if what == "shard" else f"chunk {what:,} instead of {CHUNKS[0]:,}"
            shares = [row[f"{method} {what}"] for row in ways.values()]
            cells = " | ".join("0" if share == 0 else f"{share:.3g} %" for share in shares)
            lines.append(f"| {method}, {name} | {cells} |")
    errors = " | ".join(f"{row['position error px']:.1g} px" for row in ways.values())
    seconds = " | ".join(f"{sum(row[f'{m} seconds'] for m in METHODS):.0f} s" for row in ways.values())
    return "\n".join([*lines, f"| largest position error | {errors} |", f"| time | {seconds} |"])


def measure(bench: Bench) -> dict[str, Any]:
    """Return all numbers as plain data."""
    return run(bench.parameters["side"])


def goals(data: dict[str, Any]) -> list[Goal]:
    """No pixel of ours may change, and none of it may lie elsewhere than pyproj says."""
    ours = {way: row for way, row in data["results"].items() if way.startswith("tilewright")}
    changed = max(
        share
        for row in ours.values()
        for key, share in row.items()
        if key.startswith(METHODS) and "seconds" not in key
    )
    off = max(row["position error px"] for row in ours.values())
    return [
        Goal(
            "no pixel of tilewright changes with chunk or shard", f"{changed:g} %", changed == 0, promise=True
        ),
        Goal("positions within 0.01 px of pyproj's", f"{off:.1g} px", off <= 0.01, promise=True),
    ]


BENCHMARK = Benchmark(
    name="reprojection",
    title="Reprojection: the same pixels at every chunk",
    about="""
A scene of white noise in UTM zone 33 on a grid of zone 34. Counted are the pixels that change when only the chunk
does, or when a shard is read by itself. [Reprojection](reprojection.md) says why they do.
""",
    small={"side": 1500},
    full={"side": 3000},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1, 3),
)
