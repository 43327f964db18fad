"""The plan: what a run will read, compute, hold and write, from headers alone, and whether it fits."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import GridError, PlanError

from .job import Job, prepare
from .memory import Memory, available_memory, projected_memory, resident_bytes
from .probes import batch_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilewright.kernels.contract import OutputSpec

__all__ = ["Choice", "Plan", "compare_tiles", "make_plan"]

MOST_SHARDS = 10_000
"""Orchestrated units of one run: schedulers begin to suffer above (dask/distributed #3898)."""


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    shape: tuple[int, int]
    """Rows and columns of the outputs."""
    pixels: int
    """Output pixels."""
    shards: int
    """Units of writing, and of tasks."""
    tiles: int
    """Tiles that the grid holds; empty ones will not be computed."""
    tile: int
    """Pixels a side that the kernel sees."""
    core: int
    """Pixels a side that belong to a tile."""
    halo: int
    """Pixels a side read around the core."""
    stride: int
    """The kernel's stride."""
    shard_size: int
    """Pixels a side of a shard, in input pixels."""
    stitch: str
    """``cut`` or ``blend``."""
    batch: int
    """Tiles a forward."""
    threads: int
    """Intra-op threads."""
    lanes: int
    """Batches that the kernel computes side by side."""
    device: str
    """Where the kernel runs."""
    waste: float
    """Pixels computed per pixel kept."""
    passes: int
    """Times the source is read: 2 with a statistics pass."""
    bytes_read: int
    """Decoded bytes that will be read, halos included."""
    bytes_written: int
    """Bytes of the outputs before compression, Zarr and COG, with their pyramids."""
    scratch_bytes: int
    """Most bytes beside the outputs while COGs are written: what their tiles take before compression."""
    memory: Memory
    """Projected peak, by cause."""
    memory_allowed: int
    """Bytes that the run may use."""
    seconds_forward: float
    """Seconds of inference: one batch was timed, alone."""
    notes: tuple[str, ...]
    """What was chosen and why, a sentence each."""

    def check(self) -> None:
        """Raise `PlanError` where the run would not fit, with the largest term and what to turn."""
        if self.memory.total > self.memory_allowed:
            floor = self.memory.reserved + self.memory.gdal_cache
            terms = {k: v for k, v in asdict(self.memory).items() if k not in ("reserved", "gdal_cache")}
            worst = max(terms, key=lambda k: terms[k])
            knob = {
                "reads": "a smaller --shard",
                "batch": "a smaller --batch",
                "forward": "a smaller --batch or --tile",
                "stitching": "a smaller --shard",
                "shard": "a smaller --shard",
                "overviews": "a smaller --shard",
            }[worst]
            if floor >= self.memory_allowed:
                raise PlanError(
                    f"the run would need {self.memory.total / 2**20:,.0f} MiB and may use"
                    f" {self.memory_allowed / 2**20:,.0f} MiB; the libraries, the weights and GDAL's cache alone"
                    f" take {floor / 2**20:,.0f} MiB",
                    place="plan",
                    remedy="allow more by --memory",
                )
            raise PlanError(
                f"the run would need {self.memory.total / 2**20:,.0f} MiB, of which {worst}"
                f" {terms[worst] / 2**20:,.0f} MiB, and may use {self.memory_allowed / 2**20:,.0f} MiB",
                place="plan",
                remedy=f"use {knob}, or allow more by --memory",
            )
        if self.shards > MOST_SHARDS:
            raise PlanError(
                f"{self.shards:,} shards are more than {MOST_SHARDS:,}",
                place="plan",
                remedy="use a larger --shard",
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, with the sum of the memory terms."""
        return {**asdict(self), "projected_memory_bytes": self.memory.total}


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of ``plan --table``: a tile, a batch, and what they cost."""

    tile: int
    """Pixels a side that the kernel would see."""
    batch: int
    """Tiles a forward."""
    waste: float
    """Pixels computed per pixel kept."""
    memory: int
    """Projected peak in bytes."""
    seconds: float
    """Seconds of inference for the whole grid, from one timed batch."""
    fits: bool
    """True where the memory allowed is enough."""
    best: bool = False
    """True for the fastest that fits."""


def make_plan(job: Job, allowed: int | None = None, notes: Sequence[str] = ()) -> Plan:
    """Return the plan of ``job``. Reads no pixel; times one batch of zeros.

    Parameters
    ----------
    job
        What is run. Of the batches that its cores allow side by side there are as many as fit into the memory.
    allowed
        Bytes that the process may use, itself included; None: what the settings say, or what the machine has free.
    notes
        What there is to say besides.
    """
    spec, tiling = job.kernel.spec, job.tiling
    shape = job.output_grid.shape
    tiles = math.prod(tiling.count(n) for n in job.grid.shape)
    shards = math.prod(math.ceil(n / tiling.shard) for n in job.grid.shape)
    out = [o for o in spec.outputs.values() if o.is_raster]
    stored = sum(o.band_count * np.dtype(o.stored_dtype).itemsize for o in out)
    batch = job.settings.batch or 1
    forward, seconds = batch_cost(job)
    allowed = allowed or job.settings.memory or resident_bytes() + available_memory()
    job, memory = _fitted(job, forward, allowed)
    passes = 2 if spec.statistics else 1
    halo_share = min(4.0, ((tiling.shard + 2 * tiling.halo) / tiling.shard) ** 2)
    read = math.prod(job.grid.shape) * job.bytes_per_pixel
    return Plan(
        shape=shape,
        pixels=math.prod(shape),
        shards=shards,
        tiles=tiles,
        tile=tiling.tile,
        core=tiling.core,
        halo=tiling.halo,
        stride=tiling.stride,
        shard_size=tiling.shard,
        stitch=job.settings.stitch or "cut",
        batch=batch,
        threads=job.settings.threads or 1,
        lanes=job.lanes,
        device=job.settings.device,
        waste=tiling.waste(),
        passes=passes,
        bytes_read=int(read * (halo_share if shards > 1 else 1)) + (read if passes == 2 else 0),
        bytes_written=int(math.prod(shape) * (stored * 2 + 1) * 4 / 3),
        scratch_bytes=int(math.prod(shape) * _scratch_pixel_bytes(out) * 4 / 3),
        memory=memory,
        memory_allowed=allowed,
        seconds_forward=math.ceil(math.ceil(tiles / batch) / job.lanes) * seconds,
        notes=(*job.notes, *notes),
    )


def _fitted(job: Job, forward: int, allowed: int) -> tuple[Job, Memory]:
    """Return the job with as many batches side by side as fit, and its memory; where none does, with one."""
    reserved = resident_bytes()
    for count in range(job.lanes, 0, -1):
        one = job.with_lanes(count)
        memory = projected_memory(one, forward, reserved)
        if memory.total <= allowed:
            break
    return one, memory


def _scratch_pixel_bytes(rasters: list[OutputSpec]) -> int:
    """Return bytes a pixel beside the outputs: the tiles of all COGs wait in scratch files, compressed at best."""
    return sum(o.band_count * np.dtype(o.stored_dtype).itemsize for o in rasters)


def compare_tiles(
    job: Job, tiles: Sequence[int] = (128, 256, 512, 1024), batches: Sequence[int] = (1, 4, 16)
) -> list[Choice]:
    """Return what other tiles and batches would cost, the fastest that fits marked.

    Sides that the kernel does not take, that leave no core, or whose batch exceeds 1 Mpx are left out.
    """
    rows: list[Choice] = []
    for tile in sorted({*tiles, job.tiling.tile}):
        for batch in sorted({*batches, job.settings.batch or 1}):
            if tile * tile * batch > 1 << 20 and (tile, batch) != (job.tiling.tile, job.settings.batch):
                continue
            wish = replace(job.settings, tile=tile, batch=batch, shard=job.tiling.shard)
            try:
                other = prepare(job.kernel, job.source, wish)
            except GridError:
                continue
            plan = make_plan(replace(other, statistics=job.statistics))
            rows.append(
                Choice(
                    plan.tile,
                    batch,
                    plan.waste,
                    plan.memory.total,
                    plan.seconds_forward,
                    plan.memory.total <= plan.memory_allowed,
                )
            )
    fitting = [r for r in rows if r.fits]
    best = min(fitting, key=lambda r: r.seconds, default=None)
    return [replace(r, best=r is best) for r in rows]
