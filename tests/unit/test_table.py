"""GeoParquet of records: read back by geopandas, sorted, in WGS84, resumable by shard."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from tilewright.errors import StoreError
from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.grid import Grid, Tiling, Window
from tilewright.pipeline.table import Box, Record, RecordWriter, footprint

GRID = Grid(GeoBox((500, 700), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633"))
TILING = Tiling.choose(tile=64, radius=0, shard=256)
VECTOR = {"embedding": OutputSpec(kind="vector", bands=8), "caption": OutputSpec(kind="text")}


def records_of(shard):
    for tile in TILING.tiles(shard, GRID.shape):
        value = tile.index[0] * 1000 + tile.index[1]
        values = {"embedding": np.arange(8) + value, "caption": f"tile {tile.index} ä"}
        yield Record(tile.index, tile.gives, values)


def test_every_tile_is_a_row_in_order_with_its_footprint(tmp_path):
    writer = RecordWriter(tmp_path / "tiles.parquet", GRID, VECTOR)
    shards = list(TILING.shards(GRID.shape))
    for shard in reversed(shards):
        RecordWriter(tmp_path / "tiles.parquet", GRID, VECTOR).write(shard, list(records_of(shard))[::-1])
    assert not (tmp_path / "tiles.parquet").exists()
    path = writer.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.parquet"]

    table = geopandas.read_parquet(path)
    assert table.crs.to_string() == "OGC:CRS84"
    assert len(table) == 8 * 11
    assert list(zip(table.tile_row, table.tile_col, strict=True)) == [
        (r, c) for r in range(8) for c in range(11)
    ]
    assert table.embedding[12].tolist() == (np.arange(8) + 1001).tolist()
    assert table.caption[12] == "tile (1, 1) ä"
    schema = pq.read_schema(path)
    assert schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert (table.x[12], table.y[12]) == (500_000 + 960, 5_000_000 - 960)
    utm = table.to_crs(32633)
    expected = shapely.box(500_640, 4_998_720, 501_280, 4_999_360)
    assert utm.geometry[12].symmetric_difference(expected).area < 1  # of 409,600 square metres
    covered = utm.geometry.union_all().area
    assert covered == pytest.approx(500 * 700 * 100, rel=1e-6)
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert geo["columns"]["geometry"]["bbox"] == pytest.approx(table.total_bounds.tolist())


def test_a_repeated_shard_replaces_its_part(tmp_path):
    shard = next(iter(TILING.shards(GRID.shape)))
    writer = RecordWriter(tmp_path / "t.parquet", GRID, VECTOR)
    assert writer.write(shard, list(records_of(shard))) == 16
    assert writer.write(shard, list(records_of(shard))) == 16
    assert len(geopandas.read_parquet(writer.finish())) == 16


def test_boxes_are_rows_with_their_own_polygon(tmp_path):
    writer = RecordWriter(tmp_path / "b.parquet", GRID, {"ships": OutputSpec(kind="boxes")})
    shard = next(iter(TILING.shards(GRID.shape)))
    boxes = [Box((10.5, 20, 14, 26.25), 0.75, "ship"), Box((30, 30, 31, 31), 0.5, "buoy")]
    found = [Record((0, 0), Window(0, 64, 0, 64), {"ships": boxes})]
    found += [Record((0, 1), Window(0, 64, 64, 128), {"ships": []})]
    assert writer.write(shard, found) == 2
    table = geopandas.read_parquet(writer.finish())
    assert table.label.tolist() == ["ship", "buoy"]
    assert table.score.tolist() == [0.75, 0.5]
    assert table[["xmin", "ymin", "xmax", "ymax"]].iloc[0].tolist() == [10.5, 20, 14, 26.25]
    expected = shapely.box(500_105, 4_999_737.5, 500_140, 4_999_800)
    assert table.to_crs(32633).geometry[0].symmetric_difference(expected).area < 1e-3


def test_no_records_at_all_is_an_empty_table(tmp_path):
    writer = RecordWriter(tmp_path / "e.parquet", GRID, {"ships": OutputSpec(kind="boxes")})
    writer.write(next(iter(TILING.shards(GRID.shape))), [])
    table = geopandas.read_parquet(writer.finish())
    assert len(table) == 0
    assert "label" in table.columns


def test_a_footprint_over_the_antimeridian_has_two_parts():
    grid = Grid(GeoBox((100, 100), Affine(100, 0, 815_000, 0, -100, 8_100_000), "EPSG:32760"))
    shape = footprint(grid, (0, 0, 100, 100))
    assert shape.geom_type == "MultiPolygon"
    assert shape.is_valid
    assert (shape.bounds[0], shape.bounds[2]) == (-180, 180)
    assert sum(part.area for part in shape.geoms) == pytest.approx(0.0946 * 0.0903, rel=0.05)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"a": OutputSpec(kind="score")}, "no records"),
        ({"a": OutputSpec(kind="boxes"), "b": OutputSpec(kind="text")}, "cannot share"),
        ({"geometry": OutputSpec(kind="text")}, "cannot be called"),
        ({}, "no records"),
    ],
)
def test_outputs_that_make_no_table_are_refused(tmp_path, outputs, message):
    with pytest.raises(StoreError, match=message):
        RecordWriter(tmp_path / "t.parquet", GRID, outputs)


def test_records_that_do_not_fit_are_refused(tmp_path):
    writer = RecordWriter(tmp_path / "t.parquet", GRID, VECTOR)
    shard = next(iter(TILING.shards(GRID.shape)))
    with pytest.raises(StoreError, match=r"tile \(0, 0\): embedding has 3 numbers"):
        writer.write(shard, [Record((0, 0), Window(0, 8, 0, 8), {"embedding": [1, 2, 3], "caption": ""})])
    with pytest.raises(StoreError, match="lacks caption"):
        writer.write(shard, [Record((0, 0), Window(0, 8, 0, 8), {"embedding": [1.0] * 8})])
