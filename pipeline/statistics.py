"""The statistics pass: a bounded sample of the whole scene, the same however it is read.

A pixel is in the sample if the hash of its global position is among the smallest. So the sample depends
neither on shards nor on their order, workers can draw it in parts, and merging parts is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, KernelError

from .grid import Window
from .progress import STATISTICS, Progress, Status
from .source import Reason
from .stream import ahead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from .grid import Shard
    from .job import Job
    from .source import Block

__all__ = [
    "Sampled",
    "gather_statistics",
    "hash_positions",
    "merge_samples",
    "noise_statistics",
    "sample_block",
]

_STRIP = 16
_ANY = (1 << 64) - 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_positions(window: Window) -> NDArray[np.uint64]:
    """Return ``[rows, columns]`` uint64: splitmix64 of (row, column), evenly spread and free of patterns."""
    rows = np.arange(window.row0, window.row1).astype(np.uint64)
    cols = np.arange(window.col0, window.col1).astype(np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(rows * GOLDEN + GOLDEN)
        return _mix(state[:, None] + cols[None, :] * GOLDEN)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finaliser (Steele, Lea and Flood 2014), in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _smallest(
    window: Window, ok: NDArray[np.bool_], size: int, bound: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return flat positions and hashes of the ``size`` pixels of smallest hash where ``ok``, all below ``bound``.

    Strip by strip, so that hashes stay in the processor's cache; with a bound 4 Mpx take 0.1 s instead of 0.4.
    """
    places, hashes = [], []
    for row in range(0, window.height, _STRIP):
        part = ok[row : row + _STRIP]
        strip = Window(window.row0 + row, window.row0 + row + len(part), window.col0, window.col1)
        found = hash_positions(strip)
        low = np.flatnonzero(part & (found <= np.uint64(bound)))
        places.append(low + row * window.width)
        hashes.append(found.ravel()[low])
    flat, chosen = np.concatenate(places), np.concatenate(hashes)
    if len(flat) > size:
        keep = np.argpartition(chosen, size)[:size]
        flat, chosen = flat[keep], chosen[keep]
    order = np.argsort(chosen, kind="stable")
    return flat[order], chosen[order]


type Sampled = tuple[NDArray[np.uint64], dict[str, NDArray[np.float64]]]
"""Hashes ``[n]`` in rising order, and input name -> values ``[n, T, C]``."""


def sample_block(job: Job, shard: Shard, block: Block, size: int, bound: int = _ANY) -> Sampled:
    """Return the sample of one shard: its ``size`` valid pixels of smallest hash, none of them above ``bound``.

    A pixel counts where all dates of all inputs are valid and it lies in the region.
    """
    at = shard.window.slices(block.window)
    ok = job.grid.inside(shard.window)
    for binding in job.bindings.values():
        ok = ok & (block.reason[binding.layer][..., *at] == Reason.VALID).all(axis=(0, 1))
    flat, hashes = _smallest(shard.window, ok, size, bound)
    rows, cols = np.divmod(flat, shard.window.width)
    values = {}
    for name, binding in job.bindings.items():
        pixels = block.data[binding.layer][..., *at][:, list(binding.channels)][:, :, rows, cols]
        values[name] = np.moveaxis(pixels, -1, 0).astype(np.float64)
    return hashes, values


def merge_samples(parts: Iterable[Sampled], size: int) -> Sampled:
    """Return the ``size`` pixels of smallest hash among ``parts``; any order and grouping gives the same."""
    found = list(parts)
    hashes = np.concatenate([h for h, _ in found])
    order = np.argsort(hashes, kind="stable")[:size]
    names = found[0][1]
    return hashes[order], {n: np.concatenate([v[n] for _, v in found])[order] for n in names}


def gather_statistics(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Read the scene once and return what the kernel's ``fit`` makes of the sample; {} if it needs none.

    ``progress`` is called whenever a shard was read.
    Values are those of the source, before ``mean`` and ``std``. Raises `InputError` where no pixel is valid.
    """
    spec = job.kernel.spec.statistics
    if spec is None or job.kernel.fit is None:
        return {}
    sample: Sampled | None = None
    shards = [s for s in job.tiling.shards(job.grid.shape) if job.grid.inside(s.window).any()]
    with ahead(((s, job.source.read(s.window)) for s in shards), "read") as blocks:
        for done, (shard, block) in enumerate(blocks, 1):
            full = sample is not None and len(sample[0]) == spec.sample
            known = int(sample[0][-1]) if full and sample else _ANY
            part = sample_block(job, shard, block, spec.sample, known)
            sample = part if sample is None else merge_samples([sample, part], spec.sample)
            del block
            if progress:
                progress(Status(STATISTICS, done, len(shards)))
    if sample is None or not len(sample[0]):
        raise InputError(
            "no pixel is valid in all dates, so there is nothing to take statistics from",
            place=f"kernel {job.kernel.spec.name}",
            remedy="check the mask, the nodata values and that the dates overlap",
        )
    found: dict[str, Any] = plain(job.kernel.fit(sample[1]))
    return found


def noise_statistics(job: Job) -> dict[str, Any]:
    """Return what the kernel's ``fit`` makes of noise in 0.1..0.9; {} if it needs no statistics, or refuses it.

    A forward that reads them can be timed with these before the scene is read.
    """
    if job.kernel.spec.statistics is None or job.kernel.fit is None:
        return {}
    noise = np.random.default_rng(0)
    samples = {
        name: noise.uniform(0.1, 0.9, (4096, binding.dates, len(binding.channels)))
        for name, binding in job.bindings.items()
    }
    try:
        found: dict[str, Any] = plain(job.kernel.fit(samples))
    except KernelError:
        return {}
    return found


def plain(found: Any) -> Any:
    """Return numpy scalars and arrays as plain numbers and lists, for the ledger and the fingerprint."""
    if isinstance(found, dict) or hasattr(found, "items"):
        return {str(k): plain(v) for k, v in found.items()}
    if isinstance(found, (list, tuple)):
        return [plain(v) for v in found]
    return found.tolist() if hasattr(found, "tolist") else found
