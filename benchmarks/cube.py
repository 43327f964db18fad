"""STAC Items to a computed cube: odc-stac, stackstac and tilewright, beside a bare rasterio loop as the limit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .ranges import Server, serving
from .sources import BLOCK, CRS, TRANSFORM, into_page_cache, reflectance

__all__ = ["BENCHMARK"]

BANDS = ("B02", "B03", "B04", "B08")
CHUNK = 2048
LATENCY = 0.02
"""Seconds that the server waits before each answer."""
REMOTE_THREADS = 16
"""Threads that wait for the network: of dask where a library is given more than it takes by itself, and of the
limit."""
DISTINCT = 3
"""Dates whose pixels differ; the others are hard links to them, as files of their own."""
LIBRARIES = ("odc-stac", "stackstac")
OURS = ("open_cube", "source")
MIB = 2**20


def make_scene(path: Path, side: int, seed: int) -> None:
    """Write one band as a COG: uint16, deflate with predictor 2, blocks of 512, a corner without data."""
    import rasterio
    from rasterio.io import MemoryFile
    from rasterio.shutil import copy

    pixels = reflectance(0, side, side, 1, seed)[0]
    rows, cols = np.ogrid[:side, :side]
    pixels[rows + cols < side // 3] = 0
    profile: dict[str, Any] = {
        "driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint16", "nodata": 0,
        "crs": CRS, "transform": rasterio.Affine(*TRANSFORM),
    }  # fmt: skip
    with MemoryFile() as memory:
        with memory.open(**profile) as plain:
            plain.write(pixels, 1)
        with memory.open() as plain:
            options = {"COMPRESS": "DEFLATE", "PREDICTOR": "YES", "BLOCKSIZE": str(BLOCK)}
            copy(plain, path, driver="COG", NUM_THREADS="2", **options)


def make_items(folder: Path, count: int, bands: int, side: int) -> list[dict[str, Any]]:
    """Write the files into ``folder`` and return the Items, one a day, with hrefs relative to it."""
    from pyproj import Transformer

    for date in range(count):
        for band in range(bands):
            path = folder / f"date{date}_{BANDS[band]}.tif"
            if path.exists():
                continue
            if date < DISTINCT:
                make_scene(path, side, 10 * date + band)
            else:
                os.link(folder / f"date{date % DISTINCT}_{BANDS[band]}.tif", path)
    into_page_cache(
        *(folder / f"date{date}_{BANDS[b]}.tif" for date in range(DISTINCT) for b in range(bands))
    )
    a, _, left, _, e, top = TRANSFORM
    back = Transformer.from_crs(CRS, "OGC:CRS84", always_xy=True)
    west, south, east, north = back.transform_bounds(left, top + e * side, left + a * side, top)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    items = []
    for date in range(count):
        when = datetime(2024, 6, 1, 10, tzinfo=UTC) + timedelta(days=date)
        assets = {
            BANDS[band]: {
                "href": f"date{date}_{BANDS[band]}.tif",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "proj:code": CRS,
                "proj:epsg": int(CRS.split(":")[1]),
                "proj:shape": [side, side],
                "proj:transform": list(TRANSFORM),
                "raster:bands": [{"data_type": "uint16", "nodata": 0}],
            }
            for band in range(bands)
        }
        items.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "stac_extensions": [
                    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
                    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
                ],
                "id": f"scene-{date:02d}",
                "collection": "plain",
                "bbox": [west, south, east, north],
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"datetime": when.isoformat().replace("+00:00", "Z"), "proj:code": CRS},
                "links": [],
                "assets": assets,
            }
        )
    return items


def grid_of(kind: str, side: int) -> Any:
    """Return the GeoBox: the Items' own, or one of the neighbouring UTM zone over the same place."""
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

    own = GeoBox((side, side), Affine(*TRANSFORM), CRS)
    if kind == "native":
        return own
    a, _, left, _, e, top = TRANSFORM
    move = Transformer.from_crs(CRS, "EPSG:32634", always_xy=True)
    x, y = move.transform(left + a * side / 2, top + e * side / 2)
    return GeoBox(
        (side, side),
        Affine(a, 0, round(x, -1) - a * side / 2 + 3.3, 0, e, round(y, -1) - e * side / 2 + 4.4),
        "EPSG:32634",
    )


