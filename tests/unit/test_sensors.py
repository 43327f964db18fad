"""The vocabulary of bands, and the asset behind a band under every catalog's naming."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pystac
import pytest

from tilewright.catalogs.sensors import (
    LANDSAT_ETM,
    LANDSAT_OLI,
    LANDSAT_TM,
    NAIP,
    OPERA_RTC_S1,
    SENSORS,
    SENTINEL_1_RTC,
    SENTINEL_2_L2A,
    sensor_for,
)
from tilewright.catalogs.sources import band_source, band_sources
from tilewright.errors import InputError

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def make_item(
    collection: str | None, assets: dict[str, dict[str, Any]], item_id: str = "one", **properties: Any
) -> pystac.Item:
    """Make an Item that has only what decides."""
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": item_id,
            "collection": collection,
            "geometry": None,
            "properties": {"datetime": "2023-08-15T10:00:00Z", **properties},
            "links": [],
            "assets": {
                key: {"href": f"https://example.com/{key}.tif", "type": TIFF, **asset}
                for key, asset in assets.items()
            },
            "stac_extensions": [],
        }
    )


def read_items(path: Path) -> list[pystac.Item]:
    content = json.loads(path.read_text())
    collected = isinstance(content, dict) and content.get("type") == "FeatureCollection"
    features = content["features"] if collected else content if isinstance(content, list) else [content]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [pystac.Item.from_dict(feature, migrate=True) for feature in features]


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda s: s.name)
def test_no_two_bands_of_a_sensor_answer_to_one_name(sensor: Any) -> None:
    for band in sensor.bands:
        for name in (band.name, *band.aliases):
            assert [b.name for b in sensor.bands if b.answers_to(name)] == [band.name], name


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda s: s.name)
def test_mask_band_exists_and_is_categorical(sensor: Any) -> None:
    assert (sensor.mask_band is None) == (sensor.mask_kind is None)
    if sensor.mask_band is not None:
        assert sensor.band(sensor.mask_band).categorical


@pytest.mark.parametrize("asked", ["red", "RED", "B04", "b04", "B4"])
@pytest.mark.parametrize("key", ["red", "B04"])
def test_common_and_native_names_find_the_asset_of_either_catalog(asked: str, key: str) -> None:
    item = make_item("sentinel-2-l2a", {key: {}}, **{"s2:processing_baseline": "02.14"})
    source = band_source(item, asked)
    assert (source.band, source.asset, source.units) == ("red", key, "reflectance")


def test_rededge_bands_are_kept_apart_though_they_share_a_common_name() -> None:
    assets = {f"B0{n}": {"eo:bands": [{"name": f"B0{n}", "common_name": "rededge"}]} for n in (5, 6, 7)}
    item = make_item("sentinel-2-l2a", assets, **{"s2:processing_baseline": "02.14"})
    found = band_sources(item, ["rededge1", "rededge2", "rededge3"])
    assert [source.asset for source in found] == ["B05", "B06", "B07"]


def test_unknown_band_offers_the_nearest_name() -> None:
    item = make_item("sentinel-2-l2a", {"red": {}})
    with pytest.raises(InputError, match="did you mean 'swir16'") as caught:
        band_source(item, "swir6")
    assert caught.value.exit_code == 2


def test_band_of_the_product_that_the_item_lacks_names_item_and_assets() -> None:
    item = make_item("sentinel-2-l2a", {"red": {}, "thumbnail": {"roles": ["thumbnail"]}}, "S2A_X")
    with pytest.raises(InputError, match=r"S2A_X: no asset holds band 'nir'.*assets with pixels: red$"):
        band_source(item, "nir")


def test_true_colour_picture_is_not_taken_for_the_red_band() -> None:
    rgb = [{"name": n, "common_name": n} for n in ("red", "green", "blue")]
    item = make_item("sentinel-2-l2a", {"visual": {"eo:bands": rgb, "roles": ["visual"]}})
    with pytest.raises(InputError, match="no asset holds band 'red'"):
        band_source(item, "red")


@pytest.mark.parametrize(
    ("instruments", "sensor"),
    [(["oli", "tirs"], LANDSAT_OLI), (["etm+"], LANDSAT_ETM), (["ETM"], LANDSAT_ETM), (["tm"], LANDSAT_TM)],
)
def test_landsat_instrument_decides(instruments: list[str], sensor: Any) -> None:
    item = make_item("landsat-c2-l2", {}, instruments=instruments)
    assert sensor_for(item) is sensor


def test_landsat_near_infrared_answers_to_nir_on_every_instrument() -> None:
    for instruments, native in ((["oli"], "SR_B5"), (["etm+"], "SR_B4"), (["tm"], "SR_B4")):
        item = make_item("landsat-c2-l2", {native: {}}, instruments=instruments)
        assert band_source(item, "nir").asset == native
        assert band_source(item, "nir08").asset == native


def test_unknown_landsat_instrument_is_refused() -> None:
    with pytest.raises(InputError, match="instrument 'mss'"):
        sensor_for(make_item("landsat-c2-l2", {}, instruments=["mss"]))


def test_naip_bands_share_one_file_and_three_band_naip_has_no_nir() -> None:
    four = [{"name": "Red"}, {"name": "Green"}, {"name": "Blue"}, {"name": "NIR"}]
    item = make_item("naip", {"image": {"eo:bands": four}})
    assert sensor_for(item) is NAIP
    assert [s.index for s in band_sources(item, ["nir", "red", "green", "blue"])] == [4, 1, 2, 3]
    assert {s.asset for s in band_sources(item, ["nir", "red"])} == {"image"}
    old = make_item("naip", {"image": {"eo:bands": four[:3]}})
    with pytest.raises(InputError, match="no asset holds band 'nir'"):
        band_source(old, "nir")


def test_radar_products() -> None:
    pc = make_item("sentinel-1-rtc", {"vv": {"raster:bands": [{"nodata": -32768, "data_type": "float32"}]}})
    source = band_source(pc, "VV")
    assert sensor_for(pc) is SENTINEL_1_RTC
    assert (source.units, source.nodata, source.nodata_from, source.dtype) == (
        "gamma0 power",
        -32768,
        "item",
        "float32",
    )
    opera = make_item("whatever", {"VH": {}, "mask": {}}, "OPERA_L2_RTC-S1_T009-019294-IW2_2024")
    source = band_source(opera, "vh")
    assert sensor_for(opera) is OPERA_RTC_S1
    assert math.isnan(source.nodata or 0)
    assert source.nodata_from == "sensor"
    assert band_source(opera, "mask").categorical


def test_polarization_of_the_asset_finds_it_under_any_key() -> None:
    item = make_item("opera-rtc-s1", {"0": {"sar:polarizations": ["VV"]}, "1": {"sar:polarizations": ["VH"]}})
    assert band_source(item, "vh").asset == "1"


def test_copied_item_keeps_its_sensor_without_its_collection() -> None:
    item = make_item(None, {"B04": {}}, constellation="Sentinel 2", **{"s2:product_type": "S2MSI2A"})
    assert sensor_for(item) is SENTINEL_2_L2A
    level1 = make_item(None, {"B04": {}}, constellation="sentinel-2", **{"s2:product_type": "S2MSI1C"})
    assert sensor_for(level1).name == "raster"


def test_plain_raster_takes_its_bands_from_its_assets() -> None:
    item = make_item(
        "maps",
        {
            "change": {"raster:bands": [{"data_type": "uint8", "nodata": 255, "scale": 0.5, "unit": "1"}]},
            "label": {"bands": [{"name": "cover", "classification:classes": [{"value": 1, "name": "a"}]}]},
            "stack": {"raster:bands": [{"nodata": "nan"}, {"nodata": "nan"}]},
            "model": {"roles": ["mlm:model"]},
        },
    )
    sensor = sensor_for(item)
    assert sensor.names == ("change", "label", "stack_1", "stack_2")
    change, label, second = band_sources(item, ["change", "cover", "stack_2"])
    assert (change.nodata, change.calibration.scale, change.categorical) == (255, 0.5, False)
    assert label.categorical
    assert label.units == "class"
    assert (second.asset, second.index) == ("stack", 2)
    assert math.isnan(second.nodata or 0)


def test_nodata_names_its_origin() -> None:
    stated = make_item("naip", {"image": {"raster:bands": [{"nodata": 7}]}})
    silent = make_item("naip", {"image": {}})
    s2 = make_item("sentinel-2-l2a", {"red": {}}, **{"s2:processing_baseline": "02.14"})
    assert (band_source(stated, "red").nodata, band_source(stated, "red").nodata_from) == (7, "item")
    assert (band_source(silent, "red").nodata, band_source(silent, "red").nodata_from) == (None, "none")
    assert (band_source(s2, "red").nodata, band_source(s2, "red").nodata_from) == (0, "sensor")
    override = band_source(stated, "red", nodata={"RED": 16000})
    assert (override.nodata, override.nodata_from) == (16000, "recipe")


@pytest.mark.parametrize("epsg", [{"proj:epsg": 32633}, {"proj:code": "EPSG:32633"}])
def test_projection_under_both_spellings(epsg: dict[str, Any]) -> None:
    asset = {"proj:shape": [915, 914], "proj:transform": [120, 0, 499980, 0, -120, 5200020, 0, 0, 1]}
    item = make_item("sentinel-2-l2a", {"red": asset}, **{"s2:processing_baseline": "02.14"}, **epsg)
    source = band_source(item, "red")
    assert source.crs == "EPSG:32633"
    assert source.shape == (915, 914)
    assert source.transform == (120, 0, 499980, 0, -120, 5200020)
    assert source.resolution == 120


REAL = {
    "01_s2_l2a_stac_120m/sentinel-2-l2a": ("sentinel-2-l2a", {"B02", "B03", "B04", "B08", "scl"}),
    "10_stac_items/rustac/crates/server/data/sentinel-2/item-collection.json": (
        "sentinel-2-l2a",
        {*SENTINEL_2_L2A.names},
    ),
    "10_stac_items/stac-geoparquet/tests/data/sentinel-2-l2a-pc.json": (
        "sentinel-2-l2a",
        {*SENTINEL_2_L2A.names} - {"cloud", "snow"},
    ),
    "10_stac_items/odc-stac/tests/data/S2A_28QCH_20200714_0_L2A.json": (
        "sentinel-2-l2a",
        {*SENTINEL_2_L2A.names} - {"cloud", "snow"},
    ),
    "10_stac_items/stac-geoparquet/tests/data/sentinel-1-rtc-pc.json": ("sentinel-1-rtc", {"vv", "vh"}),
    "10_stac_items/stactools-sentinel1/examples/rtc/sentinel1-rtc-aws": (
        "sentinel-1-rtc",
        {"vv", "vh", "incidence"},
    ),
    "10_stac_items/stac-geoparquet/tests/data/landsat-c2-l2-pc.json": (
        "landsat-c2-l2-oli",
        {*LANDSAT_OLI.names},
    ),
    "10_stac_items/stactools-landsat/examples/landsat-c2-l2/LE07_L2SP_021030_20100109_02_T1": (
        "landsat-c2-l2-etm",
        {*LANDSAT_ETM.names},
    ),
    "10_stac_items/stactools-landsat/examples/landsat-c2-l2/LT05_L2SP_010067_19860424_02_T2": (
        "landsat-c2-l2-tm",
        {*LANDSAT_TM.names},
    ),
    "10_stac_items/stactools-landsat/tests/data-files/oli-tirs/LC08_L2SP_047027_20201204_20210313_02_T1_SR_stac.json": (
        "landsat-c2-l2-oli",
        {"blue", "nir", "swir22", "qa_pixel"},
    ),
    "10_stac_items/stac-geoparquet/tests/data/naip-pc.json": ("naip", {"red", "green", "blue", "nir"}),
}


@pytest.mark.parametrize("where", REAL)
def test_real_items_resolve(where: str, shared_data: Path) -> None:
    name, bands = REAL[where]
    place = shared_data / where
    paths = (
        [place] if place.is_file() else sorted(place.rglob("S*/S*.json")) or sorted(place.rglob("L*.json"))
    )
    items = [item for path in paths for item in read_items(path)]
    assert items
    for item in items:
        assert sensor_for(item).name == name
        sources = band_sources(item, sorted(bands))
        assert len({(source.asset, source.index) for source in sources}) == len(bands)
