"""The shipped imagery is what its catalog and its manifest say."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from pystac.stac_object import STACObjectType
from pystac.validation.stac_validator import JsonSchemaSTACValidator

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def catalog() -> pystac.Catalog:
    return pystac.Catalog.from_file(DATA / "catalog.json")


@pytest.fixture(scope="module")
def items(catalog: pystac.Catalog) -> list[pystac.Item]:
    return list(catalog.get_items(recursive=True))


def _manifest() -> list[tuple[str, str, int, str]]:
    rows = [line.split("\t") for line in (DATA / "MANIFEST").read_text().splitlines() if line[0] != "#"]
    return [(file, pixels, int(size), path) for file, pixels, size, path in rows]


def test_the_whole_folder_stays_within_15_mb() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 15e6


def test_files_and_pixels_are_those_of_the_manifest() -> None:
    rows = _manifest()
    assert {path for *_, path in rows} == {path.relative_to(DATA).as_posix() for path in DATA.rglob("*.tif")}
    for file, pixels, size, path in rows:
        content = (DATA / path).read_bytes()
        assert len(content) == size, path
        assert hashlib.sha256(content).hexdigest() == file, path
        with rasterio.open(DATA / path) as source:
            assert hashlib.sha256(source.read(1).tobytes()).hexdigest() == pixels, path


def test_catalog_collections_and_items_are_valid_by_the_core_schemas(
    catalog: pystac.Catalog, items: list[pystac.Item]
) -> None:
    """Only the core schemas: pystac carries them, so this needs no network."""
    validator = JsonSchemaSTACValidator()
    kinds: dict[STACObjectType, list[Any]] = {
        STACObjectType.CATALOG: [catalog],
        STACObjectType.COLLECTION: list(catalog.get_children()),
        STACObjectType.ITEM: items,
    }
    assert [len(objects) for objects in kinds.values()] == [1, 4, 78]
    for kind, objects in kinds.items():
        for stac_object in objects:
            validator.validate_core(stac_object.to_dict(), kind, "1.1.0", href=stac_object.get_self_href())


def test_every_link_is_relative_and_leads_to_a_file(
    catalog: pystac.Catalog, items: list[pystac.Item]
) -> None:
    for stac_object in [catalog, *catalog.get_children(), *items]:
        here = Path(stac_object.self_href).parent
        hrefs = [link["href"] for link in stac_object.to_dict(include_self_link=False)["links"]]
        hrefs += [asset.href for asset in getattr(stac_object, "assets", {}).values()]
        for href in hrefs:
            assert href.startswith("."), href
            assert (here / href).is_file(), href


def test_every_raster_but_the_golden_ones_has_one_asset(items: list[pystac.Item]) -> None:
    published = sorted(
        (Path(item.self_href).parent / asset.href).resolve()
        for item in items
        for asset in item.assets.values()
    )
    on_disk = sorted(path for path in DATA.rglob("*.tif") if path.parent.name != "golden")
    assert published == on_disk


def test_projection_fields_equal_the_files(items: list[pystac.Item]) -> None:
    for item in items:
        for asset in item.assets.values():
            with rasterio.open(asset.get_absolute_href()) as source:
                fields = item.properties
                assert fields["proj:code"] == f"EPSG:{source.crs.to_epsg()}"
                assert tuple(fields["proj:shape"]) == source.shape
                assert fields["proj:transform"] == list(source.transform)[:6]
                assert fields["proj:bbox"] == list(source.bounds)
                assert asset.extra_fields["data_type"] == source.dtypes[0]
                assert float(asset.extra_fields["nodata"]) == pytest.approx(source.nodata, nan_ok=True)
                assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert item.bbox is not None
                west, south, east, north = item.bbox
                longitude, latitude = source.lnglat()
                assert west < longitude < east
                assert south < latitude < north


def test_the_patch_darkens_on_the_last_two_dates_only(items: list[pystac.Item]) -> None:
    """The change that the demo maps: a patch falls by more than 3 dB in VH against the plain around it."""
    contrast = {}
    for item in items:
        if item.properties.get("opera:burst_id") == "T137-292324-IW2":
            with rasterio.open(item.assets["VH"].get_absolute_href()) as source:
                power = source.read(1)
            contrast[item.id[32:40]] = 10 * np.log10(power[5:25, 50:90].mean() / power[60:, 30:].mean())
    assert len(contrast) == 22
    before = [value for date, value in contrast.items() if date < "2024"]
    assert max(contrast["20241221"], contrast["20250102"]) < min(before) - 3
    assert np.ptp(before) < 2.5


def test_every_stack_has_distinct_dates_and_both_polarisations(items: list[pystac.Item]) -> None:
    stacks: dict[tuple[str | None, str], list[pystac.Item]] = {}
    for item in items:
        if "opera:burst_id" in item.properties:
            stacks.setdefault((item.collection_id, item.properties["opera:burst_id"]), []).append(item)
    for (collection, _), stack in stacks.items():
        times = sorted(item.datetime for item in stack if item.datetime is not None)
        assert all((after - before).days >= 5 for before, after in pairwise(times))
        wanted = {"VH"} if collection == "opera-rtc-s1-vh" else {"VV", "VH"}
        assert all(set(item.assets) == wanted for item in stack)
    assert sorted(len(stack) for stack in stacks.values())[-5:] == [10, 10, 11, 11, 22]


def test_the_landsat_scenes_share_a_grid_and_overlap(items: list[pystac.Item]) -> None:
    upper, lower = (item for item in items if item.collection_id == "landsat-c1-l1")
    a, b = (rasterio.transform.Affine(*item.properties["proj:transform"]) for item in (upper, lower))
    assert ((a.c - b.c) % 30, (a.f - b.f) % 30) == (0, 0)
    with (
        rasterio.open(upper.assets["red"].get_absolute_href()) as first,
        rasterio.open(lower.assets["red"].get_absolute_href()) as second,
    ):
        left, bottom = (
            max(first.bounds.left, second.bounds.left),
            max(first.bounds.bottom, second.bounds.bottom),
        )
        right, top = min(first.bounds.right, second.bounds.right), min(first.bounds.top, second.bounds.top)
        cuts = [
            source.read(1, window=rasterio.windows.from_bounds(left, bottom, right, top, source.transform))
            for source in (first, second)
        ]
        gaps = [(source.read(1) == 0).any() for source in (first, second)]
    assert cuts[0].shape == cuts[1].shape == (431, 500)
    both = (cuts[0] > 0) & (cuts[1] > 0)
    assert both.mean() > 0.9
    assert np.median(np.abs(cuts[0].astype(int) - cuts[1].astype(int))[both]) <= 2
    assert all(gaps)
