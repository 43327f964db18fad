"""The graph of an index: what it finds, with filters, as the index grows, and when its making was cut off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
import zarr

from tilewright.catalogs.times import Interval
from tilewright.errors import InputError, ReadError
from tilewright.pipeline import nearest, search
from tilewright.pipeline.index import DESCRIPTION, VERSION, records_schema
from tilewright.pipeline.nearest import keep_graph
from tilewright.pipeline.search import Filters, VectorIndex
from tilewright.pipeline.vectors import Vectors

pytest.importorskip("usearch")
DIM = 24


def clusters(rows: int, seed: int) -> np.ndarray:
    """Vectors of length 1 around 40 centres, each rank of them different."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    vectors = centres[rng.integers(40, size=rows)] + rng.normal(scale=0.5, size=(rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, for few vectors; and one thread, for several make another graph each time."""
    monkeypatch.setattr(nearest, "DEPTH", 256)
    monkeypatch.setattr(nearest, "usable_cores", lambda: 1)


def write(out: Path, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write an index whose parts, named by their dates, have these vectors; return its description."""
    out.mkdir(exist_ok=True)
    known = json.loads((out / DESCRIPTION).read_text()) if (out / DESCRIPTION).exists() else {}
    vectors = np.concatenate([parts[date] for date in sorted(parts)])
    digest = hashlib.sha256(vectors.tobytes()).hexdigest()[:16]
    stored = zarr.create_array(
        out / f"vectors-{digest}.zarr", shape=vectors.shape, chunks=(1000, DIM), dtype="float32", overwrite=True,
        compressors=None,
    )  # fmt: skip
    stored[:] = vectors
    entries, tables = [], []
    for date in sorted(parts):
        count = len(parts[date])
        level = {"level": 0, "digest": f"of {date} {parts[date][0, 0]}", "rows": count}
        entries.append(
            {"id": date, "item": date, "date": f"{date}T00:00:00Z", "cloud": None, "levels": [level]}
        )
        at = np.arange(count) * 64.0
        columns = {
            "part": [date] * count, "item": [date] * count, "date": [f"{date}T00:00:00Z"] * count,
            "cloud": pa.array([None] * count, pa.float32()), "level": pa.array([0] * count, pa.int16()),
            "row0": at, "col0": at, "row1": at + 64, "col1": at + 64,
            "geometry": shapely.to_wkb(shapely.box(at / 1e6, 0, at / 1e6 + 6e-5, 1)),
        }  # fmt: skip
        tables.append(pa.table(columns, schema=records_schema()))
    pq.write_table(pa.concat_tables(tables), out / f"records-{digest}.parquet", row_group_size=700)
    description = {
        "version": VERSION, "embedder": {}, "dim": DIM, "rows": len(vectors), "digest": digest, "parts": entries,
        "vectors": f"vectors-{digest}.zarr", "records": f"records-{digest}.parquet",
    }  # fmt: skip
    if "graph" in known:
        description["graph"] = known["graph"]
    (out / DESCRIPTION).write_text(json.dumps(description))
    return description


def graphed(out: Path, parts: dict[str, np.ndarray], approximate: bool | None = True) -> VectorIndex:
    keep_graph(out / DESCRIPTION, write(out, parts), approximate)
    return VectorIndex(out)


def rows_of(found: VectorIndex, query: np.ndarray, count: int = 10, **more: Any) -> list[int]:
    return [hit.row for hit in found.search(query, count, distinct=False, **more)]


def recall(found: VectorIndex, count: int = 10, **more: Any) -> float:
    queries = clusters(30, seed=99)
    shared = [
        len(set(rows_of(found, q, count, **more)) & set(rows_of(found, q, count, exact=True, **more))) / count
        for q in queries
    ]
    return float(np.mean(shared))


@pytest.fixture
def parts() -> dict[str, np.ndarray]:
    return {"2024-01-01": clusters(3000, 1), "2024-03-01": clusters(2500, 2)}


def test_the_graph_finds_what_the_exact_search_finds_with_the_same_scores(
    parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = graphed(tmp_path / "index", parts)
    query = clusters(1, seed=7)[0]
    near = found.search(query, 20, distinct=False)
    assert not found.exact
    every = found.search(query, 20, distinct=False, exact=True)
    assert found.exact
    assert [hit.row for hit in near] == [hit.row for hit in every]
    assert np.allclose([hit.score for hit in near], [hit.score for hit in every], atol=1e-6, rtol=0)
    assert near[0].item == every[0].item
    assert recall(found) > 0.95
    both = np.stack([query, clusters(1, seed=8)[0]])
    assert rows_of(found, both) == rows_of(found, both, exact=True)


def test_what_it_says_of_its_recall_is_measured(
    parts: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = graphed(tmp_path / "good", parts).graph
    assert good is not None
    assert good["recall"]["found"] > 0.98
    assert good["recall"]["sample"] == 200
    monkeypatch.setattr(nearest, "CONNECTIVITY", 2)
    monkeypatch.setattr(nearest, "DEPTH_OF_BUILDING", 2)
    monkeypatch.setattr(nearest, "DEPTH", 1)
    bad = graphed(tmp_path / "bad", parts).graph
    assert bad is not None
    assert bad["recall"]["found"] < 0.9


def test_equal_vectors_are_no_miss(tmp_path: Path) -> None:
    sea = np.repeat(clusters(3, 1), 400, axis=0)
    found = graphed(tmp_path / "index", {"2024-01-01": sea})
    assert found.graph is not None
    assert found.graph["recall"]["found"] == 1


@pytest.mark.parametrize("approximate", [None, False])
def test_exact_is_the_rule_for_few_vectors(
    approximate: bool | None, parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = graphed(tmp_path / "index", parts, approximate)
    assert found.graph is None
    found.search(clusters(1, 7)[0])
    assert found.exact


def test_many_vectors_get_a_graph_unasked(
    parts: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 5500)
    assert graphed(tmp_path / "index", parts, None).graph is not None
    dropped = graphed(tmp_path / "index", parts, False)
    assert dropped.graph is None
    assert not list((tmp_path / "index").glob("graph-*"))


def test_filters_are_right_and_a_narrow_one_searches_exactly(
    parts: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LEAST_FOR_GRAPH", 1000)
    found = graphed(tmp_path / "index", parts)
    march = Filters(dates=Interval.parse("2024-03"))
    hits = found.search(clusters(1, 7)[0], 20, filters=march, distinct=False)
    assert not found.exact
    assert {hit.item for hit in hits} == {"2024-03-01"}
    assert recall(found, filters=march) > 0.95
    narrow = Filters(dates=Interval.parse("2024-03"), region=shapely.box(0, 0, 0.01, 1))
    query = clusters(1, 7)[0]
    few = found.search(query, 200, filters=narrow, distinct=False)
    assert found.exact
    assert 100 < len(few) < 200, "all that passes, though it is less than what was asked for"
    assert {hit.item for hit in few} == {"2024-03-01"}


def test_a_filter_far_from_the_query_is_searched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passes is none of what the graph proposes, so every vector that passes is compared."""
    monkeypatch.setattr(search, "LEAST_FOR_GRAPH", 100)
    monkeypatch.setattr(search, "MOST_OF_GRAPH", 50)
    monkeypatch.setattr(nearest, "DEPTH", 50)
    here, there = clusters(2000, 1), -clusters(2000, 1)
    found = graphed(tmp_path / "index", {"2024-01-01": here, "2024-02-01": there})
    hits = found.search(here[0], 10, filters=Filters(dates=Interval.parse("2024-02")), distinct=False)
    assert found.exact
    assert len(hits) == 10


def test_a_grown_index_adds_to_its_graph_and_nothing_twice(
    parts: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    first = graphed(out, {"2024-03-01": parts["2024-03-01"]})
    assert first.graph is not None
    assert (first.graph["rows"], first.graph["added"]) == (2500, 2500)
    grown = graphed(out, parts, None)
    assert grown.graph is not None
    assert (grown.graph["rows"], grown.graph["added"]) == (5500, 3000)
    assert recall(grown) > 0.95, "the rows of March moved behind those of January"
    for row in (0, 2999, 3000, 5499):
        assert rows_of(grown, np.asarray(grown._vectors[row]), 1) == [row]
    assert [file.name for file in out.glob("graph-*")] == [grown.graph["file"]]


def test_a_part_that_changed_makes_the_graph_new(parts: dict[str, np.ndarray], tmp_path: Path) -> None:
    graphed(tmp_path / "index", parts)
    changed = graphed(tmp_path / "index", parts | {"2024-01-01": clusters(3000, 5)}, None)
    assert changed.graph is not None
    assert changed.graph["added"] == 5500
    assert recall(changed) > 0.95


def test_killed_while_the_graph_is_made_the_search_is_exact_and_the_next_call_makes_it(
    parts: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    graphed(out, {"2024-03-01": parts["2024-03-01"]})
    description = write(out, parts)

    def dies(index: Any, file: Path) -> None:
        file.with_name(f".{file.name}.partial").write_bytes(b"half of it")
        raise KeyboardInterrupt

    def interrupts(name: str, status: Any) -> None:
        raise KeyboardInterrupt(f"{name} {status}")

    with pytest.raises(KeyboardInterrupt, match="graph graph: 3,000 of 3,000 vectors"):
        keep_graph(out / DESCRIPTION, description, None, interrupts)
    monkeypatch.setattr(nearest, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        keep_graph(out / DESCRIPTION, description, None)
    meanwhile = VectorIndex(out)
    assert meanwhile.graph is None, "the graph of fewer rows is not searched"
    best = rows_of(meanwhile, clusters(1, 7)[0])
    assert meanwhile.exact
    monkeypatch.undo()
    made, grown = keep_graph(out / DESCRIPTION, json.loads((out / DESCRIPTION).read_text()), None)
    assert grown
    assert made["graph"]["added"] == 3000, "what the first graph held was kept"
    assert not list(out.glob(".graph-*"))
    after = VectorIndex(out)
    assert rows_of(after, clusters(1, 7)[0]) == best
    assert not after.exact
    again, grown = keep_graph(out / DESCRIPTION, made, None)
    assert not grown
    assert again == made


def test_a_damaged_graph_and_a_missing_library_are_one_line(
    parts: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = graphed(tmp_path / "index", parts)
    assert found.graph is not None
    file = tmp_path / "index" / found.graph["file"]
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(ReadError, match=r"cut short; search with --exact"):
        VectorIndex(tmp_path / "index").search(clusters(1, 7)[0])
    file.write_bytes(b"x" * len(content))
    with pytest.raises(ReadError, match=r"graph cannot be read.*--exact"):
        VectorIndex(tmp_path / "index").search(clusters(1, 7)[0])
    VectorIndex(tmp_path / "index").search(clusters(1, 7)[0], exact=True)
    monkeypatch.setattr(nearest, "has_library", lambda: False)
    with pytest.raises(InputError, match=r"usearch, which is not installed.*search-approximate"):
        VectorIndex(tmp_path / "index").search(clusters(1, 7)[0])
    with pytest.raises(InputError, match="usearch"):
        graphed(tmp_path / "other", parts)
    assert graphed(tmp_path / "third", parts, None).graph is None


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_vectors_are_read_as_they_were_written(compressors: Any, tmp_path: Path) -> None:
    expected = clusters(1000, 3)
    expected[256:384] = 0  # zarr leaves out a chunk of zeros
    stored = zarr.create_array(
        tmp_path / "v.zarr", shape=expected.shape, chunks=(128, DIM), dtype="float32", compressors=compressors
    )
    stored[:] = expected
    vectors = Vectors(tmp_path / "v.zarr")
    mapped = isinstance(vectors[0:128].base, np.memmap) or isinstance(vectors[0:128], np.memmap)
    assert mapped == (compressors is None)
    assert len(vectors) == 1000
    assert np.array_equal(vectors[:], expected)
    assert np.array_equal(vectors[100:777], expected[100:777])
    assert vectors[5:5].shape == (0, DIM)
    assert np.array_equal(vectors[999], expected[999])
    rows = np.array([999, 3, 300, 300, 128])
    assert np.array_equal(vectors[rows], expected[rows])


def test_vectors_that_are_cut_short_or_gone_are_refused(tmp_path: Path) -> None:
    stored = zarr.create_array(
        tmp_path / "v.zarr", shape=(200, DIM), chunks=(128, DIM), dtype="float32", compressors=None
    )
    stored[:] = clusters(200, 3)
    vectors = Vectors(tmp_path / "v.zarr")
    first, second = sorted((tmp_path / "v.zarr" / "c").glob("*/0"))
    first.write_bytes(first.read_bytes()[:-4])
    with pytest.raises(ReadError, match="cut short"):
        vectors[0:10]
    second.unlink()
    (tmp_path / "v.zarr" / "zarr.json").unlink()
    with pytest.raises(ReadError, match="gone; open the index again"):
        vectors[150]
    with pytest.raises(ReadError, match="cannot be read"):
        Vectors(tmp_path / "nothing.zarr")
