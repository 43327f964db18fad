"""`tilewright why`: what is behind one pixel, checked against the files themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from commands import CATALOG, CORNER, KERNELS, command, write_recipe, write_tif
from pyproj import Transformer
from scenes import sentinel_2, write_scene

from tilewright.errors import InputError
from tilewright.why import explain_pixel

EAST, SOUTH = 717_345, -2_788_065
"""Upper left corner of the overlap of the two scenes (EPSG:32621): 077 begins west and 078 north of it."""
SCENES = {path: f"LC08_L1TP_{path}_20200518_20200518_01_RT" for path in ("224077", "224078")}


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory):
    """A run of a recipe over the corner of two scenes."""
    folder = tmp_path_factory.mktemp("mosaic")
    out = folder / "out"
    assert command("run", write_recipe(folder / "r.yaml"), "--out", out).status == 0
    return out


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """A run over two dates of two files each, in six shards, with a hole in the second date."""
    folder = tmp_path_factory.mktemp("applied")
    generator = np.random.default_rng(3)
    dates = []
    for date in ("before", "after"):
        parts = []
        for band in ("VV", "VH"):
            values = generator.random((1, 60, 90), dtype="float32")
            if date == "after":
                values[:, 10:12, 20:22] = np.nan
            parts.append(str(write_tif(folder / f"{date}_{band}.tif", values, names=(band,), nodata=np.nan)))
        dates.append(",".join(parts))
    out = folder / "out"
    assert command("apply", "change-vector", *dates, "--shard", 32, "--tile", 32, "--out", out).status == 0
    return out


def digital_number(item: str, band: int, x: float, y: float) -> float:
    path = next((CATALOG.parent / "landsat-c1-l1").rglob(f"{item}_B{band}.tif"))
    with rasterio.open(path) as dataset:
        return float(next(dataset.sample([(x, y)]))[0])


def test_a_pixel_of_both_scenes(mosaic):
    x, y = EAST + 100.0, SOUTH - 100.0
    facts = explain_pixel(mosaic, x, y)
    with rasterio.open(mosaic / "ngrdi.tif") as dataset:
        row, col = dataset.index(x, y)
        assert facts["outputs"]["ngrdi"]["value"] == pytest.approx(float(dataset.read(1)[row, col]), rel=1e-6)
    assert (facts["place"]["row"], facts["place"]["column"]) == (row, col)
    (date,) = facts["inputs"]
    assert date["time"] == "2020-05-18T12:00:00"
    assert date["from"] == SCENES["224077"]
    assert [one["item"] for one in date["items"]] == list(SCENES.values())
    assert [one["covers"] for one in date["items"]] == [True, True]
    assert date["items"][1]["reason"] == "valid, but an earlier Item of the date has the pixel"
    for one in date["items"]:
        expected = {
            name: digital_number(one["item"], band, x, y) for name, band in (("green", 3), ("red", 4))
        }
        assert one["values"] == expected
        assert one["calibration"]["row"] == "raster"
        assert (one["platform"], one["datetime"]) == ("landsat-8", "2020-05-18T12:00:00Z")
    green, red = date["values"]["green"], date["values"]["red"]
    assert facts["outputs"]["ngrdi"]["value"] == pytest.approx((green - red) / (green + red), rel=1e-5)
    assert facts["outputs"]["reason"] == "valid"
    assert "notes" not in facts


@pytest.mark.parametrize(("east", "south", "winner"), [(-100, -100, "224077"), (100, 100, "224078")])
def test_a_pixel_of_one_scene(mosaic, east, south, winner):
    facts = explain_pixel(mosaic, EAST + east, SOUTH + south)
    (date,) = facts["inputs"]
    assert date["from"] == SCENES[winner]
    covering = {one["item"]: one["covers"] for one in date["items"]}
    assert covering[SCENES[winner]]
    assert not any(covers for item, covers in covering.items() if item != SCENES[winner])


def test_a_pixel_without_scene(mosaic):
    facts = explain_pixel(mosaic, EAST - 100, SOUTH + 100)
    (date,) = facts["inputs"]
    assert facts["outputs"] == {"ngrdi": {"value": None}, "reason": "no scene covers it"}
    assert date["reason"] == "no scene covers it"
    assert "from" not in date
    assert not any(one["covers"] for one in date["items"])


def test_a_place_as_longitude_and_latitude_or_off_the_grid(mosaic):
    west, south, east, north = CORNER
    facts = explain_pixel(mosaic, (west + east) / 2, (south + north) / 2)
    assert facts["place"]["taken_as"].startswith("longitude -54.843, latitude -25.193")
    assert facts["place"]["lonlat"] == pytest.approx([-54.843, -25.193], abs=3e-4)
    again = explain_pixel(mosaic, *facts["place"]["centre"])
    assert (again["place"]["row"], again["place"]["column"]) == (
        facts["place"]["row"],
        facts["place"]["column"],
    )
    with pytest.raises(
        InputError, match=r"10,40 is not on the grid; choose x 716\d+\.\.718\d+ and y -278"
    ) as error:
        explain_pixel(mosaic, 10, 40)
    assert "longitude -54.85" in str(error.value)


def test_shard_ledger_tile_and_kernel(mosaic):
    report = json.loads((mosaic / "report.json").read_text())
    lines = [json.loads(line) for line in (mosaic / "ledger.jsonl").read_text().splitlines()]
    facts = explain_pixel(mosaic, EAST + 100, SOUTH - 100)
    (entry,) = [line for line in lines if line.get("shard") == facts["shard"]["name"]]
    assert facts["shard"]["ledger"]["digest"] == entry["digest"]
    assert facts["kernel"]["name"] == "index-NGRDI"
    assert facts["kernel"]["options"]["name"] == "NGRDI"
    assert facts["kernel"]["licence"] == report["kernel"]["licence"]
    (tile,) = facts["tiles"]
    assert tile["index"] == [0, 0]
    assert tile["reads"].startswith("rows 0..")


def test_the_rules_of_the_recipe_are_told(tmp_path):
    """An override of scale and offset is said to be one; the composite names how many dates it was made of."""
    recipe = write_recipe(
        tmp_path / "r.yaml", composite={"method": "median"},
        cube={"offsets": {"green": [0.0001, -0.1], "red": [0.0002, 0.0]}},
    )  # fmt: skip
    out = tmp_path / "out"
    assert command("run", recipe, "--out", out, "--only", "cog").status == 0
    facts = explain_pixel(out, EAST - 100, SOUTH - 100)
    (period,) = facts["inputs"]
    assert period["composite"] == "median of 1 valid dates"
    (item, *_) = period["dates"][0]["items"]
    assert {band: (rule["scale"], rule["row"]) for band, rule in item["calibration"].items()} == {
        "green": (0.0001, "recipe"),
        "red": (0.0002, "recipe"),
    }
    green = digital_number(item["item"], 3, EAST - 100, SOUTH - 100)
    assert period["values"]["green"] == pytest.approx(green * 0.0001 - 0.1, rel=1e-6)
    assert facts["outputs"]["ngrdi"]["value"] is not None  # read from the COG: no Zarr was kept
    assert "notes" not in facts


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    """NDVI of two Sentinel-2 scenes of one day; a cloud in the first, over both in the corner; a region's edge."""
    folder = tmp_path_factory.mktemp("clouds")
    generator = np.random.default_rng(5)
    items = []
    for n, cloud in ((1, slice(0, 40)), (2, slice(0, 10))):
        scl = np.full((1, 64, 64), 4, "uint8")
        scl[0, cloud, :32] = 9
        files = [write_scene(folder / f"{n}_SCL.tif", scl)]
        for name in ("red", "nir"):
            values = generator.integers(500, 5000, (1, 64, 64)).astype("uint16")
            files.append(write_scene(folder / f"{n}_{name}.tif", values, nodata=0))
        items.append(sentinel_2(f"S2_{n}", files[1], files[2], files[0], f"2024-06-01T10:0{n}:00"))
    features = [item.to_dict() for item in items]
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    to_degrees = Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True)
    corners = [(500_005, 4_999_365), (500_635, 4_999_365), (500_635, 4_999_995), (500_005, 4_999_995)]
    corners[2] = (500_320, 4_999_995)  # what lies east of the line from here to the south-east is outside
    ring = [to_degrees.transform(*corner) for corner in [*corners, corners[0]]]
    recipe = write_recipe(
        folder / "r.yaml", catalog="items.json", collections="sentinel-2-l2a", dates="2024-06-01",
        region={"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        grid={"resolution": 10, "crs": "EPSG:32633"}, kernel={"name": "index", "options": {"name": "NDVI"}},
    )  # fmt: skip
    assert command("run", recipe, "--out", folder / "out").status == 0
    return folder


def sentinel_pixel(folder: Path, row: int, col: int) -> dict[str, object]:
    return explain_pixel(folder / "out", 500_000 + 10 * (col + 0.5), 5_000_000 - 10 * (row + 0.5))


def test_a_cloud_hides_the_first_scene(clouds):
    facts = sentinel_pixel(clouds, 20, 5)
    (date,) = facts["inputs"]
    first, second = date["items"]
    assert first["reason"].startswith("masked: cloud")
    assert first["mask"] == {"band": "scl", "value": 9, "means": "cloud_high_probability"}
    assert first["values"] == {"nir": None, "red": None}
    assert second["mask"] == {"band": "scl", "value": 4, "means": "vegetation"}
    assert date["from"] == second["item"] == "S2_2"
    assert (second["platform"], second["baseline"]) == ("sentinel-2b", "05.09")
    rule = second["calibration"]
    assert (rule["row"], rule["scale"], rule["offset"]) == ("s2-applied", 1e-4, 0.0)
    for name, value in second["values"].items():
        with rasterio.open(clouds / f"2_{name}.tif") as dataset:
            assert value == pytest.approx(dataset.read(1)[20, 5] * 1e-4, rel=1e-6)


def test_clouds_over_all_scenes_and_the_edge_of_the_region(clouds):
    hidden = sentinel_pixel(clouds, 5, 5)
    (date,) = hidden["inputs"]
    assert "from" not in date
    assert date["reason"] == hidden["outputs"]["reason"]
    assert date["reason"].startswith("masked: cloud")
    beyond = sentinel_pixel(clouds, 5, 60)
    assert beyond["outputs"] == {"ndvi": {"value": None}, "reason": "outside the region"}


def test_inputs_of_apply(applied):
    row, col = 40, 70
    facts = explain_pixel(applied, 700_000 + 30 * (col + 0.5), 5_000_000 - 30 * (row + 0.5))
    assert (facts["place"]["row"], facts["place"]["column"]) == (row, col)
    assert facts["shard"]["name"] == "1.2"
    assert [[Path(name).name for name in date["files"]] for date in facts["inputs"]] == [
        ["before_VV.tif", "before_VH.tif"],
        ["after_VV.tif", "after_VH.tif"],
    ]
    for date in facts["inputs"]:
        for name, value in zip(date["files"], date["values"].values(), strict=True):
            with rasterio.open(name) as dataset:
                assert np.float32(value) == dataset.read(1)[row, col]
    assert set(facts["statistics"]) >= {"centre", "spread", "threshold"}
    assert facts["tiles"][0]["index"] == [1, 2]


def test_a_hole_says_which_date_has_it(applied):
    facts = explain_pixel(applied, 700_000 + 30 * 20.5, 5_000_000 - 30 * 10.5)
    assert [date["reason"].split(":")[0] for date in facts["inputs"]] == ["valid", "nodata"]
    assert facts["outputs"]["reason"].startswith("nodata")
    assert facts["outputs"]["change"]["value"] is None


def test_an_unfinished_run_tells_what_the_ledger_knows(applied, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(applied, out)
    for name in ("report.json", "item.json"):
        (out / name).unlink()
    (out / "result.zarr").rename(out / "result.zarr.partial")
    lines = (out / "ledger.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("shard") != "1.2"]
    (out / "ledger.jsonl").write_text("".join(f"{line}\n" for line in kept))
    unfinished = explain_pixel(out, 700_000 + 30 * 70.5, 5_000_000 - 30 * 40.5)
    assert unfinished["outputs"] == "not computed yet"
    assert unfinished["shard"] == {"name": "1.2", "ledger": "not finished yet"}
    assert unfinished["notes"][0].startswith("the run is not finished: 5 of 6 shards")
    assert len(unfinished["inputs"]) == 2
    done = explain_pixel(out, 700_015, 4_999_985)
    assert done["outputs"]["change"]["value"] is not None


def test_inputs_that_are_gone_or_changed_are_said(applied, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(applied.parent, folder)
    out = folder / "out"
    text = (out / "ledger.jsonl").read_text()
    (out / "ledger.jsonl").write_text(text.replace(str(applied.parent), str(folder)))
    assert "notes" not in explain_pixel(out, 700_015, 4_999_985)
    write_tif(folder / "after_VV.tif", np.zeros((1, 60, 90), "float32"), names=("VV",))
    changed = explain_pixel(out, 700_015, 4_999_985)
    assert "the inputs have changed since the run: dates[1]" in changed["notes"][0]
    (folder / "after_VV.tif").unlink()
    gone = explain_pixel(out, 700_015, 4_999_985)
    assert gone["inputs"].startswith("cannot be read again: ")
    assert "after_VV.tif: no such file" in gone["inputs"]
    assert gone["outputs"]["change"]["value"] is not None


def test_a_blended_pixel_has_several_tiles(tmp_path):
    (tmp_path / "mine.py").write_text(
        KERNELS.replace("radius=40, outputs=OUT", "outputs={'o': {'kind': 'score'}}")
    )
    image = write_tif(tmp_path / "image.tif", np.full((1, 200, 200), 0.5, "float32"))
    out = tmp_path / "out"
    assert command("apply", tmp_path / "mine.py:wide", image, "--tile", 64, "--out", out).status == 0
    tiling = json.loads((out / "ledger.jsonl").read_text().splitlines()[0])["depends_on"]["stitch"]
    core, taper = tiling["tile"] - 2 * tiling["halo"], tiling["taper"]
    assert taper > 0
    at = core + taper
    facts = explain_pixel(out, 700_000 + 30 * (at + 0.5), 5_000_000 - 30 * (at + 0.5))
    assert [tile["index"] for tile in facts["tiles"]] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert facts["outputs"]["o"]["value"] == pytest.approx(0.5, abs=1e-5)


def test_printed_for_people_and_for_programs(mosaic):
    place = f"{EAST + 100},{SOUTH - 100}"
    shown = command("why", mosaic, place)
    assert shown.status == 0
    assert shown.err == ""
    assert len(shown.out.splitlines()) < 60
    assert "from: LC08_L1TP_224077_20200518_20200518_01_RT" in shown.out
    facts = json.loads(command("why", mosaic, place, "--json").out)
    assert yaml.safe_load(shown.out) == facts
    negative = command("why", mosaic, "-54.843,-25.193", "--json")
    assert json.loads(negative.out)["place"]["crs"] == "EPSG:32621"
