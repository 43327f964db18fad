"""Averaging over eight views: symmetric, equal to the mean by hand, and refused where it has no sense."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from fakes import ArraySource
from running import job_of, make_kernel, run_job

import tilewright
from tilewright.errors import KernelError
from tilewright.kernels.d4 import averaged
from tilewright.testing import check_kernel

if TYPE_CHECKING:
    import torch


def lopsided(x: torch.Tensor) -> torch.Tensor:
    """Depends on the pixel to the right and on the one two above."""
    return x + 2 * x.roll(-1, -1) + 3 * x.roll(2, -2)


SPEC = {"outputs": {"out": {"kind": "value", "range": (-100.0, 100.0)}}, "radius": 2, "boundary": "reflect"}


def test_it_is_the_mean_of_the_eight_views() -> None:
    kernel = averaged(make_kernel(lopsided, **SPEC))
    pixels = np.random.default_rng(0).normal(size=(37, 41)).astype(np.float32)
    found = run_job(job_of(kernel, ArraySource(pixels[None, None]), tile=16, shard=32))[0]["out"][0]

    x = np.pad(pixels, 2, mode="reflect")
    expected = np.zeros(pixels.shape)
    for turns in range(4):
        for mirrored in (False, True):
            seen = np.rot90(x, turns)
            seen = seen[:, ::-1] if mirrored else seen
            made = seen + 2 * np.roll(seen, -1, -1) + 3 * np.roll(seen, 2, -2)
            back = np.rot90(made[:, ::-1] if mirrored else made, -turns)
            expected += back[2:-2, 2:-2] / 8
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_turned_raster_gives_the_turned_result() -> None:
    kernel = averaged(make_kernel(lopsided, **SPEC))
    pixels = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    plain = run_job(job_of(kernel, ArraySource(pixels[None, None]), tile=16, shard=16))[0]["out"][0]
    turned = run_job(job_of(kernel, ArraySource(np.rot90(pixels).copy()[None, None]), tile=16, shard=16))[0][
        "out"
    ][0]
    np.testing.assert_allclose(np.rot90(plain), turned, atol=1e-5)


def test_it_is_what_it_says() -> None:
    check_kernel(averaged(make_kernel(lopsided, **SPEC))).raise_for_findings()


def test_a_published_network_by_name_keeps_its_weights_and_its_module(tmp_path: Path) -> None:
    state = tilewright.load_kernel("tinycd").module.state_dict()
    kernel = tilewright.load_kernel("d4:tinycd", state, threshold="0.4")
    assert kernel.spec.name == "d4:tinycd"
    assert kernel.spec.outputs["change"].threshold == 0.4
    assert list(kernel.module.state_dict()) == list(state)
    assert kernel.weights_sha256
    assert kernel.digest != tilewright.load_kernel("tinycd", state, threshold=0.4).digest
    names = []
    for i in range(2):
        names.append(str(tmp_path / f"{i}.tif"))
        with rasterio.open(
            names[-1], "w", driver="GTiff", width=70, height=60, count=3, dtype="uint8",
            crs="EPSG:32633", transform=Affine(1, 0, 0, 0, -1, 0),
        ) as out:  # fmt: skip
            out.write(np.random.default_rng(i).integers(0, 256, (3, 60, 70)).astype(np.uint8))
    job = {"tile": 128, "device": "cpu", "stitch": "blend", "only": "zarr"}
    one = tilewright.apply(kernel, names, out=tmp_path / "a", shard=128, **job)
    twin = tilewright.apply("d4:tinycd", names, out=tmp_path / "b", weights=state, shard=32, cores=2, **job)
    assert one.pixels_valid == twin.pixels_valid == 4200


def test_options_are_those_of_the_kernel() -> None:
    with pytest.raises(KernelError, match=r"unknown option 'treshold'.*threshold"):
        tilewright.load_kernel("d4:tinycd", treshold=1)
    with pytest.raises(KernelError, match="unknown kernel 'tinycdd'"):
        tilewright.load_kernel("d4:tinycdd")


def test_what_has_no_mean_is_refused() -> None:
    with pytest.raises(KernelError, match="noise belongs to the ground"):
        tilewright.load_kernel("d4:ddpm-cd")
    labels = make_kernel(lopsided, outputs={"out": {"kind": "class"}}, radius=2)
    with pytest.raises(KernelError, match="labels, which have no mean"):
        averaged(labels)
    with pytest.raises(KernelError, match="records"):
        averaged(make_kernel(lopsided, outputs={"out": {"kind": "vector", "bands": 3}}, radius=0))
