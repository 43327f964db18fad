"""The Item of a run, its validation by local schemas, and the catalog it joins."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pystac
import pytest

from tilewright.catalogs.publish import (
    ClassInfo,
    InputInfo,
    ItemRef,
    ModelInfo,
    OutputAsset,
    OutputBand,
    OutputInfo,
    ProjInfo,
    build_item,
    publish,
)
from tilewright.catalogs.search import search
from tilewright.catalogs.sensors import sensor_for
from tilewright.catalogs.sources import band_source
from tilewright.catalogs.static import append_to_catalog
from tilewright.catalogs.validate import LocalSchemaValidator, known_schemas, use_local_schemas, validate_item
from tilewright.errors import CatalogError, InputError, StoreError

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
START, END = datetime(2024, 1, 23, 8, 47, tzinfo=UTC), datetime(2024, 5, 22, 8, 47, tzinfo=UTC)
PROJ = ProjInfo("EPSG:32611", (350, 250), (30.0, 0.0, 400000.0, 0.0, -30.0, 3800000.0))
MODEL = ModelInfo(
    name="package.module:dist-s1",
    architecture="Swin-like spatio-temporal transformer",
    inputs=(InputInfo("vv_vh", ("vv", "vh"), (-1, -1, 2, 16, 16), units="dB", mean=(-12, -18), std=(3, 4)),),
    outputs=(OutputInfo("change", "segmentation", (-1, 1, -1, -1), classes=(ClassInfo(1, "lost forest"),)),),
    framework="PyTorch",
    framework_version="2.13.0",
    licence="Apache-2.0",
    weights_href="https://example.com/weights.safetensors",
    weights_sha256="ab" * 32,
    parameters=1_000,
    pretrained=True,
    accelerator="amd64",
    hyperparameters={"tile": 16, "stitch": "blend"},
)


def box(west: float = -118.0, south: float = 34.0, size: float = 0.5) -> dict[str, Any]:
    east, north = west + size, south + size
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west, south, east, north]}


def describe(folder: Path, item_id: str = "run-1", **changes: Any) -> dict[str, Any]:
    """Write the assets of a run and return what :func:`publish` wants to know."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "change.tif").write_bytes(b"pixels")
    (folder / "score.tif").write_bytes(b"more pixels")
    (folder / "result.zarr").mkdir(exist_ok=True)
    (folder / "result.zarr" / "zarr.json").write_text("{}")
    classes = (ClassInfo(0, "stable", color="#FFFFFF"), ClassInfo(1, "change", "something changed"))
    return {
        "item_id": item_id,
        **box(),
        "datetime_range": (START, END),
        "created": END + timedelta(days=1),
        "proj": PROJ,
        "assets": [
            OutputAsset(
                "change",
                "change.tif",
                COG,
                bands=(OutputBand("change", "uint8", 255, classes=classes),),
                resolution=30,
            ),
            OutputAsset(
                "score",
                "score.tif",
                COG,
                bands=(
                    OutputBand("score", "float32", float("nan"), "1", statistics={"mean": 0.5, "minimum": 0}),
                ),
            ),
            OutputAsset("zarr", "result.zarr", "application/vnd.zarr; version=3"),
        ],
        "derived_from": [
            ItemRef("S1A_A", "sentinel-1-rtc", "https://example.com/items/S1A_A"),
            ItemRef("local", "mine", str(folder.parent / "inputs" / "local.json")),
            ItemRef("nowhere", "mine"),
        ],
        "lineage": "dist-s1 over 10 dates",
        "software": {"tilewright": "0.1.0"},
        "digest": "sha256:" + "0" * 64,
        "model": MODEL,
        **changes,
    }


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_item_survives_the_round_trip_through_pystac(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    published = publish(folder, **describe(folder))
    raw = json.loads((folder / "item.json").read_text())
    item = pystac.Item.from_file(str(folder / "item.json"))

    assert {a["href"] for a in raw["assets"].values()} >= {"./change.tif", "./score.tif", "./result.zarr"}
    assert not [link for link in raw["links"] if link["rel"] == "self"]
    assert item.assets["change"].get_absolute_href() == str(folder / "change.tif")
    assert item.to_dict(include_self_link=False) == published.to_dict(include_self_link=False)
    assert item.properties["proj:code"] == "EPSG:32611"
    assert item.properties["tilewright:digest"].startswith("sha256:")
    assert item.properties["mlm:name"] == "package.module-dist-s1"
    assert item.datetime == END
    assert item.common_metadata.start_datetime == START
    checksum = item.assets["change"].extra_fields["file:checksum"]
    assert checksum == "1220" + hashlib.sha256(b"pixels").hexdigest()
    assert item.assets["score"].extra_fields["raster:bands"][0]["nodata"] == "nan"
    hrefs = [link["href"] for link in raw["links"] if link["rel"] == "derived_from"]
    assert hrefs == ["https://example.com/items/S1A_A", "../inputs/local.json", "urn:stac:mine:nowhere"]


@pytest.mark.usefixtures("no_network")
def test_item_is_valid_by_core_and_every_extension(tmp_path: Path) -> None:
    item = publish(tmp_path, **describe(tmp_path))
    checked = validate_item(item)
    assert len(checked) == 1 + len(item.stac_extensions) == 7
    assert pystac.validation.validate(item, validator=LocalSchemaValidator()) == checked


@pytest.mark.usefixtures("no_network")
def test_pystac_itself_validates_once_told_to_use_local_schemas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pystac.validation.RegisteredValidator, "_validator", None)
    publish(tmp_path, **describe(tmp_path))
    use_local_schemas()
    assert len(pystac.Item.from_file(str(tmp_path / "item.json")).validate()) == 7