def _prepared(case: str, root: str, clock: Clock) -> tuple[list[Any], Any, list[str], str]:
    """Return Items with full hrefs, the GeoBox, the bands and the resampling of a case."""
    import dask.array  # noqa: F401 - no library's import is in its time
    import pyproj  # noqa: F401
    import pystac
    import rasterio.warp  # noqa: F401
    import rioxarray  # noqa: F401

    import tilewright.catalogs.sources
    import tilewright.pipeline.reader_odc  # noqa: F401

    clock.alone = True
    told = json.loads(Path(case).read_text())
    for item in told["items"]:
        for asset in item["assets"].values():
            asset["href"] = f"{root}/{asset['href']}"
    bands = list(told["items"][0]["assets"])
    items = [pystac.Item.from_dict(item) for item in told["items"]]
    return (
        items,
        grid_of(told["grid"], told["side"]),
        bands,
        ("nearest" if told["grid"] == "native" else "bilinear"),
    )


def _told(cube: np.ndarray, sample: str) -> dict[str, Any]:
    """Return the digest of a cube ``[time, band, y, x]``, and leave a sample of its pixels in a file."""
    cube = np.ascontiguousarray(cube, dtype="float32")
    cube[np.isnan(cube)] = np.nan  # one NaN has many bit patterns
    np.save(sample, cube[..., 3::11, 5::13])
    return {"digest": hashlib.blake2b(cube.data, digest_size=16).hexdigest(), "shape": list(cube.shape)}


def _dask(threads: int) -> Any:
    import dask

    return dask.config.set(scheduler="threads", **({"num_workers": threads} if threads else {}))


def by_odc(clock: Clock, case: str, root: str, workers: int, sample: str) -> dict[str, Any]:
    """odc-stac with dask, as its documentation has it."""
    import odc.stac

    items, box, bands, resampling = _prepared(case, root, clock)
    odc.stac.configure_rio(cloud_defaults=True)
    with clock, _dask(workers):
        cube = odc.stac.load(
            items, bands=bands, geobox=box, chunks={"x": CHUNK, "y": CHUNK}, resampling=resampling,
            dtype="float32", nodata=float("nan"), groupby="id",
        )  # fmt: skip
        pixels = cube.to_array("band").transpose("time", "band", "y", "x").compute().values
    return _told(pixels, sample)


def by_stackstac(clock: Clock, case: str, root: str, workers: int, sample: str) -> dict[str, Any]:
    """stackstac with dask, as its documentation has it."""
    import stackstac
    from rasterio.enums import Resampling

    items, box, bands, resampling = _prepared(case, root, clock)
    rows, cols = box.shape
    a, _, left, _, e, top = tuple(box.affine)[:6]
    with clock, _dask(workers):
        cube = stackstac.stack(
            [item.to_dict() for item in items], assets=bands, epsg=box.crs.epsg, resolution=a,
            bounds=(left, top + e * rows, left + a * cols, top), resampling=Resampling[resampling],
            chunksize=CHUNK, dtype=np.dtype("float32"), fill_value=np.float32(np.nan), rescale=False,
            snap_bounds=False,
        )  # fmt: skip
        pixels = cube.compute().values
    return _told(pixels, sample)


def by_open_cube(clock: Clock, case: str, root: str, workers: int, sample: str) -> dict[str, Any]:
    """``tilewright.open_cube(...).compute()`` on dask's threads, as many as it takes by itself."""
    from tilewright.pipeline.cube import open_cube
    from tilewright.pipeline.grid import Grid

    items, box, bands, resampling = _prepared(case, root, clock)
    with clock, _dask(workers):
        cube = open_cube(
            items, Grid(box), bands=bands, resampling=resampling, chunks=CHUNK, groupby="id", mask=None
        )
        pixels = cube.compute().values
    return _told(pixels, sample)


def by_source(clock: Clock, case: str, root: str, workers: int, sample: str) -> dict[str, Any]:
    """``CubeSource.read``, window after window, as a run reads; the windows are put together here."""
    import rasterio

    from tilewright.pipeline.cube_source import CubeSource
    from tilewright.pipeline.grid import Grid, Window
    from tilewright.pipeline.order import LEAST_CACHE

    items, box, bands, resampling = _prepared(case, root, clock)
    rows, cols = box.shape
    with clock, rasterio.Env(GDAL_CACHEMAX=LEAST_CACHE):
        source = CubeSource(items, Grid(box), bands=bands, resampling=resampling, groupby="id", mask=None)
        pixels = np.empty((len(items), len(bands), rows, cols), "float32")
        for row in range(0, rows, CHUNK):
            for col in range(0, cols, CHUNK):
                window = Window(row, min(row + CHUNK, rows), col, min(col + CHUNK, cols))
                pixels[..., *window.slices(source.grid.window)] = source.read(window).data["image"]
    return _told(pixels, sample)


