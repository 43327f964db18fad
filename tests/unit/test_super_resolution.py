"""Kernels whose output grid is finer: options, gaps, geometry, and the same bits whatever the shards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from running import job_of, one_pass, run_job, same

import tilewright
from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.load import load_kernel
from tilewright.kernels.sr.bicubic import taps
from tilewright.kernels.sr.esrgan_slim import SHIPPED
from tilewright.pipeline.rasters import raster_source
from tilewright.testing import check_kernel, receptive_radius

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

ROOT = Path(__file__).resolve().parents[2]
SCENE = "LC08_L1TP_224077_20200518_20200518_01_RT_B{}.tif"
SCALES = (2, 3, 4)
CASES = {
    "bicubic": {"bands": "red,green,blue"},
    "esrgan-slim": {"low": 5_000, "high": 11_000},
}


@pytest.fixture(scope="module")
def landsat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bands of a real scene, 70 x 90 px at its slanted edge: a corner is nodata."""
    parts = []
    for band in (4, 3, 2):
        with rasterio.open(ROOT / "data" / "landsat-c1-l1" / "cogs" / SCENE.format(band)) as data:
            window = Window(0, 720, 90, 70)
            parts.append(data.read(1, window=window))
            profile = {"crs": data.crs, "transform": data.window_transform(window), "nodata": data.nodata}
    path = tmp_path_factory.mktemp("landsat") / "rgb.tif"
    with rasterio.open(path, "w", "GTiff", 90, 70, 3, dtype="uint16", **profile) as out:
        out.write(np.stack(parts))
        out.descriptions = ("red", "green", "blue")
    return path


def values(path: Path) -> np.ndarray:
    """``[1, 3, rows, cols]`` with NaN where a band is nodata."""
    with rasterio.open(path) as data:
        pixels = data.read()
    return np.where((pixels == 0).any(0), np.nan, pixels.astype(np.float32))[None]


def loaded(name: str, scale: int) -> Kernel:
    return load_kernel(name, scale=scale, **CASES[name])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_shards_and_tiles_leave_no_trace_on_a_real_raster(name: str, scale: int, landsat: Path) -> None:
    kernel = loaded(name, scale)
    source = raster_source([landsat])
    found = [
        run_job(job_of(kernel, source, tile=48, shard=shard, batch=2, stitch="cut"))[0]
        for shard in (48, 1000)
    ]
    assert same(*found)
    pixels = values(landsat)
    assert np.isnan(pixels).any()
    whole = one_pass(kernel, pixels, pad=12, boundary=kernel.spec.boundary)
    holes = np.isnan(pixels[0, 0]).repeat(scale, 0).repeat(scale, 1)
    assert (np.isnan(found[0]["image"]) == holes).all()
    gap = np.abs(found[0]["image"] - whole)[:, ~holes].max()
    assert gap <= 1e-6 * np.nanmax(pixels), gap
    if name == "bicubic":
        assert gap == 0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_the_written_raster_lies_on_its_input(name: str, scale: int, landsat: Path, tmp_path: Path) -> None:
    options = {"scale": scale, **CASES[name]}
    tilewright.apply(name, landsat, out=tmp_path / "out", options=options, only="cog", threads=1)
    with rasterio.open(landsat) as coarse, rasterio.open(tmp_path / "out" / "image.tif") as fine:
        assert fine.shape == (coarse.height * scale, coarse.width * scale)
        assert fine.crs == coarse.crs
        assert tuple(fine.bounds) == pytest.approx(tuple(coarse.bounds), abs=1e-9)
        assert fine.transform.a == pytest.approx(30 / scale)
        assert fine.descriptions == ("red", "green", "blue")
        image = fine.read()

    # Means over the output pixels of an input pixel give it back; one output pixel of shift is felt.
    def misfit(shift: int) -> float:
        moved = np.roll(image, shift, (1, 2)).reshape(3, 70, scale, 90, scale).mean((2, 4))
        return float(np.nanstd((moved - values(landsat)[0])[:, 4:-4, 4:-4]))

    assert misfit(0) < min(misfit(1), misfit(-1))


@pytest.mark.parametrize("scale", SCALES)
def test_a_point_stays_where_it_is(scale: int) -> None:
    """Centre of mass on the finer grid, in input pixels: half-pixel centres, as align_corners=False."""
    x = torch.zeros(1, 1, 11, 11)
    x[..., 4, 6] = 1
    found = load_kernel("bicubic", scale=scale)(x, torch.ones_like(x, dtype=torch.bool))[0, 0]
    at = (torch.arange(11 * scale) + 0.5) / scale
    assert float(found.sum()) == pytest.approx(scale**2, abs=1e-5)
    assert float((found.sum(1) * at).sum() / found.sum()) == pytest.approx(4.5, abs=1e-5)
    assert float((found.sum(0) * at).sum() / found.sum()) == pytest.approx(6.5, abs=1e-5)


