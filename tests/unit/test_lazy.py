"""`map_pixels`: nothing is read while building, only what is touched while computing, and the engine's own bits."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]
import dask
import numpy as np
import pytest
import rasterio
import rioxarray
import torch
from fakes import ArraySource
from networks import gaussian33
from running import Arrays, image, job_of, make_kernel, run_job, with_holes

from tilewright.errors import InputError, KernelError
from tilewright.pipeline.grid import Window
from tilewright.pipeline.lazy import _Opaque, lazy_dataset, map_pixels
from tilewright.pipeline.rasters import RasterSource
from tilewright.pipeline.source import Reason

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

WISHES = {"device": "cpu", "threads": 1, "tile": 64, "shard": 96}


def blur(**keys: Any) -> Kernel:
    return make_kernel(
        gaussian33, **{"radius": 16, "outputs": {"out": {"kind": "value", "range": (-9, 9)}}, **keys}
    )


def as_arrays(data: Any) -> Arrays:
    """The values of a Dataset as the engine's tests hold them."""
    names = [*data.data_vars]
    return {n: data[n].values if n == "reason" or data[n].ndim == 3 else data[n].values[None] for n in names}


def equal(data: Any, arrays: Arrays) -> bool:
    """True where a Dataset holds the bits of ``arrays``."""
    found = as_arrays(data)
    return found.keys() == arrays.keys() and all(found[n].tobytes() == arrays[n].tobytes() for n in found)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    """A float raster of prime sides with holes, tiled, one band."""
    array = with_holes(image(211, 163))[0]
    path = tmp_path / "scene.tif"
    profile = {
        "driver": "GTiff",
        "height": 211,
        "width": 163,
        "count": 1,
        "dtype": "float32",
        "nodata": -9999,
    }
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=transform, tiled=True, blockxsize=64, blockysize=64, **profile
    ) as file:
        file.write(np.where(np.isnan(array), -9999, array))
    return path


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_building_reads_nothing_and_computing_reads_what_it_touches(stitch: str) -> None:
    source = ArraySource(with_holes(image(400, 300)))
    data = map_pixels(blur(), source, stitch=stitch, **WISHES)
    assert source.reads == []
    job = job_of(blur(), source, stitch=stitch, tile=64, shard=96)
    side = job.tiling.shard
    assert data["out"].chunks[0][:-1] == (side,) * (400 // side)
    full, _ = run_job(job)
    source.reads.clear()
    part = data.isel(y=slice(side + 5, side + 20), x=slice(10, 20)).compute()
    reach = Window(side, 2 * side, 0, side).grow(job.tiling.tile)
    assert len(source.reads) == 1
    assert reach.contains(source.reads[0])
    if stitch == "cut":
        assert source.reads == [Window(side - 16, 2 * side + 16, 0, side + 16)]
    assert part["out"].values.tobytes() == full["out"][0, side + 5 : side + 20, 10:20].tobytes()
    source.reads.clear()
    data["reason"].isel(y=[0, 399], x=0).compute()
    assert len(source.reads) == 2


def test_building_opens_no_file(raster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = RasterSource([str(raster)])
    opened = []
    real = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    source._handles.clear() if hasattr(source._handles, "clear") else None
    data = map_pixels(blur(), source, **WISHES)
    assert opened == []
    assert np.isfinite(data["out"].isel(y=0, x=0).compute())


@pytest.mark.parametrize("stitch", ["cut", "blend"])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_it_equals_the_engine_bit_for_bit(stitch: str, scheduler: str) -> None:
    source = ArraySource(with_holes(image(211, 163)))
    full, _ = run_job(job_of(blur(), source, stitch=stitch, tile=64, shard=96))
    data = map_pixels(blur(), source, stitch=stitch, **WISHES)
    with dask.config.set(scheduler=scheduler, num_workers=4):
        assert equal(data.compute(), full)


def test_threads_of_a_scheduler_do_not_change_the_threads_of_torch() -> None:
    before = torch.get_num_threads()
    seen = set()

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return x

    data = map_pixels(make_kernel(watch), ArraySource(image(200, 200)), **{**WISHES, "shard": 64})
    with dask.config.set(scheduler="threads", num_workers=4):
        data.compute()
    assert {count for _, count in seen} == {1}
    assert torch.get_num_threads() == before


def test_a_cube_of_rioxarray_in_chunks_equals_the_files(raster: Path) -> None:
    """Pain 4: chunks that are smaller than the halo, and ragged, are no trouble, for they are not exchanged."""
    full, _ = run_job(job_of(blur(), RasterSource([str(raster)]), tile=64, shard=96))
    for chunks in ({"x": 50, "y": 37}, {"x": 7, "y": 200}, None):
        cube = rioxarray.open_rasterio(raster, chunks=chunks)
        assert equal(map_pixels(blur(), cube, **WISHES).compute(), full)


def test_the_graph_is_as_large_as_the_shards_and_holds_no_overlap() -> None:
    """Pains 1 and 3: a task a shard; a halo is read, never exchanged."""
    import dask.array as da
    import xarray as xr

    side = 25_600
    cube = xr.DataArray(
        da.zeros((1, side, side), chunks=(1, 512, 512), dtype="uint8"),
        dims=("band", "y", "x"),
        coords={"band": [1], "y": 5e6 - 10.0 * np.arange(side), "x": 5e5 + 10.0 * np.arange(side)},
    ).rio.write_crs("EPSG:32633")
    data = map_pixels(blur(), cube, tile=512, shard=1024, device="cpu", threads=1)
    job_shards = data["out"].data.numblocks[0] * data["out"].data.numblocks[1]
    assert job_shards > 200
    graph = data["out"].__dask_graph__()
    assert len(graph) == 2 * job_shards + 1
    assert not [name for name in graph.layers if "overlap" in name or "rechunk" in name]
    corner = data.isel(y=slice(0, 3), x=slice(0, 3))
    (small,) = dask.optimize(corner["out"].data)
    assert len(dict(small.__dask_graph__())) <= 4


def test_the_dataset_says_what_it_holds() -> None:
    kernel = make_kernel(
        lambda x: (torch.sigmoid(x), (x > 0).float(), x.repeat(1, 2, 1, 1).repeat_interleave(1, 2)),
        outputs={
            "score": {"kind": "score", "dtype": "uint8", "units": "1", "description": "how sure"},
            "label": {"kind": "class", "classes": ("not so", "so")},
            "pair": {"kind": "value", "bands": ("a", "b")},
        },
    )
    data = map_pixels(kernel, ArraySource(image(70, 50)), **WISHES)
    assert (data["score"].dims, data["pair"].dims) == (("y", "x"), ("band", "y", "x"))
    assert data["score"].attrs["scale_factor"] == pytest.approx(1 / 254)
    assert data["score"].attrs["_FillValue"] == 255
    assert data["score"].attrs["long_name"] == "how sure"
    assert data["label"].attrs["flag_meanings"] == "not_so so"
    assert np.isnan(data["pair"].attrs["_FillValue"])
    assert data["reason"].attrs["flag_values"] == [int(r) for r in Reason]
    assert data.rio.crs.to_epsg() == 32633
    assert tuple(data.rio.transform())[:6] == (10, 0, 500_000, 0, -10, 5_000_000)
    assert (data.x[0], data.y[0]) == (500_005, 4_999_995)
    assert data.compute()["pair"].shape == (2, 70, 50)


def test_a_finer_output_has_finer_coordinates() -> None:
    kernel = make_kernel(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), scale=2)
    data = map_pixels(kernel, ArraySource(image(70, 50)), **WISHES)
    assert data["out"].shape == (140, 100)
    assert (data.x[0], data.y[0]) == (500_002.5, 4_999_997.5)
    assert tuple(data.rio.transform())[:6] == (5, 0, 500_000, 0, -5, 5_000_000)
    assert data["out"].compute().shape == (140, 100)


def test_a_statistics_pass_is_one_task_and_runs_when_computed() -> None:
    fits = []

    def fit(sample: Any) -> dict[str, float]:
        fits.append(1)
        return {"mean": float(sample["image"].mean())}

    kernel = make_kernel(
        lambda x, context: x - context.statistics["mean"],
        statistics={"sample": 500, "names": ("mean",)},
        fit=fit,
    )
    source = ArraySource(image(200, 200) + 5)
    data = map_pixels(kernel, source, **WISHES)
    assert source.reads == []
    assert fits == []
    values = data["out"].compute()
    assert fits == [1]
    assert abs(float(values.mean())) < 0.2


def test_what_does_not_fit_is_said_while_building() -> None:
    source = ArraySource(image(70, 50, dates=2))
    with pytest.raises(KernelError, match="needs 1 date, 2 given"):
        map_pixels(blur(), source, **WISHES)
    records = make_kernel(lambda x: x, outputs={"v": {"kind": "vector", "bands": 4}})
    with pytest.raises(KernelError, match="use map_tiles"):
        map_pixels(records, source)
    with pytest.raises(InputError, match="tile is 0"):
        map_pixels(blur(), source, tile=0)


def test_ten_thousand_shards_are_built_in_seconds() -> None:
    from time import perf_counter

    from affine import Affine
    from odc.geo.geobox import GeoBox

    from tilewright.pipeline.grid import Grid

    class Vast(ArraySource):
        """A hundred thousand pixels a side, none of them in memory."""

        def __init__(self) -> None:
            super().__init__(image(1, 1))
            self.grid = Grid(GeoBox((100_000, 100_000), Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32633"))

    started = perf_counter()
    data = lazy_dataset(job_of(blur(), Vast(), tile=544, shard=1024))
    assert data["out"].shape == (100_000, 100_000)
    assert data["out"].data.npartitions > 9_000
    assert perf_counter() - started < 10


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_outputs_and_reason_share_one_run_of_a_shard(scheduler: str) -> None:
    source = ArraySource(image(211, 163))
    outputs = {"a": {"kind": "value"}, "b": {"kind": "value"}}
    kernel = make_kernel(lambda x: (x, -x), outputs=outputs)
    data = map_pixels(kernel, source, **WISHES)
    shards = data["a"].data.npartitions
    assert shards > 1
    with dask.config.set(scheduler=scheduler, num_workers=3):
        found = data.compute()
    assert len(source.reads) == shards
    assert (found["a"] == -found["b"]).all()


def test_a_worker_hands_on_the_job_that_it_got(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own is at work in another thread: pickling that failed now and then, and Dask waited for ever."""
    holder = _Opaque(job_of(blur(), ArraySource(image(100, 80)), tile=64))
    there = pickle.loads(cloudpickle.dumps(holder))
    assert there.job.tiling == holder.job.tiling
    growing = there.job

    def refuse(_: object, protocol: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(type(growing), "__reduce_ex__", refuse)
    elsewhere = pickle.loads(pickle.dumps(there))
    assert elsewhere.job is not growing
    assert elsewhere.job.kernel.spec == growing.kernel.spec
