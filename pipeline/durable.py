"""A finished shard made durable, and what the ledger shall say of it: the same here and on a worker."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError

from .digest import shard_digest
from .failures import as_plain
from .grid import Shard
from .source import Reason

if TYPE_CHECKING:
    from .assembly import ShardResult
    from .job import Job
    from .store import ResultStore

__all__ = ["FINGERPRINT", "is_current", "write_shard"]

FINGERPRINT = "tilewright:fingerprint"
"""Root attribute of a result's Zarr: of which run it is."""


def write_shard(job: Job, store: ResultStore, result: ShardResult) -> tuple[str, dict[str, Any]]:
    """Write a shard whole; return its name and the facts for its line in the ledger.

    Written twice, by a worker that was given up and by the one that took its place, it has the same bits, and no
    reader ever sees half of it: Zarr's local store writes beside and renames, an object store puts an object
    whole.
    """
    window = result.shard.window.times(job.kernel.spec.scale)
    store.write(Shard(result.shard.index, window), result.arrays, result.reason)
    counts = np.bincount(result.reason.ravel(), minlength=len(Reason))
    return result.shard.name, {
        "digest": shard_digest({**result.arrays, "reason": result.reason}),
        "pixels": int(result.reason.size),
        "reasons": {Reason(code).name.lower(): int(n) for code, n in enumerate(counts) if n},
        "tiles": result.tiles,
        "tiles_needed": result.tiles_needed,
        "bytes_read": result.bytes_read,
        "seconds_read": round(result.seconds_read, 4),
        "seconds": round(perf_counter() - result.begun, 4),
        "pixels_forward": result.pixels_forward,
        "seams": result.seams,
        "clipped": result.clipped,
        "failures": as_plain(result.failures),
        "statistics": _value_statistics(result, job),
    }


def is_current(store: ResultStore, fingerprint: str) -> bool:
    """True while the unpublished result at ``store`` is that of the run with this fingerprint."""
    try:
        found = store.attrs
    except (FileNotFoundError, StoreError):
        return False
    return bool(found.get(FINGERPRINT, fingerprint) == fingerprint)


def _value_statistics(result: ShardResult, job: Job) -> dict[str, Any]:
    """Least, largest and mean of the stored values of each output, valid pixels only."""
    found: dict[str, Any] = {}
    for name, spec in job.kernel.spec.outputs.items():
        values = result.arrays[name]
        nodata = spec.stored_nodata
        good = values[~np.isnan(values)] if np.isnan(nodata) else values[values != nodata]
        if good.size:
            mean = float(good.mean(dtype=np.float64))
            found[name] = {"min": float(good.min()), "max": float(good.max()), "mean": mean}
    return found
