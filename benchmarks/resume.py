"""A run that is killed at random moments, and what it ends with: the same bits, and no shard computed twice.

``tilewright apply`` runs the U-Net of `benchmarks.network` in a process of its own and gets SIGKILL, it and all its
children, at a random moment: one in four of them in its start, the others after its first new shard, among the next
ones or while the result is published. The same command is then repeated.
Where a run comes to its end before all kills are spent, a new one begins in a new folder. Checked at every end, against
a run that nobody disturbed:

- the digest of the pixels, and the bytes of every GeoTIFF;
- the ledger: after a kill its whole lines stay what they were, byte by byte, and in the end it has exactly one line a
  shard. So no finished shard was computed again.

``overhead``
    Wall seconds of all starts of a run until its end, over the wall of the undisturbed run. It is made of the start of
    Python with torch and GDAL, paid at every start, and of the shards that were under way.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from .child import ROOT
from .common import Bench, Benchmark, Goal, markdown
from .sources import into_page_cache, make_cog

__all__ = ["BENCHMARK"]

TILE, SHARD = 512, 400


def start(raster: Path, out: Path, stitch: str, kill: tuple[str, float] | None = None) -> dict[str, Any]:
    """Run the command, or kill it; return wall, the first shard's second and whether it was killed.

    ``kill`` is ``("start", s)``, s seconds after it began, or ``("work", s)``, s seconds after its first new shard.
    """
    options = [
        "--tile",
        str(TILE),
        "--shard",
        str(SHARD),
        "--batch",
        "1",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "tilewright", "apply", "benchmarks.network:score", str(raster)]
    began, first = perf_counter(), None
    log = out.with_suffix(".log")
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--stitch", stitch, *options, "--out", str(out)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        before, killed = len(shard_lines(out)), False
        while process.poll() is None:
            sleep(0.02)
            if first is None and len(shard_lines(out)) > before:
                first = perf_counter() - began
            since = began if kill and kill[0] == "start" else None if first is None else began + first
            if kill and since is not None and perf_counter() - since >= kill[1]:
                os.killpg(process.pid, signal.SIGKILL)
                killed = process.wait() == -signal.SIGKILL
                break
    if not killed and process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}: {log.read_text()[-800:]}")
    return {"wall": perf_counter() - began, "first": first, "killed": killed}


def whole_lines(out: Path) -> list[bytes]:
    """Return the lines of the ledger that were written to their end."""
    path = out / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def shard_lines(out: Path) -> list[str]:
    """Return the shards that the ledger names, in order, repeated where they are."""
    records = [json.loads(line) for line in whole_lines(out)]
    return [record["shard"] for record in records if "shard" in record]


def outcome(out: Path) -> dict[str, Any]:
    """Return what must be equal: the digest, and the sha256 of every GeoTIFF."""
    report = json.loads((out / "report.json").read_text())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.tif"))}
    return {"digest": report["digest"], "files": files}


def disturbed(bench: Bench, raster: Path, stitch: str, calm: dict[str, Any], kills: int) -> dict[str, Any]:
    """Run until ``kills`` kills are spent and the last run has come to its end."""
    chance = random.Random(kills)
    span = max(1.0, 3 * (calm["wall"] - calm["first"]) / kills)
    found: dict[str, Any] = {
        "runs": [],
        "kills": 0,
        "rewritten": 0,
        "twice": 0,
        "different": 0,
        "publishing": 0,
    }
    out = bench.folder / f"disturbed-{stitch}"
    while found["kills"] < kills or not found["runs"]:
        shutil.rmtree(out, ignore_errors=True)
        walls, known = [], []
        while True:
            this = start(raster, out, stitch, moment(chance, calm, span) if found["kills"] < kills else None)
            walls.append(this["wall"])
            lines = whole_lines(out)
            found["rewritten"] += lines[: len(known)] != known
            known = lines
            if not this["killed"]:
                break
            found["kills"] += 1
            done = len(shard_lines(out))
            found["publishing"] += done == calm["shards"]
            bench.say(
                f"{stitch}: kill {found['kills']} after {this['wall']:.1f} s, {done} of {calm['shards']} shards"
            )
        shards = shard_lines(out)
        found["twice"] += len(shards) - len(set(shards))
        found["different"] += outcome(out) != {key: calm[key] for key in ("digest", "files")}
        found["runs"].append({"starts": len(walls), "wall": sum(walls)})
        bench.say(f"{stitch}: a run ended after {len(walls)} starts, {sum(walls):.1f} s")
    shutil.rmtree(out)
    return found


def moment(chance: random.Random, calm: dict[str, Any], span: float) -> tuple[str, float]:
    """Return a random moment: one in four falls into the start, the others among the shards and the publishing."""
    if chance.random() < 0.25:
        return "start", chance.uniform(0.2 * calm["first"], calm["first"])
    return "work", chance.uniform(0, span)


def one(bench: Bench, raster: Path, stitch: str) -> dict[str, Any]:
    """Return the row of one way of stitching."""
    out = bench.folder / f"calm-{stitch}"
    start(raster, bench.folder / f"warm-{stitch}", stitch)  # the probe of the forward is remembered now
    calm = start(raster, out, stitch)
    calm |= {**outcome(out), "shards": len(shard_lines(out))}
    bench.say(f"{stitch}: undisturbed {calm['wall']:.1f} s, first shard after {calm['first']:.1f} s")
    found = disturbed(bench, raster, stitch, calm, bench.parameters["kills"])
    for folder in (out, bench.folder / f"warm-{stitch}"):
        shutil.rmtree(folder)
    return {"stitch": stitch, "calm": calm, **found}


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for cut and one for blend."""
    raster = make_cog(bench.folder / "scene.tif", bench.parameters["side"])
    into_page_cache(raster)
    rows = [bench.once(stitch, lambda s=stitch: one(bench, raster, s)) for stitch in ("cut", "blend")]
    return {"side": bench.parameters["side"], "rows": rows}


