"""The records of `map_tiles`: one GeoParquet with a row for each tile, or for each box.

Every shard's rows are first a part file of their own, published by a rename, so that an interrupted run keeps
the finished ones and a repeated shard replaces its part. `RecordWriter.finish` merges the parts, a shard row
at a time, into one file sorted by tile, and reads it back.

GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/): WKB in longitude and latitude on WGS84 (OGC:CRS84),
which is its default CRS, so that tables of several UTM zones can be joined.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError

from .objects import fsync_path

if TYPE_CHECKING:
    import geopandas
    import pyarrow as pa
    import shapely
    from numpy.typing import NDArray

    from tilewright.kernels.contract import OutputSpec

    from .grid import Grid, Shard, Window

__all__ = ["BOX_COLUMNS", "Box", "GeoMetadata", "Record", "RecordWriter", "footprint", "write_json"]

BOX_COLUMNS = ("score", "label", "xmin", "ymin", "xmax", "ymax")
"""Columns that an output of kind ``boxes`` adds; the last four are pixels of the grid."""

TILE_COLUMNS = ("tile_row", "tile_col", "x", "y", "geometry")
"""Columns of every table: index of the tile, the centre in the grid's CRS, and the footprint."""

EDGE_POINTS = 4
"""Points along each side of a footprint: a straight edge in UTM is a curve in degrees."""


@dataclass(frozen=True, slots=True)
class Box:
    """One thing that was found in a tile."""

    bounds: tuple[float, float, float, float]
    """``(xmin, ymin, xmax, ymax)`` in pixels of the grid: columns and rows, from the grid's upper left corner."""
    score: float
    """Certainty."""
    label: str
    """What it is."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a kernel gave for one tile."""

    index: tuple[int, int]
    """``(row, column)`` in the lattice of tiles."""
    core: Window
    """The pixels that the record stands for."""
    values: Mapping[str, Any]
    """Output name -> vector ``[n]`` float32, text, or a sequence of `Box`."""


def footprint(grid: Grid, bounds: tuple[float, float, float, float]) -> shapely.Geometry:
    """Return a rectangle of pixels, ``(xmin, ymin, xmax, ymax)``, as a polygon in longitude and latitude.

    One over the antimeridian becomes a multipolygon of two parts, as RFC 7946 (section 3.1.9) asks.
    """
    import pyproj
    import shapely
    from shapely.affinity import translate

    if grid.geobox.crs is None:
        raise StoreError("the grid has no CRS", place="records")
    x0, y0, x1, y1 = bounds
    t = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    cols = np.concatenate([x0 + (x1 - x0) * t, np.full_like(t, x1), x1 - (x1 - x0) * t, np.full_like(t, x0)])
    rows = np.concatenate([np.full_like(t, y0), y0 + (y1 - y0) * t, np.full_like(t, y1), y1 - (y1 - y0) * t])
    a, b, c, d, e, f = grid.transform
    to_lonlat = pyproj.Transformer.from_crs(str(grid.geobox.crs), 4326, always_xy=True)
    lon, lat = to_lonlat.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    if np.ptp(lon) <= 180 and lon.min() >= -180 and lon.max() <= 180:
        return shapely.Polygon(np.column_stack([lon, lat]))
    lon = np.where(lon < -180, lon + 360, lon)  # a grid in degrees may go on beyond 180
    east = shapely.Polygon(np.column_stack([np.where(lon < 0, lon + 360, lon), lat]))
    parts = [
        shapely.intersection(east, shapely.box(0, -90, 180, 90)),
        translate(shapely.intersection(east, shapely.box(180, -90, 360, 90)), -360),
    ]
    return shapely.MultiPolygon([part for part in parts if part.area > 0])


