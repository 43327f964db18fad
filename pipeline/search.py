"""Search in an index: which tiles of the archive are most like a text or an example.

Scores are cosines, for vectors have length 1. Every vector is compared, a chunk at a time, so memory does not grow with
the index. An index that has a graph (`tilewright.pipeline.nearest`) is asked that instead, unless a filter leaves too
little for it to find. Filters on date, ground, cloud and level hold before the ranking, not after.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, ReadError

from .index import DESCRIPTION, ROWS, VERSION
from .nearest import Graph, usable_graph
from .table import write_json
from .vectors import Vectors

if TYPE_CHECKING:
    import shapely
    from numpy.typing import NDArray

    from tilewright.catalogs.times import Interval

__all__ = ["Filters", "Hit", "VectorIndex", "hits_geojson", "write_hits"]

CANDIDATES = 50
"""Rows that are ranked for each hit that is wanted, where hits on the same ground are counted once."""
SAME_GROUND = 0.5
"""Share of the smaller box from which two boxes of an image are one place."""
MOST_OF_PART = 2**18
"""Tiles of one part that are taken into memory: 128 MiB of vectors of 128 numbers."""
LEAST_FOR_GRAPH, SHARE_FOR_GRAPH = 100_000, 0.05
"""Rows, and the share of all rows, that a filter must leave for the graph to be asked: to compare fewer is fast."""
MOST_OF_GRAPH = 20_000
"""Most rows that the graph is asked for."""
COLUMNS = ("part", "item", "date", "cloud", "level", "row0", "col0", "row1", "col1")


@dataclass(frozen=True)
class Filters:
    """What hits must be. Rows that do not say are left out of a filter that asks."""

    dates: Interval | None = None
    """The span of time."""
    region: shapely.Geometry | None = None
    """Ground that a hit must touch, in longitude and latitude."""
    cloud: float | None = None
    """Most cloud in percent, of the whole image."""
    levels: tuple[int, ...] | None = None
    """Levels of the pyramid; 0 is full resolution."""
    items: tuple[str, ...] | None = None
    """Names of Items or files."""

    @property
    def empty(self) -> bool:
        """True where everything passes."""
        return all(one is None for one in (self.dates, self.region, self.cloud, self.levels, self.items))


@dataclass(frozen=True)
class Hit:
    """One place."""

    row: int
    """Row of the index."""
    score: float
    """Cosine with what was searched, -1 to 1."""
    part: str
    """Part of the index."""
    item: str
    """Name of the Item or file."""
    date: str | None
    """When, ISO 8601."""
    level: int
    """Level of the pyramid: how large the tile is on the ground."""
    box: tuple[float, float, float, float]
    """``(col0, row0, col1, row1)`` in full-resolution pixels of the image."""
    geometry: shapely.Geometry
    """Footprint in longitude and latitude."""


class VectorIndex:
    """An index that was made by `tilewright.pipeline.index.index_parts`; read only."""

    def __init__(self, path: str | Path) -> None:
        """Open the index in a folder; raises `InputError` where there is none, or one of a later version."""
        self.path = Path(path)
        file = self.path / DESCRIPTION
        if not file.is_file():
            raise InputError("there is no index", place=str(path), remedy="make one by: tilewright index")
        self.description: dict[str, Any] = json.loads(file.read_text())
        if self.description.get("version") != VERSION:
            raise InputError(
                f"the index has version {self.description.get('version')}, this reads {VERSION}",
                place=str(path),
            )
        self.exact = True
        """True where the last search compared every vector that passed its filters."""

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return int(self.description["rows"])

    @property
    def embedder(self) -> Mapping[str, Any]:
        """What loads the embedder that made it."""
        embedder: Mapping[str, Any] = self.description["embedder"]
        return embedder

    @property
    def graph(self) -> Mapping[str, Any] | None:
        """What is known of the graph, as of its ``recall``; None where there is none of exactly these rows."""
        return usable_graph(self.description)

    @cached_property
    def parts(self) -> Mapping[str, Mapping[str, Any]]:
        """Id -> the part's entry in ``index.json``."""
        return {entry["id"]: entry for entry in self.description["parts"]}

    def search(
        self,
        query: NDArray[Any],
        count: int = 10,
        *,
        filters: Filters | None = None,
        distinct: bool = True,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the best hits, best first.

        Parameters
        ----------
        query
            ``[dim]``, or ``[n, dim]``: a tile's score is then its best. Need not have length 1.
        count
            Most hits.
        filters
            What hits must be.
        distinct
            Of tiles of one image and date that lie on each other (levels do) only the best is a hit.
        exact
            Compare every vector, also where the index has a graph.

        Raises
        ------
        InputError
            The query has another length, or no direction; the index has a graph and its library is not installed.
        ReadError
            The index is damaged.
        """
        wanted = self._unit(query)
        chosen = None if filters is None or filters.empty else self._passing(filters)
        depth = min(count * CANDIDATES if distinct else count, self.rows)
        found = None if exact or self.graph is None else self._near(wanted, depth, chosen)
        self.exact = found is None
        rows, scores = found or self._best(wanted, depth, chosen)
        hits = self._hits(rows, scores, 4 * count if distinct else count)
        return list(_distinct(hits, count) if distinct else islice(hits, count))

    def vector_at(
        self, lon: float, lat: float, level: int = 0, item: str | None = None
    ) -> NDArray[np.float32]:
        """Return the vector of the newest tile over a point, ``[dim]``; raises `InputError` where none is."""
        import shapely

        point = shapely.Point(lon, lat)
        filters = Filters(region=point, levels=(level,), items=None if item is None else (item,))
        rows = np.flatnonzero(self._passing(filters))
        if not rows.size:
            raise InputError(
                f"no tile of level {level} lies over {lon:g}, {lat:g}",
                place=str(self.path),
                remedy="give longitude and latitude of a place that is in the index",
            )
        return np.asarray(self._vectors[int(rows[-1])], np.float32)

    def part_vectors(
        self, part: str, most: int = MOST_OF_PART
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the tiles of a part, ``[n, 4]`` as ``Hit.box``, and their vectors ``[n, dim]``.

        As many of its levels as have ``most`` tiles together, from the coarsest on, and in any case that one.
        """
        import pyarrow.compute as pc

        wanted: list[int] = []
        held = 0
        for level in reversed(self.parts[part]["levels"]):
            held += level["rows"]
            if wanted and held > most:
                break
            wanted.append(level["level"])
        table = self._columns(["part", "level", "col0", "row0", "col1", "row1"])
        chosen = pc.and_(
            pc.equal(table["part"].cast("string"), part),
            pc.is_in(table["level"], value_set=_as_levels(wanted)),
        )
        rows = np.flatnonzero(chosen.to_numpy(zero_copy_only=False))
        kept = table.take(rows)
        boxes = np.stack([kept[name].to_numpy() for name in ("col0", "row0", "col1", "row1")], axis=1)
        return boxes, np.asarray(self._vectors[rows], np.float32)

    # -- inside ----------------------------------------------------------------------------------------

    @cached_property
    def _vectors(self) -> Vectors:
        return Vectors(self.path / self.description["vectors"])

    @cached_property
    def _graph(self) -> Graph:
        assert self.graph is not None
        return Graph(self.path / self.graph["file"], self.graph, self.description)

    def _columns(self, names: Sequence[str]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = self.path / self.description["records"]
        try:
            return pq.read_table(place, columns=list(names))
        except (OSError, pa.ArrowException) as error:
            raise ReadError(f"the records cannot be read: {error}", place=str(place)) from error

    def _unit(self, query: NDArray[Any]) -> NDArray[np.float32]:
        wanted = np.atleast_2d(np.asarray(query, np.float32))
        lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
        if wanted.ndim != 2 or wanted.shape[1] != self.description["dim"] or not (lengths > 0).all():
            raise InputError(
                f"the query has shape {wanted.shape}, the index holds vectors of {self.description['dim']}",
                place="search",
                remedy="use the embedder that made the index",
            )
        unit: NDArray[np.float32] = wanted / lengths
        return unit

    def _passing(self, filters: Filters) -> NDArray[np.bool_]:
        """Return True for each row that passes."""
        import pyarrow.compute as pc

        good = np.ones(self.rows, bool)
        parts = {
            id_: self._part_passes(entry, filters) for id_, entry in self.parts.items()
        }  # dates, clouds and names are the part's
        if not all(parts.values()):
            ids = self._columns(["part"]).column(0).combine_chunks()
            kept = np.array([parts[name] for name in ids.dictionary.to_pylist()], bool)
            good &= kept[ids.indices.to_numpy(zero_copy_only=False)] if len(kept) else False
        if filters.levels is not None:
            level = self._columns(["level"]).column(0)
            good &= pc.is_in(level, value_set=_as_levels(filters.levels)).to_numpy()
        if filters.region is not None and good.any():
            import shapely

            shapely.prepare(filters.region)
            shapes = self._columns(["geometry"]).column(0).to_numpy()
            at = np.flatnonzero(good)
            good[at] = shapely.intersects(filters.region, shapely.from_wkb(shapes[at]))
        return good

    def _part_passes(self, entry: Mapping[str, Any], filters: Filters) -> bool:
        if filters.items is not None and entry["item"] not in filters.items:
            return False
        if filters.cloud is not None and (entry["cloud"] is None or entry["cloud"] > filters.cloud):
            return False
        if filters.dates is None or entry["date"] is None:
            return filters.dates is None
        when = datetime.fromisoformat(entry["date"])
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return filters.dates.overlaps(when, when)

    def _best(
        self, wanted: NDArray[np.float32], count: int, chosen: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and scores of the best, best first; of equal ones the first row."""
        rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for start in range(0, self.rows, ROWS):
            stop = min(start + ROWS, self.rows)
            if chosen is not None and not chosen[start:stop].any():
                continue
            found = (np.asarray(self._vectors[start:stop]) @ wanted.T).max(axis=1)
            if chosen is not None:
                found[~chosen[start:stop]] = -np.inf
            keep = _largest(found, count)
            rows = np.concatenate([rows, keep + start])
            scores = np.concatenate([scores, found[keep]])
            order = np.argsort(-scores, kind="stable")[:count]
            rows, scores = rows[order], scores[order]
        real = np.isfinite(scores)
        return rows[real], scores[real]

    def _near(
        self, wanted: NDArray[np.float32], count: int, chosen: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return what `_best` does, by the graph; None where too few rows pass for it to find them."""
        asked = count
        if chosen is not None:
            passing = int(chosen.sum())
            if passing < max(LEAST_FOR_GRAPH, SHARE_FOR_GRAPH * self.rows):
                return None
            asked = min(int(1.5 * count * self.rows / passing), MOST_OF_GRAPH)
        rows = self._graph.near(wanted, min(asked, self.rows))
        rows = rows if chosen is None else rows[chosen[rows]]
        if len(rows) < count:
            return None
        scores = (self._vectors[rows] @ wanted.T).max(axis=1)
        order = np.argsort(-scores, kind="stable")[:count]
        return rows[order], scores[order]

    def _hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32], at_a_time: int) -> Iterator[Hit]:
        """Yield hits in order; ``at_a_time`` of them are looked up together."""
        import shapely

        for start in range(0, len(rows), at_a_time):
            part = slice(start, start + at_a_time)
            for row, score, entry in zip(rows[part], scores[part], self._records(rows[part]), strict=True):
                yield Hit(
                    int(row),
                    float(score),
                    entry["part"],
                    entry["item"],
                    entry["date"],
                    entry["level"],
                    (entry["col0"], entry["row0"], entry["col1"], entry["row1"]),
                    shapely.from_wkb(entry["geometry"]),
                )

    def _records(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return what is said of each row; only the groups of the file that hold them are read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        place = self.path / self.description["records"]
        try:
            with pq.ParquetFile(place) as file:
                sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
                starts = np.cumsum([0, *sizes])
                groups = np.unique(np.searchsorted(starts, rows, side="right") - 1)
                table = file.read_row_groups(groups.tolist(), columns=[*COLUMNS, "geometry"])
        except (OSError, pa.ArrowException) as error:
            raise ReadError(f"the records cannot be read: {error}", place=str(place)) from error
        there = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in groups])
        found: list[dict[str, Any]] = table.take(np.searchsorted(there, rows)).to_pylist()
        return found


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the places of the ``count`` largest values, in order of place; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _as_levels(levels: Sequence[int]) -> Any:
    import pyarrow as pa

    return pa.array(levels, pa.int16())