def broken(item: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(item))
    spot = content
    for key in path[:-1]:
        spot = spot[key]
    spot[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("properties", "datetime"), "yesterday", "datetime"),
        (("properties", "proj:code"), 32611, "proj:code"),
        (("properties", "proj:shape"), [350], "proj:shape"),
        (("properties", "processing:software"), "tilewright", "processing:software"),
        (("properties", "processing:unheard"), 1, "processing"),
        (("properties", "mlm:tasks"), ["guessing"], "mlm:tasks"),
        (("properties", "mlm:input"), [{"name": "x"}], "mlm:input"),
        (("assets", "change", "raster:bands"), [{"data_type": "uint7"}], "raster:bands"),
        (("assets", "change", "file:checksum"), "not hexadecimal", "file:checksum"),
        (("assets", "change", "classification:classes"), [{"name": "no value"}], "classification:classes"),
        (("assets", "model", "mlm:artifact_type"), "", "artifact_type"),
        (("geometry",), {"type": "Blob"}, "geometry"),
        (("bbox",), [1, 2], "bbox"),
    ],
)
def test_a_broken_item_is_told_where(tmp_path: Path, path: tuple[str, ...], value: Any, told: str) -> None:
    item = build_item(**describe(tmp_path)).to_dict(include_self_link=False)
    validate_item(item)
    with pytest.raises(StoreError, match="not valid") as caught:
        validate_item(broken(item, *path, value=value))
    assert told in str(caught.value)


def test_an_extension_without_a_local_schema_is_refused(tmp_path: Path) -> None:
    item = build_item(**describe(tmp_path))
    item.stac_extensions.append("https://example.com/v9/schema.json")
    with pytest.raises(StoreError, match=r"no local schema for https://example\.com/v9"):
        validate_item(item)


