"""How many pixels a second the published networks compute, by themselves and through the whole pipeline.

``forward``
    Millions of input pixels a second through the bare network: batches of one tile of its default side, a batch on
    each core with one intra-op thread, normalised float32 in memory, outputs thrown away; the median of three spells.
``useful``
    The same less what tiles share: times (core / tile) squared, the core being what is kept of a tile. It is what a
    map gets at the default tile, and can be raised with a larger one where the network takes it.
``pipeline``
    Wall seconds of ``tilewright.apply`` from the call to its return: two dates read from COGs of uint16, stitched,
    Zarr with pyramid and COGs written, Item, quicklook, report.
``efficiency``
    Seconds of the bare forward for the same number of batches / pipeline. The bare seconds are those of a sample of
    at least ``spell`` seconds, times the number of batches.
``peak``
    The report's peak of the resident memory, beside what its plan had projected.

All without trained weights, which changes no speed.
"""

from __future__ import annotations

import shutil
from statistics import median
from time import perf_counter
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .sources import BASE_SIDE, make_cog, make_mosaic

__all__ = ["BENCHMARK"]

OPTIONS = {"low": 0.0, "high": 10_000.0}
"""The rasters are reflectance x 10,000."""


def by_forward(clock: Clock, name: str, cores: int, spell: float, tile: int, batch: int) -> dict[str, Any]:
    """Run the bare network for three spells; in a child process."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from tilewright import load_kernel
    from tilewright.kernels.contract import Context
    from tilewright.pipeline.settings import Settings, choose_tiling

    torch.set_num_threads(1)
    kernel = load_kernel(name)
    spec = kernel.spec
    tiling = choose_tiling(spec, Settings(tile=tile or None), (8192, 8192), 64)
    side, size = tiling.tile, batch or 1
    kernels = [kernel, *(kernel.twin() for _ in range(cores - 1))]
    inputs = {
        key: torch.rand(size, one.date_range[0], one.band_count, side, side)
        for key, one in spec.inputs.items()
        if not one.optional
    }
    valid = {
        key: torch.ones(x.shape[0], x.shape[1], 1, side, side, dtype=torch.bool) for key, x in inputs.items()
    }
    context = Context(
        torch.zeros(size, 2, dtype=torch.int64),
        torch.zeros(size, next(iter(inputs.values())).shape[1], dtype=torch.int64),
        torch.zeros(size, 2, dtype=torch.float64),
        10.0,
    )

    def calls(one: Any, until: float) -> int:
        torch.set_num_threads(1)
        count = 0
        with torch.inference_mode():
            while not count or perf_counter() < until:
                one.apply(inputs, valid, context)
                count += 1
        return count

    rates = []
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda one: calls(one, 0.0), kernels))
        with clock:
            for _ in range(3):
                started = perf_counter()
                done = sum(pool.map(calls, kernels, [started + spell] * cores))
                rates.append(done / (perf_counter() - started))
    return {
        "tile": side,
        "core": tiling.core,
        "batches_a_second": median(rates),
        "forward": median(rates) * size * side**2 / 1e6,
        "useful": median(rates) * size * tiling.core**2 / 1e6,
        "parameters": sum(p.numel() for p in kernel.module.parameters()),
    }


def by_pipeline(
    clock: Clock, name: str, dates: list[str], warm: list[str], out: str, cores: int, tile: int
) -> dict[str, Any]:
    """Map an untrained network over two dates; in a child process."""
    import tilewright

    wishes: dict[str, Any] = {"untrained": True, "cores": cores, "device": "cpu", "options": OPTIONS}
    wishes["tile"] = tile or None
    tilewright.apply(name, warm, out=f"{out}-warm", **wishes)
    with clock:
        report = tilewright.apply(name, dates, out=out, **wishes)
    return {
        "pixels": report.pixels,
        "tile": report.tile,
        "core": report.core,
        "batch": report.batch,
        "batches": round(report.pixels_forward / report.batch / report.tile**2),
        "peak_rss": report.peak_rss_bytes,
        "projected": report.projected_memory_bytes,
        "work_factor": report.work_factor,
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row a kernel, and a row a raster."""
    p = bench.parameters
    rows = []
    for name in p["kernels"]:
        bench.say(f"forward of {name}")
        row = bench.once(
            name,
            lambda n=name: measured(
                "kernels:by_forward", name=n, cores=p["cores"], spell=p["spell"], tile=0, batch=0
            ),
        )  # type: ignore[misc]
        rows.append({"kernel": name, **row})
    rasters = []
    for name, side, tile in zip(p["networks"], p["sides"], p["tiles"], strict=True):
        bench.say(f"{name} over {side:,} px squared")
        ours = bench.once(f"{name} {side}", lambda n=name, s=side, t=tile: _mapped(bench, n, s, t))  # type: ignore[misc]
        bare = bench.once(f"{name} {side}, bare", lambda n=name, o=ours: _bare(bench, n, o))  # type: ignore[misc]
        seconds = ours["batches"] / bare["batches_a_second"]
        figures = {"forward_seconds": seconds, "efficiency": seconds / ours["wall"]}
        rasters.append({"kernel": name, "side": side, **ours, **figures})
    return {"kernels": rows, "rasters": rasters}


