"""What is left at the seams of networks whose exact radius is too far to read, on a real raster.

A tile of such a network reads as far as `radius_at` says and cores are cut, or overlapping tiles are blended where it
says nothing (MCI, Mamba-FCS). The run compares neighbouring predictions of the same pixels and reports it.

``seam``
    Mean and 99th percentile of |difference| between the predictions of two neighbouring tiles for the same pixel of the
    score, over the standard deviation of the score in the map: 0 is no seam, above 1 a tile is another map.
``same bits``
    Two shard sizes give the same digest.

The raster is a part of a Landsat 8 scene (red, green, blue, 15 to 30 m ground of 2020-05-18); two neighbouring parts
stand for the two dates. The networks are untrained: what a network has learnt decides how much it looks at far pixels,
so these numbers show the geometry, not the quality of a map, which the report of each run tells.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown

__all__ = ["BENCHMARK"]

SCENE = "LC08_L1TP_224078_20200518_20200518_01_RT"
DATA = Path(__file__).resolve().parents[1] / "data" / "landsat-c1-l1" / "cogs"


def make_dates(folder: Path, side: int) -> list[str]:
    """Write two neighbouring squares of the scene as two dates on one grid; return their paths."""
    import numpy as np
    import rasterio
    from rasterio.windows import Window

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for date in range(2):
        bands = []
        for name in ("B4", "B3", "B2"):
            with rasterio.open(DATA / f"{SCENE}_{name}.tif") as source:
                row, col = source.height // 2 - side // 2, source.width // 2 - side + date * side
                bands.append(source.read(1, window=Window(col, row, side, side)))
                profile = {"crs": source.crs, "transform": source.transform}
        path = folder / f"date-{date}.tif"
        pixels = np.stack(bands)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=side,
            height=side,
            count=3,
            dtype=pixels.dtype,
            nodata=0,
            **profile,
        ) as out:
            out.write(pixels)
            out.descriptions = ("red", "green", "blue")
        paths.append(str(path))
    return paths


def by_two_shards(clock: Clock, name: str, dates: list[str], out: str, shards: list[int]) -> dict[str, Any]:
    """Map a network twice, in shards of two sizes; in a child process."""
    import numpy as np
    import rasterio

    import tilewright

    with rasterio.open(dates[0]) as source:
        pixels = source.read()
        low, high = (float(q) for q in np.percentile(pixels[pixels > 0], (1, 99)))
    wishes: dict[str, Any] = {"untrained": True, "device": "cpu", "only": "cog"}
    wishes["options"] = {"low": low, "high": high}
    with clock:
        reports = [tilewright.apply(name, dates, out=f"{out}-{n}", shard=n, **wishes) for n in shards]
    first = reports[0]
    with rasterio.open(Path(f"{out}-{shards[0]}") / first.outputs["score"]) as score:
        spread = float(np.nanstd(score.read(1)))
    seam = (first.seam or {}).get("score", {})
    return {
        "tile": first.tile,
        "halo": first.halo,
        "stitch": first.stitch,
        "mean": seam.get("mean", 0.0) / spread,
        "p99": seam.get("p99", 0.0) / spread,
        "pixels": seam.get("pixels", 0),
        "same": len({report.digest for report in reports}) == 1,
        "sizes": [report.shard_size for report in reports],
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row a network."""
    p = bench.parameters
    dates = make_dates(bench.folder / "dates", p["side"])
    rows = []
    for name in p["kernels"]:
        bench.say(name)
        rows.append({"kernel": name, **bench.once(name, lambda n=name: _one(bench, n, dates))})  # type: ignore[misc]
    return {"side": p["side"], "rows": rows}


def _one(bench: Bench, name: str, dates: list[str]) -> dict[str, Any]:
    out = bench.folder / "out"
    try:
        return measured(
            "seams:by_two_shards", name=name, dates=dates, out=str(out), shards=bench.parameters["shards"]
        )
    finally:
        for shard in bench.parameters["shards"]:
            shutil.rmtree(f"{out}-{shard}", ignore_errors=True)


def table(data: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    header = ("kernel", "stitch", "tile", "halo", "seam, mean", "seam, p99", "pixels compared", "same bits")
    names = ("kernel", "stitch", "tile", "halo", "mean", "p99", "pixels", "same")
    return markdown(header, [[row[name] for name in names] for row in data["rows"]])


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    rows = data["rows"]
    worst = max(row["mean"] for row in rows)
    same = all(row["same"] and len(set(row["sizes"])) == len(row["sizes"]) for row in rows)
    return [
        Goal("the same bits in two shard sizes", "yes" if same else "no", same, promise=True),
        Goal("mean seam at most 0.1 standard deviations", f"{worst:.3g}", worst <= 0.1),
    ]


BENCHMARK = Benchmark(
    name="seams",
    title="Seams of published networks",
    about=(__doc__ or "").partition("\n\n")[2],
    small={"kernels": ["tinycd"], "side": 512, "shards": [256, 640]},
    full={
        "kernels": [
            "tinycd", "bit", "snunet", "changeformer", "cfnet", "btc-t", "changevit-t", "lenet", "hyscdg", "mci",
            "mamba-bcd-tiny",
        ],
        "side": 640,
        "shards": [256, 800],
    },
    measure=measure,
    table=table,
    goals=goals,
    minutes=(0.5, 8),
)  # fmt: skip