@pytest.mark.parametrize(("name", "radius"), [("bicubic", 2), ("esrgan-slim", 10)])
def test_the_radius_is_the_measured_one(name: str, radius: int) -> None:
    kernel = loaded(name, 3)
    assert kernel.spec.radius == receptive_radius(kernel) == radius


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_what_they_say(name: str) -> None:
    check_kernel(loaded(name, 2)).raise_for_findings()


def test_weights_of_the_cubic() -> None:
    """Keys' table for the middle between two pixels, and sums of one."""
    assert taps(2, -0.5)[0] == pytest.approx((-0.0234375, 0.2265625, 0.8671875, -0.0703125, 0))
    for scale in SCALES:
        rows = taps(scale, -0.75)
        assert np.sum(rows, axis=1) == pytest.approx(1)
        assert rows == [row[::-1] for row in rows[::-1]]
    assert taps(3, -0.75)[1] == (0, 0, 1, 0, 0), "the middle of three is the pixel itself"


def test_a_gap_does_not_leak_into_what_is_around_it() -> None:
    x = torch.full((1, 1, 9, 9), 7.0)
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[..., 4, 3:6] = False
    x[~valid] = -9999
    found = load_kernel("bicubic", scale=2)(x, valid)
    holes = (~valid).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (torch.isnan(found) == holes).all()
    assert (found[~holes] - 7).abs().max() < 1e-6


def test_the_range_is_that_of_the_input() -> None:
    """The same picture as bytes and as reflectance gives the same picture, in its own units."""
    x = torch.rand(1, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    valid, where = torch.ones(1, 1, 1, 24, 24, dtype=torch.bool), None
    results = []
    for low, high in ((0.0, 255.0), (0.0, 0.3), (-1.0, 3.0)):
        kernel = load_kernel("esrgan-slim", scale=2, low=low, high=high)
        given = {"image": x * 255}  # what the engine makes of low + x (high - low)
        with torch.inference_mode():
            out: Any = kernel.apply(given, {"image": valid}, where)["image"]  # type: ignore[arg-type]
        assert low - 1e-6 <= float(out.min()) < float(out.max()) <= high + 1e-6
        results.append((out - low) / (high - low))
    assert all((r - results[0]).abs().max() < 1e-5 for r in results)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bicubic", {"scale": 5}, "scale"),
        ("bicubic", {"a": 0.5}, "a=0.5; give|a=0.5"),
        ("esrgan-slim", {"scale": 8}, "scale"),
        ("esrgan-slim", {"low": 3, "high": 3}, "empty range"),
        ("esrgan-slim", {"bands": "red,green"}, "takes three"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        load_kernel(name, **options)


def test_shipped_weights_are_the_pinned_ones_and_others_are_refused() -> None:
    for scale, sha256 in SHIPPED.items():
        kernel = load_kernel("esrgan-slim", scale=scale)
        assert (kernel.weights_sha256, kernel.untrained) == (sha256, False)
        path = ROOT / "kernels" / "sr" / "weights" / f"esrgan-slim-x{scale}.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    x4 = str(ROOT / "kernels" / "sr" / "weights" / "esrgan-slim-x4.safetensors")
    with pytest.raises(WeightsError, match="fit the kernel esrgan-slim with scale=4 better"):
        _ = load_kernel("esrgan-slim", x4, scale=2).module


def test_masks_come_with_the_weights_of_sen2sr() -> None:
    """A checkpoint without its masks is refused; with a mask of ones nothing but the resampled input is left."""
    options = {"features": 4, "blocks": 2}
    own = dict(load_kernel("sen2sr-cnn", **options).module.state_dict())
    assert [tuple(own[f"{name}_mask"].shape) for name in ("f2", "sr", "f4")] == [
        (128,) * 2,
        (512,) * 2,
        (512,) * 2,
    ]
    bare = {name: tensor for name, tensor in own.items() if not name.endswith("_mask")}
    with pytest.raises(WeightsError, match="f2_mask"):
        _ = load_kernel("sen2sr-cnn", bare, **options).module
    assert not load_kernel("sen2sr-cnn", bare, **options, mask="butterworth").untrained
    own |= {name: torch.ones_like(tensor) for name, tensor in own.items() if name.endswith("_mask")}
    x = torch.rand(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = load_kernel("sen2sr-cnn", own, **options).module.enlarge(x)
    plain = torch.nn.functional.interpolate(x, scale_factor=4.0, mode="bicubic", antialias=True)
    assert (found - plain).abs().max() < 1e-5


def test_sen2sr_keeps_the_bands_in_their_order() -> None:
    """Flat bands keep their mean, each in its place: the zero frequency is that of the input."""
    kernel = load_kernel("sen2sr-cnn", features=4, blocks=2, mask="butterworth")
    levels = torch.linspace(0.05, 0.5, 10)
    with torch.inference_mode():
        found = kernel.module(levels[None, :, None, None].expand(2, 10, 64, 32).contiguous())
    assert found.shape == (2, 10, 256, 128)
    assert (found.mean((2, 3)) - levels).abs().max() < 1e-3
