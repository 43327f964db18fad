"""Where a run stands: what is done, how fast it goes, and how long it will take, said no better than it is known."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .intraop import usable_cores

if TYPE_CHECKING:
    from .grid import Shard
    from .job import Job

__all__ = ["Meter", "Progress", "Status", "duration"]

RECENT = 60.0
"""Seconds over which speed and busy shares are taken; longer where fewer than `FEWEST` shards fall into them."""
FEWEST = 4
"""Shards that the recent past holds at least."""
EVIDENCE = 2
"""Shards that this start must have finished before it says how long the rest will take."""
SHARDS = "shards"
"""Name of the phase in which shards are computed; all others have the name of what is made."""
STATISTICS = "statistics"
"""Name of the pass before it."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands."""

    phase: str
    """``statistics`` where the kernel asks for them, ``shards``, then the steps of the end by name: ``pyramid``,
    ``digest``, ``COG of change``, ..."""
    done: int
    """Shards that are durable, kept ones included; of statistics, shards that were read; at the end: steps that
    are through."""
    total: int
    """Shards in all; at the end: steps."""
    kept: int = 0
    """Of the shards, those that an earlier start had finished."""
    pixels: int = 0
    """Output pixels of the durable shards."""
    pixels_total: int = 0
    """Output pixels of the run."""
    pixels_per_second: float | None = None
    """Output pixels of tiles that had to be computed, a second, in the recent past; None before there is one."""
    seconds_left: float | None = None
    """Seconds until all shards are durable, at the recent speed; the end comes after them. None where unknown."""
    cpu_busy: float | None = None
    """Share of all cores that this process kept busy in the recent past, 0..1."""
    gpu_busy: float | None = None
    """Share of the recent past that was spent in the forward, 0..1; None on a CPU."""

    def __str__(self) -> str:
        if self.phase == STATISTICS:
            return f"{self.phase}: {self.done} of {self.total} shards read"
        if self.phase != SHARDS:
            return f"{self.phase} ({self.done + 1} of {self.total} steps of the end)"
        text = [f"{self.done} of {self.total} shards" + (f" ({self.kept} kept)" if self.kept else "")]
        if self.pixels_per_second:
            text.append(f"{self.pixels_per_second / 1e6:.3g} Mpx/s")
        if self.done < self.total and self.seconds_left is not None:
            text.append(f"about {duration(self.seconds_left)} left")
        for name, share in (("CPU", self.cpu_busy), ("GPU", self.gpu_busy)):
            if share is not None:
                text.append(f"{name} {share:.0%}")
        return ", ".join(text)


type Progress = Callable[[Status], object]
"""Called whenever a shard is durable (or was read for the statistics), and before each step of the end."""


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(9.4), duration(200), duration(7000)
    ('9 s', '3 min', '1 h 57 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True, slots=True)
class _Moment:
    """What had been counted when a shard became durable."""

    at: float
    work: int
    cpu: float
    forward: float


class Meter:
    """Measures a run and says where it stands.

    The unit of speed is the output pixel of a tile that had to be computed: shards of clouds or sea, and those
    of an earlier start, cost next to nothing and must not make the rest look quick. How much of the rest must
    be computed is taken from the shards that are durable.

    Parameters
    ----------
    job
        What is run.
    shards
        All shards of the run.
    entries
        The ledger's lines by shard; read anew at every call.
    """

    def __init__(
        self,
        job: Job,
        shards: list[Shard],
        entries: Mapping[str, Mapping[str, Any]],
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._job, self._entries, self._clock = job, entries, clock
        self._shards, self._kept = len(shards), len(entries)
        self._counted = 0
        self._pixels = self._seen = self._work = 0
        self._wanted = _pixels_in_region(job, shards)
        scale = job.kernel.spec.scale
        self._tile = (job.tiling.core * scale) ** 2
        self._pixels_total = job.output_grid.window.size
        self._left = sum(self._wanted.values())
        self._moments: deque[_Moment] = deque()
        self._finished = 0
        self._count()

    def begin(self, forward_seconds: float = 0.0) -> None:
        """Begin, or go on after a pause that counts for nothing."""
        self._moments.clear()
        self._moments.append(self._moment(forward_seconds))
        self._finished = 0

    def status(self, forward_seconds: float = 0.0) -> Status:
        """Count the shards that have become durable since the last call, and say where the run stands."""
        new = self._count()
        self._finished += new
        if new:
            self._moments.append(self._moment(forward_seconds))
            if self._finished == EVIDENCE + 1:
                self._moments.popleft()  # the time until the first shard is that of filling the pipeline
        while len(self._moments) > FEWEST and self._moments[-1].at - self._moments[1].at > RECENT:
            self._moments.popleft()
        return self._told()

    def _count(self) -> int:
        """Count the lines that are new; lines are only ever added at the end."""
        new = list(islice(self._entries, self._counted, None))
        for name in new:
            entry, wanted = self._entries[name], self._wanted.get(name, 0)
            self._left -= wanted
            self._seen += wanted
            self._pixels += int(entry["pixels"])
            self._work += min(int(entry["tiles_needed"]) * self._tile, int(entry["pixels"]))
        self._counted += len(new)
        return len(new)

    def _told(self) -> Status:
        first, last = self._moments[0], self._moments[-1]
        wall = last.at - first.at
        speed = (last.work - first.work) / wall if wall > 0 else 0.0
        on_gpu = self._job.settings.device != "cpu"
        return Status(
            phase=SHARDS,
            done=self._counted,
            total=self._shards,
            kept=self._kept,
            pixels=self._pixels,
            pixels_total=self._pixels_total,
            pixels_per_second=speed or None,
            seconds_left=self._seconds_left(speed),
            cpu_busy=min(1.0, (last.cpu - first.cpu) / wall / usable_cores()) if wall > 0 else None,
            gpu_busy=min(1.0, (last.forward - first.forward) / wall) if wall > 0 and on_gpu else None,
        )

    def _seconds_left(self, speed: float) -> float | None:
        if not self._left:
            return 0.0
        if self._finished < EVIDENCE or not speed:
            return None
        return self._left * (self._work / self._seen) / speed if self._seen else None

    def _moment(self, forward_seconds: float) -> _Moment:
        cpu = os.times()
        return _Moment(self._clock(), self._work, cpu.user + cpu.system, forward_seconds)


def _pixels_in_region(job: Job, shards: list[Shard]) -> dict[str, int]:
    """Return the output pixels of every shard that touches the region; those beyond it cost nothing."""
    grid, scale = job.grid, job.kernel.spec.scale
    touched = shards
    if grid.region is not None:
        import numpy as np
        import shapely

        boxes = []
        for shard in shards:
            w = shard.window
            corners = ((w.col0, w.row0), (w.col1, w.row0), (w.col1, w.row1), (w.col0, w.row1))
            boxes.append(shapely.Polygon([grid.geobox.affine * corner for corner in corners]))
        hits = shapely.intersects(np.array(boxes), grid.region)
        touched = [shard for shard, hit in zip(shards, hits, strict=True) if hit]
    return {shard.name: shard.window.size * scale**2 for shard in touched}
