"""De-duplication: what counts as one acquisition, which processing wins, and that order does not matter."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.catalogs.dedupe import acquisition, deduplicate
from tilewright.catalogs.endpoints import endpoint
from tilewright.catalogs.local import read_static

WHEN = datetime(2023, 8, 18, 10, 6, 1, tzinfo=UTC)


def item(
    name: str,
    box: tuple[float, float, float, float] = (15, 46, 16, 47),
    collection: str = "sentinel-2-l2a",
    **facts: Any,
) -> pystac.Item:
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return pystac.Item(
        name, {"type": "Polygon", "coordinates": [ring]}, list(box), WHEN, facts, collection=collection
    )


def s2(name: str, baseline: str, strip: str | None = None, **more: Any) -> pystac.Item:
    facts: dict[str, Any] = {
        "platform": "sentinel-2a",
        "grid:code": "MGRS-33TWM",
        "s2:datatake_id": f"GS2A_20230818T100601_042600_N{baseline}",
        "s2:processing_baseline": baseline,
    }
    if strip:
        facts["s2:datastrip_id"] = f"S2A_OPER_MSI_L2A_DS_2APS_20230818T162001_S{strip}_N{baseline}"
    box = more.pop("box", (15, 46, 16, 47))
    return item(name, box, **facts, **more)


def ids(items: Any) -> list[str]:
    return [each.id for each in items]


def test_newest_baseline_wins_over_newest_creation() -> None:
    old = s2("S2A_33TWM_20230818_1_L2A", "05.09", created="2024-01-01T00:00:00Z")
    new = s2("S2A_33TWM_20230818_0_L2A", "05.10", created="2023-08-18T00:00:00Z")
    result = deduplicate([old, new])
    assert ids(result.kept) == ["S2A_33TWM_20230818_0_L2A"]
    assert result.dropped[0].kept == "S2A_33TWM_20230818_0_L2A"
    assert "older processing baseline: 05.09 against 05.10" in result.dropped[0].reason


def test_sequence_decides_when_all_else_is_equal() -> None:
    result = deduplicate([s2("S2A_33TWM_20230818_1_L2A", "05.09"), s2("S2A_33TWM_20230818_0_L2A", "05.09")])
    assert ids(result.kept) == ["S2A_33TWM_20230818_1_L2A"]
    assert "sequence" in result.dropped[0].reason


def test_two_halves_of_one_datatake_are_both_kept() -> None:
    north = s2("S2A_33TWM_20230818_0_L2A", "05.09", box=(15, 46.5, 16, 47))
    south = s2("S2A_33TWM_20230818_1_L2A", "05.09", box=(15, 46, 16, 46.51))
    assert len(deduplicate([north, south]).kept) == 2
    whole = s2("S2A_33TWM_20230818_2_L2A", "05.08")  # covered by the two together, so it is not needed
    assert ids(deduplicate([whole, north, south]).dropped) == ["S2A_33TWM_20230818_2_L2A"]
    by_name = [s2("a", "05.09", strip="20230818T100830"), s2("b", "05.09", strip="20230818T100845")]
    assert len(deduplicate(by_name).kept) == 2


def test_other_tiles_levels_and_platforms_are_other_scenes() -> None:
    one = s2("S2A_33TWM_20230818_0_L2A", "05.09")
    others = [one, s2("S2A_33TWM_20230818_0_L1C", "05.09")]
    tile = s2("S2A_33TWL_20230818_0_L2A", "05.09")
    tile.properties["grid:code"] = "MGRS-33TWL"
    platform = s2("S2B_33TWM_20230818_0_L2A", "05.09")
    platform.properties["platform"] = "sentinel-2b"
    assert len(deduplicate([*others, tile, platform]).kept) == 4


def test_landsat_real_time_gives_way_to_tier_1() -> None:
    wrs = {"platform": "landsat-8", "landsat:wrs_path": "047", "landsat:wrs_row": "027"}
    real_time = item("LC08_L1TP_047027_20201204_20201204_02_RT", collection="landsat-c2-l1", **wrs)
    final = item("LC08_L1TP_047027_20201204_20201216_02_T1", collection="landsat-c2-l1", **wrs)
    result = deduplicate([real_time, final])
    assert ids(result.kept) == [final.id]
    assert "tier" in result.dropped[0].reason


def test_landsat_surface_temperature_is_no_duplicate_of_reflectance() -> None:
    wrs = {"platform": "LANDSAT_8", "landsat:wrs_path": "47", "landsat:wrs_row": "27"}
    name = "LC08_L2SP_047027_20201204_20210313_02_T1"
    by_collection = [item(name, collection=f"landsat-c2l2-{part}", **wrs) for part in ("sr", "st")]
    assert len(deduplicate(by_collection).kept) == 2
    assert len(deduplicate([item(f"{name}_{part}", **wrs) for part in ("SR", "ST")]).kept) == 2


def test_opera_bursts_keep_the_newest_processing() -> None:
    names = [
        f"OPERA_L2_RTC-S1_T009-019294-IW3_20220106T015640Z_{day}T000000Z_S1A_30_v1.0"
        for day in (20240101, 20250912)
    ]
    other = "OPERA_L2_RTC-S1_T009-019295-IW3_20220106T015643Z_20240101T000000Z_S1A_30_v1.0"
    result = deduplicate([item(name, collection="rtc") for name in (*names, other)])
    assert set(ids(result.kept)) == {names[1], other}


def test_items_that_say_nothing_are_only_duplicates_of_themselves() -> None:
    result = deduplicate([item("a"), item("b"), item("a"), item("a", collection="other")])
    assert ids(result.kept) == ["a", "a", "b"]
    assert result.dropped[0].reason == "the same Item twice"


def test_odd_values_do_not_stop_a_search() -> None:
    wrs = {"platform": "landsat-8", "landsat:wrs_path": "n/a", "landsat:wrs_row": None}
    odd = item("LC08_L2SP_047027_20201204_02_T1", **wrs)
    assert acquisition(odd) is None
    strange = s2("S2A_33TWM_20230818_0_L2A", "?")
    strange.properties |= {"s2:sequence": "none", "created": "long ago"}
    assert len(deduplicate([odd, strange, s2("x", "05.09")]).kept) == 2


POOL = [
    s2("S2A_33TWM_20230818_0_L2A", "05.09", box=(15, 46.4, 16, 47)),
    s2("S2A_33TWM_20230818_1_L2A", "05.10", box=(15, 46, 16, 46.6)),
    s2("S2A_33TWM_20230818_2_L2A", "04.00"),
    s2("S2A_33TWM_20230818_3_L2A", "05.10", box=(15, 46, 15.5, 47)),
    item("a"), item("a"), item("b"),
    item("OPERA_L2_RTC-S1_T009-019294-IW3_20220106T015640Z_20240101T000000Z_S1A_30_v1.0"),
    item("OPERA_L2_RTC-S1_T009-019294-IW3_20220106T015640Z_20250101T000000Z_S1A_30_v1.0"),
]  # fmt: skip


@given(st.permutations(POOL))
def test_the_order_makes_no_difference(items: list[pystac.Item]) -> None:
    result, expected = deduplicate(items), deduplicate(POOL)
    assert ids(result.kept) == ids(expected.kept)
    assert result.dropped == expected.dropped
    assert len(result.kept) + len(result.dropped) == len(POOL)
    again = deduplicate(result.kept)
    assert ids(again.kept) == ids(result.kept)
    assert not again.dropped


def test_real_catalogs_have_the_duplicates_that_they_have(shared_data: Path) -> None:
    root = shared_data / "10_stac_items"
    files = sorted((root / "stactools-sentinel2/tests/data-files").glob("*T01WC*/expected_output.json"))
    items = [each for file in files for each in read_static(endpoint(file))]
    result = deduplicate(items)
    # One datatake, tiles 01WCP (twice: two processings of one second apart) and 01WCS.
    assert ids(result.kept) == ["S2A_T01WCP_20230625T234624_L2A", "S2A_T01WCS_20230625T234624_L2A"]
    assert "processing time: 20230626022157 against 20230626022158" in result.dropped[0].reason

    looks = sorted((root / "stactools-landsat/tests/data-files").rglob("*_stac.json"))
    items = [each for file in looks for each in read_static(endpoint(file))]
    assert len(items) > 20
    assert not deduplicate(items).dropped  # SR and ST of one scene are two products

    keyed = [
        acquisition(each)
        for each in read_static(endpoint(root / "stac-geoparquet/tests/data/sentinel-1-rtc-pc.json"))
    ]
    assert None not in keyed
    assert len(set(keyed)) == 4  # slices of one pass are no duplicates


@pytest.mark.parametrize(
    ("name", "collection", "key"),
    [
        (
            "S2B_MSIL2A_20240419T095549_R122_T47XML_20240419T123458",
            "sentinel-2-l2a",
            ("sentinel-2b", "L2A", "20240419T095549"),
        ),
        ("S2A_28QCH_20200714_0_L2A", "sentinel-s2-l2a-cogs", ("sentinel-2a", "L2A", "20230818T100601")),
    ],
)
def test_ids_alone_suffice_where_properties_are_missing(
    name: str, collection: str, key: tuple[str, ...]
) -> None:
    found = acquisition(
        item(name, collection=collection, **{"s2:mgrs_tile": "47XML"} if "MSI" in name else {})
    )
    assert found is not None
    assert found[:3] == key
