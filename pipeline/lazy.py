"""`map_pixels`: a kernel over a cube as a lazy xarray Dataset whose chunks are shards.

A task reads its own core and halo and runs the engine on one shard. Nothing is exchanged in the graph: with
``dask.array.map_overlap`` the same work took 14,661 tasks and three times the memory (docs/guides/performance.md).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np

from tilewright.errors import KernelError

from .engine import Engine
from .job import prepare
from .reduce import quantisation
from .settings import Settings
from .source import Reason
from .statistics import gather_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

    from tilewright.kernels.contract import Kernel, OutputSpec

    from .grid import Grid
    from .job import Job
    from .source import Source

__all__ = ["as_source", "map_pixels"]


class _Opaque:
    """A job as one value of a graph: Dask passes it on whole instead of looking into it.

    It is pickled once. A worker hands on the bytes that it got: its own job is at work in other threads, which load
    the forward or fill a cache meanwhile, and a dictionary that grows cannot be pickled. Dask then waits for ever.
    """

    def __init__(self, job: Job) -> None:
        self._job: Job | None = job
        self._payload: bytes | None = None
        self._lock = threading.Lock()

    @property
    def job(self) -> Job:
        """The job, unpacked at first use."""
        with self._lock:
            if self._job is None:
                assert self._payload is not None
                self._job = cloudpickle.loads(self._payload)
            return self._job

    def __getstate__(self) -> bytes:
        with self._lock:
            if self._payload is None:
                self._payload = cloudpickle.dumps(self._job)
            return self._payload

    def __setstate__(self, payload: bytes) -> None:
        self._job, self._payload, self._lock = None, payload, threading.Lock()


def as_source(cube: xr.DataArray | Mapping[str, xr.DataArray] | Source) -> Source:
    """Return a `Source` for a cube: itself, or a DataArray (or several by input name) behind the protocol."""
    import xarray as xr

    from .arrays import DataArraySource

    if isinstance(cube, (xr.DataArray, Mapping)):
        return DataArraySource(cube)
    return cube


def map_pixels(
    kernel: Kernel,
    cube: xr.DataArray | Mapping[str, xr.DataArray] | Source,
    *,
    settings: Settings | None = None,
    **wishes: Any,
) -> xr.Dataset:
    """Map a kernel over a cube, lazily.

    Parameters
    ----------
    kernel
        A kernel with raster outputs.
    cube
        ``(time, band, y, x)`` with a CRS: from `open_cube`, stackstac, odc-stac or rioxarray (``time`` and
        ``band`` may be absent), by input name where the kernel has several inputs, or any `Source`.
    settings, **wishes
        `Settings`, or its fields: ``stitch``, ``tile``, ``shard``, ``batch``, ``threads``, ``device``, ...

    Returns
    -------
    xarray.Dataset
        One variable per output, ``(y, x)`` or ``(band, y, x)``, and ``reason`` (uint8, see `Reason`), on the
        cube's grid (finer by the kernel's scale), one chunk a shard, in the stored type with ``_FillValue``.
        Building it reads no pixel; computing a part runs the shards that the part touches. Its values are
        those of `tilewright.apply` to the bit. When blending, tiles that reach into a shard from its
        neighbours are computed again for it.

    Raises
    ------
    KernelError, GridError
        Where kernel, cube and settings do not fit.
    """
    if kernel.spec.mapping != "map_pixels":
        raise KernelError(
            "gives records, not rasters", place=f"kernel {kernel.spec.name}", remedy="use map_tiles"
        )
    if settings is None:
        settings = Settings(**wishes)
    job = prepare(kernel, as_source(cube), settings)
    if settings.cores is None:
        job = job.with_lanes(1)  # the scheduler computes shards side by side
    if settings.batch is None:
        # A task has the tiles of its own shard alone; a larger batch would be filler. The bits stay: they do
        # not depend on the size of a batch (docs/promises).
        most = (job.tiling.shard // job.tiling.core) ** 2
        job = replace(job, settings=replace(job.settings, batch=min(job.settings.batch or 1, most)))
    return lazy_dataset(job)


def lazy_dataset(job: Job) -> xr.Dataset:
    """Return the Dataset of a job; see `map_pixels`."""
    import xarray as xr

    spec, grid = job.kernel.spec, job.output_grid
    plane = _planes(job)
    variables: dict[str, Any] = {}
    for name, output in spec.outputs.items():
        dims = ("band", "y", "x") if output.band_count > 1 else ("y", "x")
        variables[name] = (dims, plane(name, output.band_count, output.stored_dtype), attributes(output))
    reason = {
        "flag_values": [int(r) for r in Reason],
        "flag_meanings": " ".join(r.name.lower() for r in Reason),
    }
    variables["reason"] = (("y", "x"), plane("reason", 1, "uint8"), reason)
    return on_grid(xr.Dataset(variables), grid)


def _planes(job: Job) -> Callable[[str, int, str], Any]:
    """Return a function from (output, bands, dtype) to its dask array: ``[rows, columns]`` where there is one band.

    The graph is written out: one task a shard, one a shard and output that picks it, and the job once. Put
    together by ``da.block`` it was three times as large, and a part of it kept the tasks of its neighbours.
    """
    import dask.array as da
    from dask.highlevelgraph import HighLevelGraph

    spec, scale, shape = job.kernel.spec, job.kernel.spec.scale, job.grid.shape
    token = uuid.uuid4().hex[:12]
    holder, statistics, shards = (f"tilewright-{kind}-{token}" for kind in ("job", "statistics", spec.name))
    found = list(job.tiling.shards(shape))
    layers: dict[str, Any] = {holder: {holder: _Opaque(job)}}
    depends: dict[str, set[str]] = {holder: set(), shards: {holder}}
    if spec.statistics is not None:
        layers[statistics] = {statistics: (_statistics, holder)}
        depends |= {statistics: {holder}, shards: {holder, statistics}}
    numbers = statistics if spec.statistics is not None else None
    layers[shards] = {(shards, *s.index): (_shard, holder, numbers, list(s.index)) for s in found}
    rows = tuple(s.window.height * scale for s in found if s.index[1] == 0)
    cols = tuple(s.window.width * scale for s in found if s.index[0] == 0)

    def plane(name: str, bands: int, dtype: str) -> Any:
        own = f"{name}-{token}"
        pick, first = (_pick, (own, 0)) if bands > 1 else (_pick_plane, (own,))
        picks: dict[Any, Any] = {(*first, *s.index): (pick, (shards, *s.index), name) for s in found}
        graph = HighLevelGraph({**layers, own: picks}, {**depends, own: {shards}})
        chunks = ((bands,), rows, cols) if bands > 1 else (rows, cols)
        return da.Array(graph, own, chunks, dtype=np.dtype(dtype))

    return plane


def on_grid(data: xr.Dataset, grid: Grid) -> xr.Dataset:
    """Give a Dataset the coordinates of pixel centres, and the CRS and transform as rioxarray writes them."""
    import rioxarray  # noqa: F401 - registers .rio
    from affine import Affine

    a, b, c, d, e, f = grid.transform
    if b == 0 == d:
        x = c + a * (np.arange(grid.shape[1]) + 0.5)
        y = f + e * (np.arange(grid.shape[0]) + 0.5)
        data = data.assign_coords(x=("x", x), y=("y", y))
    if grid.geobox.crs is not None:
        data = data.rio.write_crs(grid.crs)
    written: xr.Dataset = data.rio.write_transform(Affine(*grid.transform))
    return written


def attributes(output: OutputSpec) -> dict[str, Any]:
    """Return the CF attributes of an output's variable."""
    attrs: dict[str, Any] = {"_FillValue": np.array(output.stored_nodata).astype(output.stored_dtype)[()]}
    if output.classes:
        attrs["flag_values"] = list(range(len(output.classes)))
        attrs["flag_meanings"] = " ".join(name.replace(" ", "_") for name in output.classes)
    scale, offset = quantisation(output)
    if (scale, offset) != (1.0, 0.0):
        attrs |= {"scale_factor": scale, "add_offset": offset}
    if output.units:
        attrs["units"] = output.units
    if output.description:
        attrs["long_name"] = output.description
    return attrs


def _statistics(holder: _Opaque) -> dict[str, Any]:
    return gather_statistics(holder.job)


def _shard(holder: _Opaque, statistics: dict[str, Any] | None, index: list[int]) -> dict[str, NDArray[Any]]:
    """Compute one shard; runs in a Dask task."""
    job = holder.job if statistics is None else holder.job.with_statistics(statistics)
    shard = job.tiling.shard_at(index[0], index[1], job.grid.shape)
    (result,) = Engine(job, [shard]).run([shard])
    return {**result.arrays, "reason": result.reason[None]}


def _pick(result: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    return result[name]


def _pick_plane(result: dict[str, NDArray[Any]], name: str) -> NDArray[Any]:
    plane: NDArray[Any] = result[name][0]
    return plane
