"""Lazy maps on a real cluster of processes, and of cubes that the user made himself, against the engine."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, gaussian33, small_unet
from running import Arrays, image, job_of, make_kernel, run_job

from tilewright.pipeline.lazy import map_pixels
from tilewright.pipeline.rasters import RasterSource

if TYPE_CHECKING:
    import torch

    from tilewright.kernels.contract import Kernel

pytestmark = pytest.mark.integration

DATA = Path(__file__).resolve().parents[2] / "data"
BURST, SCENE = DATA / "opera-rtc-s1-vh", DATA / "landsat-c1-l1"
DATES = 10
WISHES = {"device": "cpu", "threads": 1, "tile": 64, "shard": 96, "batch": 2}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def temporal(span: tuple[float, float] = (-200, 200)) -> Kernel:
    """Blur of the mean over the dates: real neighbours in space and all dates matter."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return gaussian33(x.mean(dim=1))

    return make_kernel(forward, dates=DATES, radius=16, outputs={"out": {"kind": "value", "range": span}})


def equal(data: Any, arrays: Arrays) -> bool:
    return all(data[name].values.tobytes() == values.tobytes() for name, values in arrays.items())


def items(folder: Path) -> list[dict[str, Any]]:
    """The Items of a shipped collection as stackstac 0.5 reads them: absolute hrefs, and ``proj:epsg``."""
    found = []
    for path in sorted((folder / "items").glob("*.json")):
        item = json.loads(path.read_text())
        item["properties"]["proj:epsg"] = int(item["properties"]["proj:code"].split(":")[1])
        for asset in item["assets"].values():
            asset["href"] = str((path.parent / asset["href"]).resolve())
            # The Items here state shape and transform for the item; stackstac wants them there or on the asset.
            for key in ("proj:code", "proj:epsg"):
                asset.pop(key, None)
        found.append(item)
    return found


def files(folder: Path, asset: str) -> list[str]:
    return [item["assets"][asset]["href"] for item in items(folder)]


@pytest.fixture(scope="module")
def burst_files() -> list[str]:
    (name,) = {n for item in items(BURST) for n, a in item["assets"].items() if a["href"].endswith("_VH.tif")}
    return files(BURST, name)


@pytest.fixture(scope="module", params=["cut", "blend"])
def expected(request: pytest.FixtureRequest, burst_files: list[str]) -> tuple[str, Arrays]:
    source = RasterSource(burst_files)
    job = job_of(temporal(), source, tile=64, shard=96, batch=2, stitch=request.param)
    return request.param, run_job(job)[0]


def test_files_on_a_cluster_of_processes(
    client: Any, expected: tuple[str, Arrays], burst_files: list[str]
) -> None:
    stitch, arrays = expected
    data = map_pixels(temporal(), RasterSource(burst_files), stitch=stitch, **WISHES)
    assert equal(data.compute(), arrays)
    assert (arrays["reason"] == 0).mean() > 0.3


def test_a_cube_that_the_user_stacked_on_a_cluster(client: Any, expected: tuple[str, Arrays]) -> None:
    stackstac = pytest.importorskip("stackstac")
    stitch, arrays = expected
    found = items(BURST)
    (name,) = {n for item in found for n, a in item["assets"].items() if a["href"].endswith("_VH.tif")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = stackstac.stack(
            found, assets=[name], dtype="float32", rescale=False, fill_value=np.float32("nan")
        )
    assert cube.dims == ("time", "band", "y", "x")
    data = map_pixels(temporal(), cube, stitch=stitch, **WISHES)
    assert equal(data.compute(), arrays)


def test_integers_of_several_bands_from_stackstac_and_rioxarray(client: Any) -> None:
    """uint16 with nodata 0, three bands, through the stride-8 network: files, stackstac and rioxarray agree."""
    stackstac = pytest.importorskip("stackstac")
    import rioxarray
    import xarray as xr

    bands = ("blue", "green", "red")
    net = small_unet(3, 2, scores=True)
    kernel = make_kernel(
        net,
        inputs={"image": {"bands": bands, "mean": (9e3,) * 3, "std": (2e3,) * 3}},
        radius=SMALL_UNET_RADIUS,
        stride=SMALL_UNET_STRIDE,
        outputs={"out": {"kind": "class", "classes": ("a", "b")}},
    )
    found = items(SCENE)[:1]
    paths = [found[0]["assets"][b]["href"] for b in bands]
    wishes = {**WISHES, "tile": 192, "shard": 256}
    arrays, _ = run_job(job_of(kernel, RasterSource([paths], bands=bands), tile=192, shard=256, batch=2))
    assert 0 < (arrays["reason"] == 0).mean() < 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stacked = stackstac.stack(
            found,
            assets=list(bands),
            dtype="uint16",
            rescale=False,
            fill_value=np.uint16(0),
            chunksize=100,
            snap_bounds=False,
        )
    # Unless told not to, stackstac snaps to multiples of 30 m; Landsat's corners lie at 15 m, and all is resampled.
    stacked = stacked.rio.write_nodata(0)
    assert stacked.shape[-2:] == arrays["reason"].shape
    assert equal(map_pixels(kernel, stacked, **wishes).compute(), arrays)
    opened = xr.concat([rioxarray.open_rasterio(p, chunks={"x": 90, "y": 130}) for p in paths], "band")
    opened = opened.assign_coords(band=list(bands))
    assert equal(map_pixels(kernel, opened, **wishes).compute(), arrays)


def test_statistics_are_taken_by_one_task_of_the_cluster(client: Any) -> None:
    import xarray as xr

    array = image(200, 200)[0] + 5
    cube = xr.DataArray(
        array,
        dims=("band", "y", "x"),
        coords={"y": 5e6 - 10.0 * np.arange(200), "x": 5e5 + 10.0 * np.arange(200)},
    ).rio.write_crs("EPSG:32633")
    kernel = make_kernel(
        lambda x, context: x - context.statistics["mean"],
        statistics={"sample": 500},
        fit=lambda sample: {"mean": float(sample["image"].mean())},
    )
    near = map_pixels(kernel, cube, **WISHES).compute(scheduler="synchronous")
    far = map_pixels(kernel, cube, **WISHES).compute()
    assert far["out"].values.tobytes() == near["out"].values.tobytes()
    assert abs(float(far["out"].mean())) < 0.2


def test_an_error_on_a_worker_reaches_the_user_whole(client: Any, burst_files: list[str]) -> None:
    from tilewright.errors import KernelError

    kernel = make_kernel(lambda x: x[:, :, :, 1:].sum(dim=1), dates=DATES)
    with pytest.raises(KernelError, match=r"gave shape .*expected") as caught:
        map_pixels(kernel, RasterSource(burst_files), **WISHES).compute()
    assert caught.value.place == "kernel probe, output out"
