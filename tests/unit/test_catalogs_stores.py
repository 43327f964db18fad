"""Items of the Copernicus Data Space and of LandsatLook as recorded, and whose keys open their buckets."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from affine import Affine
from commands import refused, write_recipe
from odc.geo.geobox import GeoBox

from tilewright.catalogs import stores
from tilewright.catalogs.dedupe import deduplicate
from tilewright.catalogs.endpoints import endpoint
from tilewright.catalogs.hrefs import make_item
from tilewright.catalogs.search import search
from tilewright.catalogs.signing import NoSigner, signer_for
from tilewright.catalogs.snapshot import write_snapshot
from tilewright.catalogs.sources import band_source, band_sources
from tilewright.catalogs.stores import STORES, check_access, store_of
from tilewright.errors import InputError
from tilewright.pipeline.cube_source import CubeSource
from tilewright.pipeline.grid import Grid
from tilewright.pipeline.harmonise import plan_item

if TYPE_CHECKING:
    import pystac

RECORDED = Path(__file__).resolve().parents[1] / "data" / "stac"
CDSE, OLI, ETM = (
    RECORDED / f"{name}.json" for name in ("cdse-sentinel-2-l2a", "landsatlook-oli-sr", "landsatlook-etm-sr")
)
KEYS = {"CDSE_S3_ACCESS_KEY": "its-key-id", "CDSE_S3_SECRET_KEY": "its-secret"}
AMAZONS = {"AWS_ACCESS_KEY_ID": "amazon-key-id", "AWS_SECRET_ACCESS_KEY": "amazon-secret"}
CDSE_GRID = Grid(GeoBox((64, 64), Affine(10, 0, 540_000, 0, -10, 5_360_000), "EPSG:32633"))
OLI_GRID = Grid(GeoBox((8, 8), Affine(30, 0, 300_000, 0, -30, 4_800_000), "EPSG:32615"))


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without any store's settings, on a machine that is none of Amazon's."""
    for name in dict(stores.os.environ):
        if name.startswith(("AWS_", "CPL_AWS_", "CDSE_", "LANDSATLOOK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(stores, "_on_ec2", lambda: False)


def put(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def recorded(path: Path, **properties: Any) -> pystac.Item:
    """The Item as a search returns it."""
    data = json.loads(path.read_text())
    return make_item({**data, "properties": data["properties"] | properties}, None, remote=True)


# -- Items ---------------------------------------------------------------------------------------------------


def test_the_catalogs_have_names() -> None:
    for name, url in (
        ("cdse", "https://stac.dataspace.copernicus.eu/v1"),
        ("landsatlook", "https://landsatlook.usgs.gov/stac-server"),
    ):
        found = endpoint(name)
        assert (found.url, found.kind, found.signing, found.remote) == (url, "api", "s3-keys", True)
        assert endpoint(f"{url}/") is found
        assert isinstance(signer_for(found), NoSigner)


def test_a_band_of_the_data_space_is_its_finest_measurement() -> None:
    item = recorded(CDSE)
    expected = {
        "coastal": "B01_60m",  # B01_20m is there and says sampling:upsampled
        "blue": "B02_10m",
        "green": "B03_10m",
        "red": "B04_10m",
        "rededge1": "B05_20m",
        "rededge2": "B06_20m",
        "rededge3": "B07_20m",
        "nir": "B08_10m",
        "nir08": "B8A_20m",
        "nir09": "B09_60m",
        "swir16": "B11_20m",
        "swir22": "B12_20m",
        "scl": "SCL_20m",
        "aot": "AOT_10m",
        "wvp": "WVP_10m",
    }
    found = band_sources(item, list(expected))
    assert {source.band: source.asset for source in found} == expected
    assert all(source.resolution == int(source.asset.split("_")[1][:-1]) for source in found)
    assert all(source.href.startswith("s3://eodata/Sentinel-2/MSI/L2A/2025/03/30/") for source in found)
    red = band_source(item, "B04")
    assert red.asset == "B04_10m"
    assert (red.dtype, red.nodata, red.crs, red.shape) == ("uint16", 0, "EPSG:32633", (10980, 10980))
    assert red.transform == (10, 0, 499980, 0, -10, 5400000)


def test_a_band_without_resolution_in_its_key_goes_before_those_with_one() -> None:
    item = recorded(CDSE)
    item.assets["B04"] = item.assets.pop("B04_20m")
    assert band_source(item, "red").asset == "B04"


@pytest.mark.parametrize(
    ("baseline", "stated", "row", "offset"),
    [
        ("05.11", True, "s2-esa-stated", -0.1),
        ("04.00", False, "s2-esa-silent", -0.1),
        ("02.14", True, "s2-esa-before-0400", 0),
        ("03.01", False, "s2-esa-before-0400", 0),
    ],
)
def test_offsets_of_the_data_space_go_by_the_baseline(
    baseline: str, stated: bool, row: str, offset: float
) -> None:
    """Recorded is the first case; the others are the same Item with another baseline or without the statement."""
    item = recorded(CDSE, **{"processing:version": baseline})
    if not stated:
        del item.assets["B04_10m"].extra_fields["raster:offset"]
    chosen = band_source(item, "red").calibration
    assert (chosen.row, chosen.scale, chosen.offset) == (row, 1e-4, offset)


def test_aerosol_and_classes_of_the_data_space_have_no_offset() -> None:
    """The Item states -0.1 for AOT and WVP too, which ESA does not offset."""
    item = recorded(CDSE)
    assert item.assets["AOT_10m"].extra_fields["raster:offset"] == -0.1
    assert [band_source(item, name).calibration.offset for name in ("aot", "wvp", "scl")] == [0, 0, 0]
    assert [band_source(item, name).calibration.scale for name in ("aot", "wvp", "scl")] == [1e-3, 1e-3, 1]


def test_the_newest_processing_of_the_data_space_wins() -> None:
    """Made by hand from the recorded Item: the archive holds a scene in the baseline of its day and in 05.00."""
    new = json.loads(CDSE.read_text())
    old = copy.deepcopy(new)
    # Made later, by older software.
    old["id"] = "S2C_MSIL2A_20250330T100051_N0510_R122_T33UWP_20250331T000000"
    old["properties"]["processing:version"] = "05.10"
    result = deduplicate([make_item(data, None, remote=True) for data in (old, new)])
    assert [item.id for item in result.kept] == [new["id"]]
    assert "older processing baseline: 05.10 against 05.11" in result.dropped[0].reason
    strip = "S2C_OPER_MSI_L2A_DS_2CPS_20250330T145914_S20250330T100448_N05.11"
    other = copy.deepcopy(new)
    other["id"] = new["id"].replace("145914", "145915")
    other["properties"]["eopf:datastrip_id"] = strip
    assert len(deduplicate([make_item(data, None, remote=True) for data in (other, new)]).kept) == 2


def test_masks_and_times() -> None:
    plan = plan_item(recorded(CDSE), ["red"], CDSE_GRID, mask="default", offsets=None, nodata=None)
    assert plan.mask is not None
    assert (plan.mask.kind, plan.mask.file.href.rpartition("_")[2]) == ("scl", "20m.jp2")
    assert plan.time == "2025-03-30T10:00:51.025000Z"
    plan = plan_item(recorded(OLI), ["red"], OLI_GRID, mask="default", offsets=None, nodata=None)
    assert plan.mask is not None
    assert plan.mask.kind == "qa_pixel"
    assert plan.mask.file.href.startswith("s3://usgs-landsat/")
    assert plan.mask.file.href.endswith("_QA_PIXEL.TIF")


@pytest.mark.parametrize(("path", "number"), [(OLI, 4), (ETM, 3)], ids=["oli", "etm"])
def test_landsatlook_is_read_from_its_bucket(path: Path, number: int) -> None:
    item = recorded(path)
    source = band_source(item, "red")
    assert source.href.startswith("s3://usgs-landsat/collection02/level-2/standard/")
    assert source.href.endswith(f"_SR_B{number}.TIF")
    assert (source.calibration.row, source.crs is not None) == ("landsat-reflectance", True)
    assert item.assets["red"].href.startswith("https://landsatlook.usgs.gov/data/")  # the Item stays as it is
    assert band_source(item, "nir").href.endswith(f"_SR_B{number + 1}.TIF")


@pytest.mark.parametrize(("path", "name"), [(OLI, "qa_aerosol"), (ETM, "cloud_qa")], ids=["oli", "etm"])
def test_quality_bands_that_call_themselves_metadata_are_bands(path: Path, name: str) -> None:
    item = recorded(path)
    assert "metadata" in (item.assets[name].roles or ())
    assert band_source(item, name).categorical


def test_surface_reflectance_and_temperature_are_items_of_their_own() -> None:
    """Made by hand: the ST Item of the recorded scene."""
    data = json.loads(OLI.read_text())
    heat = copy.deepcopy(data) | {"id": data["id"][:-2] + "ST", "collection": "landsat-c2l2-st"}
    assert len(deduplicate([make_item(one, None, remote=True) for one in (data, heat)]).kept) == 2


@pytest.mark.parametrize(
    "alternate",
    [
        None,
        {"s3": {"href": "file:///etc/passwd"}},
        {"s3": {"href": "/vsis3/../etc/passwd"}},
        {"s3": {"href": "https://example.com/a.tif"}},
        {"s3": "s3://usgs-landsat/a.tif"},
        ["s3"],
    ],
)
def test_an_item_without_an_alternate_is_refused(alternate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by hand from the recorded Item."""
    put(monkeypatch, **AMAZONS)
    item = recorded(OLI)
    item.assets["red"].extra_fields.pop("alternate")
    if alternate is not None:
        item.assets["red"].extra_fields["alternate"] = alternate
    source = band_source(item, "red")
    assert source.href.startswith("https://landsatlook.usgs.gov/data/")
    assert source.calibration.row == "landsat-reflectance"  # what it means does not depend on who may read it
    with pytest.raises(InputError) as caught:
        CubeSource([item], OLI_GRID, bands=["red"], mask=None)
    text = str(caught.value)
    assert text.startswith(f"{item.id}, band red, https://landsatlook.usgs.gov/data/")
    assert "no alternate.s3 is given; search landsatlook again" in text


def test_real_items_of_2021_have_no_alternate(shared_data: Path) -> None:
    name = "LC08_L2SP_047027_20201204_20210313_02_T1_SR_stac.json"
    item = recorded(shared_data / "10_stac_items/stactools-landsat/tests/data-files/oli-tirs" / name)
    with pytest.raises(InputError, match=r"here: landsatlook\.usgs\.gov gives files only to a browser"):
        check_access(band_source(item, "red").href, "here")


# -- keys ----------------------------------------------------------------------------------------------------


def test_other_addresses_have_no_settings_of_their_own() -> None:
    for href in (
        "s3://results/a.tif",
        "https://eodata/a.jp2",
        "/data/eodata/a.jp2",
        "gs://eodata/a",
        "eodata",
    ):
        assert store_of(href) is None
        check_access(href, "x")
    for href in ("s3://eodata/a.jp2", "/vsis3/eodata/a.jp2", "s3a://eodata/a.jp2"):
        assert store_of(href) is STORES["eodata"]


def test_settings_of_the_data_space(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **KEYS, **AMAZONS, AWS_SESSION_TOKEN="amazon-token", AWS_REQUEST_PAYER="requester")
    assert STORES["eodata"].settings() == {
        "AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu",
        "AWS_HTTPS": "YES",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_REGION": "default",
        "AWS_DEFAULT_REGION": "default",
        "AWS_REQUEST_PAYER": "",
        "AWS_NO_SIGN_REQUEST": "NO",
        "AWS_ACCESS_KEY_ID": "its-key-id",
        "AWS_SECRET_ACCESS_KEY": "its-secret",
        "AWS_SESSION_TOKEN": "",
    }


def test_settings_of_usgs_landsat(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **AMAZONS, AWS_SESSION_TOKEN="amazon-token", AWS_REGION="eu-central-1")
    found = STORES["usgs-landsat"].settings()
    assert found["AWS_S3_ENDPOINT"] == "s3.us-west-2.amazonaws.com"
    assert (found["AWS_VIRTUAL_HOSTING"], found["AWS_REGION"], found["AWS_REQUEST_PAYER"]) == (
        "TRUE",
        "us-west-2",
        "requester",
    )
    assert [found[name] for name in stores._USUAL] == ["amazon-key-id", "amazon-secret", "amazon-token"]


def test_an_endpoint_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, **AMAZONS, LANDSATLOOK_S3_ENDPOINT="http://127.0.0.1:9000/")
    with pytest.raises(InputError, match=r"AWS_ACCESS_KEY_ID is that of amazonaws\.com"):
        STORES["usgs-landsat"].settings()  # Amazon's keys are not shown to another host
    put(monkeypatch, LANDSATLOOK_S3_ACCESS_KEY="a", LANDSATLOOK_S3_SECRET_KEY="b")
    found = STORES["usgs-landsat"].settings()
    assert (found["AWS_S3_ENDPOINT"], found["AWS_HTTPS"], found["AWS_VIRTUAL_HOSTING"]) == (
        "127.0.0.1:9000",
        "NO",
        "FALSE",
    )


HERE = "https://eodata.dataspace.copernicus.eu"


@pytest.mark.parametrize(
    ("bucket", "environment", "key"),
    [
        ("eodata", KEYS, "its-key-id"),
        ("eodata", KEYS | AMAZONS | {"AWS_ENDPOINT_URL": HERE}, "its-key-id"),
        ("eodata", AMAZONS | {"AWS_ENDPOINT_URL": HERE}, "amazon-key-id"),
        ("eodata", AMAZONS | {"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu"}, "amazon-key-id"),
        ("eodata", AMAZONS, None),
        ("eodata", AMAZONS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, None),
        ("eodata", {"AWS_PROFILE": "me"}, None),
        ("usgs-landsat", AMAZONS, "amazon-key-id"),
        (
            "usgs-landsat",
            AMAZONS | {"AWS_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com"},
            "amazon-key-id",
        ),
        ("usgs-landsat", AMAZONS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, None),
        ("usgs-landsat", AMAZONS | {"AWS_ENDPOINT_URL": HERE}, None),
        ("usgs-landsat", KEYS, None),
        ("usgs-landsat", {"AWS_PROFILE": "me"}, ""),
        ("usgs-landsat", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, ""),
        ("usgs-landsat", {}, None),
    ],
)
def test_whose_keys_open_a_bucket(
    bucket: str, environment: dict[str, str], key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AWS_* keys belong to the store that is named beside them; no other host sees them."""
    put(monkeypatch, **environment)
    if key is None:
        with pytest.raises(InputError, match="wants S3 keys, and the environment has none for it"):
            STORES[bucket].settings()
    else:
        assert STORES[bucket].settings()["AWS_ACCESS_KEY_ID"] == key


def test_amazons_file_of_keys_and_the_role_of_a_machine_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        STORES["usgs-landsat"].settings()
    monkeypatch.setattr(stores, "_on_ec2", lambda: True)
    assert STORES["usgs-landsat"].settings()["AWS_SECRET_ACCESS_KEY"] == ""
    monkeypatch.setattr(stores, "_on_ec2", lambda: False)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    assert STORES["usgs-landsat"].settings()["AWS_SECRET_ACCESS_KEY"] == ""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {},
            "the Copernicus Data Space wants S3 keys, and the environment has none for it; set CDSE_S3_ACCESS_KEY and "
            "CDSE_S3_SECRET_KEY; they are made at https://eodata-s3keysmanager.dataspace.copernicus.eu",
        ),
        (
            {"CDSE_S3_ACCESS_KEY": "its-key-id"},
            "CDSE_S3_SECRET_KEY is not set and CDSE_S3_ACCESS_KEY is; set",
        ),
        (
            {"CDSE_S3_SECRET_KEY": "its-secret"},
            "CDSE_S3_ACCESS_KEY is not set and CDSE_S3_SECRET_KEY is; set",
        ),
        ({"CDSE_S3_ACCESS_KEY": "  ", "CDSE_S3_SECRET_KEY": ""}, "has none for it; set"),
        (AMAZONS, "has none for it (AWS_ACCESS_KEY_ID is that of amazonaws.com); set CDSE_S3_ACCESS_KEY"),
    ],
)
def test_missing_keys_are_one_error_before_anything_is_read(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, **environment)
    with pytest.raises(InputError) as caught:
        CubeSource([recorded(CDSE)], CDSE_GRID, bands=["red"])
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert text.startswith(
        "S2C_MSIL2A_20250330T100051_N0511_R122_T33UWP_20250330T145914, band red, s3://eodata/"
    )
    assert words in text
    assert not any(value.strip() and value in text for value in environment.values())


def test_missing_keys_of_the_mask_band_are_seen_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    item = recorded(CDSE)
    item.assets["B04_10m"].href = str(tmp_path / "red.tif")
    with pytest.raises(InputError, match=r"band scl, s3://eodata/.*set CDSE_S3_ACCESS_KEY"):
        CubeSource([item], CDSE_GRID, bands=["red"])
    assert CubeSource([item], CDSE_GRID, bands=["red"], mask=None)


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_missing_keys_on_the_command_line(verb: str, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "r.yaml",
        catalog=str(CDSE),
        collections="sentinel-2-l2a",
        region=[15.5, 48.2, 15.51, 48.21],
        dates="2025-03-30",
        grid={"resolution": 10},
        kernel={"name": "index", "options": {"name": "NDVI"}},
    )
    line = refused(verb, recipe, out=tmp_path / "out" if verb == "run" else None)
    assert "band red, s3://eodata/" in line or "band nir, s3://eodata/" in line
    assert "set CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY; they are made at" in line


def test_missing_keys_of_a_plain_raster_on_the_command_line(tmp_path: Path) -> None:
    line = refused(
        "apply", "ir-mad", "s3://usgs-landsat/a.TIF", "s3://usgs-landsat/b.TIF", out=tmp_path / "out"
    )
    assert line.startswith("s3://usgs-landsat/a.TIF: the USGS Landsat archive on Amazon S3 wants S3 keys")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or LANDSATLOOK_S3_ACCESS_KEY and" in line
    line = refused(
        "apply", "ir-mad", "https://landsatlook.usgs.gov/data/a.TIF", "b.tif", out=tmp_path / "out"
    )
    assert "only to a browser that is logged in" in line


def test_keys_stay_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(monkeypatch, **KEYS)
    found = search(CDSE, collections="sentinel-2-l2a")
    source = CubeSource(found.items, CDSE_GRID, bands=["red", "nir"])
    write_snapshot(tmp_path / "items.json", found.items, found.searched)
    texts = [
        pickle.dumps(source),
        pickle.dumps(STORES["eodata"]),
        repr(source.describe()).encode(),
        repr(STORES["eodata"]).encode(),
        (tmp_path / "items.json").read_bytes(),
    ]
    for text in texts:
        assert b"its-key-id" not in text
        assert b"its-secret" not in text
    assert b"s3://eodata/" in texts[0]
    hidden = STORES["eodata"].hide("no such key: its-key-id, its-secret")
    assert hidden == "no such key: [CDSE_S3_ACCESS_KEY], [CDSE_S3_SECRET_KEY]"


def test_real_monthly_mosaics_of_the_data_space_are_plain_rasters(shared_data: Path) -> None:
    table = shared_data / "10_stac_items/rustac/crates/duckdb/data/sentinel-1-global-mosaics.parquet"
    found = search(table)
    assert found.items
    for item in found.items:
        source = band_source(item, "VV")
        assert (source.nodata, source.dtype, source.resolution) == (-32768, "float32", 20)
        assert store_of(source.href) is STORES["eodata"]
