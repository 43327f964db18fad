"""The same network over the same raster: tilewright, MONAI, dask's map_overlap, and a loop as people write it.

Every way reads the COG (4 bands uint16), normalises, runs the U-Net of `benchmarks.network` at the same tile and
precision with as many cores, and writes a float32 GeoTIFF, tiled, deflate. tilewright also makes overviews and
validates the file. Each way runs in a process of its own; libraries are imported and the network has run before the
clock starts.

``seam pixels``
    Pixels that differ by more than 1e-6 from a pass over the whole raster, farther from its edge than the radius
    (the ways pad the edge differently). The pass is made in strips of the whole width with a margin beyond the
    radius, by torch alone.
``peak above the start``
    High-water mark of the resident memory less what the process held when the clock started.

MONAI takes overlap 0.25 and its Gaussian window. The loop trims 32 px from each side of a tile, a guess such as
scripts make; a second one is told the halo that the radius needs (56 px), and so is dask. dask runs one thread of torch
in each of its own, which is its best case, on chunks as large as a tile.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .child import ChildFailed, Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .sources import into_page_cache, make_cog

__all__ = ["BENCHMARK"]

MIB = 2**20
HALO = 56
"""The radius of 51 px rounded up to the stride of 8."""
TOLERANCE = 1e-6
GUESSED = 32
OUTPUT = {
    "driver": "GTiff",
    "count": 1,
    "dtype": "float32",
    "tiled": True,
    "compress": "deflate",
    "predictor": 3,
}
OUTPUT |= {"blockxsize": 512, "blockysize": 512, "BIGTIFF": "IF_SAFER"}


def _ready(tile: int, threads: int, batch: int) -> Any:
    """Return the network, warm."""
    import torch

    from .network import BANDS, make_network

    torch.set_num_threads(threads)
    net = make_network().to(memory_format=torch.channels_last)  # as tilewright's kernel declares it
    with torch.inference_mode():
        net(torch.zeros(batch, BANDS, tile, tile))
    return net


def _normal(pixels: Any) -> Any:
    """Return bands ``[..., 4, H, W]`` as the network wants them."""
    import torch

    from .network import MEAN, STD

    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (torch.from_numpy(pixels.astype("float32")) - mean) / std


def by_tilewright(clock: Clock, raster: str, out: str, tile: int, batch: int) -> dict[str, Any]:
    """``tilewright.apply``, COG only."""
    import tilewright

    from .network import make_kernel

    _ready(tile, 2, batch)
    kernel = make_kernel()
    wishes: dict[str, Any] = {
        "tile": tile,
        "device": "cpu",
        "only": "cog",
    }  # batch and cores are its own choice
    with clock:
        report = tilewright.apply(kernel, raster, out=f"{out}.run", **wishes)
    (Path(f"{out}.run") / report.outputs["score"]).rename(out)
    shutil.rmtree(f"{out}.run")
    return {"projected": report.projected_memory_bytes}


def by_monai(clock: Clock, raster: str, out: str, tile: int, batch: int, buffered: bool) -> None:
    """MONAI's sliding window over the whole raster in memory, with or without its buffer."""
    import rasterio
    import torch
    from monai.inferers import sliding_window_inference

    net = _ready(tile, 2, batch)
    options: dict[str, Any] = {"buffer_steps": 4} if buffered else {}
    with clock, torch.inference_mode(), rasterio.open(raster) as source:
        x = _normal(source.read())[None]
        score = sliding_window_inference(x, tile, batch, net, overlap=0.25, mode="gaussian", **options)
        with rasterio.open(out, "w", **{**source.profile, **OUTPUT, "nodata": None}) as sink:
            sink.write(score[0].numpy())


def by_monai_memory(clock: Clock, **arguments: Any) -> None:
    """MONAI in memory."""
    by_monai(clock, **arguments, buffered=False)


def by_monai_buffer(clock: Clock, **arguments: Any) -> None:
    """MONAI with its buffer."""
    by_monai(clock, **arguments, buffered=True)