def test_nothing_is_written_where_the_item_is_not_valid(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not valid"):
        publish(tmp_path, **describe(tmp_path, properties={"proj:code": 5}))
    assert not (tmp_path / "item.json").exists()


@pytest.mark.parametrize("value", [float("nan"), Path("x")])
def test_a_value_that_json_lacks_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        publish(tmp_path, **describe(tmp_path, properties={"x": value}))
    assert not list(tmp_path.glob("*item.json*"))


def test_missing_asset_and_paths_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    description = describe(tmp_path)
    (tmp_path / "change.tif").unlink()
    with pytest.raises(StoreError, match="asset is not there"):
        publish(tmp_path, **description)
    for path in ("../change.tif", "/etc/hostname"):
        with pytest.raises(InputError, match="not a path within"):
            build_item(**describe(tmp_path, assets=[OutputAsset("a", path, COG)]))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-rf", "a b", "x" * 300])
def test_ids_that_could_become_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a file"):
        build_item(**describe(tmp_path, name))


def test_times_need_a_zone_and_an_order(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time zone"):
        build_item(**describe(tmp_path, datetime_range=(datetime(2024, 1, 1), END)))
    with pytest.raises(InputError, match="before it starts"):
        build_item(**describe(tmp_path, datetime_range=(END, START)))


@pytest.mark.usefixtures("no_network")
def test_kernel_without_weights_is_described_beside_the_item(tmp_path: Path) -> None:
    index = ModelInfo(
        "ndvi",
        "normalised difference",
        (InputInfo("image", (), (-1, 1, -1, -1, -1)),),
        (OutputInfo("ndvi", "regression", (-1, 1, -1, -1)),),
    )
    item = publish(tmp_path, **describe(tmp_path, model=index))
    assert item.assets["model"].href == "./model.json"
    assert json.loads((tmp_path / "model.json").read_text())["name"] == "ndvi"
    composite = publish(tmp_path, **describe(tmp_path, model=None))
    assert "model" not in composite.assets
    assert not [key for key in composite.properties if key.startswith("mlm:")]


def test_an_existing_item_is_replaced_and_no_temporary_file_stays(tmp_path: Path) -> None:
    publish(tmp_path, **describe(tmp_path, lineage="first"))
    publish(tmp_path, **describe(tmp_path, lineage="second"))
    assert json.loads((tmp_path / "item.json").read_text())["properties"]["processing:lineage"] == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "change.tif",
        "item.json",
        "result.zarr",
        "score.tif",
    ]


def test_the_next_run_can_use_a_published_item(tmp_path: Path) -> None:
    publish(tmp_path, **describe(tmp_path))
    item = pystac.Item.from_file(str(tmp_path / "item.json"))
    assert sensor_for(item).names == ("change", "score")
    change, score = band_source(item, "change"), band_source(item, "score")
    assert (change.categorical, change.nodata, change.resolution) == (True, 255, 30)
    assert not score.categorical
    assert score.nodata != score.nodata
    assert change.calibration.identity
    assert score.calibration.identity


def test_schemas_at_hand_refer_only_to_each_other() -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"].split("#")[0]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    for schema in known_schemas().values():
        remote = {
            uri for uri in references(schema) if uri.startswith("http") and "json-schema.org" not in uri
        }
        assert remote <= set(known_schemas())


# --- the local catalog -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_catalog_is_made_grows_and_stays_valid(tmp_path: Path) -> None:
    root = tmp_path / "catalog"
    first = publish(tmp_path / "a", **describe(tmp_path / "a", "a"))
    later = describe(tmp_path / "b", "b", **box(-117.0, 35.0), datetime_range=(END, END + timedelta(days=9)))
    second = publish(tmp_path / "b", **later)
    append_to_catalog(root, first, collection="disturbance", title="Disturbance")
    append_to_catalog(root, second, collection="disturbance")
    append_to_catalog(root, first, collection="other")

    catalog = pystac.Catalog.from_file(str(root / "catalog.json"))
    assert {c.id for c in catalog.get_collections()} == {"disturbance", "other"}
    collection = catalog.get_child("disturbance")
    assert isinstance(collection, pystac.Collection)
    assert {item.id for item in collection.get_items()} == {"a", "b"}
    assert collection.extent.spatial.bboxes == [[-118.0, 34.0, -116.5, 35.5]]
    assert collection.extent.temporal.intervals == [[START, END + timedelta(days=9)]]
    for item in catalog.get_items(recursive=True):
        validate_item(item)
        assert Path(item.assets["change"].get_absolute_href() or "").read_bytes() == b"pixels"
        assert item.get_collection() is not None
    pystac.validation.validate(collection, validator=LocalSchemaValidator())
    pystac.validation.validate(catalog, validator=LocalSchemaValidator())
    derived = catalog.get_child("other").get_item("a").get_links("derived_from")  # type: ignore[union-attr]
    assert str(tmp_path / "inputs" / "local.json") in [link.get_absolute_href() for link in derived]


def test_the_same_run_again_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "catalog"
    item = publish(tmp_path / "a", **describe(tmp_path / "a", "a"))
    append_to_catalog(root, item, collection="c")
    before = {p: p.read_bytes() for p in root.rglob("*.json")}
    append_to_catalog(root, item, collection="c")
    assert {p: p.read_bytes() for p in root.rglob("*.json")} == before


def test_a_replaced_item_shrinks_the_extent(tmp_path: Path) -> None:
    root = tmp_path / "catalog"
    wide = publish(tmp_path / "a", **describe(tmp_path / "a", "a", **box(size=5.0)))
    append_to_catalog(root, wide, collection="c")
    small = publish(tmp_path / "a", **describe(tmp_path / "a", "a", **box(size=1.0)))
    append_to_catalog(root, small, collection="c")
    collection = json.loads((root / "c" / "collection.json").read_text())
    assert collection["extent"]["spatial"]["bbox"] == [[-118.0, 34.0, -117.0, 35.0]]
    assert len([link for link in collection["links"] if link["rel"] == "item"]) == 1


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    item = publish(tmp_path / "a", **describe(tmp_path / "a", "a"))
    (tmp_path / "catalog.json").write_text("{broken")
    with pytest.raises(CatalogError, match="not JSON"):
        append_to_catalog(tmp_path, item, collection="c")
    (tmp_path / "catalog.json").write_text('{"type": "Feature"}')
    with pytest.raises(CatalogError, match="not a STAC Catalog"):
        append_to_catalog(tmp_path, item, collection="c")
    with pytest.raises(InputError, match="collection"):
        append_to_catalog(tmp_path / "new", item, collection="../up")


def _append_many(folder: str, prefix: str, count: int) -> None:
    base = Path(folder)
    for number in range(count):
        name = f"{prefix}{number}"
        item = publish(base / name, **describe(base / name, name))
        append_to_catalog(base / "catalog", item, collection="c")


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['_append_many'](sys.argv[2], sys.argv[3], 8)"
    writers = [subprocess.Popen([sys.executable, "-c", code, __file__, str(tmp_path), p]) for p in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    collection = pystac.Collection.from_file(str(tmp_path / "catalog" / "c" / "collection.json"))
    assert {i.id for i in collection.get_items()} == {f"{p}{n}" for p in "ab" for n in range(8)}


def test_the_next_run_finds_what_this_one_published(tmp_path: Path) -> None:
    for number, west in enumerate((-118.0, -100.0)):
        name = f"run-{number}"
        item = publish(tmp_path / name, **describe(tmp_path / name, name, **box(west)))
        append_to_catalog(tmp_path / "catalog", item, collection="c")
    found = search(str(tmp_path / "catalog" / "catalog.json"), collections=["c"], region=(-119, 33, -117, 35))
    assert [item.id for item in found.items] == ["run-0"]
    assert Path(band_source(found.items[0], "change").href).read_bytes() == b"pixels"
