"""The picture: right scale and north, legends that match the map, and no trace of pyplot."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shapely
from affine import Affine
from matplotlib.image import imread
from odc.geo.geobox import GeoBox

from tilewright.kernels.contract import OutputSpec
from tilewright.pipeline.cog import class_colours
from tilewright.pipeline.grid import Grid
from tilewright.pipeline.mapmarks import ground_size, nice_length, north
from tilewright.pipeline.quicklook import REASON_LOOK, quicklook
from tilewright.pipeline.source import Reason
from tilewright.pipeline.store import ResultStore

CLASSES = ("no change", "water", "forest")


def grid_of(affine, crs, shape=(100, 100), region=None):
    return Grid(GeoBox(shape, affine, crs), region)


def utm(shape=(300, 400), region=None):
    return grid_of(Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633", shape, region)


def build(folder, grid, outputs):
    rng = np.random.default_rng(0)
    store = ResultStore.create(folder / "r.zarr", grid, outputs, 256)
    for shard in store.shards():
        h, w = shard.window.shape
        reason = np.zeros((h, w), np.uint8)
        reason[: h // 4] = Reason.CLOUD
        reason[~grid.inside(shard.window)] = Reason.OUTSIDE
        arrays = {}
        for name, spec in outputs.items():
            high = len(spec.classes) if spec.kind == "class" else 200
            values = (rng.random((spec.band_count, h, w)) * high).astype(spec.stored_dtype)
            values[:, reason > 0] = spec.stored_nodata
            arrays[name] = values
        store.write(shard, arrays, reason)
    store.finish()
    return store


def colours_in(path):
    picture = (imread(path)[..., :3] * 255).round().astype(int)
    found, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(c): int(n) for c, n in zip(found.tolist(), counts, strict=True)}


def rgb(text):
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize(
    ("affine", "crs", "height", "width"),
    [
        (Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633", 10 / 0.9996, 10 / 0.9996),
        (Affine(0.001, 0, 10, 0, -0.001, 60.05), "EPSG:4326", 111.41, 55.80),
        (Affine(10, 0, 0, 0, -10, 8_399_738 + 500), "EPSG:3857", 5.0042, 5.0126),
        (Affine(100, 0, 980_000, 0, -100, 210_000), "EPSG:2263", 30.48, 30.48),  # US survey feet
    ],
)
def test_a_pixel_is_measured_on_the_ground(affine, crs, height, width):
    assert ground_size(grid_of(affine, crs)) == pytest.approx((height, width), rel=2e-3)


def test_north_is_true_north():
    assert north(grid_of(Affine(0.1, 0, 10, 0, -0.1, 50), "EPSG:4326")) == pytest.approx((1, 0), abs=1e-6)
    # Convergence of UTM three degrees east of the central meridian: dlon * sin(lat); the grid's up is east of north.
    edge = grid_of(Affine(10, 0, 715_000, 0, -10, 6_655_000), "EPSG:32633")
    up, right = north(edge)
    assert math.degrees(math.atan2(-right, up)) == pytest.approx(3.85 * math.sin(math.radians(60)), abs=0.1)
    turned = Affine.translation(500_000, 5_000_000) @ Affine.rotation(25) @ Affine.scale(10, -10)
    up, right = north(grid_of(turned, "EPSG:32633"))
    assert math.degrees(math.atan2(right, up)) == pytest.approx(25, abs=0.05)


@pytest.mark.parametrize(("most", "nice"), [(99, 50), (100, 100), (0.7, 0.5), (4999, 2000), (2.0, 2)])
def test_scale_bars_have_round_lengths(most, nice):
    assert nice_length(most) == pytest.approx(nice)


def test_map_and_legend_have_the_colours_of_the_classes_and_reasons(tmp_path):
    store = build(tmp_path, utm(), {"label": OutputSpec(kind="class", classes=CLASSES)})
    path = quicklook(store, tmp_path / "q.png", "Three classes", attribution="A source")
    found = colours_in(path)
    for colour in class_colours(3):
        assert found[colour] > 10_000
    assert found[rgb(REASON_LOOK[Reason.CLOUD][1])] > 10_000
    assert [p.name for p in tmp_path.glob("*q.png*")] == ["q.png"]


@pytest.mark.parametrize("shape", [(300, 400), (1400, 90), (60, 1500), (5, 5), (1, 1)])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_size_is_bounded_for_every_shape(tmp_path, shape, count):
    outputs = {f"v{i}": OutputSpec(kind="value", bands=3 if i == 1 else 1) for i in range(count)}
    store = build(tmp_path, utm(shape), outputs)
    height, width = imread(quicklook(store, tmp_path / "q.png", "T" * 90)).shape[:2]
    assert width <= 1400
    assert height <= 1400


def test_region_and_an_empty_result(tmp_path):
    region = shapely.Point(502_000, 4_998_500).buffer(900)
    outputs = {"a": OutputSpec(kind="score"), "b": OutputSpec(kind="class")}
    store = ResultStore.create(tmp_path / "r.zarr", utm(region=region), outputs, 256)
    store.finish()
    assert quicklook(store, tmp_path / "q.png", "Nothing").exists()
    assert len(colours_in(tmp_path / "q.png")) > 10


def test_same_bytes_again_and_in_threads(tmp_path):
    store = build(tmp_path, utm(), {"a": OutputSpec(kind="score"), "b": OutputSpec(kind="value", units="dB")})
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda i: quicklook(store, tmp_path / f"{i}.png", "Same"), range(3)))
    assert len({path.read_bytes() for path in paths}) == 1


def test_pyplot_is_not_imported(tmp_path):
    store = build(tmp_path, utm((40, 40)), {"a": OutputSpec(kind="score")})
    code = f"""
        import sys
        from tilewright.pipeline.quicklook import quicklook
        from tilewright.pipeline.store import ResultStore
        assert "matplotlib" not in sys.modules
        quicklook(ResultStore.open({store.url!r}), {str(tmp_path / "q.png")!r}, "No pyplot")
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