def _distinct(hits: Iterable[Hit], count: int) -> Iterator[Hit]:
    """Yield hits that lie on no better one of the same part by more than half of the smaller box."""
    kept: list[Hit] = []
    for hit in hits:
        if len(kept) == count:
            return
        if not any(one.part == hit.part and _shared(one.box, hit.box) > SAME_GROUND for one in kept):
            kept.append(hit)
            yield hit


def _shared(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    least = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, width) * max(0.0, height) / least if least > 0 else 0.0


def hits_geojson(hits: Sequence[Hit], **facts: Any) -> dict[str, Any]:
    """Return hits as a GeoJSON FeatureCollection, best first, with ``rank`` from 1; ``facts`` stand beside them."""
    import shapely

    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(hit.geometry)),
            "properties": {
                "rank": rank,
                "score": round(hit.score, 6),
                "item": hit.item,
                "date": hit.date,
                "level": hit.level,
                "pixels": list(hit.box),
            },
        }
        for rank, hit in enumerate(hits, start=1)
    ]
    return {"type": "FeatureCollection", **facts, "features": features}


def write_hits(hits: Sequence[Hit], path: Path, **facts: Any) -> Path:
    """Write `hits_geojson` to a file, whole or not at all; raises `StoreError`."""
    return write_json(path, hits_geojson(hits, **facts))
