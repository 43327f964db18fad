"""Peak memory and seconds per pixel of a run as its raster grows.

``tilewright apply change-vector`` over two dates of two uint16 bands, classes out, in a process of its own, at one
tile, shard and batch. Promise 1 holds where the peak is within the projection and does not grow with the side.

A run folder that is finished is taken as it is: ``--keep FOLDER`` holds the sources and ``FOLDER/run-SIDE``, so a
run of 102,400 px that was made (and killed, and resumed) by the command line is counted without a repeat:

    python -m benchmarks.memory sources --sides 102400 --keep FOLDER     # makes the VRTs and prints the command
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from .child import ROOT
from .common import Bench, Benchmark, Goal, markdown
from .sources import make_mosaic

__all__ = ["BENCHMARK", "command"]

MIB = 2**20
OPTIONS = {"tile": 1024, "shard": 2048, "batch": 1}


def command(folder: Path, side: int) -> list[str]:
    """Make the sources of a side in ``folder`` and return the command that maps them into ``run-SIDE``."""
    before, after = make_mosaic(folder, side)
    options = [text for key, value in OPTIONS.items() for text in (f"--{key}", str(value))]
    return [
        *(sys.executable, "-m", "tilewright", "apply", "change-vector", str(before), str(after)),
        *("--set", "magnitude=false", *options, "--out", str(folder / f"run-{side}")),
    ]


def one(bench: Bench, side: int) -> dict[str, Any]:
    """Map a raster of ``side`` px in a new process, unless its folder is finished; return what its report says."""
    out = bench.folder / f"run-{side}"
    ordered = command(bench.folder, side)
    if not (out / "report.json").exists():
        bench.say(f"{side:,} px: {side**2 / 1e6:,.0f} Mpx")
        subprocess.run(ordered, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    report = json.loads((out / "report.json").read_text())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if out.name == f"run-{side}" and "tilewright-memory-" in str(bench.folder):
        shutil.rmtree(out)  # a scratch folder: the next one is larger
    bench.say(f"{side:,} px: {report['seconds']:.0f} s, {report['peak_rss_bytes'] / MIB:.0f} MiB")
    return {
        "side": side,
        "seconds": report["seconds"],
        "peak": report["peak_rss_bytes"],
        "projected": report["projected_memory_bytes"],
        "shards": report["shards"],
        "reused": report["shards_reused"],
        "work_factor": report["work_factor"],
        "disk": size,
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for each side."""
    return {
        "rows": [
            bench.once(f"side {side}", lambda s=side: one(bench, s)) for side in bench.parameters["sides"]
        ]
    }


def per_mpx(row: dict[str, Any]) -> float | None:
    """Return seconds per million pixels; None where a resumed run tells only of its last start."""
    return None if row["reused"] else float(row["seconds"] / (row["side"] ** 2 / 1e6))


def table(data: dict[str, Any]) -> str:
    """Return one row a side."""
    header = (
        "side px",
        "Mpx",
        "seconds",
        "s / 1,000 Mpx",
        "peak MiB",
        "projected MiB",
        "work factor",
        "disk GiB",
    )
    rows = []
    for row in data["rows"]:
        rate = per_mpx(row)
        rows.append(
            (
                f"{row['side']:,}",
                round(row["side"] ** 2 / 1e6),
                round(row["seconds"]) if rate else f"resumed, {row['seconds']:.0f} in the last start",
                round(rate * 1000, 1) if rate else None,
                round(row["peak"] / MIB),
                round(row["projected"] / MIB),
                f"{row['work_factor']:.3f}",
                round(row["disk"] / 2**30, 2),
            )
        )
    return markdown(header, rows)


def goals(data: dict[str, Any]) -> list[Goal]:
    """Within the projection, flat, and no slower at a larger size."""
    rows = data["rows"]
    share = max(row["peak"] / row["projected"] for row in rows)
    spread = max(row["peak"] for row in rows) / min(row["peak"] for row in rows)
    rates = [rate for row in rows if (rate := per_mpx(row))]
    # What a start costs weighs more on a small raster, so only growth is judged.
    pace = max(later / first for first, later in combinations(rates, 2)) if len(rates) > 1 else None
    return [
        Goal("peak within the projection at every side", f"{share:.2f} of it", share <= 1, promise=True),
        Goal("largest peak at most 1.15 x the smallest", f"{spread:.3f} x", spread <= 1.15),
        Goal(
            "a larger raster takes at most 1.1 x the seconds per pixel of a smaller one",
            f"{pace:.2f} x" if pace else "one time only",
            None if pace is None else pace <= 1.1,
        ),
    ]


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Peak and projection over the pixels."""
    rows = data["rows"]
    pixels = [row["side"] ** 2 / 1e6 for row in rows]
    axes.plot(pixels, [row["peak"] / MIB for row in rows], "o-", label="peak")
    axes.plot(pixels, [row["projected"] / MIB for row in rows], "s--", color="0.6", label="projected")
    axes.set(
        xscale="log", ylim=(0, 1.1 * max(row["projected"] for row in rows) / MIB), xlabel="Mpx", ylabel="MiB"
    )
    axes.legend(fontsize=8, frameon=False)


BENCHMARK = Benchmark(
    name="memory",
    title="Memory: any size, constant",
    about="""
The kernel `change-vector` by the command line, two dates of two uint16 bands: statistics pass, map, classes to Zarr
with its pyramid and to a validated COG with overviews. Tile 1,024, shard 2,048, a tile a batch, at every side alike.
The sources are VRTs that repeat a COG of 5,120 px, so that a raster of 102,400 px costs 140 MB of disk; every pixel
of it is decompressed and computed.
""",
    small={"sides": [5120, 10240]},
    full={"sides": [10_240, 51_200, 102_400]},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1.5, 90),
    plot=plot,
)


def main() -> None:
    """Make sources of the sides named, and print the commands that map them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sources"])
    parser.add_argument("--sides", type=int, nargs="+", required=True)
    parser.add_argument("--keep", type=Path, required=True)
    options = parser.parse_args()
    for side in options.sides:
        print(shlex.join(command(options.keep, side)))


if __name__ == "__main__":
    main()