def overhead(row: dict[str, Any]) -> tuple[float, float]:
    """Return the wall of all starts over that of as many undisturbed runs, and seconds a kill."""
    walls, calm = sum(run["wall"] for run in row["runs"]), row["calm"]["wall"] * len(row["runs"])
    return walls / calm, (walls - calm) / max(1, row["kills"])


def table(data: dict[str, Any]) -> str:
    """Return one row a way of stitching."""
    header = (
        "stitch",
        "shards",
        "undisturbed s",
        "of it start s",
        "kills (while publishing)",
        "runs",
        "all starts s",
        "overhead",
        "seconds a kill",
        "shards computed twice",
        "other bits",
    )
    rows = [
        (
            row["stitch"],
            row["calm"]["shards"],
            f"{row['calm']['wall']:.1f}",
            f"{row['calm']['first']:.1f}",
            f"{row['kills']} ({row['publishing']})",
            len(row["runs"]),
            f"{sum(run['wall'] for run in row['runs']):.1f}",
            f"{overhead(row)[0]:.2f} x",
            f"{overhead(row)[1]:.1f}",
            row["twice"] + row["rewritten"],
            row["different"],
        )
        for row in data["rows"]
    ]
    return markdown(header, rows)


def goals(data: dict[str, Any]) -> list[Goal]:
    """Same bits, nothing twice; the overhead is stated."""
    rows = data["rows"]
    kills = sum(row["kills"] for row in rows)
    different = sum(row["different"] for row in rows)
    twice = sum(row["twice"] + row["rewritten"] for row in rows)
    cost = ", ".join(
        f"{row['stitch']} {overhead(row)[0]:.2f} x, {overhead(row)[1]:.1f} s a kill" for row in rows
    )
    return [
        Goal(
            "same digest and same bytes of the COG",
            f"{different} of {kills} kills differ",
            not different,
            promise=True,
        ),
        Goal("no finished shard computed twice", f"{twice}", not twice, promise=True),
        Goal("overhead of all restarts stated", cost, True),
    ]


def plot(axes: Any, data: dict[str, Any]) -> None:
    """Wall of disturbed and undisturbed runs."""
    for i, row in enumerate(data["rows"]):
        runs, calm = len(row["runs"]), row["calm"]["wall"]
        axes.bar(i, calm * runs, color="tab:blue", label="undisturbed" if not i else None)
        extra = sum(run["wall"] for run in row["runs"]) - calm * runs
        label = "restarts" if not i else None
        axes.bar(i, extra, bottom=calm * runs, color="tab:orange", label=label)
        axes.text(i, calm * runs + extra, f"{row['kills']} kills", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(data["rows"])), [row["stitch"] for row in data["rows"]], fontsize=8)
    axes.set(ylabel="seconds")
    axes.margins(y=0.4)
    axes.legend(fontsize=8, frameon=False, loc="upper center", ncols=2)


BENCHMARK = Benchmark(
    name="resume",
    title="Resume: killed at random moments",
    about="""
A run of the U-Net by the command line, tile 512, shard 400, gets SIGKILL at random moments, a quarter of them in its
start, the others among the shards that follow or while it publishes, and the same command is repeated until the kills
are spent and the run is at its end. Its pixels and files are compared with those of an undisturbed run; its ledger is
read after every kill. The overhead is the wall of all starts over that of undisturbed runs: the start of Python with
torch, and the shards that were under way.
""",
    small={"side": 1200, "kills": 3},
    full={"side": 2560, "kills": 25},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(3, 15),
    plot=plot,
)
