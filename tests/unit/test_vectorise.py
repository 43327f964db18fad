"""Classes as polygons and as square metres: nothing is cut at a block, areas are those of the ellipsoid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import binary_closing, binary_opening, label
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.errors import InputError
from tilewright.pipeline import compare
from tilewright.pipeline.areas import class_areas, pixel_areas
from tilewright.pipeline.grid import Window
from tilewright.pipeline.vectorise import Cleaning, find_objects, write_objects

UTM = Affine(10, 0, 500_000, 0, -10, 5_300_000)
NAMES = ("no-change", "change")


def written(folder: Path, labels: np.ndarray, score: np.ndarray | None = None, **grid: Any) -> str:
    """Write what a run leaves as COGs: a class map with names, and a score."""
    profile = {"driver": "GTiff", "height": labels.shape[0], "width": labels.shape[1], "count": 1}
    profile |= {"crs": "EPSG:32633", "transform": UTM, **grid}
    with rasterio.open(folder / "change.tif", "w", dtype="uint8", nodata=255, **profile) as out:
        out.write(labels.astype(np.uint8), 1)
        out.update_tags(1, kind="class", flag_meanings=" ".join(NAMES))
    if score is not None:
        with rasterio.open(folder / "score.tif", "w", dtype="float32", nodata=np.nan, **profile) as out:
            out.write(score.astype(np.float32), 1)
    return str(folder)


@pytest.fixture
def blobs() -> np.ndarray:
    draw = np.random.default_rng(4)
    labels = np.kron(draw.integers(0, 2, (14, 12)), np.ones((8, 9), int))[:107, :101].astype(np.uint8)
    labels[draw.random(labels.shape) < 0.1] = 1
    labels[40:60, 30:50] = 255
    return labels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks of 16 px, so that nearly everything crosses one."""
    monkeypatch.setattr(compare, "READ_SIDE", 16)


def geodesic_area(corners: list[tuple[float, float]], crs: str) -> float:
    """Area of a polygon with many points along its edges, by Karney's geodesics."""
    ring = shapely.segmentize(shapely.Polygon(corners), shapely.Polygon(corners).length / 4000)
    to_degrees = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform
    moved = shapely.transform(ring, to_degrees, interleaved=False)
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(moved)[0])


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        ("EPSG:32633", UTM),
        ("EPSG:32633", Affine(20, 0, 166_000, 0, -20, 100_000)),
        ("EPSG:3857", Affine(30, 0, 1_500_000, 0, -30, 9_000_000)),
        ("EPSG:4326", Affine(0.01, 0, 10, 0, -0.01, 70)),
        ("EPSG:3413", Affine(100, 20, -500_000, 20, -100, -1_500_000)),
    ],
)
def test_the_area_of_a_pixel_is_that_on_the_ellipsoid(crs: str, affine: Affine) -> None:
    box = GeoBox((300, 700), affine, crs)
    found = pixel_areas(box, Window(3, 290, 5, 690))
    assert found.shape == (287, 685)
    for row, col in ((3, 5), (150, 333), (289, 689), (64, 128)):
        corners = [affine * (col + x, row + y) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
        assert found[row - 3, col - 5] == pytest.approx(geodesic_area(corners, crs), rel=1e-5)


def test_the_area_of_a_pixel_does_not_depend_on_the_window() -> None:
    box = GeoBox((900, 900), UTM, "EPSG:32633")
    whole = pixel_areas(box, Window(0, 900, 0, 900))
    np.testing.assert_allclose(
        pixel_areas(box, Window(123, 131, 517, 518)), whole[123:131, 517:518], rtol=1e-12
    )


def test_objects_are_those_of_the_whole_mask(tmp_path: Path, blobs: np.ndarray) -> None:
    score = np.random.default_rng(0).random(blobs.shape)
    found, box = find_objects(written(tmp_path, blobs, score))
    numbers, count = label(blobs == 1)
    areas = pixel_areas(box, Window(0, 107, 0, 101))
    assert len(found) == count
    seen = set()
    for one in found:
        point = (one.geometry.representative_point().coords)[0]
        col, row = ~box.affine * point
        number = numbers[int(row), int(col)]
        here = numbers == number
        seen.add(number)
        assert (one.value, one.label, one.pixels) == (1, "change", here.sum())
        assert one.area_m2 == pytest.approx(areas[here].sum(), rel=1e-9)
        assert one.score == pytest.approx(score[here].mean(), rel=1e-6)
        assert one.geometry.area == pytest.approx(100 * one.pixels)
    assert seen == set(range(1, count + 1))


@pytest.mark.parametrize(("opening", "closing"), [(1, 0), (0, 2), (1, 2)])
def test_morphology_is_that_of_the_whole_mask(
    tmp_path: Path, blobs: np.ndarray, opening: int, closing: int
) -> None:
    found, _ = find_objects(written(tmp_path, blobs), cleaning=Cleaning(opening, closing))
    # One pass, with a margin in which nothing is known: eroding does not reach in from it.
    mask, square = np.pad(blobs == 1, 20, mode="edge"), np.ones((3, 3), bool)
    inside = (slice(20, -20),) * 2
    if opening:
        mask = binary_opening(mask, square, iterations=opening)
    if closing:
        mask = binary_closing(mask, square, iterations=closing)
    mask = mask[inside] & (blobs != 255)
    core = (slice(7, -7),) * 2  # at the edge of the raster, a margin of equal pixels is another thing
    burnt = np.zeros(blobs.shape, bool)
    for one in found:
        burnt |= rasterio.features.rasterize([one.geometry], blobs.shape, transform=UTM).astype(bool)
    assert (burnt[core] == mask[core]).all()
    assert burnt[core].sum() != (blobs == 1)[core].sum()


def test_small_objects_are_left_out(tmp_path: Path, blobs: np.ndarray) -> None:
    every, _ = find_objects(written(tmp_path, blobs))
    large, _ = find_objects(str(tmp_path), cleaning=Cleaning(least_m2=1000))
    assert [o.geometry.wkb for o in large] == [o.geometry.wkb for o in every if (o.area_m2 or 0) >= 1000]
    assert 0 < len(large) < len(every)


def test_areas_add_up_in_regions_and_in_all(tmp_path: Path, blobs: np.ndarray) -> None:
    folder = written(tmp_path, blobs)
    box = GeoBox(blobs.shape, UTM, "EPSG:32633")
    areas = pixel_areas(box, Window(0, 107, 0, 101))
    rows = {row.label: row for row in class_areas(folder)}
    for name, value in (("no-change", 0), ("change", 1), (None, 255)):
        assert rows[name].pixels == (blobs == value).sum()
        assert rows[name].area_m2 == pytest.approx(areas[blobs == value].sum(), rel=1e-9)

    half = shapely.box(*(UTM * (0, 107)), *(UTM * (50, 0)))
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True).transform
    west = shapely.transform(half, to_degrees, interleaved=False)
    found = class_areas(folder, regions={"west": west, "nowhere": shapely.box(0, 0, 1, 1)})
    assert {row.region for row in found} == {"west"}
    assert {row.label: row.pixels for row in found} == {
        "no-change": (blobs[:, :50] == 0).sum(),
        "change": (blobs[:, :50] == 1).sum(),
        None: (blobs[:, :50] == 255).sum(),
    }


