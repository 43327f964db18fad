"""Peak memory of a run as its raster grows, beside what the plan projected.

    python benchmarks/memory.py [--sides 2048 4096 8192]

A two-band uint16 raster of each side is written in strips, and ``tilewright apply index`` maps NDVI over it in
a process of its own, at one tile, shard and batch. Promise 1 holds where the peak is within the projection and
does not grow with the side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

STRIP = 512
MIB = 2**20


def write_raster(path: Path, side: int) -> None:
    """Write smooth reflectances with noise, tiled, strip by strip."""
    random = np.random.default_rng(0)
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 2, "dtype": "uint16", "nodata": 0,
        "tiled": True, "blockxsize": STRIP, "blockysize": STRIP, "compress": "deflate", "BIGTIFF": "IF_SAFER",
        "crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.descriptions = ("red", "nir")
        for row in range(0, side, STRIP):
            rows = min(STRIP, side - row)
            wave = 2000 + 800 * np.sin(np.arange(side) / 300)[None, None]
            values = wave + random.integers(0, 64, (2, rows, side))
            out.write(values.astype("uint16"), window=Window(0, row, side, rows))


def run(path: Path, out: Path) -> dict[str, float]:
    """Map NDVI over the raster in a new process and return its report."""
    options = ["--tile", "512", "--shard", "1024", "--batch", "4", "--threads", "2", "--out", str(out)]
    command = [
        sys.executable,
        "-m",
        "tilewright",
        "apply",
        "index",
        str(path),
        "--set",
        "name=NDVI",
        *options,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, float] = json.loads((out / "report.json").read_text())
    return report


def main() -> None:
    """Print a table; end with status 1 where a peak is above its projection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[2048, 4096, 8192])
    sides = parser.parse_args().sides
    print("| side px | Mpx | seconds | peak MiB | projected MiB |\n|---|---|---|---|---|")
    peaks, broken = [], False
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            raster = Path(folder) / f"{side}.tif"
            write_raster(raster, side)
            report = run(raster, Path(folder) / f"out-{side}")
            peak, projected = report["peak_rss_bytes"], report["projected_memory_bytes"]
            peaks.append(peak)
            broken |= peak > projected
            row = f"{side} | {side**2 / 1e6:.1f} | {report['seconds']:.1f} | {peak / MIB:.0f} | {projected / MIB:.0f}"
            print(f"| {row} |", flush=True)
    print(f"largest peak over smallest: {max(peaks) / min(peaks):.2f}")
    sys.exit(broken)


if __name__ == "__main__":
    main()
