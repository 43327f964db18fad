"""The memory promise: one short function with named terms, and the probe that feeds it."""

from __future__ import annotations

import ctypes
import math
import threading
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Self

import numpy as np

from .batches import spanned_shards
from .margins import MARGIN_BYTES
from .order import cache_bytes

if TYPE_CHECKING:
    from tilewright.kernels.contract import OutputSpec

    from .job import Job

__all__ = ["Memory", "PeakMemory", "available_memory", "probe_forward", "projected_memory"]

FREE_LISTS = 1.25
"""What allocators and threads keep beyond the arrays themselves: an allowance. Peaks beside projections are in
docs/guides/memory.md."""


LIBRARIES = 128 << 20
"""What is loaded only while a run goes on: code of torch, GDAL and Zarr that is touched for the first time (50 MiB of
file pages), modules (60 MiB), and the arenas of the threads."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Projected peak of one worker in bytes, by cause."""

    reserved: int
    """The process with its libraries and the kernel's weights, before the run; and 128 MiB that are loaded in it."""
    gdal_cache: int
    """Decoded blocks that GDAL keeps."""
    reads: int
    """Read windows in flight: the one being cut into tiles and the one read ahead, and what reading them takes."""
    batch: int
    """Batches on their way: being cut, ready, waiting, in the kernel; and the outputs of those that are through."""
    forward: int
    """Activations of the batches that are computed side by side."""
    stitching: int
    """Shards being put together (as many as a batch spans): sums and margins if blended, stored values if cut."""
    shard: int
    """Finished shards: being written, waiting, and encoded."""
    overviews: int
    """The end: what two threads hold of the pyramid, then of the squares that become digest and COG tiles."""

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(asdict(self).values())


def projected_memory(job: Job, forward: int, reserved: int) -> Memory:
    """Return the peak memory of a run. No term grows with the raster.

    Parameters
    ----------
    job
        What is run.
    forward
        Bytes by which one batch raises the memory (`probe_forward`).
    reserved
        Bytes of the process before the run.
    """
    spec, tiling, scale = job.kernel.spec, job.tiling, job.kernel.spec.scale
    n, t, lanes = job.settings.batch or 1, tiling.tile, job.lanes
    rows, cols = job.grid.shape
    height, width = (min(tiling.shard, length) for length in (rows, cols))
    window = min(height + 2 * tiling.halo, rows) * min(width + 2 * tiling.halo, cols)
    planes = sum(b.dates * len(b.channels) for b in job.bindings.values())
    rasters = [o for o in spec.outputs.values() if o.is_raster]
    channels = sum(max(o.forward_channels) for o in rasters)
    pixels = height * width * scale**2
    stored = sum(o.band_count * np.dtype(o.stored_dtype).itemsize for o in rasters) + 1
    opened = spanned_shards(job)
    if job.blends:
        reach = (height + tiling.overlap) * (width + tiling.overlap) * scale**2
        sums = (3 * channels + len(rasters)) * 4
        stitching = opened * reach * sums + MARGIN_BYTES + pixels * 8 * 2
    else:
        stitching = opened * pixels * stored
    return Memory(
        reserved=reserved + LIBRARIES,
        gdal_cache=cache_bytes(job),
        reads=int(2 * window * job.bytes_per_pixel * FREE_LISTS)
        + getattr(job.source, "scratch_bytes", 0)
        + window * getattr(job.source, "scratch_pixel_bytes", 0),
        batch=int(
            n * t * t * 4 * ((3 + 2 * lanes) * planes + (1 + lanes) * channels * scale**2) * FREE_LISTS
        ),
        forward=int(lanes * forward * FREE_LISTS),
        stitching=int(stitching * FREE_LISTS),
        shard=int(4 * pixels * stored + 2 * pixels),
        overviews=_end(rasters, (rows * scale, cols * scale), (height * scale, width * scale)) + (96 << 20),
    )


def _end(rasters: list[OutputSpec], shape: tuple[int, int], shard: tuple[int, int]) -> int:
    """Return what two threads hold at the end: building the pyramid, or sweeping for digest and COGs after it."""
    from .sweep import square_side

    layers = [o.band_count * np.dtype(o.stored_dtype).itemsize for o in rasters]
    stored = sum(layers) + 1
    square = math.prod(min(square_side(stored), length) for length in shape) * stored
    # A square as read, decoded, encoded and on its way to the scratch file; a shard, its source and its encoding.
    level = math.prod(min(side, -(-length // 2)) for side, length in zip(shard, shape, strict=True))
    return 2 * max(4 * square, 3 * level * max(layers, default=1))


def available_memory() -> int:
    """Return bytes that this machine can still give, within the limit of its control group if there is one."""
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


def probe_forward(job: Job) -> tuple[int, float]:
    """Run one batch of zeros; return how far it raised the resident memory in bytes, and the seconds it took.

    The real batch on the real allocator: convolution libraries hold operands in layouts of their own, which no
    count of tensors sees. The time is that of a second batch, unless the first one took over two seconds.

    It is also the first call of the forward: raises `KernelError` that names the line where it fails.
    """
    from .batches import blank_batch
    from .forward import Forward
    from .statistics import noise_statistics

    if not job.statistics:
        job = job.with_statistics(noise_statistics(job))
    job = job.with_lanes(1)
    forward, batch = Forward(job), blank_batch(job)
    _give_back()
    before = resident_bytes()
    with PeakMemory() as memory:
        for _ in range(2):
            started = perf_counter()
            deque(forward.run([batch]), maxlen=0)
            seconds = perf_counter() - started
            if seconds > 2:
                break
    return max(0, memory.peak - before), seconds


def _give_back() -> None:
    """Make the allocator return what is free to the system, where it is glibc's.

    What a process has freed and keeps would hide that much of a batch, and the number is remembered for other
    processes, which have not kept anything: a network was projected at 1,263 MiB and took 1,643.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Watches the resident memory of this process and its children.

    The peak of this process is the operating system's own high-water mark where Linux lets us reset it;
    children, and this process elsewhere, are sampled four times a second. Which children there are is looked up
    every two seconds: that walks the whole process table, 4 ms of work that would slow a kernel by 1.5 %.

    Parameters
    ----------
    children
        False leaves them out: Dask workers that the run starts are measured each by itself. Processes that were
        there before are never counted.
    """

    INTERVAL = 0.25
    LOOK = 2.0

    def __init__(self, *, children: bool = True) -> None:
        self._children = children
        self._strangers: set[int] = set()
        self._sampled = 0
        self._marked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tilewright-rss", daemon=True)

    def __enter__(self) -> Self:
        import psutil

        self._strangers = {child.pid for child in psutil.Process().children(recursive=True)}
        _give_back()  # as the probe does: else the peak would be that of the moment before it
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets VmHWM
            self._marked = True
        except OSError:
            self._marked = False
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """Highest number of bytes seen so far."""
        mark = 0
        if self._marked:
            status = Path("/proc/self/status").read_text()
            mark = int(status.split("VmHWM:")[1].split()[0]) << 10
        return max(self._sampled, mark)

    def _watch(self) -> None:
        import psutil

        process, children, looked = psutil.Process(), [], -math.inf
        while True:
            if self._children and monotonic() - looked >= self.LOOK:
                looked = monotonic()
                children = [c for c in process.children(recursive=True) if c.pid not in self._strangers]
            total = process.memory_info().rss
            for child in children:
                with suppress(psutil.Error):
                    total += child.memory_info().rss
            self._sampled = max(self._sampled, total)
            if self._stop.wait(self.INTERVAL):
                return