@pytest.mark.parametrize("suffix", [".parquet", ".geojson", ".gpkg", ".fgb"])
def test_a_file_has_all_objects_with_their_crs(tmp_path: Path, blobs: np.ndarray, suffix: str) -> None:
    found, box = find_objects(written(tmp_path, blobs))
    path = write_objects(found, box, tmp_path / f"objects{suffix}")
    table = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path)
    assert len(table) == len(found)
    assert table.crs == ("OGC:CRS84" if suffix == ".geojson" else "EPSG:32633")
    back = table.to_crs("EPSG:32633").geometry.area
    np.testing.assert_allclose(sorted(back), sorted(o.geometry.area for o in found), rtol=1e-3)
    assert sorted(table["pixels"]) == sorted(o.pixels for o in found)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_an_object_over_the_antimeridian_is_cut_there_in_geojson(tmp_path: Path) -> None:
    labels = np.ones((20, 400), np.uint8)
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32601", always_xy=True).transform(180, 65)
    folder = written(tmp_path, labels, crs="EPSG:32601", transform=Affine(10, 0, x - 2000, 0, -10, y))
    found, box = find_objects(folder)
    path = write_objects(found, box, tmp_path / "objects.geojson")
    (feature,) = json.loads(path.read_text())["features"]
    parts = shapely.geometry.shape(feature["geometry"])
    assert parts.geom_type == "MultiPolygon"
    assert {round(part.bounds[0]) for part in parts.geoms} == {-180, 180}
    assert sum(part.bounds[2] - part.bounds[0] for part in parts.geoms) < 0.1


def test_the_command_line(tmp_path: Path, blobs: np.ndarray) -> None:
    folder, to = written(tmp_path, blobs), tmp_path / "objects.parquet"
    result = CliRunner().invoke(app, ["vectorise", folder, "--to", str(to), "--class", "change"])
    assert result.exit_code == 0, result.output
    assert f"{len(geopandas.read_parquet(to)):,} objects" in result.stdout
    told = CliRunner().invoke(app, ["areas", folder, "--json"])
    assert sum(row["pixels"] for row in json.loads(told.stdout)) == blobs.size
    assert "change" in CliRunner().invoke(app, ["areas", folder]).stdout


def test_what_cannot_be_is_said(tmp_path: Path, blobs: np.ndarray) -> None:
    folder = written(tmp_path, blobs, np.zeros(blobs.shape))
    with pytest.raises(InputError, match=r"no class map 'chang'.*change"):
        find_objects(folder, "chang")
    with pytest.raises(InputError, match="no class 'building'"):
        find_objects(folder, classes=["building"])
    with pytest.raises(InputError, match=r"unknown format '\.shp'"):
        write_objects([], GeoBox((1, 1), UTM, "EPSG:32633"), tmp_path / "a.shp")
    with pytest.raises(InputError, match="not 0 or more"):
        Cleaning(opening=-1)
    with pytest.raises(InputError, match="0 class maps"):
        class_areas(str(tmp_path / "score.tif"))