class RecordWriter:
    """Writes the records of a run. Several processes may write, as long as each shard has one owner."""

    def __init__(self, path: str | Path, grid: Grid, outputs: Mapping[str, OutputSpec]) -> None:
        """Prepare to write ``path``.

        Parameters
        ----------
        path
            The finished ``.parquet``; parts lie in ``path`` + ``.parts`` until `finish`.
        grid
            The grid whose tiles are mapped.
        outputs
            Name -> description; kinds ``vector``, ``text`` or ``boxes``. Boxes cannot be mixed with others,
            because a row is then a box.

        Raises
        ------
        StoreError
            If the outputs cannot share a table, or a name is taken.
        """
        self.path = Path(path)
        self.parts = self.path.with_name(f"{self.path.name}.parts")
        self.grid = grid
        self.outputs = dict(outputs)
        kinds = {spec.kind for spec in outputs.values()}
        self.boxes = kinds == {"boxes"}
        if not kinds or not kinds <= {"vector", "text", "boxes"} or (self.boxes and len(outputs) > 1):
            raise StoreError(f"outputs {', '.join(outputs)} are no records of one table", place=str(path))
        if "boxes" in kinds and not self.boxes:
            remedy = "give boxes a kernel of their own"
            raise StoreError("boxes and other records cannot share a table", place=str(path), remedy=remedy)
        taken = sorted({*TILE_COLUMNS, *BOX_COLUMNS, "bbox"} & set(outputs))
        if taken:
            raise StoreError(f"an output cannot be called {taken[0]!r}", place=str(path))

    def write(self, shard: Shard, records: Sequence[Record]) -> int:
        """Write the records of the tiles that ``shard`` owns; returns the rows. A shard without any has a part too.

        Raises `StoreError` where a record lacks an output, a vector has another length, or the disk is full.
        """
        import pyarrow.parquet as pq

        ordered = sorted(records, key=lambda record: record.index)
        rows = list(self._box_rows(ordered) if self.boxes else self._tile_rows(ordered, shard))
        table = self._table(rows)
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            target = self._part(shard.index)
            unfinished = target.with_suffix(".partial")
            pq.write_table(table, unfinished, compression="zstd")
            os.replace(unfinished, target)  # noqa: PTH105
        except OSError as error:
            cause = f"records could not be written: {error}"
            raise StoreError(cause, place=f"shard {shard.name}") from error
        return len(rows)

    def finish(self) -> Path:
        """Merge the parts into ``path``, sorted by tile, and validate it; returns ``path``.

        One row of shards is in memory at a time: tiles of the rows below come after all of its own.

        Raises `StoreError` where the file does not read back with the rows that went in.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        unfinished = self.path.with_name(f".{self.path.name}.partial")
        places = sorted(tuple(int(n) for n in p.stem.split(".")) for p in self.parts.glob("*.parquet"))
        count = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            bounds = GeoMetadata()
            with pq.ParquetWriter(unfinished, self._schema(), compression="zstd") as writer:
                for row in sorted({place[0] for place in places}):
                    files = [self._part(place) for place in places if place[0] == row]
                    merged = pa.concat_tables([pq.read_table(file, schema=self._schema()) for file in files])
                    merged = merged.sort_by([("tile_row", "ascending"), ("tile_col", "ascending")])
                    bounds.add(merged)
                    count += merged.num_rows
                    writer.write_table(merged)
                writer.add_key_value_metadata({"geo": json.dumps(bounds.metadata())})
            self._validate(unfinished, count)
            fsync_path(unfinished)
            os.replace(unfinished, self.path)  # noqa: PTH105
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"the table could not be written: {error}", place=str(self.path)) from error
        finally:
            unfinished.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)
        return self.path

    # -- inside ----------------------------------------------------------------------------------------

    def _part(self, index: Sequence[int]) -> Path:
        return self.parts / f"{index[0]}.{index[1]}.parquet"

    def _common(self, record: Record) -> dict[str, Any]:
        window = record.core
        col, row = (window.col0 + window.col1) / 2, (window.row0 + window.row1) / 2
        a, b, c, d, e, f = self.grid.transform
        x, y = a * col + b * row + c, d * col + e * row + f
        missing = sorted(set(self.outputs) - set(record.values))
        if missing:
            raise StoreError(f"the record lacks {', '.join(missing)}", place=f"tile {record.index}")
        return {"tile_row": record.index[0], "tile_col": record.index[1], "x": x, "y": y}

    def _tile_rows(self, records: Sequence[Record], shard: Shard) -> Iterator[dict[str, Any]]:
        for record in records:
            window = record.core
            bounds = (window.col0, window.row0, window.col1, window.row1)
            row = {**self._common(record), "geometry": footprint(self.grid, bounds).wkb}
            for name, spec in self.outputs.items():
                value = record.values[name]
                row[name] = str(value) if spec.kind == "text" else self._vector(name, spec, value, record)
            yield row

    def _vector(self, name: str, spec: OutputSpec, value: Any, record: Record) -> NDArray[np.float32]:
        vector = np.asarray(value, dtype=np.float32).reshape(-1)
        if vector.size != spec.band_count:
            raise StoreError(
                f"{name} has {vector.size} numbers, its description says {spec.band_count}",
                place=f"tile {record.index}",
            )
        return vector

    def _box_rows(self, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
        name = next(iter(self.outputs))
        for record in records:
            common = self._common(record)
            for box in record.values[name]:
                wkb = footprint(self.grid, box.bounds).wkb
                sides = dict(zip(BOX_COLUMNS[2:], box.bounds, strict=True))
                yield {**common, "geometry": wkb, "score": box.score, "label": box.label, **sides}

    def _schema(self) -> pa.Schema:
        import pyarrow as pa

        fields = [
            ("tile_row", pa.int32()),
            ("tile_col", pa.int32()),
            ("x", pa.float64()),
            ("y", pa.float64()),
        ]
        if self.boxes:
            fields += [("score", pa.float32()), ("label", pa.string())]
            fields += [(name, pa.float64()) for name in BOX_COLUMNS[2:]]
        else:
            for name, spec in self.outputs.items():
                is_text = spec.kind == "text"
                fields.append((name, pa.string() if is_text else pa.list_(pa.float32(), spec.band_count)))
        return pa.schema([*fields, ("geometry", pa.binary())])

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        import pyarrow as pa

        return pa.Table.from_pylist(rows, schema=self._schema())

    def _validate(self, path: Path, count: int) -> None:
        """Raise `StoreError` unless geopandas reads ``path`` as ``count`` rows in WGS84, in order."""
        import geopandas
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        if file.metadata.num_rows != count:
            raise StoreError(f"{file.metadata.num_rows} rows were written, not {count}", place=str(path))
        head: geopandas.GeoDataFrame = geopandas.read_parquet(
            path, columns=["tile_row", "tile_col", "geometry"]
        )
        keys = list(zip(head["tile_row"], head["tile_col"], strict=True))
        if keys != sorted(keys) or head.crs is None or head.crs.to_string() != "OGC:CRS84":
            raise StoreError("the table is not in the order of tiles, or not in WGS84", place=str(path))
        if not bool(head.geometry.is_valid.all()):
            raise StoreError("a footprint is not a valid polygon", place=str(path))


class GeoMetadata:
    """Gathers what GeoParquet's metadata say of the geometries while they pass."""

    def __init__(self) -> None:
        self.box = [np.inf, np.inf, -np.inf, -np.inf]
        self.types: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """Look at the column ``geometry`` of a table."""
        import shapely

        if not table.num_rows:
            return
        shapes = shapely.from_wkb(table.column("geometry").to_numpy())
        low, high = shapely.total_bounds(shapes)[:2], shapely.total_bounds(shapes)[2:]
        self.box = [*np.minimum(self.box[:2], low).tolist(), *np.maximum(self.box[2:], high).tolist()]
        self.types |= {shape.geom_type for shape in shapes}

    def metadata(self) -> dict[str, Any]:
        """Return the ``geo`` metadata; a CRS that is not named is OGC:CRS84."""
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(self.types)}
        if self.types:
            column["bbox"] = self.box
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def write_json(path: Path, data: Any) -> Path:
    """Write plain data as JSON, whole or not at all; raises `StoreError`."""
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        raise StoreError(f"cannot be written: {error}", place=str(path)) from error
    return path
