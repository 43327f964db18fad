"""An index of vectors over many images: made level by level as ordinary runs, so it grows and resumes like them.

    INDEX/
      parts/PART/LEVEL/      a run: ledger, records.parquet with a vector a tile, report
      vectors-DIGEST.zarr    all vectors, one row each, float32
      records-DIGEST.parquet what each row stands for (GeoParquet)
      graph-DIGEST.usearch   finds neighbours without comparing all; where asked for (`tilewright.pipeline.nearest`)
      index.json             which of them are the index, of which embedder, of which parts

A part is one date of one image or cube, known by what its pixels depend on. The same call finishes what was
interrupted; a call with further images computes those alone. ``index.json`` is replaced last, by a rename: whoever
searches meanwhile sees the index as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, ResumeError, StoreError

from .job import prepare
from .nearest import keep_graph, need_library, usable_graph
from .outputs import RECORDS
from .pyramid import open_pyramid
from .run import Request
from .source import Block, Layer
from .table import GeoMetadata, write_json
from .tiles import execute_records

if TYPE_CHECKING:
    import pyarrow as pa

    from tilewright.kernels.contract import Kernel

    from .grid import Grid, Window
    from .pyramid import Level
    from .settings import Settings
    from .source import Source

__all__ = ["DESCRIPTION", "Indexed", "Part", "index_parts", "parts_of", "records_schema"]

DESCRIPTION = "index.json"
VERSION = 1
ROWS = 65_536
"""Vectors of a chunk of the Zarr, and rows that are moved at a time."""
GROUP = 4096
"""Records of a group of the Parquet file: what is read to say where one hit lies."""


@dataclass(frozen=True)
class OneDate:
    """One date of a source."""

    source: Source
    """All of them."""
    number: int
    """Which, from 0."""

    @property
    def grid(self) -> Grid:
        """That of the source."""
        return self.source.grid

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Those of the source, with one time."""
        return {
            name: Layer(layer.bands, (layer.times[self.number],), layer.dtype, layer.units)
            for name, layer in self.source.layers.items()
        }

    def read(self, window: Window) -> Block:
        """Return the pixels of the date; the others are read with it where the source cannot part them."""
        block = self.source.read(window)
        at = slice(self.number, self.number + 1)
        return Block(
            window,
            {name: data[at] for name, data in block.data.items()},
            {name: codes[at] for name, codes in block.reason.items()},
            block.bytes_read,
        )

    def describe(self) -> Mapping[str, Any]:
        """Return the source and the date."""
        return {"kind": "date", "number": self.number, "source": dict(self.source.describe())}


@dataclass(frozen=True)
class Part:
    """One date of one image."""

    item: str
    """Name that hits carry: of the Item or the file."""
    source: Source
    """Its pixels: one input, one date."""
    date: str | None = None
    """When, ISO 8601 in UTC; None where unknown."""
    cloud: float | None = None
    """Percent of it that clouds cover; None where unknown."""
    opens: Mapping[str, Any] = field(default_factory=dict)
    """How its pixels can be read again, as plain data, for contact sheets."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the report of its runs."""
    begin: Callable[[Path], Any] | None = None
    """Called with the folder of its first level: writes what belongs beside the result, such as its Items."""

    @property
    def identity(self) -> str:
        """Sixteen letters that stand for what its pixels depend on."""
        plain = json.dumps(dict(self.source.describe()), sort_keys=True, default=str)
        return hashlib.sha256(plain.encode()).hexdigest()[:16]


OF_PICTURES = frozenset({"tower", "low", "high"})
"""Options of embedders that say how pictures come in, and change nothing of what vectors mean."""


def parts_of(item: str, source: Source, **facts: Any) -> list[Part]:
    """Return one part for each date of a source; ``facts`` are fields of `Part`."""
    (layer,) = source.layers.values()
    parts = []
    for number, time in enumerate(layer.times):
        one = source if len(layer.times) == 1 else OneDate(source, number)
        date = None if time is None else str(np.datetime64(time, "s")) + "Z"
        parts.append(Part(item, one, **{"date": date, **facts}))
    return parts


