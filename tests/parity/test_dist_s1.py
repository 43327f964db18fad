"""`dist-s1` against the package distmetrics: its network, its whole-image inference, and a published product.

The inputs are the package's own despeckled stack (T009-019294-IW2, 100 x 150 px, ten dates) and two bursts of
dist-s1's golden run.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject
from scipy.special import logit as scipy_logit

from tilewright.kernels.change import dist_s1
from tilewright.kernels.change.dist_s1 import MODELS
from tilewright.kernels.change.dist_s1_network import DistS1Network
from tilewright.kernels.contract import Context, Kernel
from tilewright.pipeline.grid import Tiling, Window
from tilewright.pipeline.stitch import take

DATA = Path(__file__).resolve().parents[2] / "data"
Array = NDArray[np.float32]

REFERENCE = [
    # model, stride, pixels without a result, mean, max, metric at (50, 75) and (8, 8): printed by distmetrics 1.0.8
    ("transformer_optimized", 4, 200, 0.918157, 4.625786, 1.056775, 1.097249),
    ("transformer_optimized", 7, 100, 0.915356, 4.454461, 1.123312, 1.142499),
    ("transformer_optimized", 16, 1176, 0.938207, 4.477019, 1.132057, 1.191197),
    ("transformer_original", 16, 1176, 1.149957, 4.350738, 1.407870, 1.191166),
    ("transformer_v0_32", 4, 200, 1.752286, 6.560892, 1.968765, 2.134745),
]


def run(kernel: Kernel, x: Array, origin: int = 0) -> dict[str, Array]:
    """One forward of ``x [T, 2, H, W]``, NaN = invalid, called as the engine does."""
    ok = np.isfinite(x).all(axis=1, keepdims=True)
    filled = np.where(ok, x, np.float32(kernel.spec.inputs["rtc"].fill))
    context = Context(
        origin=torch.tensor([[origin, origin]]),
        times=torch.zeros(1, len(x), dtype=torch.int64),
        lonlat=torch.zeros(1, 2, dtype=torch.float64),
        resolution=30.0,
    )
    with torch.inference_mode():
        outputs = kernel.apply(
            {"rtc": torch.from_numpy(filled)[None]}, {"rtc": torch.from_numpy(ok)[None]}, context
        )
    return {name: y[0].numpy() for name, y in outputs.items()}


def by_tiles(kernel: Kernel, x: Array, tile: int, boundary: str) -> Array:
    """The metric of a whole raster, cut from tiles as the engine cuts them."""
    shape = (x.shape[-2], x.shape[-1])
    tiling = Tiling.choose(tile=tile, radius=kernel.spec.radius or 0, stride=kernel.spec.stride)
    result = np.full(shape, np.nan, dtype=np.float32)
    whole = Window(0, shape[0], 0, shape[1])
    for row in range(tiling.count(shape[0])):
        for col in range(tiling.count(shape[1])):
            part = tiling.tile_at(row, col, shape)
            pixels = np.array(take(x, whole, part.read, shape), dtype=np.float32)
            if boundary == "fill":
                rows, cols = (np.arange(a, b) for a, b in
                              ((part.read.row0, part.read.row1), (part.read.col0, part.read.col1)))  # fmt: skip
                off = ((rows < 0) | (rows >= shape[0]))[:, None] | (cols < 0) | (cols >= shape[1])
                pixels[..., off] = np.nan
            found = run(kernel, pixels)["metric"][0]
            result[part.gives.slices(whole)] = found[part.gives.slices(part.read)]
    return result


@pytest.fixture(scope="module")
def stack() -> Array:
    folder = DATA / "opera-rtc-s1-despeckled" / "cogs"
    bands = []
    for pol in ("VV", "VH"):
        files = sorted(folder.glob(f"*_{pol}.tif"))
        assert len(files) == 10
        bands.append(np.stack([rasterio.open(f).read(1) for f in files]))
    return np.stack(bands, axis=1)


@pytest.fixture(scope="module")
def package() -> Path:
    """The package's folder. Importing it changes the start method of multiprocessing; that is put back."""
    before = multiprocessing.get_start_method(allow_none=True)
    distmetrics = pytest.importorskip("distmetrics")
    multiprocessing.set_start_method(before, force=True)
    return Path(distmetrics.__file__).parent


