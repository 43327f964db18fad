"""The report of a run: what was asked, what was done, and what it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Report"]

NAME = "report.json"


@dataclass(frozen=True)
class Report:
    """What `report.json` holds. Counts are of the whole result, across resumes; seconds are of the last start."""

    title: str
    """Name of the run."""
    kernel: Mapping[str, Any]
    """Name, digest, options, weights, licence and citation of the kernel."""
    inputs: Mapping[str, Any]
    """What the source says of itself: items or files, bands, nodata and where it came from."""
    outputs: Mapping[str, str]
    """Output name -> file, relative to the folder."""
    tiles_needed: int
    """Tiles that hold a pixel with a result; counted from grid and valid mask, before the kernel is called."""
    tiles_run: int
    """Tiles that the kernel was called with."""
    work_factor: float
    """``tiles_run / tiles_needed``."""
    pixels_forward: int
    """Input pixels that went through the kernel: halo, padding and filler included."""
    tile: int
    """Pixels a side that the kernel saw."""
    core: int
    """Pixels a side that belong to a tile."""
    halo: int
    """Pixels a side that a tile reads beyond its core."""
    stride: int
    """Read windows start at multiples of this."""
    stitch: str
    """``cut`` or ``blend``."""
    shard_size: int
    """Pixels a side of a shard, in input pixels."""
    batch: int
    """Tiles a forward."""
    threads: int
    """Intra-op threads."""
    lanes: int
    """Batches that the kernel computed side by side, in each process."""
    device: str
    """Where the kernel ran."""
    precision: str
    """Arithmetic of the forward."""
    shards: int
    """Shards of the result."""
    shards_reused: int
    """Of these, finished by an earlier start and kept."""
    seconds: float
    """Wall time from plan to publication."""
    seconds_read: float
    """Seconds of reading (overlaps with the rest)."""
    seconds_forward: float
    """Seconds of inference."""
    seconds_write: float
    """Seconds of writing shards (overlaps), pyramid and COGs (does not)."""
    bytes_read: int
    """Bytes of decoded source pixels."""
    peak_rss_bytes: int
    """Highest resident memory seen of this process and those it started; Dask workers are left out."""
    projected_memory_bytes: int
    """What the plan had promised as the most."""
    pixels: int
    """Output pixels."""
    pixels_valid: int
    """Output pixels with a result."""
    reasons: Mapping[str, int]
    """Reason -> pixels; they add up to ``pixels``."""
    seam: Mapping[str, Mapping[str, float]] | None
    """Blending: for each output the difference of overlapping predictions (mean, p99, max, pixels), in its units.
    Cutting at the full radius: None, for no pixel has two predictions that count."""
    clipped: Mapping[str, int]
    """Output -> values clipped to the declared range."""
    failures: list[Mapping[str, Any]]
    """Reads that failed and were tolerated."""
    digest: str
    """Merkle root over the decoded pixels; equal for equal results, whatever the shards."""
    fingerprint: str
    """sha256 of everything that the answer depends on."""
    statistics: Mapping[str, Any]
    """What the statistics pass found."""
    notes: list[str]
    """What was chosen on the user's behalf."""
    started: str
    """When this start began (UTC)."""
    versions: Mapping[str, str]
    """Versions of what computed it."""
    workers: int = 0
    """Dask workers that took part in the last start; 0 is this process alone."""
    peak_worker_bytes: int = 0
    """Highest resident memory of the largest of them."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the caller (recipe, region)."""

    def write(self, folder: Path) -> Path:
        """Write ``report.json`` into ``folder``, atomically."""
        from tilewright.catalogs.publish import write_json

        write_json(folder / NAME, asdict(self))
        return folder / NAME

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the report of a finished run, or None where there is none."""
        path = folder / NAME
        return cls(**json.loads(path.read_text())) if path.exists() else None


def versions() -> dict[str, str]:
    """Return the versions of tilewright and of the libraries whose arithmetic a result depends on."""
    import platform
    from importlib.metadata import version

    import rasterio

    names = ("tilewright", "torch", "numpy", "rasterio", "zarr", "odc-stac", "pyproj")
    found = {name: version(name) for name in names}
    return {**found, "gdal": rasterio.__gdal_version__, "python": platform.python_version()}
