"""Search of catalogs without a server, the rule of hrefs, and snapshots."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pystac
import pytest

from tilewright.catalogs.endpoints import endpoint
from tilewright.catalogs.hrefs import make_item, resolve_href
from tilewright.catalogs.local import read_static
from tilewright.catalogs.search import search
from tilewright.catalogs.snapshot import items_digest, read_snapshot, write_snapshot
from tilewright.errors import CatalogError, InputError, StoreError

S2_120M = "01_s2_l2a_stac_120m"


def feature(number: int, **changes: Any) -> dict[str, Any]:
    ring = [[number, 0], [number + 1, 0], [number + 1, 1], [number, 1], [number, 0]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"item-{number:02d}",
        "collection": "demo",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [number, 0, number + 1, 1],
        "properties": {"datetime": f"2024-01-{number + 1:02d}T12:00:00Z", "eo:cloud_cover": 4.0 * number},
        "links": [],
        "assets": {"red": {"href": f"red-{number:02d}.tif", "type": "image/tiff"}},
        **changes,
    }


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Catalog with a Collection of 20 Items, each in a file of its own."""
    folder = tmp_path / "catalog"
    (folder / "demo").mkdir(parents=True)
    items = [feature(number) for number in range(20)]
    for item in items:
        (folder / "demo" / f"{item['id']}.json").write_text(json.dumps(item))
    base = {"stac_version": "1.0.0", "description": "for tests"}
    extent = {
        "spatial": {"bbox": [[0, 0, 20, 1]]},
        "temporal": {"interval": [["2024-01-01T00:00:00Z", None]]},
    }
    links = [{"rel": "item", "href": f"./{item['id']}.json"} for item in items]
    collection = {
        **base,
        "type": "Collection",
        "id": "demo",
        "license": "other",
        "extent": extent,
        "links": links,
    }
    (folder / "demo" / "collection.json").write_text(json.dumps(collection))
    # The child points back to its parent as catalogs do, and once to itself as catalogs should not.
    links = [{"rel": "child", "href": "./demo/collection.json"}, {"rel": "child", "href": "./catalog.json"}]
    (folder / "catalog.json").write_text(
        json.dumps({**base, "type": "Catalog", "id": "root", "links": links})
    )
    return folder