@dataclass(frozen=True)
class Indexed:
    """What `index_parts` did."""

    path: Path
    """The index."""
    vectors: int
    """Rows of the index."""
    new: int
    """Rows that this call computed."""
    parts: int
    """Parts of the index."""
    bytes: int
    """Size of vectors and records on the disk."""
    km2: float
    """Ground that the new parts cover, by their finest level."""
    seconds: float
    """Seconds that the new parts took."""
    graph: Mapping[str, Any] | None = None
    """What ``index.json`` says of the graph; None where every search is exact."""
    grown: bool = False
    """True where this call made the graph, or added to it."""


def index_parts(
    parts: Sequence[Part],
    kernel: Kernel,
    out: str | Path,
    *,
    embedder: Mapping[str, Any],
    levels: int | None = None,
    approximate: bool | None = None,
    settings: Settings | None = None,
    progress: Callable[[str, Any], Any] | None = None,
) -> Indexed:
    """Add parts to an index, which is made where there is none.

    Parameters
    ----------
    parts
        What is to be searched. Those that the index has already are left as they are.
    kernel
        Gives one vector a tile, of length 1.
    out
        Folder of the index.
    embedder
        What loads the same embedder again for texts, as plain data: ``name``, ``weights``, ``options``. Parts may
        differ in the options `OF_PICTURES`: towers of one embedder have one space.
    levels
        Most levels of the pyramid, from full resolution; None: until one tile holds the image.
    approximate
        Whether the index gets a graph (`tilewright.pipeline.nearest`); None: if it has one already, or has
        `tilewright.pipeline.nearest.APPROXIMATE_FROM` vectors, and the library is there. False drops the one it has.
    settings
        As for any run.
    progress
        Called with the name of a part's level and the `Status` of its run.

    Raises
    ------
    InputError
        The kernel gives no single vector, there is nothing to index, or a graph is asked for without its library.
    ResumeError
        The folder holds something else, or an index of another embedder, or a part embedded with other options.
    TilewrightError
        Whatever a run raises; finished shards are kept.
    """
    from time import perf_counter

    out = Path(out)
    if [one.kind for one in kernel.spec.outputs.values()] != ["vector"]:
        raise InputError(
            "gives no vector",
            place=f"kernel {kernel.spec.name}",
            remedy="name an embedding kernel, such as eurosat",
        )
    (output,) = kernel.spec.outputs
    if not parts:
        raise InputError("there is nothing to index", place="index", remedy="name an image or a recipe")
    if approximate:
        need_library()
    space = _space(kernel, embedder)
    known = _description(out, space)
    begun, km2, fresh = perf_counter(), 0.0, 0
    entries: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in known.get("parts", [])}
    for part in parts:
        if part.identity in entries:
            _check_same(entries[part.identity], kernel, out)
            continue
        entry, area = _run_part(part, kernel, out, levels, settings, progress)
        entries[part.identity] = entry | {"kernel": kernel.digest, "options": dict(embedder["options"])}
        km2 += area
        fresh += sum(level["rows"] for level in entry["levels"])
    if fresh or not known:
        known = _publish(out, list(entries.values()), kernel, output, space, embedder, known.get("graph"))
    seconds = perf_counter() - begun
    known, grown = keep_graph(out / DESCRIPTION, known, approximate, progress)
    size = _size(out / known["vectors"]) + (out / known["records"]).stat().st_size
    return Indexed(out, known["rows"], fresh, len(entries), size, km2, seconds, usable_graph(known), grown)


