"""Every row of the scale and offset table: on Items of minimal metadata, on real ones, and on real pixels."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pystac
import pytest

from tilewright.catalogs.offsets import (
    TABLE,
    Facts,
    Publisher,
    ScaleOffset,
    markdown_table,
    processing_baseline,
    scale_offset,
    to_units,
)
from tilewright.catalogs.sensors import SENSORS
from tilewright.catalogs.sources import band_source
from tilewright.errors import InputError

ES = {"earthsearch:payload_id": "x"}
PC = "https://planetarycomputer.microsoft.com/api/stac/v1/collections/sentinel-2-l2a"
NOT_STATED = object()


def sentinel_2(
    collection: str | None = "sentinel-2-l2a",
    *,
    stated: Any = NOT_STATED,
    baseline: str | None = None,
    applied: bool | None = None,
    link: str | None = None,
    band: str = "red",
    media: str = "image/tiff; application=geotiff",
    sensed: str = "2023-08-15T10:00:00Z",
    **properties: Any,
) -> pystac.Item:
    """Make an Item that has only what decides."""
    properties |= {"datetime": sensed, "constellation": "sentinel-2", "s2:product_type": "S2MSI2A"}
    if baseline:
        properties["s2:processing_baseline"] = baseline
    if applied is not None:
        properties["earthsearch:boa_offset_applied"] = applied
    asset: dict[str, Any] = {"href": f"https://example.com/{band}", "type": media}
    if stated is not NOT_STATED:
        asset["raster:bands"] = [{"scale": 0.0001, "offset": stated}]
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "one",
            "collection": collection,
            "geometry": None,
            "properties": properties,
            "links": [{"rel": "self", "href": link}] if link else [],
            "assets": {band: asset},
            "stac_extensions": [],
        }
    )


C1 = "sentinel-2-c1-l2a"
V0 = "sentinel-s2-l2a-cogs"
JP2 = "image/jp2"

MADE: dict[str, list[tuple[pystac.Item, str, float, float]]] = {
    "classes": [
        (sentinel_2(baseline="05.09", stated=-0.1, applied=False, band="scl", **ES), "scl", 1, 0),
    ],
    "s2-applied": [
        (sentinel_2(baseline="05.09", stated=-0.1, applied=True, **ES), "red", 1e-4, 0),
        (sentinel_2(baseline="05.09", stated=0, applied=True, **ES), "red", 1e-4, 0),
        (sentinel_2(baseline="02.14", applied=True, **ES), "red", 1e-4, 0),
        (sentinel_2(C1, baseline="05.10", stated=-0.1, applied=True, **ES), "red", 1e-4, 0),
        (sentinel_2("mine", baseline="05.10", applied=True), "red", 1e-4, 0),
    ],
    "s2-before-0400": [
        (sentinel_2(baseline="02.14", stated=0, applied=False, **ES), "red", 1e-4, 0),
        (sentinel_2(baseline="03.01", stated=-0.1, applied=False, **ES), "red", 1e-4, 0),
        (sentinel_2(V0, baseline="02.14"), "red", 1e-4, 0),
        (sentinel_2(None, baseline="02.12", stated=0), "red", 1e-4, 0),
    ],
    "s2-es-v1-not-applied": [
        (sentinel_2(baseline="04.00", stated=-0.1, applied=False, **ES), "red", 1e-4, -0.1),
        (sentinel_2(baseline="05.11", stated=0, applied=False, **ES), "red", 1e-4, -0.1),
        (sentinel_2(V0, baseline="04.00"), "red", 1e-4, -0.1),
    ],
    "s2-es-v0-undated": [(sentinel_2(V0, sensed="2020-07-14T11:55:52Z"), "red", 1e-4, 0)],
    "s2-c1-stated": [
        (sentinel_2(C1, baseline="05.10", stated=-0.1, **ES), "red", 1e-4, -0.1),
        (sentinel_2(C1, baseline="05.00", stated=-0.1, applied=False), "red", 1e-4, -0.1),
    ],
    "s2-c1-silent": [(sentinel_2(C1, baseline="05.10", applied=False), "red", 1e-4, -0.1)],
    "s2-esa-before-0400": [
        (sentinel_2(baseline="02.12", link=PC), "red", 1e-4, 0),
        (sentinel_2(baseline="02.14", stated=0, media=JP2), "red", 1e-4, 0),
    ],
    "s2-esa-silent": [
        (sentinel_2(baseline="05.10", link=PC), "red", 1e-4, -0.1),
        (sentinel_2(baseline="04.00", link=PC), "red", 1e-4, -0.1),
        (sentinel_2(baseline="05.09", applied=True, media=JP2, **ES), "red", 1e-4, -0.1),
    ],
    "s2-esa-stated": [
        (sentinel_2(baseline="04.00", stated=-0.7, media=JP2), "red", 1e-4, -0.7),
        (sentinel_2(baseline="05.09", stated=-0.1, link=PC), "red", 1e-4, -0.1),
    ],
    "s2-other-silent": [(sentinel_2("mine", baseline="05.10"), "red", 1e-4, -0.1)],
    "s2-other-stated": [(sentinel_2(None, baseline="04.00", stated=-0.1), "red", 1e-4, -0.1)],
    "s2-aot-wvp": [
        (sentinel_2(baseline="05.09", applied=True, band="aot", **ES), "aot", 1e-3, 0),
        (sentinel_2(baseline="05.10", band="WVP", link=PC), "wvp", 1e-3, 0),
    ],
    "s2-percent": [(sentinel_2(C1, baseline="05.10", band="cloud", **ES), "cloud", 1, 0)],
}


def other(
    collection: str, key: str, item_id: str = "one", record: Any = None, **properties: Any
) -> pystac.Item:
    asset: dict[str, Any] = {"href": f"https://example.com/{key}", "type": "image/tiff"}
    if record is not None:
        asset["raster:bands"] = [record]
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": item_id,
            "collection": collection,
            "geometry": None,
            "properties": {"datetime": "2020-01-01T00:00:00Z", **properties},
            "links": [],
            "assets": {key: asset},
            "stac_extensions": [],
        }
    )


def landsat(key: str, record: Any = None) -> pystac.Item:
    return other("landsat-c2-l2", key, record=record, instruments=["oli", "tirs"])


MADE |= {
    "landsat-reflectance": [
        (landsat("red"), "red", 2.75e-5, -0.2),
        (landsat("SR_B4.TIF", {"scale": 2.75e-05, "offset": -0.2}), "red", 2.75e-5, -0.2),
    ],
    "landsat-temperature": [(landsat("lwir11"), "lwir11", 0.00341802, 149.0)],
    "landsat-st-qa": [(landsat("cdist", {"scale": 0.01}), "cdist", 0.01, 0)],
    "landsat-emissivity": [(landsat("emis"), "emis", 1e-4, 0)],
    "landsat-radiance": [(landsat("trad"), "trad", 1e-3, 0)],
    "s1-power": [
        (other("sentinel-1-rtc", "vv", record={"nodata": -32768}), "vv", 1, 0),
        (other("opera-rtc-s1", "VH"), "vh", 1, 0),
    ],
    "s1-incidence": [
        (other("sentinel1-rtc-aws", "incidence", record={"scale": 0.01}), "incidence", 0.01, 0),
        (other("opera-rtc-s1", "incidence"), "incidence", 1, 0),
    ],
    "naip": [(other("naip", "image"), "red", 1, 0)],
    "raster": [
        (other("dem", "data"), "data", 1, 0),
        (other("dem", "data", record={"scale": 0.1, "offset": -1000}), "data", 0.1, -1000),
    ],
}


def test_every_row_has_a_case() -> None:
    assert set(MADE) == {row.name for row in TABLE}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, cases in MADE.items() for i in range(len(cases))]
)
def test_row(name: str, number: int) -> None:
    item, band, scale, offset = MADE[name][number]
    chosen = band_source(item, band).calibration
    assert chosen.row == name
    assert (chosen.scale, chosen.offset) == pytest.approx((scale, offset), abs=0)


def all_facts() -> list[Facts]:
    """Every combination of what decides."""
    combinations = itertools.product(
        [(s.name, b.name, b.units, b.categorical) for s in SENSORS for b in s.bands]
        + [("raster", "x", "1", False)],
        get_args(Publisher),
        [None, (2, 14), (3, 1), (4, 0), (5, 10)],
        [None, True, False],
        [None, 0.0, -0.1, -0.2],
        ["", "2020-01-01T00:00:00Z", "2022-01-25T00:00:00Z"],
    )
    return [
        Facts(sensor, band, units, categorical, publisher, baseline, applied, None, stated, sensed)
        for (sensor, band, units, categorical), publisher, baseline, applied, stated, sensed in combinations
    ]


def test_at_most_one_row_fits_whatever_the_facts() -> None:
    for facts in all_facts():
        fitting = [row.name for row in TABLE if row.fits(facts)]
        assert len(fitting) <= 1, (facts, fitting)


def test_categorical_bands_are_never_scaled_whatever_the_facts() -> None:
    for facts in all_facts():
        if facts.categorical:
            assert scale_offset(facts, place="x").identity


def test_no_sentinel_2_offset_before_baseline_0400_or_after_it_was_applied() -> None:
    for facts in all_facts():
        if facts.sensor != "sentinel-2-l2a" or facts.units != "reflectance":
            continue
        early = facts.baseline is not None and facts.baseline < (4, 0)
        taken = facts.applied is True and facts.publisher not in ("planetary-computer", "esa original")
        if early or taken:
            assert scale_offset(facts, place="x").offset == 0


@pytest.mark.parametrize(
    "item",
    [
        sentinel_2(**ES),  # no baseline, no flag
        sentinel_2(C1, baseline="05.10", stated=0, applied=False),  # says ESA's pixels and no offset
        sentinel_2("mine", baseline="05.10", stated=0),
        sentinel_2(link=PC),
        sentinel_2(V0, sensed="2022-03-01T00:00:00Z"),
        sentinel_2(baseline="05.09", stated=0, media=JP2),
    ],
)
def test_undecided_metadata_are_refused_with_the_key_that_decides(item: pystac.Item) -> None:
    with pytest.raises(InputError) as caught:
        band_source(item, "red")
    text = str(caught.value)
    assert text.startswith("one, band red: scale and offset are undecided")
    assert "processing baseline" in text
    assert "offsets: {red: [0.0001, -0.1]}" in text
    chosen = band_source(item, "red", offsets={"B04": [1e-4, -0.1]}).calibration
    assert (chosen.scale, chosen.offset, chosen.row) == (1e-4, -0.1, "recipe")


def test_landsat_with_another_scale_is_refused() -> None:
    with pytest.raises(InputError, match=r"raster:scale 0\.0001"):
        band_source(landsat("red", {"scale": 0.0001, "offset": 0}), "red")


@pytest.mark.parametrize(
    ("properties", "baseline"),
    [
        ({"s2:processing_baseline": "05.10"}, (5, 10)),
        ({"sentinel:processing_baseline": "04.00"}, (4, 0)),
        ({"sentinel2:processing_baseline": "04.00"}, (4, 0)),
        ({"processing:version": "05.11"}, (5, 11)),
        ({"s2:product_uri": "S2A_MSIL2A_20230815T095031_N0509_R079_T33TWM_20230815T155057.SAFE"}, (5, 9)),
        ({"sentinel:product_id": "S2A_MSIL2A_20200714T115221_N0214_R123_T28QCH_20200714T191310"}, (2, 14)),
        ({"processing:version": "sen2cor 2.11"}, None),
        ({}, None),
    ],
)
def test_processing_baseline(properties: dict[str, Any], baseline: tuple[int, int] | None) -> None:
    item = sentinel_2()
    item.properties |= properties
    assert processing_baseline(item) == baseline


def test_to_units_offsets_data_and_leaves_nodata_nodata() -> None:
    numbers = np.array([[0, 1, 1000, 1001, 11000, 65535]], np.uint16)
    by = ScaleOffset(1e-4, -0.1, "x", "")
    values = to_units(numbers, by, numbers != 0)
    assert values.dtype == np.float32
    assert np.isnan(values[0, 0])
    np.testing.assert_allclose(values[0, 1:], [-0.0999, 0, 0.0001, 1.0, 6.4535], atol=1e-6)


def test_identity_keeps_the_bits() -> None:
    power = np.array([0.1, 1e-6, np.nan], np.float32)
    np.testing.assert_array_equal(to_units(power, ScaleOffset(1, 0, "x", "")), power)


def test_the_page_shows_the_table() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "offsets.md"
    assert markdown_table() in page.read_text()


# --- real Items ------------------------------------------------------------------------------------------

ITEMS = "10_stac_items"
REAL = {
    "01_s2_l2a_stac_120m/sentinel-2-l2a": {"s2-applied": (1e-4, 0)},
    f"{ITEMS}/openeo-processes-dask/tests/data/stac/s2_l2a_test_item.json": {"s2-applied": (1e-4, 0)},
    f"{ITEMS}/rustac/crates/server/data/sentinel-2/item-collection.json": {"s2-c1-stated": (1e-4, -0.1)},
    f"{ITEMS}/odc-stac/tests/data/S2A_28QCH_20200714_0_L2A.json": {"s2-before-0400": (1e-4, 0)},
    f"{ITEMS}/odc-stac/tests/data/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json": {
        "s2-esa-before-0400": (1e-4, 0)
    },
    f"{ITEMS}/stac-geoparquet/tests/data/sentinel-2-l2a-pc.json": {"s2-esa-silent": (1e-4, -0.1)},
    f"{ITEMS}/rustac/crates/core/data/two-sentinel-2-items.json": {"s2-esa-silent": (1e-4, -0.1)},
    f"{ITEMS}/stac-task/tests/fixtures/sentinel2-l2a-j2k-payload.json": {"s2-esa-stated": (1e-4, -0.1)},
    f"{ITEMS}/stactools-sentinel2/tests/data-files/S2A_OPER_MSI_L2A_TL_VGS1_20220401T110010_A035382_T34LBQ": {
        "s2-esa-stated": (1e-4, -0.7)
    },
    f"{ITEMS}/stactools-sentinel2/tests/data-files/S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.SAFE": {
        "s2-other-stated": (1e-4, -0.1)
    },
    f"{ITEMS}/stactools-sentinel2/tests/data-files/S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857.SAFE": {
        "s2-before-0400": (1e-4, 0)
    },
    f"{ITEMS}/stac-geoparquet/tests/data/landsat-c2-l2-pc.json": {"landsat-reflectance": (2.75e-5, -0.2)},
    f"{ITEMS}/stactools-landsat/tests/data-files/etm/LE07_L2SP_021030_20100109_20200911_02_T1_SR_stac.json": {
        "landsat-reflectance": (2.75e-5, -0.2)
    },
    f"{ITEMS}/stac-geoparquet/tests/data/sentinel-1-rtc-pc.json": {"s1-power": (1, 0)},
    f"{ITEMS}/stac-geoparquet/tests/data/naip-pc.json": {"naip": (1, 0)},
    f"{ITEMS}/stac-geoparquet/tests/data/cop-dem-glo-30-pc.json": {"raster": (1, 0)},
}


def features(content: Any) -> list[dict[str, Any]]:
    """Find the Items in a JSON document, however deep they lie."""
    if isinstance(content, dict):
        if content.get("type") == "Feature" and "stac_version" in content:
            return [content]
        return [found for value in content.values() for found in features(value)]
    return [found for value in content for found in features(value)] if isinstance(content, list) else []


def real_items(place: Path) -> list[pystac.Item]:
    paths = [place] if place.is_file() else sorted(place.rglob("*.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            pystac.Item.from_dict(feature, migrate=True)
            for path in paths
            for feature in features(json.loads(path.read_text()))
        ]


@pytest.mark.parametrize("where", REAL)
def test_real_items(where: str, shared_data: Path) -> None:
    items = real_items(shared_data / where)
    assert items
    found = set()
    for item in items:
        band = next(b for b in ("red", "vv", "data") if b in _bands(item))
        chosen = band_source(item, band).calibration
        found.add((chosen.row, (chosen.scale, chosen.offset)))
    assert found == set(REAL[where].items())


def _bands(item: pystac.Item) -> set[str]:
    found = set()
    for name in ("red", "vv", "data"):
        try:
            found.add(band_source(item, name).band)
        except InputError:
            continue
    return found


def test_no_real_sentinel_2_or_landsat_item_is_undecided(shared_data: Path) -> None:
    products = ("sentinel-2", "sentinel-s2", "landsat-c2-l2", "landsat-c2l2")
    items = [i for i in real_items(shared_data / ITEMS) if (i.collection_id or "").startswith(products)]
    complaints = [_complaint(item, name) for item in items for name in ("red", "scl", "qa_pixel", "lwir")]
    assert complaints.count("") > 100
    assert not [text for text in complaints if "undecided" in text]


def _complaint(item: pystac.Item, name: str) -> str:
    try:
        band_source(item, name)
    except InputError as error:
        return str(error)
    return ""


def test_real_pixels_bear_the_decision_out(shared_data: Path) -> None:
    """Dark water is dark and not negative: the flag speaks the truth where ``raster:offset`` does not."""
    rasterio = pytest.importorskip("rasterio")
    folder = shared_data / "01_s2_l2a_stac_120m" / "sentinel-2-l2a" / "S2A_33TWM_20230815_0_L2A"
    item = pystac.Item.from_file(str(folder / f"{folder.name}.json"))
    source = band_source(item, "nir")
    with rasterio.open(source.href) as image, rasterio.open(band_source(item, "scl").href) as classes:
        numbers, scl = image.read(1), classes.read(1)
    land = (scl == 4) | (scl == 5)
    assert land.sum() > 10_000
    right = to_units(numbers[land], source.calibration)
    red = band_source(item, "red")
    with rasterio.open(red.href) as image:
        dark = image.read(1)[scl == 4]
    twice = to_units(dark, ScaleOffset(1e-4, -0.1, "twice", ""))
    assert (right < 0).mean() < 0.001
    assert (to_units(dark, red.calibration) < 0).mean() < 0.001
    assert (twice < 0).mean() > 0.5