def by_dask(clock: Clock, raster: str, out: str, tile: int, batch: int) -> None:
    """``dask.array.map_overlap`` on a rioxarray source, chunks of a tile, written by rioxarray under a lock."""
    import threading

    import dask
    import dask.array as da
    import rioxarray
    import torch

    net = _ready(tile, 1, batch)

    def predict(block: np.ndarray) -> np.ndarray:
        torch.set_num_threads(1)
        with torch.inference_mode():
            found: np.ndarray = net(_normal(block)[None])[0].numpy()
        return found

    with clock, dask.config.set(scheduler="threads", num_workers=2):
        cube = rioxarray.open_rasterio(raster, chunks={"x": tile, "y": tile}, lock=False)
        score = da.map_overlap(
            predict,
            cube.data.rechunk({0: -1}),
            depth={0: 0, 1: HALO, 2: HALO},
            boundary="reflect",
            dtype="float32",
            meta=np.empty((0, 0, 0), "float32"),
            chunks=((1,), *(tuple(n + 2 * HALO for n in axis) for axis in cube.data.chunks[1:])),
        )
        result = cube.isel(band=[0]).copy(data=score).astype("float32")
        result.attrs.pop("_FillValue", None)
        result.attrs.pop("long_name", None)
        result.encoding = {}
        options = {
            key: OUTPUT[key] for key in ("compress", "predictor", "blockxsize", "blockysize", "BIGTIFF")
        }
        result.rio.write_nodata(None).rio.to_raster(out, tiled=True, lock=threading.Lock(), **options)


def by_loop(clock: Clock, raster: str, out: str, tile: int, batch: int, trim: int) -> None:
    """rasterio and torch in a plain loop: read a window, predict, trim, write."""
    import rasterio
    import torch
    from rasterio.windows import Window

    net = _ready(tile, 2, batch)
    with (
        clock,
        torch.inference_mode(),
        rasterio.open(raster) as source,
        rasterio.open(out, "w", **{**source.profile, **OUTPUT, "nodata": None}) as sink,
    ):
        for places in _batches(list(_places(source.height, source.width, tile, trim)), batch):
            pixels = np.stack([source.read(window=Window(col, row, tile, tile)) for row, col in places])
            scores = net(_normal(pixels)).numpy()
            for (row, col), score in zip(places, scores, strict=True):
                top, left = (trim if at else 0 for at in (row, col))
                bottom = tile if row + tile == source.height else tile - trim
                right = tile if col + tile == source.width else tile - trim
                window = Window(col + left, row + top, right - left, bottom - top)
                sink.write(score[:, top:bottom, left:right], window=window)


def _places(height: int, width: int, tile: int, trim: int) -> Iterator[tuple[int, int]]:
    """Yield the corners of tiles that overlap by twice the trim; the last of a row is moved inside."""
    step = tile - 2 * trim
    for row in range(0, height - 2 * trim, step):
        for col in range(0, width - 2 * trim, step):
            yield min(row, height - tile), min(col, width - tile)