def _space(kernel: Kernel, embedder: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two kernels must share for their vectors to be comparable."""
    options = {name: value for name, value in embedder["options"].items() if name not in OF_PICTURES}
    return {
        "kernel": kernel.spec.name,
        "weights": kernel.weights_sha256 or kernel.digest,
        "options": options,
    }


def _check_same(entry: Mapping[str, Any], kernel: Kernel, out: Path) -> None:
    if entry["kernel"] != kernel.digest:
        raise ResumeError(
            f"the index has this image already, embedded with {entry['options'] or 'the default options'}",
            place=f"{out}, {entry['item']}",
            remedy="give the same options, or name another folder",
        )


def _description(out: Path, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``index.json`` says, or nothing where there is none; raises `ResumeError` for another embedder."""
    path = out / DESCRIPTION
    if not path.exists():
        strangers = [p.name for p in out.iterdir() if p.name != "parts"] if out.is_dir() else []
        if strangers:
            raise ResumeError(
                f"the folder holds {sorted(strangers)[0]} and no index",
                place=str(out),
                remedy="name another folder",
            )
        return {}
    known: dict[str, Any] = json.loads(path.read_text())
    if known["space"] != space:
        raise ResumeError(
            f"the index is of {known['embedder'].get('name')} with other weights or options",
            place=str(out),
            remedy="use the same embedder, or name another folder",
        )
    return known


def _run_part(
    part: Part,
    kernel: Kernel,
    out: Path,
    levels: int | None,
    settings: Settings | None,
    progress: Callable[[str, Any], Any] | None,
) -> tuple[dict[str, Any], float]:
    """Compute the levels of a part; return its entry in ``index.json`` and its square kilometres."""
    job = prepare(kernel, part.source, settings)
    pyramid = open_pyramid(part.source, coarsest=job.tiling.tile)
    made = []
    for number, level in enumerate(pyramid.levels[:levels]):
        if number:
            job = prepare(kernel, level.source, settings)
        folder = out / "parts" / part.identity / str(number)
        request = Request(
            folder,
            f"{part.item}, level {number}",
            extra=part.extra,
            item_id=f"level-{number}",
            begin=None if number else part.begin,
        )
        tell = (
            None
            if progress is None
            else (lambda status, n=number: progress(f"{part.item}, level {n}", status))
        )
        report = execute_records(job, request, tell)
        made.append(_level_entry(number, level, folder, job.tiling.tile, report))
    entry = {
        "id": part.identity,
        "item": part.item,
        "date": part.date,
        "cloud": part.cloud,
        "opens": dict(part.opens),
        "crs": pyramid.grid.crs,
        "shape": list(pyramid.grid.shape),
        "shown": _shown(kernel),
        "levels": made,
    }
    return entry, _km2(pyramid.grid)


def _shown(kernel: Kernel) -> list[list[float]] | None:
    """Return what is black and white where pictures of the part are shown, ``[2, bands]``, or None where unknown.

    They are the ground that the kernel was made for: two standard deviations below its mean, two and a half above.
    """
    (wanted,) = kernel.spec.inputs.values()
    mean, std = np.array(wanted.mean, float), np.array(wanted.std, float)
    return None if mean.ndim != 1 else [list(mean - 2 * std), list(mean + 2.5 * std)]


def _level_entry(number: int, level: Level, folder: Path, tile: int, report: Any) -> dict[str, Any]:
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(folder / RECORDS).metadata.num_rows
    return {
        "level": number,
        "factor": level.factor,
        "tile": tile,
        "shape": list(level.shape),
        "rows": rows,
        "digest": report.digest,
    }


def _km2(grid: Grid) -> float:
    """Square kilometres of a grid, on the ellipsoid."""
    from pyproj import Geod

    from .table import footprint

    rows, cols = grid.shape
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(footprint(grid, (0, 0, cols, rows)))
    return abs(float(area)) / 1e6


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- the index itself ----------------------------------------------------------------------------------


def _publish(
    out: Path,
    entries: list[dict[str, Any]],
    kernel: Kernel,
    output: str,
    space: Mapping[str, Any],
    embedder: Mapping[str, Any],
    graph: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Put the tables of all parts together, and let ``index.json`` name them.

    The graph that there was is named too: it is of other rows now and is not searched, but can be added to.
    """
    entries.sort(key=lambda entry: (entry["date"] or "", entry["item"], entry["id"]))
    digests = [[entry["id"], [level["digest"] for level in entry["levels"]]] for entry in entries]
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    vectors, records = out / f"vectors-{digest}.zarr", out / f"records-{digest}.parquet"
    rows = sum(level["rows"] for entry in entries for level in entry["levels"])
    dim = kernel.spec.outputs[output].band_count
    try:
        _merge(out, entries, output, (rows, dim), vectors, records)
        description = {
            "version": VERSION,
            "embedder": {**embedder, "options": space["options"]},
            "space": space,
            "dim": dim,
            "rows": rows,
            "vectors": vectors.name,
            "records": records.name,
            "digest": digest,
            "parts": entries,
            **({"graph": graph} if graph else {}),
        }
        write_json(out / DESCRIPTION, description)
    except OSError as error:
        raise StoreError(f"the index could not be written: {error}", place=str(out)) from error
    for old in (*out.glob("vectors-*.zarr"), *out.glob("records-*.parquet")):
        if old not in (vectors, records):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    return description


def _merge(
    out: Path,
    entries: Sequence[Mapping[str, Any]],
    output: str,
    shape: tuple[int, int],
    vectors: Path,
    records: Path,
) -> None:
    import pyarrow.parquet as pq
    import zarr

    rows, dim = shape
    stored = zarr.create_array(
        vectors, shape=shape, chunks=(min(ROWS, max(rows, 1)), dim), dtype="float32", overwrite=True,
        compressors=None, dimension_names=("row", "dimension"),
    )  # fmt: skip
    metadata, at = GeoMetadata(), 0
    held = np.empty((0, dim), np.float32)
    unfinished = records.with_name(f".{records.name}.partial")
    with pq.ParquetWriter(unfinished, records_schema(), compression="zstd") as writer:
        for table, found in _tables(out, entries, output, dim):
            metadata.add(table)
            writer.write_table(table, row_group_size=GROUP)
            held = np.concatenate([held, found])
            while len(held) >= ROWS:  # whole chunks: each is compressed once
                stored[at : at + ROWS], held = held[:ROWS], held[ROWS:]
                at += ROWS
        if len(held):
            stored[at : at + len(held)] = held
        writer.add_key_value_metadata({"geo": json.dumps(metadata.metadata())})
    os.replace(unfinished, records)  # noqa: PTH105


def _tables(
    out: Path, entries: Sequence[Mapping[str, Any]], output: str, dim: int
) -> Iterator[tuple[pa.Table, np.ndarray[Any, Any]]]:
    """Yield the rows of the index and their vectors, in the order of parts, levels and tiles."""
    import pyarrow.parquet as pq

    for entry in entries:
        for level in entry["levels"]:
            file = pq.ParquetFile(out / "parts" / entry["id"] / str(level["level"]) / RECORDS)
            for batch in file.iter_batches(
                batch_size=ROWS, columns=["tile_row", "tile_col", output, "geometry"]
            ):
                found = batch.column(output).flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
                yield _rows_of(entry, level, batch), found


def _rows_of(entry: Mapping[str, Any], level: Mapping[str, Any], batch: Any) -> pa.Table:
    import pyarrow as pa

    count = batch.num_rows
    side, shape = level["tile"], entry["shape"]
    top, left = (batch.column(n).to_numpy() * side for n in ("tile_row", "tile_col"))
    stretch = [full / own for full, own in zip(shape, level["shape"], strict=True)]
    columns = {
        "part": [entry["id"]] * count,
        "item": [entry["item"]] * count,
        "date": [entry["date"]] * count,
        "cloud": pa.array([entry["cloud"]] * count, pa.float32()),
        "level": pa.array([level["level"]] * count, pa.int16()),
        "row0": top * stretch[0],
        "col0": left * stretch[1],
        "row1": np.minimum((top + side) * stretch[0], shape[0]),
        "col1": np.minimum((left + side) * stretch[1], shape[1]),
        "geometry": batch.column("geometry"),
    }
    return pa.table(columns, schema=records_schema())


def records_schema() -> pa.Schema:
    """Return the columns of the records: what each row of the vectors stands for."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            ("part", text),
            ("item", text),
            ("date", text),
            ("cloud", pa.float32()),
            ("level", pa.int16()),
            *((name, pa.float64()) for name in ("row0", "col0", "row1", "col1")),
            ("geometry", pa.binary()),
        ]
    )
