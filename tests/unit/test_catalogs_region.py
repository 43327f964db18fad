"""Regions: every form, every refusal, and the split at the antimeridian."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tilewright.catalogs.criteria import footprint
from tilewright.catalogs.region import Region, split_antimeridian
from tilewright.errors import InputError

FIJI = (177.0, -19.0, -178.0, -16.0)


def polygon(*points: tuple[float, float]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[list(point) for point in (*points, points[0])]]}


@pytest.mark.parametrize(
    "given",
    [
        "177,-19,-178,-16",
        [177, -19, -178, -16],
        polygon((177, -19), (182, -19), (182, -16), (177, -16)),
        polygon((-183, -19), (-178, -19), (-178, -16), (-183, -16)),
        polygon((177, -19), (-178, -19), (-178, -16), (177, -16)),
        {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "properties": {},
                    "geometry": polygon((177, -19), (180, -19), (180, -16), (177, -16)),
                },
                {
                    "type": "Feature",
                    "properties": {},
                    "geometry": polygon((-180, -19), (-178, -19), (-178, -16), (-180, -16)),
                },
            ],
        },
    ],
)
def test_every_way_to_write_fiji_is_the_same_two_parts(given: object) -> None:
    region = Region.parse(given)  # type: ignore[arg-type]
    assert region.bbox == FIJI
    assert region.crosses_antimeridian
    assert not region.is_rectangle
    west, east = region.parts()
    assert west.bbox == (177, -19, 180, -16)
    assert east.bbox == (-180, -19, -178, -16)
    assert region.geometry.area == pytest.approx(15)


def test_a_ring_that_jumps_is_said_or_refused() -> None:
    assert "antimeridian" in Region.parse(polygon((177, -19), (-178, -19), (-178, -16), (177, -16))).notes[0]
    with pytest.raises(InputError, match=r"either way round.*longitudes beyond 180"):
        Region.parse(polygon((-100, 0), (100, 0), (100, 10), (-100, 10)))


def test_wide_boxes_stay_what_they_say() -> None:
    assert Region.parse("-170,0,170,10").bbox == (-170, 0, 170, 10)
    world = Region.parse("-180,-90,180,90")
    assert world.bbox == (-180, -90, 180, 90)
    assert world.parts() == (world,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (polygon((0, 0), (1, 1), (1, 0), (0, 1)), "crosses itself"),
        ({"type": "FeatureCollection", "features": []}, "empty"),
        ({"type": "Polygon", "coordinates": []}, "empty"),
        ({"type": "Feature", "geometry": None}, "empty"),
        ({"type": "Point", "coordinates": [1, 2]}, "no area"),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "no area"),
        ({"type": "Polygon", "coordinates": [[[1, "x"], [2, 2], [3, 3], [1, 1]]]}, "not a GeoJSON geometry"),
        ({"type": "Topology"}, "not GeoJSON"),
        (polygon((5e5, 5.2e6), (5.1e5, 5.2e6), (5.1e5, 5.3e6)), r"outside longitude and latitude.*reproject"),
        (polygon((0, 80), (1, 80), (1, 95)), "outside longitude"),
        ({**polygon((0, 0), (1, 0), (1, 1)), "crs": None}, "names no CRS"),
        (
            {**polygon((0, 0), (1, 0), (1, 1)), "crs": {"type": "name", "properties": {"name": "EPSG:xx"}}},
            "unknown CRS",
        ),
        ("1,2,3", "no such region file"),
        ("1,2,3,x", "four numbers"),
        ("1,2,1,3", "west equals east"),
        ("1,5,2,3", "south 5 is not below"),
        ("1,2,nan,3", "finite"),
        ("nowhere.geojson", "no such region file"),
        ('{"type": "Poly', "not valid JSON"),
    ],
)
def test_bad_regions_are_refused_with_a_remedy(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Region.parse(given)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_legacy_crs_member_is_honoured(tmp_path: Path) -> None:
    utm = polygon((500000, 5200000), (510000, 5200000), (510000, 5210000), (500000, 5210000))
    named = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}}
    path = tmp_path / "utm.json"
    path.write_text(
        json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": utm}], **named})
    )
    west, south, east, north = Region.parse(str(path)).bbox
    # pyproj: 500000,5200000 in EPSG:32633 is 15 E, 46.9530 N
    assert west == pytest.approx(15.0, abs=1e-9)
    assert south == pytest.approx(46.9530, abs=1e-3)
    assert east == pytest.approx(15.1315, abs=1e-3)
    assert north == pytest.approx(47.0430, abs=1e-3)
    crs84 = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}}
    assert Region.parse({**polygon((0, 0), (1, 0), (1, 1)), **crs84}).bbox == (0, 0, 1, 1)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".parquet"])
def test_tables_need_a_crs(tmp_path: Path, suffix: str) -> None:
    import geopandas

    table = geopandas.GeoDataFrame(
        {"a": [1, 2]},
        geometry=[shapely.box(5e5, 52e5, 51e4, 521e4), shapely.box(51e4, 52e5, 52e4, 521e4)],
        crs=32633,
    )
    write = table.to_parquet if suffix == ".parquet" else table.to_file
    write(tmp_path / f"with{suffix}")
    region = Region.from_file(tmp_path / f"with{suffix}")
    assert region.name == f"with{suffix}"
    assert region.bbox[0] == pytest.approx(15.0)
    table = table.set_crs(None, allow_override=True)
    write = table.to_parquet if suffix == ".parquet" else table.to_file
    write(tmp_path / f"without{suffix}")
    with pytest.raises(InputError, match="no CRS"):
        Region.from_file(tmp_path / f"without{suffix}")


def test_a_projected_region_over_the_antimeridian_is_split(tmp_path: Path) -> None:
    import geopandas

    # UTM zone 1 south reaches west over 180 degrees at its edge.
    table = geopandas.GeoDataFrame(geometry=[shapely.box(100000, 8100000, 300000, 8200000)], crs=32701)
    table.to_file(tmp_path / "edge.gpkg")
    region = Region.from_file(tmp_path / "edge.gpkg")
    assert region.crosses_antimeridian
    assert len(region.parts()) == 2
    assert region.notes == ()


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gpkg").write_bytes(b"not a database")
    (tmp_path / "x.parquet").write_bytes(b"PAR1nothing")
    (tmp_path / "x.txt").write_text("hello")
    for name, message in (("x.gpkg", "vector file"), ("x.parquet", "vector file"), ("x.txt", "unknown kind")):
        with pytest.raises(InputError, match=message):
            Region.from_file(tmp_path / name)


@given(
    west=st.floats(-360, 360), width=st.floats(0.01, 359), south=st.floats(-89, 88), height=st.floats(0.01, 1)
)
def test_splitting_keeps_area_and_range(west: float, width: float, south: float, height: float) -> None:
    whole = shapely.box(west, south, min(west + width, 540), south + height)
    split = split_antimeridian(whole)
    assert split.bounds[0] >= -180
    assert split.bounds[2] <= 180
    assert split.area == pytest.approx(whole.area, rel=1e-6)


@given(west=st.floats(-180, 180), width=st.floats(0.1, 170), south=st.floats(-80, 79))
def test_parts_tile_the_region(west: float, width: float, south: float) -> None:
    east = west + width
    region = Region.from_bbox(west, south, east - 360 if east > 180 else east, south + 1)
    parts = region.parts()
    assert len(parts) == (2 if region.crosses_antimeridian else 1)
    assert all(not part.crosses_antimeridian for part in parts)
    assert sum(part.geometry.area for part in parts) == pytest.approx(width, rel=1e-6)


def test_footprints_of_scenes_over_the_antimeridian(shared_data: Path) -> None:
    import pystac

    folder = shared_data / "10_stac_items/stactools-sentinel2/tests/data-files"
    files = sorted(folder.glob("*_T01*/expected_output.json"))
    assert files
    for path in files:
        shape = footprint(pystac.Item.from_file(str(path)))
        assert shape is not None
        assert shape.is_valid
        assert shape.area < 60  # a tile of 110 km, also at 80 degrees, and never a belt round the globe
