"""How much of the time that a network needs does the whole pipeline take: COG in, COG and Zarr out.

Terms. All are of one raster, one tile size, one number of cores for the network, on the same machine within minutes;
each way runs in a process of its own whose libraries are imported and whose network has run before the clock starts.

``pipeline``
    Wall seconds W of ``tilewright.apply`` on a COG (uint16, deflate, blocks of 512) into a class map: from the call
    to its return, when the Zarr with its pyramid, the validated COG with overviews, the quicklook, the Item and the
    report are on disk. Nothing of it is taken out.
``forward``
    Wall seconds F of the bare network over as many batches of the same shape, filler and halo included: normalised
    float32 tensors that are in memory, channels last, one batch after another on all cores, outputs thrown away.
``side by side``
    Wall seconds S of the same, but with one thread a batch and a batch on each core, as tilewright calls the network.
``codecs``
    Processor seconds E that nobody can avoid who reads this file and writes these: each source block decoded once by
    rasterio, and the finished arrays encoded once: every level into Zarr by zarr-python with the same chunks and
    codecs, and the map into a COG by GDAL's driver, which makes its own overviews. One thread each.
``bare share``
    F / W: what of the wall time is the network.
``limit``
    Fc / (Fc + E), Fc being the processor seconds of the forward: the bare share that a pipeline would have on cores
    that never wait, with no work but forward and codecs. It is the strict form: with F in wall seconds (F / (F + E))
    it would be lower on two cores, and easier to reach.
``share of the limit``
    bare share / limit. 1 where the pipeline adds nothing and no core ever waits.
``other``
    Processor seconds of the pipeline that are neither forward nor codecs: cutting and stitching, pyramid, digest,
    validation, quicklook, Item, and what forward and codecs lose by sharing caches.
``useful Mpx/s``
    Pixels of the raster / W / 10^6; halo and filler do not count.

With ``cores=1`` on a machine of two cores the other core is free for everything but the forward, so the bare share
itself is what counts. On a GPU the forward's tensors are in its memory, and W includes the way there and back.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .sources import into_page_cache, make_cog

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BENCHMARK"]

CLASSES = 5
WAYS = ("one after another", "side by side")
"""Of the bare forward: one batch on all cores, and a batch with one thread on each core."""
WARM_SIDE = 640
"""A raster of this side goes through the pipeline before the clock starts: imports at first use, the probe."""


def by_pipeline(
    clock: Clock, raster: str, warm: str, out: str, tile: int, cores: int, device: str, precision: str
) -> dict[str, Any]:
    """Run tilewright; in a child process."""
    import tilewright

    from .network import make_kernel

    batch = max(1, 2 ** (18 if device == "cpu" else 22) // tile**2)  # tilewright's own default, said aloud
    wishes: dict[str, Any] = {"tile": tile, "cores": cores, "device": device, "precision": precision}
    kernel = make_kernel(CLASSES)
    tilewright.apply(kernel, warm, out=f"{out}-warm", batch=batch, **wishes)
    _reset_gpu(device)
    with clock:
        report = tilewright.apply(kernel, raster, out=out, batch=batch, **wishes)
    return {
        "batch": report.batch,
        "shard": report.shard_size,
        "batches": round(report.pixels_forward / report.batch / tile**2),
        "tiles": report.tiles_run,
        "pixels": report.pixels,
        "seconds_forward": report.seconds_forward,
        "seconds_read": report.seconds_read,
        "seconds_write": report.seconds_write,
        "gpu_peak": _gpu_peak(device),
    }


def by_forward(
    clock: Clock, tile: int, batch: int, batches: int, cores: int, way: str, device: str, precision: str
) -> dict[str, Any]:
    """Run the bare network over ``batches`` batches; in a child process."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from .network import BANDS, make_network

    lanes = cores if way == "side by side" else 1
    torch.set_num_threads(cores // lanes)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    order = torch.channels_last
    net = make_network(CLASSES).to(device).to(memory_format=order)  # type: ignore[call-overload]
    x = torch.randn(batch, BANDS, tile, tile, device=device).contiguous(memory_format=order)

    def forward(count: int) -> None:
        with (
            torch.inference_mode(),
            torch.autocast(device.split(":")[0], dtype=kind, enabled=kind is not None),
        ):
            for _ in range(count):
                net(x)

    with ThreadPoolExecutor(lanes, initializer=lambda: torch.set_num_threads(cores // lanes)) as pool:
        list(pool.map(forward, [2] * lanes))
        _wait_for_gpu(device)
        with clock:
            list(pool.map(forward, [1] * batches))
            _wait_for_gpu(device)
    return {}


def by_codecs(clock: Clock, raster: str, out: str, scratch: str) -> dict[str, Any]:
    """Decode the source once and encode the finished arrays once; in a child process."""
    import rasterio
    import zarr

    arrays = {}
    root = zarr.open_group(f"{out}/result.zarr", mode="r")
    for level, group in root.groups():
        for name, array in group.arrays():
            if array.ndim >= 2 and min(array.shape[-2:]) > 1:
                arrays[f"{level}/{name}"] = (array, array[:])
    maps = []
    for path in sorted(Path(out).glob("*.tif")):
        with rasterio.open(path) as source:
            maps.append((path.name, source.read(), source.profile))
    parts = {}
    with clock:
        for part, work in (
            ("decode", lambda: _decode(raster)),
            ("zarr", lambda: _encode_zarr(arrays, f"{scratch}/codecs.zarr")),
            ("cog", lambda: _encode_cogs(maps, Path(scratch))),
        ):
            started = perf_counter()
            work()
            parts[part] = round(perf_counter() - started, 3)
    return {"parts": parts}


def _decode(raster: str) -> None:
    import rasterio

    with rasterio.open(raster) as source:
        for _, window in source.block_windows(1):
            source.read(window=window)


def _encode_zarr(arrays: dict[str, Any], place: str) -> None:
    import zarr

    root = zarr.open_group(place, mode="w", zarr_format=3)
    for path, (old, values) in arrays.items():
        new = root.create_array(
            path,
            shape=old.shape,
            dtype=old.dtype,
            chunks=old.chunks,
            shards=old.shards,
            compressors=old.compressors,
            fill_value=old.fill_value,
        )
        for at in _regions(old.shape, old.shards or old.chunks):
            new[at] = values[at]


def _regions(shape: tuple[int, ...], steps: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield the slices of each shard."""
    if not shape:
        yield ()
        return
    for start in range(0, shape[0], steps[0]):
        for rest in _regions(shape[1:], steps[1:]):
            yield (slice(start, start + steps[0]), *rest)


def _encode_cogs(maps: list[Any], scratch: Path) -> None:
    import rasterio
    from rasterio.io import MemoryFile
    from rasterio.shutil import copy

    for name, values, profile in maps:
        plain = {k: profile[k] for k in ("width", "height", "count", "dtype", "crs", "transform", "nodata")}
        options = {"COMPRESS": str(profile["compress"]).upper(), "BLOCKSIZE": str(profile["blockxsize"])}
        with MemoryFile() as memory, rasterio.Env(GDAL_CACHEMAX=64 * 2**20):
            with memory.open(driver="GTiff", **plain) as out:
                out.write(values)
            copy(memory.name, scratch / f"codecs-{name}", driver="COG", RESAMPLING="NEAREST", **options)


def _wait_for_gpu(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def _reset_gpu(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()


def _gpu_peak(device: str) -> int | None:
    if device == "cpu":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated())


def devices() -> list[tuple[str, str]]:
    """Return the devices and precisions of this machine beside its CPU."""
    import torch

    return [("cuda:0", precision) for precision in ("fp32", "bf16")] if torch.cuda.is_available() else []


def one(bench: Bench, tile: int, cores: int, device: str, precision: str) -> dict[str, Any]:
    """Measure one row: the ways take turns, and of each the fastest turn counts."""
    side, name = bench.parameters["side"], f"tile {tile}, {cores} cores, {device} {precision}"
    raster = make_cog(bench.folder / "scene.tif", side)
    warm = make_cog(bench.folder / "warm.tif", WARM_SIDE)
    into_page_cache(raster)
    common = {"tile": tile, "cores": cores, "device": device, "precision": precision}
    pipelines, forwards, codecs = [], [], []
    for turn in range(bench.parameters["repeats"]):
        out = bench.folder / "run"
        _clear(bench.folder)
        files = {"raster": str(raster), "warm": str(warm), "out": str(out)}
        pipelines.append(measured("efficiency:by_pipeline", **files, **common))
        bench.say(f"{name}, turn {turn + 1}: pipeline {pipelines[-1]['wall']:.1f} s")
        counts = {key: pipelines[-1][key] for key in ("batch", "batches")}
        for way in WAYS if cores > 1 and device == "cpu" else WAYS[:1]:
            forwards.append(measured("efficiency:by_forward", way=way, **counts, **common) | {"way": way})
            bench.say(f"{name}, turn {turn + 1}: bare forward, {way}, {forwards[-1]['wall']:.1f} s")
        files = {"raster": str(raster), "out": str(out), "scratch": str(bench.folder)}
        codecs.append(measured("efficiency:by_codecs", **files))
        bench.say(f"{name}, turn {turn + 1}: codecs {codecs[-1]['cpu']:.1f} processor seconds")
    _clear(bench.folder)
    pipeline = _fastest(pipelines)
    forward, beside = (_fastest([m for m in forwards if m["way"] == way]) for way in WAYS)
    assert pipeline is not None
    assert forward is not None
    codec = min(codecs, key=lambda m: float(m["cpu"]))
    bare = forward["wall"] / pipeline["wall"]
    limit = forward["cpu"] / (forward["cpu"] + codec["cpu"])
    return {
        **common,
        "pipeline": pipeline,
        "forward": forward,
        "side_by_side": beside,
        "codecs": codec,
        "bare_share": bare,
        "limit": limit,
        "share_of_limit": bare / limit,
        "useful_mpx_s": pipeline["pixels"] / 1e6 / pipeline["wall"],
        "tiles_s": pipeline["tiles"] / pipeline["wall"],
    }


def _fastest(turns: list[dict[str, Any]]) -> dict[str, Any] | None:
    return min(turns, key=lambda m: float(m["wall"]), default=None)


def _clear(folder: Path) -> None:
    for name in ("run", "run-warm", "codecs.zarr"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("codecs-*.tif"):
        path.unlink()


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for each tile with all cores, one with a core left free, and those of a GPU."""
    import os

    cores = len(os.sched_getaffinity(0))
    tiles = bench.parameters["tiles"]
    cases = [(tile, min(2, cores), "cpu", "fp32") for tile in tiles]
    if cores > 1:
        cases += [(tile, 1, "cpu", "fp32") for tile in tiles[-1:]]
    cases += [(tile, min(2, cores), *device) for tile in tiles for device in devices()]
    rows = [bench.once(f"{case}", lambda c=case: one(bench, *c)) for case in cases]
    return {"side": bench.parameters["side"], "cores": cores, "rows": rows}


def table(data: dict[str, Any]) -> str:
    """Return one row a tile, number of threads and device."""
    header = (
        "tile, cores, device",
        "forward F s",
        "side by side S s",
        "pipeline W s",
        "codecs E cpu s",
        "other cpu s",
        "bare share F/W",
        "S/W",
        "limit",
        "share of the limit",
        "useful Mpx/s",
        "tiles/s",
        "peak MiB",
    )
    rows = []
    for row in data["rows"]:
        name = f"{row['tile']:,}, {row['cores']}, {row['device']}"
        gpu, beside = row["device"] != "cpu", row["side_by_side"]
        rows.append(
            (
                f"{name} {row['precision']}" if gpu else name,
                f"{row['forward']['wall']:.1f}",
                None if beside is None else f"{beside['wall']:.1f}",
                f"{row['pipeline']['wall']:.1f}",
                f"{row['codecs']['cpu']:.1f}",
                f"{row['pipeline']['cpu'] - row['forward']['cpu'] - row['codecs']['cpu']:.1f}",
                f"{row['bare_share']:.3f}",
                None if beside is None else f"{beside['wall'] / row['pipeline']['wall']:.3f}",
                None if gpu else f"{row['limit']:.3f}",
                None if gpu else f"{row['share_of_limit']:.3f}",
                f"{row['useful_mpx_s']:.2f}",
                f"{row['tiles_s']:.2f}",
                f"{row['pipeline']['peak'] / 2**20:,.0f}"
                + (f" + {row['pipeline']['gpu_peak'] / 2**20:,.0f} on the GPU" if gpu else ""),
            )
        )
    return markdown(header, rows)


def goals(data: dict[str, Any]) -> list[Goal]:
    """Of the limit where cores are saturated, of the bare forward where one is free."""
    cpu = [row for row in data["rows"] if row["device"] == "cpu"]
    full = [row["share_of_limit"] for row in cpu if row["cores"] >= data["cores"]]
    free = [row["bare_share"] for row in cpu if row["cores"] < data["cores"]]
    gpu = [row["bare_share"] for row in data["rows"] if row["device"] != "cpu"]
    return [
        _goal("at least 0.97 of the limit with all cores saturated", full, 0.97),
        _goal("at least 0.95 of the bare forward with a core free", free, 0.95),
        _goal("at least 0.90 of the bare forward on a GPU", gpu, 0.90),
    ]


def _goal(text: str, shares: list[float], least: float) -> Goal:
    if not shares:
        return Goal(text, "no such machine", None)
    return Goal(text, ", ".join(f"{share:.3f}" for share in shares), min(shares) >= least)


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Bars of F, what codecs add to it at the limit, and W."""
    rows = data["rows"]
    names = [f"{row['tile']}\n{row['cores']} c." for row in rows]
    places = range(len(rows))
    axes.bar(places, [1 / row["limit"] for row in rows], color="0.8", label="limit (with codecs)")
    axes.bar(places, [1 for _ in rows], color="tab:blue", label="bare forward")
    walls = [1 / row["bare_share"] for row in rows]
    ends = [place - 0.4 for place in places], [place + 0.4 for place in places]
    axes.hlines(walls, *ends, color="tab:red", linewidth=2, label="pipeline")
    axes.set_xticks(list(places), names, fontsize=8)
    axes.set(ylabel="wall / bare forward", ylim=(0, 1.25 * max(walls)))
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center")


BENCHMARK = Benchmark(
    name="efficiency",
    title="Efficiency: what the pipeline adds to the network",
    about="""
A U-Net of 0.48 M parameters (radius 51, stride 8, 5 classes) over a COG of 4 bands uint16; out come Zarr with its
pyramid, a validated COG with overviews, quicklook, Item and report.

- **F**, bare forward: the same batches, halo and filler included, from tensors in memory, channels last, one after
  another on all cores, outputs thrown away. **S**: the same with a batch on each core, as tilewright does it.
- **W**, pipeline: wall of `tilewright.apply`, all of it.
- **E**, codecs: processor seconds to decode each source block once and to encode each finished array once.
- **limit**: Fc / (Fc + E), Fc being the processor seconds of the forward: the share of the network on cores that
  never wait and do nothing but forward and codecs. **Share of the limit**: (F / W) / limit.
- **other**: processor seconds of the pipeline beside forward and codecs. **Useful Mpx/s**: pixels of the raster / W.

On all cores the share of the limit counts; with the network on one core of two the other is free, and F / W itself
counts. F / W above 1 means that the pipeline is faster than a loop over the bare network.
""",
    small={"side": 2048, "tiles": [512, 1024], "repeats": 1},
    full={"side": 6144, "tiles": [512, 1024], "repeats": 1},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(3, 12),
    plot=plot,
)
