"""Proof of a result: shards are computed again, read back, and compared with the ledger.

Each of the three has a digest; where one differs from the other two, that one is named. It costs a run's
memory, and of its time the share of shards that are checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import ReadError

from .digest import shard_digest
from .engine import Engine
from .order import LEAST_CACHE
from .store import REASON

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .grid import Shard, Window
    from .job import Job
    from .stored import StoredRasters

__all__ = ["OutputMismatch", "ShardCheck", "check_shards"]


@dataclass(frozen=True, slots=True)
class OutputMismatch:
    """How an output of a shard differs between what is stored and what was computed again."""

    output: str
    """Its name, or ``reason``."""
    stored_in: str
    """``zarr`` or ``cog``."""
    pixels: int
    """Pixels that differ."""
    largest: float | None
    """Largest |difference| where both have a value, in units of the output; None for labels."""


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What was found of one shard."""

    shard: str
    """Name, ``row.column``."""
    window: Window
    """Its output pixels."""
    ledger: str
    """Digest that the ledger holds."""
    recomputed: str | None
    """Digest of what was computed again; None where nothing was."""
    stored: str | None
    """Digest of what was read back; None where it could not be, or a COG alone cannot have one."""
    odd: tuple[str, ...] = ()
    """Who disagrees: ``ledger``, ``recomputed``, ``stored``, ``cog``; of two that differ both, for nobody can say."""
    outputs: tuple[OutputMismatch, ...] = ()
    """Outputs that differ, where the shard was computed again."""
    problem: str | None = None
    """Why what is stored could not be read."""

    @property
    def equal(self) -> bool:
        """True where nothing disagrees."""
        return not self.odd and self.problem is None

    def __str__(self) -> str:
        w = self.window
        place = f"shard {self.shard} (rows {w.row0}..{w.row1 - 1}, columns {w.col0}..{w.col1 - 1})"
        if self.equal:
            return f"{place}: equal"
        told = [self.problem] if self.problem else []
        if self.odd:
            verb = "differs from the others" if len(self.odd) == 1 else "disagree"
            told.append(f"{' and '.join(self.odd)} {verb}")
        for one in self.outputs:
            by = "" if one.largest is None else f" by at most {one.largest:.6g}"
            told.append(f"{one.pixels:,} pixels of {one.output} in the {one.stored_in} differ{by}")
        return f"{place}: {'; '.join(told)}"


def check_shards(
    job: Job | None,
    shards: list[Shard],
    scale: int,
    entries: Mapping[str, Mapping[str, Any]],
    zarr: StoredRasters | None,
    cogs: StoredRasters | None,
) -> Iterator[ShardCheck]:
    """Check shards one after another.

    Parameters
    ----------
    job
        The run, with its statistics; None reads back alone.
    shards
        Which, in input pixels; each has a line in the ledger.
    scale
        Output pixels an input pixel, along a side.
    entries
        The ledger's lines.
    zarr, cogs
        What is stored; None where that form was not kept.
    """
    import rasterio

    for shard in shards:
        with rasterio.Env(GDAL_CACHEMAX=LEAST_CACHE):
            yield _check(job, shard, shard.window.times(scale), entries[shard.name]["digest"], zarr, cogs)


def _check(
    job: Job | None,
    shard: Shard,
    window: Window,
    ledger: str,
    zarr: StoredRasters | None,
    cogs: StoredRasters | None,
) -> ShardCheck:
    fresh = None if job is None else _computed(job, shard)
    recomputed = None if fresh is None else shard_digest(fresh)
    problems: list[str] = []
    mismatches: list[OutputMismatch] = []
    digests: dict[str, str | None] = {"ledger": ledger, "recomputed": recomputed}
    for name, rasters in (("stored", zarr), ("cog" if zarr else "stored", cogs)):
        if rasters is None:
            continue
        kind = "zarr" if rasters is zarr else "cog"
        try:
            there = {output: rasters.read(output, window) for output in rasters.layers}
        except ReadError as error:
            problems.append(str(error))
            continue
        if fresh is not None:
            mismatches += _mismatches(rasters, kind, there, fresh)
        if (
            REASON not in there
        ):  # a COG holds no reasons: with those of the Zarr, or the computed ones, it is whole
            there = _with_reasons(there, window, zarr, fresh)
        digests[name] = shard_digest(there) if REASON in there else None
    return ShardCheck(
        shard.name,
        window,
        ledger,
        recomputed,
        digests.get("stored"),
        _odd(digests),
        tuple(mismatches),
        "; ".join(problems) or None,
    )


def _computed(job: Job, shard: Shard) -> dict[str, NDArray[Any]]:
    """Compute one shard; of its neighbours the tiles that reach into it, where tiles are blended."""
    (result,) = Engine(job, [shard]).run([shard])
    return {**result.arrays, REASON: result.reason[None]}


def _with_reasons(
    there: dict[str, NDArray[Any]],
    window: Window,
    zarr: StoredRasters | None,
    fresh: Mapping[str, NDArray[Any]] | None,
) -> dict[str, NDArray[Any]]:
    if zarr is not None:
        return {**there, REASON: zarr.read(REASON, window)}
    return there if fresh is None else {**there, REASON: fresh[REASON]}


def _mismatches(
    rasters: StoredRasters, kind: str, there: Mapping[str, NDArray[Any]], fresh: Mapping[str, NDArray[Any]]
) -> Iterator[OutputMismatch]:
    for name, layer in rasters.layers.items():
        a, b = there[name], fresh[name]
        in_a, in_b = layer.valid(a), layer.valid(b)
        both = in_a & in_b
        differs = ((in_a != in_b) | (both & (a != b))).any(axis=0)
        if differs.any():
            far = layer.distance(a, b)[both]
            yield OutputMismatch(
                name,
                kind,
                int(differs.sum()),
                None if layer.labels or not far.size else float(np.nanmax(far)),
            )


def _odd(digests: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return who is not with the majority; without a majority, all."""
    known = {name: digest for name, digest in digests.items() if digest is not None}
    counts = Counter(known.values()).most_common()
    if len(counts) < 2:
        return ()
    clear = counts[0][1] > counts[1][1]
    return tuple(name for name, digest in known.items() if not clear or digest != counts[0][0])
