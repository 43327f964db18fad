"""Search over many vectors: every one compared, or an approximate index of the best libraries.

The vectors are those of the package's embedder in kind: 128 numbers, length 1, in clusters (a thousand centres and
noise around them), for an archive has many fields and few harbours. Queries are vectors near centres.

``exact``
    `VectorIndex.search`: every vector compared, a chunk at a time, from the disk's cache.
``usearch``, ``faiss``
    HNSW graphs with the libraries' own defaults but the search depth that is named. Recall is the share of the exact
    ten best that the ten found hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown

__all__ = ["BENCHMARK"]

CENTRES = 1000
BEST = 10


def make_vectors(rows: int, dim: int) -> Any:
    """Return vectors ``[rows, dim]`` of length 1, in clusters."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[rng.integers(CENTRES, size=rows)]
    vectors += rng.normal(scale=0.6 / dim**0.5, size=(rows, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def make_queries(count: int, dim: int) -> Any:
    """Return queries ``[count, dim]`` of length 1, near the same centres."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    other = np.random.default_rng(1)
    queries = centres[other.integers(CENTRES, size=count)]
    queries += other.normal(scale=0.6, size=queries.shape).astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def write_index(folder: Path, rows: int, dim: int) -> Path:
    """Write an index of one part whose rows are made; return its folder."""
    import json

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    import zarr

    from tilewright.pipeline.index import DESCRIPTION, ROWS, VERSION, records_schema

    folder.mkdir(parents=True, exist_ok=True)
    vectors = make_vectors(rows, dim)
    stored = zarr.create_array(
        folder / "vectors-0.zarr", shape=vectors.shape, chunks=(ROWS, dim), dtype="float32", compressors=None
    )
    stored[:] = vectors
    side = int(np.ceil(rows**0.5))
    row, col = np.divmod(np.arange(rows), side)
    lon, lat = col / side * 10, row / side * 10
    boxes = shapely.to_wkb(shapely.box(lon, lat, lon + 1e-3, lat + 1e-3))
    table = pa.table(
        {
            "part": ["made"] * rows,
            "item": ["made"] * rows,
            "date": pa.array([None] * rows, pa.string()),
            "cloud": pa.array([None] * rows, pa.float32()),
            "level": pa.array(np.zeros(rows, np.int16)),
            "row0": row * 64.0,
            "col0": col * 64.0,
            "row1": row * 64.0 + 64,
            "col1": col * 64.0 + 64,
            "geometry": boxes,
        },
        schema=records_schema(),
    )
    pq.write_table(table, folder / "records-0.parquet", compression="zstd")
    part = {"id": "made", "item": "made", "date": None, "cloud": None, "opens": {}, "levels": []}
    description = {
        "version": VERSION, "embedder": {}, "dim": dim, "rows": rows, "vectors": "vectors-0.zarr",
        "records": "records-0.parquet", "parts": [part],
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def by_exact(clock: Clock, folder: str, queries: int, dim: int) -> dict[str, Any]:
    """Search exactly; return milliseconds of each query and the rows found."""
    from time import perf_counter

    from tilewright.pipeline.search import VectorIndex

    found = VectorIndex(folder)
    wanted = make_queries(queries, dim)
    found.search(wanted[0], BEST)
    times, rows = [], []
    with clock:
        for query in wanted:
            begun = perf_counter()
            hits = found.search(query, BEST, distinct=False)
            times.append((perf_counter() - begun) * 1e3)
            rows.append([hit.row for hit in hits])
    return {"ms": times, "rows": rows, "build": 0.0, "bytes": 0}


def by_usearch(clock: Clock, rows: int, queries: int, dim: int, depth: int) -> dict[str, Any]:
    """Build usearch's graph and search it."""
    from time import perf_counter

    import numpy as np
    from usearch.index import Index

    vectors, wanted = make_vectors(rows, dim), make_queries(queries, dim)
    index = Index(ndim=dim, metric="ip", dtype="f32", expansion_search=depth)
    with clock:
        begun = perf_counter()
        index.add(np.arange(rows), vectors, threads=2)
        build = perf_counter() - begun
        times, found = [], []
        for query in wanted:
            begun = perf_counter()
            matches = index.search(query, BEST, threads=1)
            times.append((perf_counter() - begun) * 1e3)
            found.append([int(key) for key in matches.keys])
    return {"ms": times, "rows": found, "build": build, "bytes": int(index.memory_usage)}


def by_faiss(clock: Clock, rows: int, queries: int, dim: int, depth: int) -> dict[str, Any]:
    """Build faiss' graph and search it."""
    from time import perf_counter

    import faiss

    faiss.omp_set_num_threads(2)
    vectors, wanted = make_vectors(rows, dim), make_queries(queries, dim)
    index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    with clock:
        begun = perf_counter()
        index.add(vectors)
        build = perf_counter() - begun
        index.hnsw.efSearch = depth
        times, found = [], []
        for query in wanted:
            begun = perf_counter()
            _, keys = index.search(query[None], BEST)
            times.append((perf_counter() - begun) * 1e3)
            found.append([int(key) for key in keys[0]])
    return {"ms": times, "rows": found, "build": build, "bytes": rows * (dim * 4 + 2 * 16 * 4)}


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for each way of searching."""
    p = bench.parameters
    folder = bench.folder / "index"
    if not (folder / "index.json").exists():
        bench.say(f"{p['rows']:,} vectors of {p['dim']}")
        write_index(folder, p["rows"], p["dim"])
    many = {"queries": p["queries"], "dim": p["dim"]}
    bench.say("exact")
    exact = bench.once("exact", lambda: measured("nearest:by_exact", folder=str(folder), **many))
    ways = [_row("exact", exact, exact)]
    for name in ("usearch", "faiss"):
        for depth in p["depths"]:
            bench.say(f"{name}, depth {depth}")
            found = bench.once(
                f"{name} {depth}",
                lambda n=name, d=depth: measured(f"nearest:by_{n}", rows=p["rows"], depth=d, **many),  # type: ignore[misc]
            )
            ways.append(_row(f"{name}, depth {depth}", found, exact))
    return {"rows": ways, "vectors": p["rows"], "dim": p["dim"]}


def _row(name: str, found: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    times = sorted(found["ms"])
    shared = [len(set(a) & set(b)) / BEST for a, b in zip(found["rows"], exact["rows"], strict=True)]
    return {
        "way": name,
        "median": times[len(times) // 2],
        "slowest": times[-1],
        "recall": sum(shared) / len(shared),
        "build": found["build"],
        "bytes": found["bytes"],
        "peak": found["peak"],
    }


def table(data: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    header = (
        "way",
        "median ms",
        "slowest ms",
        f"recall of the {BEST} best",
        "build s",
        "graph MB",
        "peak MiB",
    )
    return markdown(
        header,
        [
            (
                row["way"], f"{row['median']:.2f}", f"{row['slowest']:.2f}", f"{row['recall']:.3f}",
                f"{row['build']:.0f}", f"{row['bytes'] / 1e6:.0f}", f"{row['peak'] / (1 << 20):.0f}",
            )
            for row in data["rows"]
        ],
    )  # fmt: skip


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    exact = data["rows"][0]
    return [
        Goal("an exact search in less than a second", f"{exact['median']:.0f} ms", exact["median"] < 1000)
    ]


BENCHMARK = Benchmark(
    name="nearest",
    title="Search over vectors",
    about=(__doc__ or "").partition("\n\n")[2],
    small={"rows": 20_000, "dim": 128, "queries": 20, "depths": [64]},
    full={"rows": 1_000_000, "dim": 128, "queries": 100, "depths": [64, 256]},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(0.5, 20),
)
