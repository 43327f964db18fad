"""Several inputs of a kernel from files: by name, on one grid, in the ledger, and computed again by `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from typer.testing import CliRunner

import tilewright
from tilewright.cli import app
from tilewright.errors import InputError, TilewrightError
from tilewright.pipeline.inputs import Inputs
from tilewright.pipeline.rasters import raster_source

KERNEL = """
import tilewright

@tilewright.kernel(
    inputs={"image": {"dates": 2, "bands": ["red", "nir"]}, "map": {"bands": 1}},
    outputs={"out": {"kind": "value"}},
    radius=0,
)
def where(image, map):
    return image[:, 1, :1] - image[:, 0, 1:] + 100 * map[:, 0]
"""
UTM = Affine(10, 0, 5e5, 0, -10, 5e6)


def write(path: Path, pixels: np.ndarray, names: tuple[str, ...] = (), transform: Affine = UTM) -> str:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": len(pixels),
        "dtype": "float32",
        "crs": "EPSG:32633",
    }
    height, width = pixels.shape[1:]
    with rasterio.open(
        path, "w", height=height, width=width, transform=transform, nodata=-1, **profile
    ) as out:
        out.write(pixels.astype(np.float32))
        out.descriptions = names or (None,) * len(pixels)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[str], str, np.ndarray]:
    draw = np.random.default_rng(0)
    images = draw.uniform(0, 1, (2, 3, 70, 90))
    images[:, 2] = -1  # a band that nobody asks for, and that masks nothing
    classes = draw.integers(0, 3, (1, 70, 90)).astype(float)
    classes[0, 10:20, 30:50] = -1
    names = ("red", "nir", "other")
    dates = [write(tmp_path / f"{i}.tif", image, names) for i, image in enumerate(images)]
    (tmp_path / "kernel.py").write_text(KERNEL)
    expected = images[1, 0] - images[0, 1] + 100 * classes[0]
    expected[classes[0] == -1] = np.nan
    return dates, write(tmp_path / "map.tif", classes), expected


def test_a_map_beside_two_dates(tmp_path: Path, files: tuple[list[str], str, np.ndarray]) -> None:
    dates, classes, expected = files
    command = ["apply", f"{tmp_path}/kernel.py:where", *dates, "--input", f"map={classes}"]
    done = CliRunner().invoke(
        app, [*command, "--out", str(tmp_path / "out"), "--shard", "32", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "out" / "out.tif") as made:
        np.testing.assert_allclose(made.read(1), expected, rtol=1e-6, atol=1e-5)
    assert tilewright.verify(tmp_path / "out").equal
    told = CliRunner().invoke(app, ["why", str(tmp_path / "out"), "500405,4999905", "--json"])
    assert told.exit_code == 0, told.output
    assert "map.tif" in told.stdout


def test_what_does_not_fit_is_said(tmp_path: Path, files: tuple[list[str], str, np.ndarray]) -> None:
    dates, classes, _ = files
    kernel, how = f"{tmp_path}/kernel.py:where", {"device": "cpu", "out": tmp_path / "out"}
    with pytest.raises(TilewrightError, match="there is no input 'map'"):
        tilewright.apply(kernel, dates, **how)
    with pytest.raises(InputError, match=r"has no input 'mask'.*map"):
        tilewright.apply(kernel, dates, layers={"mask": classes}, **how)
    with pytest.raises(InputError, match="all inputs are named"):
        tilewright.apply(kernel, dates, layers={"map": classes, "image": dates}, **how)
    shifted = write(
        tmp_path / "shifted.tif", np.ones((1, 70, 90)), transform=UTM * Affine.translation(0.5, 0)
    )
    with pytest.raises(InputError, match="'map' lies on another grid than 'image'"):
        tilewright.apply(kernel, dates, layers={"map": shifted}, **how)
    assert not (tmp_path / "out").exists()


def test_failures_of_all_inputs_are_one_list(files: tuple[list[str], str, np.ndarray]) -> None:
    dates, classes, _ = files
    pictures, more = (raster_source(one, on_error="reason") for one in (dates, [classes]))
    both = Inputs({"image": pictures, "map": more})
    more.failures.append("one")
    assert both.failures == ["one"]
    del both.failures[:1]
    assert more.failures == pictures.failures == []


@pytest.mark.slow
def test_mapformer_from_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = ("red", "green", "blue")
    dates = [write(tmp_path / f"{i}.tif", draw.uniform(200, 3000, (3, 96, 128)), names) for i in range(2)]
    classes = write(tmp_path / "classes.tif", draw.integers(0, 6, (1, 96, 128)).astype(float))
    report = tilewright.apply(
        "mapformer",
        dates,
        layers={"map": classes},
        out=tmp_path / "out",
        untrained=True,
        tile=256,
        device="cpu",
    )
    assert report.pixels_valid == 96 * 128
    assert (tmp_path / "out" / "change.tif").exists()
