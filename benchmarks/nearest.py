"""Search over many vectors: every one compared, or an approximate index of the best libraries.

The vectors are those of the package's embedder in kind: 128 numbers, length 1, in clusters (a thousand centres and
noise around them), for an archive has many fields and few harbours. *Examples* are queries from the same clusters, as
vectors of pictures are; *texts* lie far from all vectors, as those of sentences do. Recall is the share of the exact
ten best that the ten found hold.

`tilewright search` is measured whole: the ten best, their scores from the vectors themselves, and what each row stands
for, looked up on the disk. The libraries alone return rows, and are compared over fewer vectors. HNSW with 16
neighbours a node, 128 candidates while it is built, and 64 or 512 while it is searched, or 4,096 by `tilewright
search`; two threads build, one searches. Each is built in one process, written, and opened in another by a memory map;
memory is what the searching process takes above its start, mapped pages included, which the system may take back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .child import Clock, measured
from .common import Bench, Benchmark, Goal, markdown

__all__ = ["BENCHMARK"]

CENTRES = 1000
BEST = 10
KINDS = {"examples": 0.6, "texts": 3.5}
"""Length of the noise that is added to a centre of length 1; vectors of the index have 0.6."""


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


def make_queries(count: int, dim: int) -> dict[str, Any]:
    """Return queries ``[count, dim]`` of length 1: from the same clusters, and far from all of them."""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    other = np.random.default_rng(1)
    queries = {}
    for kind, noise in KINDS.items():
        found = centres[other.integers(CENTRES, size=count)]
        found = found + other.normal(scale=noise / dim**0.5, size=found.shape).astype(np.float32)
        queries[kind] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return queries


def write_index(folder: Path, rows: int, dim: int) -> Path:
    """Write an index of one part whose rows are made; return its folder."""
    import json

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    import zarr

    from tilewright.pipeline.index import DESCRIPTION, GROUP, ROWS, VERSION, records_schema

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
    pq.write_table(table, folder / "records-0.parquet", compression="zstd", row_group_size=GROUP)
    level = {"level": 0, "digest": "made", "rows": rows}
    part = {"id": "made", "item": "made", "date": None, "cloud": None, "opens": {}, "levels": [level]}
    description = {
        "version": VERSION, "embedder": {}, "digest": "0", "dim": dim, "rows": rows, "vectors": "vectors-0.zarr",
        "records": "records-0.parquet", "parts": [part],
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(description))
    return folder


def by_tilewright(clock: Clock, folder: str, queries: int, dim: int, exact: bool) -> dict[str, Any]:
    """Search an index as `tilewright search` does, by its graph or exactly."""
    from tilewright.pipeline.search import VectorIndex

    found = VectorIndex(folder)

    def rows(query: Any) -> list[int]:
        return [hit.row for hit in found.search(query, BEST, distinct=False, exact=exact)]

    return _timed(clock, rows, make_queries(queries, dim))


def _timed(clock: Clock, rows: Callable[[Any], list[int]], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return milliseconds of each query and the rows found, by kind; the first one is not measured."""
    from time import perf_counter

    answers: dict[str, Any] = {}
    with clock:
        rows(next(iter(wanted.values()))[0])
        for kind, queries in wanted.items():
            times, found = [], []
            for query in queries:
                begun = perf_counter()
                found.append(rows(query))
                times.append((perf_counter() - begun) * 1e3)
            answers[kind] = {"ms": times, "rows": found}
    return answers


def build_graph(clock: Clock, folder: str) -> dict[str, Any]:
    """Give an index its graph; return its size and the recall that it says of itself."""
    import json

    from tilewright.pipeline.index import DESCRIPTION
    from tilewright.pipeline.nearest import keep_graph

    file = Path(folder) / DESCRIPTION
    with clock:
        made, _ = keep_graph(file, json.loads(file.read_text()), True)
    graph = made["graph"]
    return {"bytes": graph["bytes"], "recall": graph["recall"]["found"], "file": graph["file"]}


def by_numpy(clock: Clock, rows: int, queries: int, dim: int) -> dict[str, Any]:
    """Compare all, in memory: what the libraries should find."""
    import numpy as np

    vectors = make_vectors(rows, dim)

    def best(query: Any) -> list[int]:
        return [int(row) for row in np.argsort(-(vectors @ query), kind="stable")[:BEST]]

    return _timed(clock, best, make_queries(queries, dim))


def build_usearch(clock: Clock, file: str, rows: int, dim: int, bits: int) -> dict[str, Any]:
    """Build a graph of usearch with numbers of ``bits`` bits; return its size."""
    import numpy as np
    from usearch.index import Index

    vectors = make_vectors(rows, dim)
    index = Index(
        ndim=dim,
        metric="ip",
        dtype={32: "f32", 16: "f16"}[bits],
        connectivity=16,
        expansion_add=128,
    )
    with clock:
        index.add(np.arange(rows, dtype=np.uint64), vectors, threads=2)
        index.save(file)
    return {"bytes": Path(file).stat().st_size}


def by_usearch(clock: Clock, file: str, queries: int, dim: int, depth: int) -> dict[str, Any]:
    """Search a graph of usearch."""
    from usearch.index import Index

    index = Index.restore(file, view=True)
    index.expansion_search = depth

    def rows(query: Any) -> list[int]:
        return [int(key) for key in index.search(query, BEST, threads=1).keys]

    return _timed(clock, rows, make_queries(queries, dim))


