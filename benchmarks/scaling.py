"""How much faster are two worker processes than one, for a kernel bound to one thread?

``compute``
    Wall seconds from the first group of shards handed out to the last line of the ledger: reading, inference and
    writing by N Dask workers of ``local:N``, each with one intra-op thread. The workers have computed a small raster
    before (libraries imported, kernel called), and every number of workers runs in a process of its own.
``end``
    Wall seconds of what follows in the client's process, whatever the number of workers: pyramid, digest, COG,
    quicklook, Item.
``speed-up``
    compute of one worker / compute of N.
``busy share``
    Seconds in the forward, all workers summed / (N x compute).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown
from .sources import into_page_cache, make_cog

__all__ = ["BENCHMARK"]

WARM_SIDE = 1024
"""A raster of this side goes through the workers before the clock starts."""
GOAL = 1.85


def by_workers(
    clock: Clock, raster: str, warm: str, out: str, workers: int, stitch: str, tile: int, shard: int
) -> dict[str, Any]:
    """Run one job on ``workers`` worker processes; in a child process."""
    from time import perf_counter

    from distributed import Client, LocalCluster

    from tilewright.pipeline.job import prepare
    from tilewright.pipeline.rasters import RasterSource
    from tilewright.pipeline.run import Request, Run
    from tilewright.pipeline.settings import Settings

    from .network import make_kernel

    settings = Settings(tile=tile, shard=shard, threads=1, device="cpu", stitch=stitch)  # type: ignore[arg-type]
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None, silence_logs=50
    )
    with cluster, Client(cluster) as client:
        for path, place in ((warm, f"{out}-warm"), (raster, out)):
            job = prepare(make_kernel(), RasterSource([[path]]), settings)
            with Run(job, Request(Path(place), "scaling", cluster=client)) as run:
                todo = run.todo
                if path == warm:
                    run.compute(todo)
                    continue
                with clock:
                    run.compute(todo)
                started = perf_counter()
                report = run.publish()
    return {
        "end": perf_counter() - started,
        "forward": report.seconds_forward,
        "shards": report.shards,
        "work_factor": report.work_factor,
        "digest": report.digest,
        "took_part": report.workers,
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Run all numbers of workers by turns; return the medians."""
    side, p = bench.parameters["side"], bench.parameters
    raster, warm = (make_cog(bench.folder / f"scene-{n}.tif", n) for n in (side, WARM_SIDE))
    into_page_cache(raster)
    rows: dict[str, list[dict[str, Any]]] = {}
    for repeat in range(p["repeats"]):
        for stitch in p["stitch"]:
            for workers in p["workers"]:
                key = f"{stitch} {workers}"
                bench.say(f"{key} workers, {repeat + 1} of {p['repeats']}")
                row = bench.once(
                    f"{key} {repeat}", lambda s=stitch, w=workers: _one(bench, raster, warm, s, w)
                )  # type: ignore[misc]
                rows.setdefault(key, []).append(row)
    return {"side": side, "rows": [_summary(p, key, found, rows) for key, found in rows.items()]}


def _one(bench: Bench, raster: Path, warm: Path, stitch: str, workers: int) -> dict[str, Any]:
    out = bench.folder / "out"
    try:
        return measured(
            "scaling:by_workers",
            raster=str(raster),
            warm=str(warm),
            out=str(out),
            workers=workers,
            stitch=stitch,
            tile=bench.parameters["tile"],
            shard=bench.parameters["shard"],
        )
    finally:
        for folder in (out, out.with_name("out-warm")):
            shutil.rmtree(folder, ignore_errors=True)


def _summary(
    p: dict[str, Any], key: str, found: list[dict[str, Any]], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    stitch, workers = key.split()[0], int(key.split()[1])
    first = rows[f"{stitch} {p['workers'][0]}"]
    wall = median(row["wall"] for row in found)
    return {
        "stitch": stitch,
        "workers": workers,
        "compute": wall,
        "end": median(row["end"] for row in found),
        "speed_up": median(row["wall"] for row in first) / wall,
        "busy": median(row["forward"] for row in found) / (workers * wall),
        "work_factor": max(row["work_factor"] for row in found),
        "same": len({row["digest"] for row in (*found, *first)}) == 1,
        "shards": found[0]["shards"],
    }


def table(data: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    header = ("stitch", "workers", "compute s", "speed-up", "busy share", "end s", "work factor", "same bits")
    names = ("stitch", "workers", "compute", "speed_up", "busy", "end", "work_factor", "same")
    return markdown(header, [[row[name] for name in names] for row in data["rows"]])


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    found = []
    for row in data["rows"]:
        if row["workers"] == 2:
            text = f"{row['stitch']}: 2 workers at least {GOAL} times as fast as 1"
            found.append(Goal(text, f"{row['speed_up']:.2f}", row["speed_up"] >= GOAL))
    same = all(row["same"] and row["work_factor"] == 1.0 for row in data["rows"])
    found.append(Goal("the same bits, work factor 1.00", "yes" if same else "no", same, promise=True))
    return found


BENCHMARK = Benchmark(
    name="scaling",
    title="Scaling: two worker processes against one",
    about="""
A U-Net of 0.48 M parameters over a COG of 4 bands uint16, on the workers of a LocalCluster, one intra-op thread each.

- **compute**: wall seconds from the first group handed out to the last line of the ledger; workers are warm.
- **speed-up**: compute of one worker / compute of N. One worker has the second core of a machine to itself for reading
  and writing; two share the cores with it, so 2.00 is out of reach on two cores.
- **busy share**: seconds in the forward, all workers summed / (N x compute).
- **end**: what the client does afterwards, alone: pyramid, digest, COG, quicklook, Item.
""",
    small={"side": 2048, "tile": 512, "shard": 512, "workers": [1, 2], "stitch": ["cut"], "repeats": 1},
    full={
        "side": 4096,
        "tile": 512,
        "shard": 512,
        "workers": [1, 2],
        "stitch": ["cut", "blend"],
        "repeats": 1,
    },
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1.5, 5),
)
