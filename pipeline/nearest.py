"""A graph beside the vectors of an index, by which a search looks at a few thousand of them instead of all.

    graph-DIGEST.usearch   HNSW (Malkov and Yashunin 2016, https://arxiv.org/abs/1603.09320), half precision

Comparing everything is the rule: it is exact and takes two tenths of a second for a million vectors. A graph pays above
some millions. It is made after an index is published and named by ``index.json``, with what it was made from; a search
uses it only where that is still what the index is. The graph proposes rows, and their scores are computed from the
vectors themselves, so a score never differs from that of an exact search by more than rounding.

Keys of the graph count rows in the order in which they came in. Rows of an index are sorted by date, so they move when
it grows; `Segment` keeps which keys are whose, and a grown index adds to its graph what is new and nothing else.

The library is usearch. faiss finds as much, as fast (docs/benchmarks.md), but comes with an OpenMP of its own beside
torch's, and one process has one setting for both.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, ReadError, StoreError

from .intraop import usable_cores
from .progress import Status
from .table import write_json
from .vectors import Vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "APPROXIMATE_FROM",
    "Graph",
    "GraphStatus",
    "has_library",
    "keep_graph",
    "need_library",
    "usable_graph",
]

APPROXIMATE_FROM = 5_000_000
"""Vectors from which an index gets a graph unless told otherwise: comparing all takes about a second there."""
CONNECTIVITY, DEPTH_OF_BUILDING = 16, 128
"""Neighbours of a node, and candidates that are held while one is added: the library's defaults."""
DEPTH = 4096
"""Candidates that a search holds. 512 are enough for examples from the index; vectors of texts lie far from all
pictures, and of their ten best in a million 512 find 58 %, 2048 96 % and this many 99 %, at three times the time."""
ROWS = 4096
"""Vectors that are added at a time: between two of them an interruption is heard."""
SAMPLE, BEST = 200, 10
"""Vectors by which recall is measured when a graph is made, and how many of the most alike ones are asked for."""
_ALIKE = 1e-6
"""Difference below which two scores are one: tiles of open sea have equal vectors."""


@dataclass(frozen=True)
class Segment:
    """Rows that came into the graph together: a level of a part."""

    part: str
    """Part of the index."""
    level: int
    """Level of its pyramid."""
    digest: str
    """Digest of its vectors."""
    rows: int
    """How many they are."""


def has_library() -> bool:
    """Return True where graphs can be made and used."""
    return importlib.util.find_spec("usearch") is not None


def need_library(place: str = "--approximate") -> None:
    """Raise `InputError` where graphs can be neither made nor used."""
    if not has_library():
        raise InputError(
            "an approximate index needs the package usearch, which is not installed",
            place=place,
            remedy='pip install "tilewright[search-approximate]", or say --exact',
        )


@dataclass(frozen=True, slots=True)
class GraphStatus(Status):
    """Where the making of a graph stands, in vectors."""

    def __str__(self) -> str:
        return f"graph: {self.done:,} of {self.total:,} vectors"


