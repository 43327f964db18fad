"""Files of named regions: GeoJSON and GeoParquet alike, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import pytest
from shapely import box

from tilewright.catalogs.named_regions import read_named_regions
from tilewright.errors import InputError

SQUARE = {"type": "Polygon", "coordinates": [[[10, 45], [11, 45], [11, 46], [10, 46], [10, 45]]]}


def written(folder: Path, features: list[Any], **top: Any) -> Path:
    path = folder / "regions.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **top}))
    return path


def feature(properties: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": SQUARE, **more}


def test_names_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, [feature({"name": "b"}), feature({"name": "A-1"}), feature(None, id=7)])
    found = read_named_regions(path)
    assert list(found) == ["b", "A-1", "7"]
    assert found["b"].bbox == (10, 45, 11, 46)
    assert found["A-1"].name == "A-1"
    assert list(read_named_regions(written(tmp_path, [feature({"tag": "x"})]), "tag")) == ["x"]


@pytest.mark.parametrize("kind", ["parquet", "gpkg"])
def test_a_table_in_another_crs_gives_the_same_regions(tmp_path: Path, kind: str) -> None:
    shapes = {"north": box(10, 46, 11, 47), "south": box(10, 45, 11, 46)}
    table = geopandas.GeoDataFrame({"name": list(shapes)}, geometry=list(shapes.values()), crs="EPSG:4326")
    table = table.to_crs("EPSG:32632")
    path = tmp_path / f"regions.{kind}"
    table.to_parquet(path) if kind == "parquet" else table.to_file(path)
    found = read_named_regions(path)
    assert list(found) == ["north", "south"]
    for name, shape in shapes.items():
        assert found[name].geometry.symmetric_difference(shape).area < 0.01


def test_over_the_antimeridian(tmp_path: Path) -> None:
    ring = [[179, 0], [181, 0], [181, 1], [179, 1], [179, 0]]
    far = {**feature({"name": "fiji"}), "geometry": {"type": "Polygon", "coordinates": [ring]}}
    assert read_named_regions(written(tmp_path, [far]))["fiji"].crosses_antimeridian


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature({"name": "a"}), feature({"name": "a"})], r"feature 2: two regions are named 'a'"),
        ([feature({"name": "a"}), feature({"name": "A"})], "two regions are named 'A'"),
        ([feature({"title": "a"})], r"feature 1: has no 'name' \(properties: title\)"),
        ([feature({"name": None})], "has no 'name'"),
        ([feature({"name": "../up"})], "cannot be the name of a folder"),
        ([feature({"name": "a/b"})], "cannot be the name of a folder"),
        ([], "holds no feature"),
        ([{**feature({"name": "a"}), "geometry": {"type": "Point", "coordinates": [1, 2]}}], "no area"),
        ([{**feature({"name": "a"}), "geometry": None}], "empty"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, features: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_named_regions(written(tmp_path, features))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file of regions"):
        read_named_regions(tmp_path / "absent.geojson")
    single = tmp_path / "one.geojson"
    single.write_text(json.dumps(feature({"name": "a"})))
    with pytest.raises(InputError, match="give a FeatureCollection"):
        read_named_regions(single)
    table = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[box(0, 0, 1, 1)])
    table.to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="no CRS"):
        read_named_regions(tmp_path / "plain.parquet")