def by_loop(clock: Clock, case: str, root: str, workers: int, sample: str) -> dict[str, Any]:
    """The limit: each file opened once and read (or warped) whole into its place, in so many threads."""
    import rasterio
    import rasterio.warp
    from rasterio.enums import Resampling

    items, box, bands, resampling = _prepared(case, root, clock)
    plain = str(box.crs) == CRS
    jobs = [(t, c, item.assets[band].href) for t, item in enumerate(items) for c, band in enumerate(bands)]
    settings = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES"}

    def one(job: tuple[int, int, str]) -> None:
        t, c, href = job
        out = pixels[t, c]
        with rasterio.Env(**settings), rasterio.open(href) as data:
            raw = data.read(1)
            if plain:
                out[...] = raw
                out[raw == 0] = np.nan
            else:
                out.fill(np.nan)
                rasterio.warp.reproject(
                    raw, out, src_transform=data.transform, src_crs=data.crs, src_nodata=0, dst_nodata=np.nan,
                    dst_transform=box.affine, dst_crs=str(box.crs), resampling=Resampling[resampling],
                )  # fmt: skip

    with clock:
        pixels = np.empty((len(items), len(bands), *box.shape), "float32")
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, jobs))
    return _told(pixels, sample)


WAYS: dict[str, str] = {
    "odc-stac": "by_odc",
    "stackstac": "by_stackstac",
    "open_cube": "by_open_cube",
    "source": "by_source",
    "limit": "by_loop",
}
NAMES = {
    "odc-stac": "odc-stac",
    "stackstac": "stackstac",
    "open_cube": "tilewright `open_cube().compute()`",
    "source": "tilewright `CubeSource.read`, as a run reads",
    "limit": "bare rasterio, the limit",
}


def rows_of(remote: bool, given: list[int]) -> list[tuple[str, int]]:
    """Return ways with dask's or the pool's threads (0: what dask takes by itself)."""
    cores = len(os.sched_getaffinity(0))
    if not remote:
        return [(way, 0) for way in (*LIBRARIES, *OURS)] + [("limit", cores)]
    libraries = [(way, threads) for way in LIBRARIES for threads in given]
    return [*libraries, *((way, 0) for way in OURS), ("limit", REMOTE_THREADS)]


def measure(bench: Bench) -> dict[str, Any]:
    """Return one row for each grid, place and way."""
    told = bench.parameters
    folder = bench.folder / "scenes"
    folder.mkdir(exist_ok=True)
    items = make_items(folder, told["items"], told["bands"], told["side"])
    files = sum(
        (folder / asset["href"]).stat().st_size for item in items for asset in item["assets"].values()
    )
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server = stack.enter_context(serving(folder, LATENCY)) if "http" in told["places"] else None
        for grid in told["grids"]:
            case = bench.folder / f"{grid}.json"
            case.write_text(json.dumps({"items": items, "grid": grid, "side": told["side"]}))
            for place in told["places"]:
                ways = rows_of(place == "http", told["dask_threads"])
                chosen = [row for row in ways if row[0] in told["ways"]]
                for way, threads in chosen:
                    make = _timed(bench, case, grid, place, way, threads, server)
                    row = bench.once(f"{grid} {place} {way} {threads}", make)
                    bench.say(f"{grid}, {place}, {way} {threads or ''}: {row['wall']:.1f} s")
                    rows.append(row)
    return {"rows": rows, "bytes": files, "mpx": told["items"] * told["bands"] * told["side"] ** 2 / 1e6}