@pytest.fixture(scope="module")
def official(package: Path) -> Callable[[str], torch.nn.Module]:
    from distmetrics.tf_model import SpatioTemporalTransformer

    def load(name: str) -> torch.nn.Module:
        folder = package / "model_data" / name
        model = SpatioTemporalTransformer(**json.loads((folder / "config.json").read_text()))
        state = torch.load(folder / "weights.pth", map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("model_state_dict", state))
        return model.eval()  # type: ignore[no-any-return]

    return load


def theirs(model: torch.nn.Module, x: Array, stride: int, strategy: str = "high") -> Any:
    from distmetrics.tf_metric import compute_transformer_zscore

    y = scipy_logit(x)
    return compute_transformer_zscore(
        model, list(y[:-1, 0]), list(y[:-1, 1]), y[-1, 0], y[-1, 1],
        stride=stride, tqdm_enabled=False, memory_strategy=strategy, device="cpu",
    )  # fmt: skip


def gap(a: Array, b: Array) -> float:
    """Largest difference; both have the same pixels without a result."""
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a - b)))


@pytest.mark.parametrize("name", MODELS)
def test_the_network_equals_the_packages(name: str, official: Callable[[str], torch.nn.Module]) -> None:
    reference, network = official(name), dist_s1(model=name).function.network
    assert isinstance(network, DistS1Network)
    assert set(network.state_dict()) == set(reference.state_dict())
    arch = MODELS[name]
    generator = torch.Generator().manual_seed(7)
    for dates in (1, 5, arch.context):
        x = torch.randn(3, dates, 2, arch.side, arch.side, generator=generator) - 2
        with torch.inference_mode():
            for mine, wanted in zip(network(x), reference(x), strict=True):
                torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_whole_image_inference_equals_the_packages(
    name: str, stack: Array, official: Callable[[str], torch.nn.Module]
) -> None:
    x = np.ascontiguousarray(stack[..., 20:84, 30:107])  # 77 columns: a remainder that no window reaches
    mine = run(dist_s1(model=name, stride=8, parameters=True), x)
    wanted = theirs(official(name), x, stride=8)
    assert np.isnan(mine["metric"]).any()
    assert gap(mine["metric"][0], wanted.dist) < 1e-4
    assert gap(mine["mean"], wanted.mean) < 1e-4
    assert gap(mine["sigma"], wanted.std) < 1e-4


@pytest.mark.parametrize(("name", "stride", "empty", "mean", "most", "centre", "corner"), REFERENCE)
def test_recorded_numbers_of_the_package(
    stack: Array, name: str, stride: int, empty: int, mean: float, most: float, centre: float, corner: float
) -> None:
    metric = run(dist_s1(model=name, stride=stride), stack)["metric"][0]
    assert int(np.isnan(metric).sum()) == empty
    assert np.nanmean(metric, dtype=np.float64) == pytest.approx(mean, abs=1e-5)
    assert np.nanmax(metric) == pytest.approx(most, abs=1e-4)
    assert metric[50, 75] == pytest.approx(centre, abs=1e-4)
    assert metric[8, 8] == pytest.approx(corner, abs=1e-4)


@pytest.mark.parametrize("stride", [4, 7, 16])
def test_tiles_equal_the_packages_whole_image(
    stride: int, stack: Array, official: Callable[[str], torch.nn.Module]
) -> None:
    """With windows over the edge left out, up to the border; with mirrored pixels, 15 px inside of it."""
    wanted = theirs(official("transformer_optimized"), stack, stride).dist
    cut = by_tiles(dist_s1(stride=stride, max_nodata=0.1), stack, 80, boundary="fill")
    assert gap(cut, wanted) < 1e-4
    inside = (slice(16, 80), slice(16, 130))
    mirrored = by_tiles(dist_s1(stride=stride), stack, 80, boundary="reflect")
    assert np.isfinite(mirrored).all()
    assert gap(mirrored[inside], wanted[inside]) < 1e-4