def _batches[T](items: list[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def by_loop_guessed(clock: Clock, **arguments: Any) -> None:
    """The loop with a guess."""
    by_loop(clock, **arguments, trim=GUESSED)


def by_loop_told(clock: Clock, **arguments: Any) -> None:
    """The loop that was told the halo."""
    by_loop(clock, **arguments, trim=HALO)


def make_reference(clock: Clock, raster: str, out: str, side: int) -> None:
    """Write the pass over the whole raster, in strips of 512 rows with a margin beyond the radius."""
    import rasterio
    import torch
    from rasterio.windows import Window

    net = _ready(64, 2, 1)
    margin, rows = 64, 512
    scores = np.lib.format.open_memmap(out, mode="w+", dtype="float32", shape=(side, side))
    with clock, torch.inference_mode(), rasterio.open(raster) as source:
        for row in range(0, side, rows):
            top, bottom = max(0, row - margin), min(side, row + rows + margin)
            x = _normal(source.read(window=Window(0, top, side, bottom - top)))
            scores[row : row + rows] = net(x[None])[0, 0, row - top : row - top + rows].numpy()
    scores.flush()


def compare(clock: Clock, reference: str, found: str, side: int) -> dict[str, Any]:
    """Count the seam pixels of a result."""
    import rasterio
    from rasterio.windows import Window

    from .network import RADIUS

    whole, off, worst = np.load(reference, mmap_mode="r"), 0, 0.0
    inside = slice(RADIUS, side - RADIUS)
    with clock, rasterio.open(found) as source:
        for row in range(RADIUS, side - RADIUS, 512):
            rows = slice(row, min(row + 512, side - RADIUS))
            got = source.read(1, window=Window(RADIUS, row, side - 2 * RADIUS, rows.stop - row))
            differs = np.abs(got - whole[rows, inside])
            off, worst = off + int((~(differs <= TOLERANCE)).sum()), max(worst, float(np.nanmax(differs)))
    return {"seam_pixels": off, "share": off / (side - 2 * RADIUS) ** 2, "largest": worst}


WAYS = {
    "tilewright, cut": "by_tilewright",
    "MONAI in memory": "by_monai_memory",
    "MONAI buffered": "by_monai_buffer",
    f"dask map_overlap, told {HALO} px": "by_dask",
    f"rasterio + torch, guessed {GUESSED} px": "by_loop_guessed",
    f"rasterio + torch, told {HALO} px": "by_loop_told",
}
OURS = "tilewright, cut"


def one(bench: Bench, way: str, raster: Path, reference: Path, tile: int) -> dict[str, Any]:
    """Run one way once and compare its result; a peer that fails says why."""
    side, out = bench.parameters["side"], bench.folder / "result.tif"
    out.unlink(missing_ok=True)
    order = {"raster": str(raster), "out": str(out), "tile": tile, "batch": 2**20 // tile**2}
    try:
        row = measured(f"peers:{WAYS[way]}", **order)
    except ChildFailed as error:
        if way == OURS:
            raise
        return {"way": way, "tile": tile, "failed": str(error).splitlines()[-1]}
    off = measured("peers:compare", reference=str(reference), found=str(out), side=side)
    out.unlink()
    bench.say(f"tile {tile}, {way}: {row['wall']:.1f} s, {row['peak'] / MIB:.0f} MiB")
    return {"way": way, "tile": tile, **row, **{key: off[key] for key in ("seam_pixels", "share", "largest")}}


def measure(bench: Bench) -> dict[str, Any]:
    """Return the fastest turn of each way at each tile; they take turns."""
    side = bench.parameters["side"]
    raster, reference = make_cog(bench.folder / "scene.tif", side), bench.folder / "reference.npy"
    into_page_cache(raster)
    order = {"raster": str(raster), "out": str(reference), "side": side}
    bench.once("reference", lambda: measured("peers:make_reference", **order))
    absent = [] if find_spec("monai") else ["MONAI is not installed: its rows are left out"]
    ways = [way for way in WAYS if find_spec("monai") or not way.startswith("MONAI")]
    for line in absent:
        bench.say(line)
    rows = []
    for tile in bench.parameters["tiles"]:
        turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(bench.parameters["repeats"]):
            for way in ways:
                key = f"{tile} {way} {turn}"
                turns[way].append(
                    bench.once(key, lambda w=way, t=tile: one(bench, w, raster, reference, t))  # type: ignore[misc]
                )
        rows += [min(found, key=lambda row: float(row.get("wall", 1e9))) for found in turns.values()]
    return {"side": side, "rows": rows, "notes": absent}


def ran(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ways that came to an end."""
    return [row for row in data["rows"] if "failed" not in row]


def against(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each tile our row, the fastest other one, and the ratios."""
    found = []
    for tile in dict.fromkeys(row["tile"] for row in ran(data)):
        rows = [row for row in ran(data) if row["tile"] == tile]
        ours = next(row for row in rows if row["way"] == OURS)
        fastest = min(
            (row for row in rows if row is not ours), key=lambda row: float(row["wall"]), default=None
        )
        if fastest is not None:
            found.append({"tile": tile, "ours": ours, "fastest": fastest})
    return found


def above(row: dict[str, Any]) -> float:
    """Return MiB above the start."""
    return float((row["peak"] - row["base"]) / MIB)


def table(data: dict[str, Any]) -> str:
    """Return one row a way and tile."""
    header = (
        "way",
        "tile",
        "seconds",
        "cpu s",
        "peak MiB",
        "above the start",
        "seam pixels",
        "largest error",
    )
    rows = []
    for row in data["rows"]:
        if "failed" in row:
            rows.append((row["way"], row["tile"], f"failed: {row['failed']}", None, None, None, None, None))
            continue
        seams = f"{row['seam_pixels']:,} ({row['share']:.2%})" if row["seam_pixels"] else "0"
        seconds = f"{row['wall']:.1f}"
        peak = round(row["peak"] / MIB)
        cells = (seconds, f"{row['cpu']:.1f}", peak, round(above(row)), seams, f"{row['largest']:.0e}")
        rows.append((row["way"], row["tile"], *cells))
    return "\n\n".join([markdown(header, rows), *data["notes"]])


def goals(data: dict[str, Any]) -> list[Goal]:
    """Against the fastest other way at each tile, whatever its seams."""
    pairs, rows = against(data), ran(data)
    slower = [pair["ours"]["wall"] / pair["fastest"]["wall"] for pair in pairs]
    fast = "; ".join(
        f"{ratio:.2f} x the wall of {pair['fastest']['way']} at tile {pair['tile']}"
        for ratio, pair in zip(slower, pairs, strict=True)
    )
    shares = [above(pair["ours"]) / max(1.0, above(pair["fastest"])) for pair in pairs]
    memory = "; ".join(
        f"{share:.2f} above the start, {pair['ours']['peak'] / pair['fastest']['peak']:.2f} in all"
        f" ({pair['fastest']['way']})"
        for share, pair in zip(shares, pairs, strict=True)
    )
    ours = [row["seam_pixels"] for row in rows if row["way"] == OURS]
    clean = sorted({row["way"] for row in rows if row["way"] != OURS and not row["seam_pixels"]})
    untold = [way for way in clean if "told" not in way]
    told = f"; 0 too: {', '.join(clean)}" if clean else ""
    return [
        Goal("not slower than the fastest", fast, max(slower) <= 1 if slower else None),
        Goal("at most a quarter of its memory", memory, max(shares) <= 0.25 if shares else None),
        Goal("no seam pixel at cut", f"{sum(ours)}", not any(ours), promise=True),
        Goal(
            "the only one without seams that was not told the halo",
            f"{sum(ours)} seam pixels{told}",
            not untold,
        ),
    ]


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Seconds over memory; hollow where there are seams."""
    for i, row in enumerate(ran(data)):
        colour = "tab:red" if row["way"] == OURS else f"C{i % 10}" if f"C{i % 10}" != "C3" else "0.4"
        face = "none" if row["seam_pixels"] else colour
        label = f"{row['way'].split(',')[0]} ({row['tile']})" + (" *" if row["seam_pixels"] else "")
        axes.plot(row["wall"], above(row), "o", markeredgecolor=colour, markerfacecolor=face, label=label)
    axes.set(
        xlabel="seconds",
        ylabel="MiB above the start",
        xlim=(0, 1.1 * max(float(row["wall"]) for row in ran(data))),
        ylim=(0, 1.15 * max(above(row) for row in ran(data))),
    )
    axes.legend(fontsize=6, frameon=False, title="hollow, *: seams", title_fontsize=6)


BENCHMARK = Benchmark(
    name="peers",
    title="Peers: the same network by other means",
    about="""
Every way reads the same COG (4 bands uint16), runs the U-Net (radius 51, stride 8) at the same tile with as many
cores, and writes a float32 GeoTIFF; tilewright also makes overviews and validates. A seam pixel differs by more than
1e-6 from one pass over the whole raster, farther than the radius from its edge. MONAI takes overlap 0.25 and its
Gaussian window; the loop trims a guessed 32 px from each side. "Told 56 px" are ways that were given the halo which
the radius and the stride need; who knows it gets no seams by any means, and tilewright takes it from the kernel's
description. dask computes less, for its chunk is a tile without its halo.
""",
    small={"side": 1536, "tiles": [512], "repeats": 1},
    full={"side": 6144, "tiles": [1024], "repeats": 1},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(2, 9),
    plot=plot,
)