def _mapped(bench: Bench, name: str, side: int, tile: int) -> dict[str, Any]:
    p, out = bench.parameters, bench.folder / "out"
    warm = [str(make_cog(bench.folder / f"warm-{i}.tif", 1024, bands=3, seed=i)) for i in range(2)]
    if side % BASE_SIDE:
        dates = [str(make_cog(bench.folder / f"{side}-{i}.tif", side, bands=3, seed=i)) for i in range(2)]
    else:
        dates = [str(path) for path in make_mosaic(bench.folder / f"mosaic-{side}", side, bands=3)]
    try:
        return measured(
            "kernels:by_pipeline",
            name=name,
            dates=dates,
            warm=warm,
            out=str(out),
            cores=p["cores"],
            tile=tile,
        )
    finally:
        for folder in (out, out.with_name("out-warm")):
            shutil.rmtree(folder, ignore_errors=True)


def _bare(bench: Bench, name: str, ours: dict[str, Any]) -> dict[str, Any]:
    p = bench.parameters
    return measured(
        "kernels:by_forward",
        name=name,
        cores=p["cores"],
        spell=p["spell"],
        tile=ours["tile"],
        batch=ours["batch"],
    )


def table(data: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    first = markdown(
        ("kernel", "parameters, M", "tile", "core", "forward, Mpx/s", "useful, Mpx/s"),
        [
            [row["kernel"], row["parameters"] / 1e6, row["tile"], row["core"], row["forward"], row["useful"]]
            for row in data["kernels"]
        ],
    )
    second = markdown(
        (
            "kernel", "side, px", "tile", "core", "pipeline s", "forward s", "efficiency", "peak MiB", "projected MiB",
            "work factor",
        ),
        [
            [
                row["kernel"], row["side"], row["tile"], row["core"], row["wall"], row["forward_seconds"],
                row["efficiency"], row["peak_rss"] / 2**20, row["projected"] / 2**20, row["work_factor"],
            ]
            for row in data["rasters"]
        ],
    )  # fmt: skip
    return f"{first}\n\n{second}"


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    rows = data["rasters"]
    share = max(row["peak_rss"] / row["projected"] for row in rows)
    least = min(row["efficiency"] for row in rows)
    factor = max(row["work_factor"] for row in rows)
    return [
        Goal("peak within the projection", f"{share:.2f} of it", share <= 1),
        Goal("at least 0.95 of the bare forward", f"{least:.3f}", least >= 0.95),
        Goal("each tile computed once", f"{factor:.2f}", factor == 1, promise=True),
    ]


NETWORKS = (
    "tinycd", "bit", "snunet", "changeformer", "cfnet", "btc-t", "btc-b", "changevit-t", "changevit-s", "lenet",
    "cdmask", "mamba-bcd-tiny", "mamba-scd-tiny", "mamba-fcs", "changestar", "ddpm-cd", "hyscdg", "mci",
    "esrgan-slim", "sen2sr-cnn", "edsr", "swinir",
)  # fmt: skip

BENCHMARK = Benchmark(
    name="kernels",
    title="Published networks",
    about=(__doc__ or "").partition("\n\n")[2],
    small={
        "kernels": ["tinycd"],
        "networks": ["tinycd"],
        "sides": [1024],
        "tiles": [0],
        "cores": 2,
        "spell": 2.0,
    },
    full={
        "kernels": list(NETWORKS),
        "networks": ["btc-t", "mamba-bcd-tiny", "tinycd"],
        "sides": [5120, 5120, 20_480],
        "tiles": [0, 0, 1024],  # 0: the kernel's default; TinyCD is convolutional but for its normalisation
        "cores": 2,
        "spell": 1.5,
    },
    measure=measure,
    table=table,
    goals=goals,
    minutes=(0.5, 30),
)
