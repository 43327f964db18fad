"""What a batch costs, remembered: by kernel, tile, batch and arithmetic, across processes.

A probe is a real batch, which for a small raster and a large model is all the work there is; so it is made
once a machine. The file is a cache: losing it costs a probe.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.errors import StoreError

from .memory import probe_forward

if TYPE_CHECKING:
    from .job import Job

__all__ = ["batch_cost"]

MADE = "2"
"""Changes with the way of measuring, so that older numbers are not taken."""
MOST = 500
"""Entries kept; the oldest go first."""


def batch_cost(job: Job) -> tuple[int, float]:
    """Return bytes by which one batch raises the memory, and its seconds."""
    s = job.settings
    shapes = ";".join(f"{name}:{b.dates}x{len(b.channels)}" for name, b in sorted(job.bindings.items()))
    versions = ",".join(job.fingerprint["arithmetic"]["versions"].values())
    parts = (
        MADE,
        job.kernel.digest,
        job.tiling.tile,
        shapes,
        s.batch,
        s.threads,
        s.device,
        s.precision,
        versions,
    )
    key = "|".join(str(part) for part in parts)
    known = _read()
    if key in known:
        size, seconds = known[key]
        return int(size), float(seconds)
    found = probe_forward(job)
    _write({**_read(), key: found})
    return found


def _path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tilewright" / "probes.json"


def _read() -> dict[str, tuple[int, float]]:
    try:
        content = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(entries: dict[str, tuple[int, float]]) -> None:
    from tilewright.catalogs.publish import write_json

    try:
        write_json(_path(), dict(list(entries.items())[-MOST:]))
    except StoreError:
        return  # a cache that can not be written is no cache
