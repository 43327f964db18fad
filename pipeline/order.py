"""In which order one process takes its shards, so that a block that several of them read is decoded about once.

A shard's window reaches a halo beyond it, and with it whole blocks of the file: at 2,048 px, a halo of 64 and
blocks of 512 px, 36 blocks for 16. Neighbours in a row find them in GDAL's cache. The row below does where the
cache still holds everything read since: a row of shards. So rows are cut into panels, as wide as the cache
allows, and panels are swept from left to right, each of them row by row.

Measured (16,384 x 6,144 px, uint16, 4 bands, halo 64; bytes decoded / bytes of the file): row-major with a
cache of 128 MiB 1.33, panels of two shards 1.19; where a whole row fits 1.00. A panel of k shards pays its edges:
about 1 + 512 / (k 2,048).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .grid import Shard
    from .job import Job

__all__ = ["LEAST_CACHE", "MOST_CACHE", "cache_bytes", "in_order", "panel_width"]

LEAST_CACHE = 128 << 20
"""Bytes of GDAL's block cache that a run has at least; GDAL's own default is 5 % of the machine."""
MOST_CACHE = 256 << 20
"""Bytes that it has at most, however wide the raster: and an eighth of what the run may use, where it is told."""
_BLOCKS = 1024
"""Pixels that whole blocks on both sides add to a window: blocks of 512 px, as COGs have them."""


def _panel_bytes(job: Job, width: int) -> int:
    """Return what must be held so that the next row of a panel of ``width`` shards finds its blocks."""
    rows, cols = job.grid.shape
    across = min(width * job.tiling.shard + _BLOCKS, cols)
    return across * min(job.tiling.shard + _BLOCKS, rows) * job.bytes_per_pixel


def _most(job: Job) -> int:
    allowed = job.settings.memory
    return MOST_CACHE if allowed is None else max(LEAST_CACHE, min(MOST_CACHE, allowed // 8))


def _rows_share_blocks(job: Job) -> bool:
    return job.tiling.halo > 0 and job.grid.shape[0] > job.tiling.shard


def panel_width(job: Job) -> int:
    """Return how many shards a panel is wide: all of a row where they fit, or where not even two do."""
    columns = math.ceil(job.grid.shape[1] / job.tiling.shard)
    if not _rows_share_blocks(job):
        return columns
    wide = [k for k in range(2, columns + 1) if _panel_bytes(job, k) <= _most(job)]
    return wide[-1] if wide else columns


def cache_bytes(job: Job) -> int:
    """Return the bytes of GDAL's block cache that the run's order of shards counts on."""
    needed = _panel_bytes(job, panel_width(job))
    return max(LEAST_CACHE, needed) if _rows_share_blocks(job) and needed <= _most(job) else LEAST_CACHE


def in_order(job: Job, shards: Iterable[Shard]) -> list[Shard]:
    """Return ``shards`` panel by panel, in each of them row by row.

    A shard comes after its neighbours above, to the left and diagonally so, which blending needs.
    """
    width = panel_width(job)
    return sorted(shards, key=lambda s: (s.index[1] // width, s.index))