def build_faiss(clock: Clock, file: str, rows: int, dim: int, bits: int) -> dict[str, Any]:
    """Build a graph of faiss with numbers of 32 or 8 bits; return its size."""
    import faiss

    faiss.omp_set_num_threads(2)
    vectors = make_vectors(rows, dim)
    if bits == 32:
        index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    with clock:
        if bits != 32:
            index.train(vectors[:50_000])
        index.add(vectors)
        faiss.write_index(index, file)
    return {"bytes": Path(file).stat().st_size}


def by_faiss(clock: Clock, file: str, queries: int, dim: int, depth: int) -> dict[str, Any]:
    """Search a graph of faiss."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC)
    index.hnsw.efSearch = depth

    def rows(query: Any) -> list[int]:
        return [int(key) for key in index.search(query[None], BEST)[1][0]]

    return _timed(clock, rows, make_queries(queries, dim))


def measure(bench: Bench) -> dict[str, Any]:
    """Return a row for each way of searching."""
    p = bench.parameters
    folder = bench.folder / "index"
    if not (folder / "index.json").exists():
        bench.say(f"{p['rows']:,} vectors of {p['dim']}")
        write_index(folder, p["rows"], p["dim"])
    many = {"queries": p["queries"], "dim": p["dim"]}

    def search(way: str, name: str, **arguments: Any) -> dict[str, Any]:
        bench.say(way)
        return bench.once(way, lambda: measured(f"nearest:by_{name}", **arguments, **many))

    def build(way: str, name: str, **arguments: Any) -> dict[str, Any]:
        bench.say(f"building {way}")
        return bench.once(f"build {way}", lambda: measured(f"nearest:build_{name}", **arguments))

    exact = search("tilewright, exact", "tilewright", folder=str(folder), exact=True)
    made = build("graph", "graph", folder=str(folder))
    way = "tilewright, by the graph"
    near = search(way, "tilewright", folder=str(folder), exact=False)
    rows = [_row("tilewright, exact", exact, exact, None), _row(way, near, exact, made)]
    truth = search("numpy", "numpy", rows=p["compared"])
    compared = []
    for name, bits in (("usearch", 16), ("faiss", 32), ("faiss", 8)):
        file = str(bench.folder / f"{name}-{bits}")
        built = build(f"{name} {bits}", name, file=file, rows=p["compared"], dim=p["dim"], bits=bits)
        for depth in p["depths"]:
            way = f"{name}, {bits} bits, depth {depth}"
            compared.append(_row(way, search(way, name, file=file, depth=depth), truth, built))
    return {
        "rows": rows,
        "compared": compared,
        "vectors": p["rows"],
        "vectors_compared": p["compared"],
        "dim": p["dim"],
        "own_recall": made["recall"],
    }


def _row(
    name: str, found: dict[str, Any], exact: dict[str, Any], built: dict[str, Any] | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"way": name, "memory": found["peak"] - found["base"]}
    for kind in KINDS:
        times, pairs = sorted(found[kind]["ms"]), zip(found[kind]["rows"], exact[kind]["rows"], strict=True)
        shared = [len(set(a) & set(b)) / BEST for a, b in pairs]
        row[kind] = {
            "median": times[len(times) // 2], "slowest": times[-1], "recall": sum(shared) / len(shared)
        }  # fmt: skip
    return row | {"build": built and built["wall"], "bytes": built and built["bytes"]}


def table(data: dict[str, Any]) -> str:
    """Return the rows as two tables in Markdown: the whole search, and the libraries alone."""
    return "\n\n".join(
        [
            f"`tilewright search` over {data['vectors']:,} vectors:",
            _table(data["rows"]),
            f"The libraries alone over {data['vectors_compared']:,}:",
            _table(data["compared"]),
        ]
    )


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["way"]
    for kind in KINDS:
        header += [f"{kind}: median ms", "slowest", "recall"]
    lines = []
    for row in rows:
        cells = [row["way"]]
        for kind in KINDS:
            one = row[kind]
            cells += [f"{one['median']:.1f}", f"{one['slowest']:.1f}", f"{one['recall']:.3f}"]
        built = [None, None] if row["build"] is None else [f"{row['build']:.0f}", f"{row['bytes'] / 1e6:.0f}"]
        lines.append((*cells, *built, f"{row['memory'] / (1 << 20):.0f}"))
    return markdown((*header, "build s", "graph MB", "memory MiB"), lines)


def goals(data: dict[str, Any]) -> list[Goal]:
    """Return what was hoped for."""
    exact, graph = data["rows"][:2]
    found, slow = graph["examples"]["recall"], exact["examples"]["median"]
    own = data["own_recall"]
    return [
        Goal("an exact search in less than a second", f"{slow:.0f} ms", slow < 1000),
        Goal("the graph finds at least 0.95 of the ten best for examples", f"{found:.3f}", found >= 0.95),
        Goal(
            "the recall that an index says of itself is that of examples to 0.03",
            f"{own:.3f} said, {found:.3f} found",
            abs(own - found) <= 0.03,
        ),
    ]


BENCHMARK = Benchmark(
    name="nearest",
    title="Search over vectors",
    about=(__doc__ or "").partition("\n\n")[2],
    small={"rows": 20_000, "compared": 5_000, "dim": 128, "queries": 20, "depths": [64, 512]},
    full={"rows": 1_000_000, "compared": 50_000, "dim": 128, "queries": 100, "depths": [64, 512]},
    measure=measure,
    table=table,
    goals=goals,
    minutes=(1.5, 25),
)
