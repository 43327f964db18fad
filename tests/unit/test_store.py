"""The Zarr of a result: what is written is what is read, at every scale, by us and by xarray."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from tilewright.errors import StoreError
from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.digest import merkle_root, result_digest, shard_digest
from tilewright.pipeline.grid import Grid, Shard, Window
from tilewright.pipeline.overviews import average, mode
from tilewright.pipeline.source import Reason
from tilewright.pipeline.store import ResultStore, inner_chunk

SHAPE = (701, 1103)
OUTPUTS = {
    "change": OutputSpec(kind="score", threshold=0.4, description="certainty of change"),
    "label": OutputSpec(kind="class", classes=("no change", "water", "burnt area")),
    "rgb": OutputSpec(
        kind="value", bands=("red", "green", "blue"), dtype="uint16", range=(0.0, 2.0), units="1"
    ),
}


def a_grid(shape=SHAPE, crs="EPSG:32633", affine=None):
    return Grid(GeoBox(shape, affine or Affine(10, 0, 500_000, 0, -10, 5_000_000), crs))


def pixels(shape=SHAPE, seed=0):
    """Return whole rasters of all layers, with a hole and a corner outside."""
    rng = np.random.default_rng(seed)
    reason = np.zeros(shape, np.uint8)
    reason[100:200, 150:400] = Reason.CLOUD
    reason[400:, 900:] = Reason.OUTSIDE
    change = rng.random(shape, dtype=np.float32)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    rgb = rng.integers(0, 65535, (3, *shape)).astype(np.uint16)
    change[reason > 0], label[reason > 0], rgb[:, reason > 0] = np.nan, 255, 65535
    return {"change": change, "label": label, "rgb": rgb}, reason


def fill(store, arrays, reason):
    for shard in store.shards():
        rows, cols = shard.window.slices(store.grid.window)
        store.write(shard, {n: a[..., rows, cols] for n, a in arrays.items()}, reason[rows, cols])
    return store


@pytest.fixture
def built(tmp_path):
    store = ResultStore.create(tmp_path / "result.zarr", a_grid(), OUTPUTS, 320, {"title": "a test"})
    fill(store, *pixels())
    store.finish()
    return store.publish({"digest": "abc"})


def test_reads_back_what_was_written(built):
    arrays, reason = pixels()
    for name, values in {**arrays, "reason": reason}.items():
        np.testing.assert_array_equal(built.read(name, built.grid.window), values)
    window = Window(300, 341, 5, 999)
    np.testing.assert_array_equal(built.read("rgb", window), arrays["rgb"][:, 300:341, 5:999])


def test_levels_follow_mode_and_average(built):
    arrays, reason = pixels()
    assert built.levels == 3
    layers = {
        "change": (average, np.nan),
        "label": (mode, 255),
        "rgb": (average, 65535),
        "reason": (mode, None),
    }
    for name, (rule, nodata) in layers.items():
        values = {**arrays, "reason": reason}[name]
        for level in range(1, built.levels):
            values = rule(values, nodata)
            rows, cols = built.shape(level)
            np.testing.assert_array_equal(built.read(name, Window(0, rows, 0, cols), level), values)


def test_opens_in_xarray_with_crs_and_transform_at_every_scale(built):
    import rioxarray  # noqa: F401

    arrays, _ = pixels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=PendingDeprecationWarning)  # affine's, in rioxarray
        for level in range(built.levels):
            for more in ({}, {"consolidated": False}):
                ds = xr.open_zarr(built.url, group=str(level), **more)
                side = 10.0 * 2**level
                for name in OUTPUTS:
                    assert ds[name].rio.crs == "EPSG:32633"
                    assert ds[name].rio.transform() == Affine(side, 0, 500_000, 0, -side, 5_000_000)
                    assert ds[name].rio.shape == built.shape(level)
                assert float(ds.x[0]) == 500_000 + side / 2
                assert float(ds.y[0]) == 5_000_000 - side / 2
    ds = xr.open_zarr(built.url, group="0")
    assert list(ds.band.values) == ["red", "green", "blue"]
    assert ds.rgb.attrs["units"] == "1"
    assert ds.label.attrs["flag_meanings"] == "no_change water burnt_area"
    assert np.isnan(ds.label.values[150, 200])  # nodata is masked
    assert ds.reason.dtype == np.uint8  # and reason is not: 0 means valid there
    assert ds.reason.attrs["flag_meanings"].split()[ds.reason.values[150, 200]] == "cloud"
    physical = ds.rgb.sel(band="red").values
    expected = np.where(arrays["rgb"][0] == 65535, np.nan, arrays["rgb"][0] * (2.0 / 65534))
    np.testing.assert_allclose(physical, expected, rtol=1e-12)
    assert ds.rgb.rio.encoded_nodata == 65535


def test_root_follows_the_conventions(built):
    attrs = json.loads((Path(built.url) / "zarr.json").read_text())["attributes"]
    assert {c["name"] for c in attrs["zarr_conventions"]} == {"multiscales", "proj", "spatial"}
    layout = attrs["multiscales"]["layout"]
    assert [level["asset"] for level in layout] == ["0", "1", "2"]
    assert layout[2]["derived_from"] == "1"
    assert layout[2]["transform"]["scale"] == [2.0, 2.0]
    assert layout[2]["spatial:transform"] == [40.0, 0.0, 500_000.0, 0.0, -40.0, 5_000_000.0]
    assert layout[2]["spatial:shape"] == [176, 276]
    assert attrs["proj:code"] == "EPSG:32633"
    assert attrs["spatial:bbox"] == [500_000.0, 5_000_000.0 - 7010, 500_000.0 + 11030, 5_000_000.0]
    assert (attrs["title"], attrs["digest"], attrs["tilewright:complete"]) == ("a test", "abc", True)


def test_open_gives_the_same_store(built):
    again = ResultStore.open(built.url)
    assert again.grid.geobox == built.grid.geobox
    assert dict(again.outputs) == OUTPUTS
    assert (again.shard, again.complete) == (320, True)
    copy = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(
        copy.read("label", Window(0, 9, 0, 9)), built.read("label", Window(0, 9, 0, 9))
    )


def test_region_and_nan_nodata_survive_reopening(tmp_path):
    import shapely

    region = shapely.box(500_000, 4_999_000.1, 501_000.3, 5_000_000)
    outputs = {"a": OutputSpec(kind="value", nodata=float("nan"))}
    store = ResultStore.create(tmp_path / "r.zarr", Grid(a_grid().geobox, region), outputs, 512)
    again = ResultStore.open(store.url)
    assert again.grid.region.equals_exact(region, 0)
    assert np.isnan(again.outputs["a"].stored_nodata)
    json.loads((tmp_path / "r.zarr.partial" / "zarr.json").read_text(), parse_constant=pytest.fail)


def test_nothing_is_at_the_name_before_publish(tmp_path):
    url = tmp_path / "result.zarr"
    store = ResultStore.create(url, a_grid(), OUTPUTS, 320)
    fill(store, *pixels())
    assert not url.exists()
    resumed = ResultStore.open(url)  # a run that was killed goes on here
    assert not resumed.complete
    resumed.finish()
    resumed.finish()
    resumed.publish()
    assert ResultStore.open(url).complete
    assert not (tmp_path / "result.zarr.partial").exists()
    with pytest.raises(StoreError, match="already there"):
        ResultStore.create(url, a_grid(), OUTPUTS, 320)


def test_create_removes_what_an_unpublished_run_left(tmp_path):
    fill(ResultStore.create(tmp_path / "r.zarr", a_grid(), OUTPUTS, 320), *pixels())
    store = ResultStore.create(tmp_path / "r.zarr", a_grid(), OUTPUTS, 640)
    assert np.isnan(store.read("change", store.grid.window)).all()


def test_a_shard_without_results_costs_no_file_and_reads_as_nodata_outside(tmp_path):
    store = ResultStore.create(tmp_path / "r.zarr", a_grid(), OUTPUTS, 320)
    whole = store.grid.window
    assert (store.read("reason", whole) == Reason.OUTSIDE).all()
    assert np.isnan(store.read("change", whole)).all()
    assert (store.read("label", whole) == 255).all()
    shard = next(store.shards())
    empty = {"change": np.full((1, 320, 320), np.nan, "f4"), "label": np.full((320, 320), 255, "u1")}
    empty["rgb"] = np.full((3, 320, 320), 65535, "u2")
    store.write(shard, empty, np.full((320, 320), Reason.CLOUD, np.uint8))
    files = [p for p in (tmp_path / "r.zarr.partial" / "0").rglob("c/**/*") if p.is_file()]
    stored = {p.relative_to(tmp_path / "r.zarr.partial" / "0").parts[0] for p in files}
    assert not stored & {"change", "label", "rgb"}
    assert (store.read("reason", shard.window) == Reason.CLOUD).all()


@pytest.mark.parametrize("window", [Window(0, 320, 0, 319), Window(0, 320, 16, 336), Window(0, 640, 0, 320)])
def test_only_whole_shards_are_written(tmp_path, window):
    store = ResultStore.create(tmp_path / "r.zarr", a_grid(), {"a": OutputSpec(kind="value")}, 320)
    values = np.zeros(window.shape, "f4")
    with pytest.raises(StoreError, match="not a whole shard"):
        store.write(Shard((0, 0), window), {"a": values}, np.zeros(window.shape, np.uint8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"b": np.zeros((320, 320), "f4")}, "differs in a, b"),
        ({"a": np.zeros((320, 320), "f8")}, "float64"),
        ({"a": np.zeros((320, 319), "f4")}, "319"),
        ({"a": np.zeros((2, 320, 320), "f4")}, "2, 320"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, message):
    store = ResultStore.create(tmp_path / "r.zarr", a_grid(), {"a": OutputSpec(kind="value")}, 320)
    with pytest.raises(StoreError, match=message):
        store.write(next(store.shards()), arrays, np.zeros((320, 320), np.uint8))


@pytest.mark.parametrize("name", ["reason", "x", "spatial_ref", "../up", "a b", ""])
def test_names_that_would_clash_are_refused(tmp_path, name):
    with pytest.raises(StoreError, match="cannot be called"):
        ResultStore.create(tmp_path / "r.zarr", a_grid(), {name: OutputSpec(kind="value")}, 320)


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(StoreError, match="no result"):
        ResultStore.open(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="https://"):
        ResultStore.create("https://example.org/r.zarr", a_grid(), OUTPUTS, 320)
    with pytest.raises(StoreError, match="multiple of 16"):
        ResultStore.create(tmp_path / "r.zarr", a_grid(), OUTPUTS, 100)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="creating the result failed"):
        ResultStore.create(tmp_path / "file" / "r.zarr", a_grid(), OUTPUTS, 320)


def test_outputs_of_different_bands_share_a_group(tmp_path):
    outputs = {"a": OutputSpec(kind="value", bands=2), "b": OutputSpec(kind="value", bands=("u", "v", "w"))}
    store = ResultStore.create(tmp_path / "r.zarr", a_grid((40, 50)), outputs, 48)
    store.finish()
    ds = xr.open_zarr(store.publish().url, group="0")
    assert ds.a.dims == ("a_band", "y", "x")
    assert list(ds.b_band.values) == ["u", "v", "w"]


def test_a_rotated_grid_has_no_axes_but_its_transform(tmp_path):
    import rioxarray  # noqa: F401

    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(20) @ Affine.scale(10, -10)
    grid = a_grid((40, 50), affine=turned)
    store = ResultStore.create(tmp_path / "r.zarr", grid, {"a": OutputSpec(kind="value")}, 48)
    store.finish()
    ds = xr.open_zarr(store.publish().url, group="0")
    assert "x" not in ds.coords
    assert ds.a.rio.transform().almost_equals(turned)


@pytest.mark.parametrize(("shard", "chunk"), [(2048, 512), (640, 640), (16, 16), (2096, 524), (1536, 512)])
def test_inner_chunk_divides_the_shard(shard, chunk):
    assert inner_chunk(shard) == chunk


def test_digest_does_not_depend_on_the_shard(tmp_path):
    arrays, reason = pixels()
    found = set()
    for shard in (16 * 13, 320, 1600):
        store = ResultStore.create(tmp_path / f"{shard}.zarr", a_grid(), OUTPUTS, shard)
        found.add(result_digest(fill(store, arrays, reason)))
    assert len(found) == 1
    arrays["label"][-1, -1] ^= 1
    store = fill(ResultStore.create(tmp_path / "other.zarr", a_grid(), OUTPUTS, 320), arrays, reason)
    assert result_digest(store) not in found


def test_shard_digest_sees_values_names_types_and_shapes_but_not_the_bits_of_a_nan():
    a = np.array([[1.0, np.nan]], np.float32)
    b = a.copy()
    b.view(np.uint32)[0, 1] = 0xFFC00001
    assert np.isnan(b[0, 1])
    same = shard_digest({"a": a})
    assert shard_digest({"a": b}) == same
    assert shard_digest({"a": a[None]}) == same
    assert shard_digest({"a": np.asfortranarray(a)}) == same
    others = [{"b": a}, {"a": a.T}, {"a": a.astype("f8")}, {"a": a + 1}, {"a": a, "b": a}]
    assert len({same, *(shard_digest(x) for x in others)}) == 6


def test_merkle_root_by_hand():
    from hashlib import sha256

    x, y, z = (sha256(bytes([i])).digest() for i in range(3))
    pair = sha256(b"\1" + x + y).digest()
    assert merkle_root([x.hex()]) == x.hex()
    assert merkle_root([x.hex(), y.hex(), z.hex()]) == sha256(b"\1" + pair + z).hexdigest()
    assert merkle_root([]) == sha256().hexdigest()