@pytest.fixture
def served(catalog: Path) -> Iterator[str]:
    """Address at which the catalog's folder is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(catalog))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({"region": "3.5,0.2,5.5,0.8"}, [3, 4, 5]),
    ({"region": {"type": "Polygon", "coordinates": [[[3.2, 0.2], [3.8, 0.2], [3.5, 0.8], [3.2, 0.2]]]}}, [3]),
    ({"datetime": "2024-01-04/2024-01-05"}, [3, 4]),
    ({"datetime": "2024-01-04T12:00:00Z"}, [3]),
    ({"datetime": "../2024-01-02"}, [0, 1]),
    ({"datetime": "2024-01-19/.."}, [18, 19]),
    ({"cloud_cover": 8}, [0, 1, 2]),
    ({"filter": "eo:cloud_cover BETWEEN 4 AND 8"}, [1, 2]),
    ({"filter": {"op": ">", "args": [{"property": "eo:cloud_cover"}, 68]}, "cloud_cover": 72}, [18]),
    ({"query": {"eo:cloud_cover": {"gte": 72}}}, [18, 19]),
    ({"ids": ["item-07", "item-03"]}, [3, 7]),
    ({"collections": "demo", "region": "0,0,2,1", "datetime": "2024-01-02"}, [1]),
    ({"max_items": 2}, [18, 19]),
]


@pytest.mark.parametrize(("asked", "expected"), CASES)
def test_static_catalogs_answer_like_an_api(
    catalog: Path, asked: dict[str, Any], expected: list[int]
) -> None:
    result = search(catalog, **asked)
    assert [item.id for item in result.items] == [f"item-{number:02d}" for number in expected]
    assert result.items[0].assets["red"].href == str(catalog / "demo" / f"red-{expected[0]:02d}.tif")


@pytest.mark.parametrize(("asked", "expected"), CASES)
def test_over_http_the_same(served: str, asked: dict[str, Any], expected: list[int]) -> None:
    result = search(f"{served}/catalog.json", **asked)
    assert [item.id for item in result.items] == [f"item-{number:02d}" for number in expected]
    assert result.items[0].assets["red"].href == f"{served}/demo/red-{expected[0]:02d}.tif"


def test_other_ways_to_name_the_same_items(catalog: Path, tmp_path: Path) -> None:
    features = [feature(number) for number in range(20)]
    (tmp_path / "list.json").write_text(json.dumps(features))
    (tmp_path / "all.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (tmp_path / "one.json").write_text(json.dumps(features[3]))
    for where in (
        catalog / "catalog.json",
        catalog / "demo" / "collection.json",
        tmp_path / "list.json",
        tmp_path / "all.geojson",
    ):
        assert len(search(where).items) == 20
    assert [item.id for item in search(tmp_path / "one.json").items] == ["item-03"]


def test_a_local_catalog_may_lead_to_a_remote_one_but_not_back(catalog: Path, served: str) -> None:
    root = catalog.parent / "both.json"
    links = [
        {"rel": "child", "href": f"{served}/catalog.json"},
        {"rel": "item", "href": "catalog/demo/item-00.json"},
    ]
    root.write_text(
        json.dumps(
            {"type": "Catalog", "id": "both", "stac_version": "1.0.0", "description": "", "links": links}
        )
    )
    items = list(read_static(endpoint(root)))
    assert {item.assets["red"].href.split("/")[0] for item in items} == {"http:", ""}
    for href in (
        "file:///etc/passwd",
        "/etc/passwd",
        "/vsizip//etc/x.zip/x.tif",
        'NETCDF:"/etc/x"',
        "C:\\x.tif",
        "",
    ):
        item = feature(0, assets={"red": {"href": href}})
        (catalog / "demo" / "item-00.json").write_text(json.dumps(item))
        with pytest.raises(CatalogError, match="would be opened on this machine"):
            search(f"{served}/catalog.json")
    (catalog / "catalog.json").write_text(
        json.dumps(
            {
                "type": "Catalog",
                "id": "x",
                "stac_version": "1.0.0",
                "links": [{"rel": "child", "href": "file:///etc/passwd"}],
            }
        )
    )
    with pytest.raises(CatalogError, match=r"file:///etc/passwd.*would be opened"):
        search(f"{served}/catalog.json")


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("s3://b/x.tif", None, "s3://b/x.tif"),
        ("../x.tif", "https://h/a/b/item.json", "https://h/a/x.tif"),
        ("../../../../etc/passwd", "https://h/a/item.json", "https://h/etc/passwd"),
        ("./x.tif", "s3://bucket/a/item.json", "s3://bucket/a/x.tif"),
        ("https://h/x.tif?sig=a&sv=1", None, "https://h/x.tif"),
    ],
)
def test_remote_hrefs_stay_on_the_network(href: str, base: str | None, expected: str) -> None:
    assert resolve_href(href, base, remote=True, place="here") == expected


def test_relative_hrefs_need_a_base() -> None:
    with pytest.raises(CatalogError, match="item-00, asset red"):
        make_item(feature(0), None, remote=True)
    with pytest.raises(CatalogError, match="relative"):
        make_item(feature(0), None, remote=False)
    assert make_item(feature(0), "/data/item.json", remote=False).assets["red"].href == "/data/red-00.tif"
    local = feature(0, assets={"red": {"href": "file:///data/a%20b.tif"}})
    assert make_item(local, None, remote=False).assets["red"].href == "/data/a b.tif"


def test_bad_requests_get_one_clear_line(catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"unknown collection 'dmeo'; did you mean 'demo'"):
        search(catalog, collections="dmeo")
    with pytest.raises(CatalogError, match=r"unknown catalog 'earthsearch'; did you mean 'earth-search'"):
        search("earthsearch")
    with pytest.raises(CatalogError, match="no such file"):
        search(tmp_path / "nothing.json")
    with pytest.raises(CatalogError, match=r"holds no catalog\.json"):
        search(tmp_path)
    with pytest.raises(InputError, match="reversed"):
        search(catalog, datetime="2024/2023")
    with pytest.raises(InputError, match="max_items"):
        search(catalog, max_items=0)
    for name, text, message in (
        ("a.json", "{", "not valid JSON"),
        ("b.json", "{}", "not STAC"),
        ("c.parquet", "x", "Parquet"),
        ("d.json", '{"type": "Feature"}', "not a STAC Item"),
        ("e.json", "[1]", "not a STAC Item"),
        ("f.tif", "", "not a catalog"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(CatalogError, match=message) as caught:
            search(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_nothing_found_says_what_was_searched_and_what_is_there(catalog: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        search(catalog, region="100,0,101,1", datetime="2023", collections="demo", filter="eo:cloudcover < 5")
    text = str(caught.value)
    for part in (
        "collections demo",
        "datetime 2023-01-01",
        "bbox 100,0,101,1",
        "filter",
        "holds 20 Items",
        "in 0,0,20,1 from 2024-01-01 to 2024-01-20",
        "none has the property 'eo:cloudcover'",
        "did you mean 'eo:cloud_cover'",
    ):
        assert part in text
    assert caught.value.exit_code == 2


def test_items_over_the_antimeridian_are_found(tmp_path: Path) -> None:
    ring = [[177, -19], [-178, -19], [-178, -16], [177, -16], [177, -19]]
    crossing = feature(0, geometry={"type": "Polygon", "coordinates": [ring]}, bbox=[177, -19, -178, -16])
    (tmp_path / "one.json").write_text(json.dumps(crossing))
    assert len(search(tmp_path / "one.json", region="179,-18,-179.5,-17").items) == 1
    assert len(search(tmp_path / "one.json", region="-179,-18,-178.5,-17").items) == 1
    with pytest.raises(CatalogError, match="no Items"):
        search(tmp_path / "one.json", region="0,-18,10,-17")


def test_geoparquet_gives_the_same_items(shared_data: Path) -> None:
    root = shared_data / "10_stac_items/stac-geoparquet/tests/data"
    table, text = search(root / "naip.parquet"), search(root / "naip-pc.json")
    assert len(table.items) == 5
    item = table.items[0]
    assert item.datetime is not None
    assert item.properties["proj:code"].startswith("EPSG:")  # pystac migrates proj:epsg
    assert item.assets["image"].href.startswith("https://naipeuwest")
    assert item.assets.keys() >= {"image"}
    assert set(text.items[0].assets) >= set(item.assets) - {"rendered_preview", "tilejson", "thumbnail"}
    west, south, _, _ = item.bbox or (0, 0, 0, 0)
    near = search(root / "naip.parquet", region=(west, south, west + 1e-3, south + 1e-3))
    assert item.id in [found.id for found in near.items]


def test_geoparquet_filters(shared_data: Path) -> None:
    path = shared_data / "10_stac_items/rustac/scripts/fixtures/1000-sentinel-2-items.parquet"
    everything = search(path)
    assert everything.matched == 1000
    clear = search(path, cloud_cover=5)
    assert 0 < len(clear.items) < 1000
    expected = [item.id for item in everything.items if item.properties["eo:cloud_cover"] <= 5]
    assert [item.id for item in clear.items] == expected
    for item in clear.items[:20]:
        pystac.Item.from_dict(item.to_dict())


def test_all_the_trap_items_come_through(shared_data: Path, tmp_path: Path) -> None:
    """STAC 0.7 to 1.1, proj:epsg and proj:code, dates without times, lists, and files that are no STAC."""
    root = shared_data / "10_stac_items"
    refused, versions, items = [], set(), []
    for path in sorted([*root.rglob("*.json"), *root.rglob("*.geojson")]):
        try:
            found = list(read_static(endpoint(path)))
        except CatalogError:
            refused.append(path.name)
            continue
        data = json.loads(path.read_text())
        versions.add(data.get("stac_version") if isinstance(data, dict) else "list")
        items += found
    assert len(items) >= 200
    assert versions >= {"0.7.0", "1.0.0-beta.1", "1.0.0-beta.2", "1.0.0", "1.1.0"}
    assert not [name for name in refused if "item" in name.lower()]
    for item in items:
        assert "proj:epsg" not in item.properties
        for asset in item.assets.values():
            assert asset.href.startswith(("https://", "http://", "s3://", "abfs://", "/"))
            assert "sig=" not in asset.href
    seven = next(item for item in items if item.id.startswith("LC08_L2SP_005009"))
    assert seven.datetime is not None
    unique = {(item.collection_id, item.id, item.get_self_href()): item for item in items}
    written = write_snapshot(
        tmp_path / "all.json",
        unique.values(),
        search(root / "stac-task/tests/fixtures/sentinel2-l2a-j2k-payload.json").searched,
    )
    assert [item.id for item in read_snapshot(tmp_path / "all.json").items] == [
        item.id for item in written.items
    ]


# --- snapshots


def test_snapshot_round_trip(catalog: Path, tmp_path: Path) -> None:
    result = search(catalog, region="3,0,6,1", datetime="2024-01")
    first = write_snapshot(tmp_path / "a.json", result.items, result.searched)
    write_snapshot(tmp_path / "b.json", reversed(result.items), result.searched)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    again = read_snapshot(tmp_path / "a.json")
    assert again.digest == first.digest
    assert again.searched == result.searched
    assert [item.to_dict() for item in again.items] == [item.to_dict() for item in result.items]
    assert len(pystac.ItemCollection.from_file(str(tmp_path / "a.json")).items) == len(result.items)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "catalog"]


def test_the_digest_does_not_depend_on_where_the_catalog_lies(catalog: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "some" / "where"
    shutil.copytree(catalog, elsewhere)
    here, there = search(catalog), search(elsewhere)
    first = write_snapshot(tmp_path / "here.json", here.items, here.searched)
    assert write_snapshot(tmp_path / "there.json", there.items, there.searched).digest == first.digest
    assert write_snapshot(tmp_path / "fewer.json", here.items[1:], here.searched).digest != first.digest
    moved = read_snapshot(tmp_path / "here.json", root=elsewhere)
    assert moved.items[0].assets["red"].href == str(elsewhere / "demo" / "red-00.tif")
    assert items_digest(moved.items, elsewhere) == first.digest


def test_snapshots_hold_no_signature(served: str, tmp_path: Path) -> None:
    result = search(f"{served}/catalog.json")
    for item in result.items:
        item.assets["red"].href += "?sv=2021&se=2024&sig=SECRET"
        item.add_link(pystac.Link("thumbnail", f"{served}/x.png?X-Amz-Signature=SECRET&X-Amz-Date=1"))
    written = write_snapshot(tmp_path / "s.json", result.items, result.searched)
    assert "SECRET" not in (tmp_path / "s.json").read_text()
    assert read_snapshot(tmp_path / "s.json").digest == written.digest
    assert "SECRET" in result.items[0].assets["red"].href  # the caller's Items are left alone


def test_edited_and_foreign_snapshots_are_refused(served: str, catalog: Path, tmp_path: Path) -> None:
    result = search(f"{served}/catalog.json")
    path = tmp_path / "s.json"
    write_snapshot(path, result.items, result.searched)
    good = path.read_text()
    path.write_text(good.replace("red-03.tif", "red-04.tif"))
    with pytest.raises(CatalogError, match="digest differs"):
        read_snapshot(path)
    path.write_text(good.replace(f"{served}/demo/red-03.tif", "/etc/passwd"))
    with pytest.raises(CatalogError, match="would be opened on this machine"):
        read_snapshot(path)
    path.write_text(good.replace('"version": 1', '"version": 9'))
    with pytest.raises(CatalogError, match="update tilewright"):
        read_snapshot(path)
    for text in ("{", "[]", '{"type": "FeatureCollection", "features": []}'):
        path.write_text(text)
        with pytest.raises(CatalogError):
            read_snapshot(path)
    with pytest.raises(CatalogError, match="cannot be read"):
        read_snapshot(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(catalog: Path, tmp_path: Path) -> None:
    result = search(catalog)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        write_snapshot(tmp_path / "file" / "s.json", result.items, result.searched)
    target = tmp_path / "folder.json"
    target.mkdir()
    with pytest.raises(StoreError):
        write_snapshot(target, result.items, result.searched)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "file", "folder.json"]


def test_the_real_catalog_from_search_to_snapshot(shared_data: Path, tmp_path: Path) -> None:
    result = search(shared_data / S2_120M, region="15.2,46.2,15.6,46.6", datetime="2023-08-15/2023-08-20")
    assert [item.id for item in result.items] == [
        "S2A_33TWM_20230815_0_L2A",
        "S2A_33TWM_20230818_0_L2A",
        "S2B_33TWM_20230820_0_L2A",
    ]
    local = [
        asset.href for item in result.items for asset in item.assets.values() if asset.href.startswith("/")
    ]
    assert local
    assert all(Path(href).exists() for href in local if href.endswith(".tif"))
    write_snapshot(tmp_path / "s.json", result.items, result.searched)
    assert read_snapshot(tmp_path / "s.json").items[0].assets.keys() == result.items[0].assets.keys()
