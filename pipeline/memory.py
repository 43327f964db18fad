"""The memory promise: one short function with named terms, and the probe that feeds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .job import Job

__all__ = ["GDAL_CACHE", "Memory", "available_memory", "probe_activations", "projected_memory"]

GDAL_CACHE = 128 << 20
"""GDAL's block cache in bytes while a run reads; its own default is 5 % of the machine."""
FREE_LISTS = 1.25
"""Share kept by allocators and by threads beyond the arrays themselves; measured, see docs/memory.md."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Projected peak of one worker in bytes, by cause."""

    reserved: int
    """The process with its libraries and the kernel's weights, before the run."""
    gdal_cache: int
    """Decoded blocks that GDAL keeps."""
    reads: int
    """Read windows in flight: the one being cut into tiles and the one read ahead."""
    batch: int
    """Tiles as cut, stacked, normalised and filled."""
    forward: int
    """Activations of one batch."""
    stitching: int
    """Shards being put together: accumulators when blending (with their margins), planes when cutting."""
    shard: int
    """Finished shards: being written, waiting, and encoded."""
    overviews: int
    """The strip of the pyramid and the COG that is worked on at the end."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())


def projected_memory(job: Job, activations: int, reserved: int) -> Memory:
    """Return the peak memory of a run. No term depends on the raster but the margins of a blended row.

    Parameters
    ----------
    job
        What is run.
    activations
        Bytes of one tile's activations (`probe_activations`).
    reserved
        Bytes of the process before the run.
    """
    spec, tiling, scale = job.kernel.spec, job.tiling, job.kernel.spec.scale
    n, t = job.settings.batch or 1, tiling.tile
    rows, cols = job.grid.shape
    height, width = (min(tiling.shard, length) for length in (rows, cols))
    window = min(height + 2 * tiling.halo, rows) * min(width + 2 * tiling.halo, cols)
    planes = sum(len(range(b.dates)) * len(b.channels) for b in job.bindings.values())
    rasters = [o for o in spec.outputs.values() if o.is_raster]
    channels = sum(max(o.forward_channels) for o in rasters)
    pixels = height * width * scale**2
    if job.blends:
        reach = (height + tiling.overlap) * (width + tiling.overlap) * scale**2
        margin = cols * tiling.overlap * scale**2
        stitching = (2 * reach + margin) * (3 * channels + len(rasters)) * 4 + pixels * 8 * 2
    else:
        stitching = 2 * pixels * channels * 4
    stored = sum(o.band_count * np.dtype(o.stored_dtype).itemsize for o in rasters) + 1
    return Memory(
        reserved=reserved,
        gdal_cache=GDAL_CACHE,
        reads=int(2 * window * _reading(job) * FREE_LISTS),
        batch=int(4 * n * planes * t * t * 4 * FREE_LISTS),
        forward=int(n * activations * FREE_LISTS),
        stitching=int(stitching * FREE_LISTS),
        shard=int(4 * pixels * stored + 2 * pixels),
        overviews=32 * 1024 * tiling.shard * scale + (64 << 20),
    )


def _reading(job: Job) -> int:
    """Bytes a pixel while a window is read: what the source says of itself, else what it returns."""
    own = getattr(job.source, "bytes_per_pixel_while_reading", None)
    return max(own or 0, job.bytes_per_pixel)


def available_memory() -> int:
    """Return bytes that this machine can still give, within the limit of its control group if there is one."""
    from pathlib import Path

    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return free
    return min(free, max(0, int(text) - used)) if text.isdigit() else free


def resident_bytes() -> int:
    """Return the resident set of this process in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def probe_activations(job: Job) -> int:
    """Return the peak bytes of live tensors in a forward of one tile of zeros, twice over.

    Every operator's results are watched (`torch.utils._python_dispatch.TorchDispatchMode`), so the number is
    the same each time and needs no quiet machine. Twice, because convolution libraries reorder their operands
    into blocked copies of the same size, which torch does not see.
    """
    from .forward import Forward, blank_samples, torch_threads

    forward = Forward(job, size=1)
    with torch_threads(job.settings.threads or 1), _live_bytes() as live:
        for _ in forward.run(blank_samples(job, 1)):
            pass
    return 2 * live.peak


def _live_bytes() -> Any:
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, tuple[Any, int]] = {}
            self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
                    storage = leaf.untyped_storage()
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
            return result

    return LiveBytes()