@pytest.mark.parametrize(("strategy", "share"), [("high", 1.0), ("low", 0.1)])
def test_gaps_count_as_the_package_counts_them(
    strategy: str, share: float, stack: Array, official: Callable[[str], torch.nn.Module]
) -> None:
    """One date misses a large hole, another a few pixels; the package's own functions fill a logit of 0."""
    x = stack[..., :70, :90].copy()
    x[3, :, 20:45, 30:60] = np.nan
    x[6, :, 50, 40:44] = np.nan
    wanted = theirs(official("transformer_optimized"), x, 4, strategy).dist
    if strategy == "low":  # its fill is 1e-7 after the logit, which is a logit of 0 to 1e-7
        x, wanted = x[..., :68, :88], wanted[..., :68, :88]
    mine = run(dist_s1(stride=4, fill=0.5, max_nodata=share), x)["metric"][0]
    inside = (slice(0, 52), slice(0, 72))  # `low` moves the last windows to the edge
    assert np.isnan(mine[20:45, 30:60]).all()
    assert gap(mine[inside], wanted[inside]) < 1e-4


def test_gaps_count_as_the_product_counts_them(
    stack: Array, official: Callable[[str], torch.nn.Module]
) -> None:
    """dist-s1 2.0.9 fills 1e-7 before the logit and masks where the last date is missing, and only there."""
    x = stack[..., :68, :88].copy()
    x[3, :, 20:45, 30:60] = np.nan
    x[-1, :, 10:14, 5:9] = np.nan
    wanted = theirs(official("transformer_optimized"), np.where(np.isnan(x), np.float32(1e-7), x), 4).dist
    wanted[np.isnan(x[-1, 0])] = np.nan
    assert gap(run(dist_s1(stride=4, missing="fill"), x)["metric"][0], wanted) < 1e-4


@pytest.mark.parametrize("burst", ["T137-292322-IW2", "T137-292323-IW2"])
def test_a_published_metric(burst: str) -> None:
    """GEN-METRIC of dist-s1's golden run: raw bursts despeckled, stride 16, the product warped by its own code.

    The warp is not ours, so this is a check of the whole chain to a few hundredths, not of the last digit.
    """
    days = (
        "20221114 20221126 20221208 20221220 20230101 20231109 20231121 20231203 20231215 20231227 20250102"
    )
    folder = DATA / "opera-rtc-s1" / "cogs"
    layers = []
    for day in days.split():
        files = [next(folder.glob(f"*_{burst}_{day}T*_{pol}.tif")) for pol in ("VV", "VH")]
        layers.append(np.stack([rasterio.open(f).read(1) for f in files]))
    with rasterio.open(files[0]) as first:
        crs, transform = first.crs, first.transform
    metric = run(dist_s1(stride=16, despeckle="tv"), np.stack(layers))["metric"][0]
    with rasterio.open(DATA / "golden" / f"GEN-METRIC_{burst}_20250102.tif") as golden:
        wanted = golden.read(1)
        warped = np.full_like(wanted, np.nan)
        reproject(
            metric, warped, src_transform=transform, src_crs=crs, dst_transform=golden.transform,
            dst_crs=golden.crs, src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.bilinear,
        )  # fmt: skip
    both = np.isfinite(warped) & np.isfinite(wanted)
    difference = np.abs(warped - wanted)[both]
    print(f"{burst}: {both.sum()} px, median {np.median(difference):.4f}, max {difference.max():.4f}")
    assert both.sum() > 4000
    assert np.median(difference) < 0.02
    assert difference.max() < 0.2