def _timed(
    bench: Bench, case: Path, grid: str, place: str, way: str, threads: int, server: Server | None
) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        if place == "http":
            assert server is not None
            root = server.url
            server.counts()
        else:
            root = str(bench.folder / "scenes")
        sample = bench.folder / f"{grid}-{place}-{way}-{threads}.npy"
        found = measured(
            f"cube:{WAYS[way]}", case=str(case), root=root, workers=threads, sample=str(sample),
        )  # fmt: skip
        requests, sent = server.counts() if place == "http" and server is not None else (None, None)
        reference = bench.folder / f"{grid}-reference.npy"
        if not reference.exists():
            sample.rename(reference)
            difference = 0.0
        else:
            difference = _difference(np.load(sample), np.load(reference))
            sample.unlink()
        named = {"grid": grid, "place": place, "way": way, "threads": threads}
        return {**named, **found, "requests": requests, "sent": sent, "difference": difference}

    return make


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of pixels that are valid in one cube alone or differ by over 1 % of the value."""
    both = np.isfinite(a) & np.isfinite(b)
    far = np.abs(a - b) > 0.01 * np.abs(b)
    return float(((np.isfinite(a) != np.isfinite(b)) | (both & far)).mean())


def _case(data: dict[str, Any], grid: str, place: str) -> list[dict[str, Any]]:
    return [row for row in data["rows"] if (row["grid"], row["place"]) == (grid, place)]


def _cases(data: dict[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["grid"], row["place"]) for row in data["rows"]))


def _best(rows: list[dict[str, Any]], ways: tuple[str, ...]) -> float | None:
    return min((row["wall"] for row in rows if row["way"] in ways), default=None)


def table(data: dict[str, Any]) -> str:
    """Return one row for each case and way."""
    header = ("grid, place", "by", "s", "Mpx/s", "of the limit", "CPU s", "peak MiB", "requests", "MiB sent")
    lines = []
    for grid, place in _cases(data):
        rows = _case(data, grid, place)
        limit = _best(rows, ("limit",))
        for row in rows:
            threads = f", {row['threads']} threads" if row["threads"] else ""
            lines.append(
                (
                    f"{grid}, {place}",
                    NAMES[row["way"]] + threads,
                    round(row["wall"], 2),
                    round(data["mpx"] / row["wall"]),
                    f"{limit / row['wall']:.2f}" if limit else None,
                    round(row["cpu"], 1),
                    round(row["peak"] / MIB),
                    row["requests"],
                    None if row["sent"] is None else round(row["sent"] / MIB),
                )
            )
    return markdown(header, lines)


def goals(data: dict[str, Any]) -> list[Goal]:
    """Not slower than the best library, anywhere, and the same pixels."""
    found = []
    for grid, place in _cases(data):
        rows = _case(data, grid, place)
        theirs, limit = _best(rows, LIBRARIES), _best(rows, ("limit",))
        for way in OURS:
            ours = _best(rows, (way,))
            if ours is None:
                continue
            text = f"{grid}, {place}, {NAMES[way]}: not slower than the best library"
            share = f"; {limit / ours:.2f} of the limit" if limit else ""
            if theirs is None:
                found.append(Goal(text, f"no library was run{share}", None))
            else:
                found.append(Goal(text, f"{theirs / ours:.2f} x its speed{share}", theirs / ours >= 1))
    for grid in dict.fromkeys(grid for grid, _ in _cases(data)):
        rows = [row for row in data["rows"] if row["grid"] == grid]
        if grid == "native":
            digests = {row["digest"] for row in rows}
            text = "native grid: all ways give the same bits"
            found.append(Goal(text, f"{len(digests)} digest(s)", len(digests) == 1, promise=True))
            continue
        ours = {row["digest"] for row in rows if row["way"] in OURS}
        if ours:
            text = f"{grid} grid: ours gives the same bits by both ways, from disk and by HTTP"
            found.append(Goal(text, f"{len(ours)} digest(s)", len(ours) == 1, promise=True))
        share = max(row["difference"] for row in rows)
        text = f"{grid} grid: at most 2 % of the pixels differ by over 1 % between any way and the first"
        found.append(Goal(text, f"{100 * share:.2f} %", share <= 0.02))
    return found


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Wall time of each way as a share of the limit's speed, case by case."""
    cases = _cases(data)
    ways = list(dict.fromkeys(row["way"] for row in data["rows"]))
    for k, way in enumerate(ways):
        heights = [_best(_case(data, *case), (way,)) or 0 for case in cases]
        places = [i + (k - len(ways) / 2 + 0.5) * 0.8 / len(ways) for i in range(len(cases))]
        axes.bar(places, heights, 0.8 / len(ways), label=NAMES[way].replace("`", ""))
    axes.set_xticks(range(len(cases)), [f"{grid},\n{place}" for grid, place in cases], fontsize=7)
    axes.set(ylabel="s", ylim=(0, None))
    axes.legend(fontsize=6, frameon=False)


BENCHMARK = Benchmark(
    name="cube",
    title="Cube: from STAC Items to pixels",
    about=f"""
Items of one place, one a day, a COG a band (uint16, deflate, blocks of {BLOCK}), to a computed float32 cube
`(time, band, y, x)` with NaN for nodata, chunks and windows of {CHUNK:,} px. *native* is the grid of the Items
themselves, *warped* the neighbouring UTM zone at the same resolution, bilinear. *disk* is the page cache, *http* a
server on the loopback that waits {1000 * LATENCY:.0f} ms before each answer. Each way runs in a process of its own
with the GDAL settings that it sets itself. By HTTP the libraries run with dask's own number of threads and with
{REMOTE_THREADS}; the best counts. The limit opens each file once and reads or warps it whole (with GDAL's
default tolerance of an eighth of a pixel, where ours keeps 1e-4), in a thread a core, by HTTP in {REMOTE_THREADS}.
""",
    small={
        "items": 4, "bands": 2, "side": 1280, "grids": ["native", "warped"], "places": ["disk", "http"],
        "ways": list(WAYS), "dask_threads": [REMOTE_THREADS],
    },
    full={
        "items": 12, "bands": 3, "side": 3072, "grids": ["native", "warped"], "places": ["disk", "http"],
        "ways": list(WAYS), "dask_threads": [0, REMOTE_THREADS],
    },
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1.5, 6),
    plot=plot,
)  # fmt: skip
