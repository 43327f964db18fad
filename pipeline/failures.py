"""Reads that failed and were tolerated: of which shards they are, and which shards to compute again for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .grid import Window

if TYPE_CHECKING:
    from .grid import Shard
    from .job import Job
    from .source import Source

__all__ = ["Failure", "failures_of", "forget_failures", "merge_failures", "shards_to_redo"]

KEPT = 20
"""Most failures that a shard's line of the ledger lists; a server that is away fails once an Item and window."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A read that failed after its retries, in a run that was told to go on (``on_error="reason"``)."""

    source: str
    """Id of the Item, or the file."""
    window: Window
    """The grid pixels that were wanted."""
    message: str
    """Place, cause and remedy."""


def failures_of(job: Job, shard: Shard) -> list[Failure]:
    """Return the source's failures that may have touched ``shard``: those whose window meets what it reads.

    Its own read and those of its neighbours overlap, so one of a neighbour may be among them; none of its own
    is missing.
    """
    found: Iterable[Failure] = list(getattr(job.source, "failures", ()))
    if not found:
        return []
    spans = [shard.window, *(t.read for t in (*job.tiles(shard), *job.incoming(shard)))]
    span = Window(
        max(0, min(w.row0 for w in spans)),
        max(w.row1 for w in spans),
        max(0, min(w.col0 for w in spans)),
        max(w.col1 for w in spans),
    )
    return [failure for failure in found if failure.window.overlap(span) is not None]


def forget_failures(source: Source) -> int:
    """Empty the source's list of failures and return how many there were; it belongs to one run at a time."""
    found = getattr(source, "failures", None)
    if not found:
        return 0
    count = len(found)
    del found[:count]
    return count


def as_plain(failures: Iterable[Failure]) -> list[dict[str, Any]]:
    """Return failures as the ledger keeps them, each message once, at most `KEPT` of them."""
    once = {(f.source, f.window): f for f in failures}
    return [asdict(failure) for failure in list(once.values())[:KEPT]]


def merge_failures(entries: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the failures of all shards' lines, those that several shards share once, in the order of the lines."""
    found = {}
    for entry in entries.values():
        for failure in entry.get("failures", ()):
            found[failure["source"], str(failure["window"])] = failure
    return list(found.values())


def shards_to_redo(
    job: Job, header: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return the finished shards whose pixels depend on a read that failed.

    When blending these are the shards with a failure and, as tiles reach into them, their neighbours below and
    to the right; where the statistics pass missed a read, all of them.
    """
    if header.get("statistics_failures"):
        return list(entries)
    failed = {name for name, entry in entries.items() if entry.get("failures")}
    touched = {name for one in failed for name in _reached(one)} if job.blends else set()
    return [name for name in entries if name in failed | touched]


def _reached(name: str) -> Iterator[str]:
    row, column = (int(part) for part in name.split("."))
    for i, j in ((0, 1), (1, 0), (1, 1)):
        yield f"{row + i}.{column + j}"