def usable_graph(description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what ``index.json`` says of a graph of exactly the rows that the index has, or None."""
    graph: Mapping[str, Any] | None = description.get("graph")
    return graph if graph and graph["of"] == description["digest"] else None


def keep_graph(
    file: Path,
    description: dict[str, Any],
    approximate: bool | None,
    progress: Callable[[str, Any], Any] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Make, grow or drop the graph of a published index; return its description, and whether anything was made.

    The index is searched exactly until the graph is whole. Killed meanwhile, the same call makes it.

    Parameters
    ----------
    file
        ``index.json``, which is replaced when the graph is whole.
    description
        What it says.
    approximate
        As for `tilewright.pipeline.index.index_parts`.
    progress
        Called with ``graph`` and a `GraphStatus`.

    Raises
    ------
    InputError
        A graph is asked for, and the library is not installed.
    StoreError
        It cannot be written.
    """
    has, wanted, out = "graph" in description, approximate, file.parent
    if wanted is None:
        wanted = (has or description["rows"] >= APPROXIMATE_FROM) and has_library()
    made = bool(wanted and description["rows"] and usable_graph(description) is None)
    if made:
        graph = update_graph(out, description, Vectors(out / description["vectors"]), progress)
        description = description | {"graph": graph}
    elif has and approximate is False:
        description = {name: value for name, value in description.items() if name != "graph"}
    else:
        return description, False
    write_json(file, description)
    for one in (*out.glob("graph-*.usearch"), *out.glob(".graph-*.partial")):
        if not made or one.name != description["graph"]["file"]:
            one.unlink()
    return description, made


def segments_of(description: Mapping[str, Any]) -> list[Segment]:
    """Return what an index holds, in the order of its rows."""
    return [
        Segment(entry["id"], level["level"], level["digest"], level["rows"])
        for entry in description["parts"]
        for level in entry["levels"]
    ]


def update_graph(
    out: Path,
    description: Mapping[str, Any],
    vectors: Vectors,
    progress: Callable[[str, Any], Any] | None = None,
) -> dict[str, Any]:
    """Make the graph of an index, or add what is new to the one it has; return what ``index.json`` shall say of it.

    Parameters
    ----------
    out
        Folder of the index. The graph appears there under its final name when it is whole.
    description
        What ``index.json`` says. Its ``graph`` is kept if all that it holds is still in the index.
    vectors
        All rows.
    progress
        Called with ``graph`` and a `GraphStatus`: vectors added, of those that there are to add.

    Raises
    ------
    InputError
        The library is not installed.
    StoreError
        The graph cannot be written.
    """
    need_library()
    begun = perf_counter()
    wanted = segments_of(description)
    index, held = _kept(out, description, wanted)
    there, rows_of = set(held), _rows_by_segment(wanted)
    missing = [one for one in wanted if one not in there]
    key, added, total = sum(one.rows for one in held), 0, sum(one.rows for one in missing)
    for segment in missing:
        start = rows_of[segment]
        for at in range(0, segment.rows, ROWS):
            many = min(ROWS, segment.rows - at)
            block = np.ascontiguousarray(vectors[start + at : start + at + many])
            index.add(np.arange(key, key + many, dtype=np.uint64), block, threads=usable_cores())
            key, added = key + many, added + many
            if progress is not None:
                progress("graph", GraphStatus("graph", added, total))
    file = out / f"graph-{description['digest']}.usearch"
    _save(index, file)
    facts = {
        "file": file.name,
        "of": description["digest"],
        "library": f"usearch {version('usearch')}",
        "rows": key,
        "added": added,
        "bytes": file.stat().st_size,
        "segments": [[one.part, one.level, one.digest, one.rows] for one in (*held, *missing)],
    }
    graph = Graph(file, facts, description)
    return facts | {
        "recall": {"of": BEST, "sample": min(SAMPLE, len(vectors)), "found": graph.recall(vectors)},
        "seconds": round(perf_counter() - begun, 1),
    }


def _kept(out: Path, description: Mapping[str, Any], wanted: Sequence[Segment]) -> tuple[Any, list[Segment]]:
    """Return the graph that is there, in memory, and what it holds; an empty one where it cannot be added to."""
    from usearch.index import Index

    known = description.get("graph")
    if known:
        held = [Segment(*one) for one in known["segments"]]
        file = out / known["file"]
        if set(held) <= set(wanted) and file.is_file() and file.stat().st_size == known["bytes"]:
            index = Index.restore(file, view=False)
            if index is not None and len(index) == known["rows"]:
                return index, held
    empty = Index(
        ndim=description["dim"],
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=DEPTH_OF_BUILDING,
        enable_key_lookups=False,
    )
    return empty, []


def _rows_by_segment(segments: Sequence[Segment]) -> dict[Segment, int]:
    """Return the first row of each."""
    starts = np.cumsum([0, *(one.rows for one in segments)])
    return {one: int(start) for one, start in zip(segments, starts, strict=False)}


def _save(index: Any, file: Path) -> None:
    unfinished = file.with_name(f".{file.name}.partial")
    try:
        index.save(unfinished)
        os.replace(unfinished, file)  # noqa: PTH105
    except (OSError, RuntimeError) as error:
        raise StoreError(f"the graph cannot be written: {error}", place=str(file)) from error


class Graph:
    """The graph of an index, mapped into memory: what is not looked at is not read."""

    def __init__(self, file: Path, facts: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Open a graph; raises `InputError` without the library, `ReadError` where the file is damaged."""
        need_library(str(file))
        from usearch.index import Index

        remedy = "search with --exact, or make it again by tilewright index --approximate"
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise ReadError("the graph of the index is gone or cut short", place=str(file), remedy=remedy)
        try:
            self._index: Any = Index.restore(file, view=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ReadError(f"the graph cannot be read: {error}", place=str(file), remedy=remedy) from error
        if self._index is None or len(self._index) != facts["rows"]:
            raise ReadError("the graph is not that of the index", place=str(file), remedy=remedy)
        starts = _rows_by_segment(segments_of(description))
        held = [Segment(*one) for one in facts["segments"]]
        self._keys = np.cumsum([0, *(one.rows for one in held)])
        self._rows = np.array([starts[one] for one in held], np.int64)

    def near(self, wanted: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return rows of the index, sorted, that are most like any of ``wanted`` ``[n, dim]``.

        They are `DEPTH` a query, or ``count`` where that is more, so that ranks lost to half precision are found again
        when their scores are computed.
        """
        return np.unique(np.concatenate(list(self._found(wanted, count))))

    def _found(self, wanted: NDArray[np.float32], count: int) -> Iterator[NDArray[np.int64]]:
        count = max(DEPTH, count)
        self._index.expansion_search = count
        for query in wanted:
            keys = self._index.search(query, count, threads=1).keys.astype(np.int64)
            at = np.searchsorted(self._keys, keys, side="right") - 1
            yield self._rows[at] + keys - self._keys[at]

    def recall(self, vectors: Vectors) -> float:
        """Return the share of the `BEST` most alike others that is found for vectors of the index, a sample of them."""
        rows = np.unique(np.linspace(0, len(vectors) - 1, SAMPLE).astype(np.int64))
        sample = vectors[rows]
        best = np.full((len(rows), 0), 0, np.float32)
        for start in range(0, len(vectors), 16 * ROWS):
            scores = sample @ vectors[start : start + 16 * ROWS].T
            here = (rows >= start) & (rows < start + scores.shape[1])
            scores[here, rows[here] - start] = -np.inf
            best = np.concatenate([best, scores], axis=1)
            best = -np.partition(-best, min(BEST, best.shape[1]) - 1, axis=1)[:, :BEST]
        if len(vectors) <= BEST:
            return 1.0
        least = best.min(axis=1)
        hit = 0
        for row, query, limit in zip(rows, sample, least, strict=True):
            (found,) = self._found(query[None], BEST)
            hit += min(BEST, int((vectors[found[found != row]] @ query >= limit - _ALIKE).sum()))
        return round(hit / (BEST * len(rows)), 4)
