"""`map_pixels`: a kernel over a cube as a lazy xarray Dataset whose chunks are shards.

A task reads its own core and halo and runs the engine on one shard. Nothing is exchanged in the graph: with
``dask.array.map_overlap`` the same work took 14,661 tasks and three times the memory (docs/performance.md).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from .engine import Engine
from .job import prepare
from .reduce import quantisation
from .settings import Settings
from .source import Reason
from .statistics import gather_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from tilewright.kernels.contract import Kernel, OutputSpec

    from .grid import Grid
    from .job import Job
    from .source import Source

__all__ = ["as_source", "map_pixels"]


class _Opaque:
    """A job as one value of a graph: Dask passes it on whole instead of looking into it."""

    def __init__(self, job: Job) -> None:
        self.job = job


def as_source(cube: xr.DataArray | Mapping[str, xr.DataArray] | Source) -> Source:
    """Return a `Source` for a cube: itself, or a DataArray (or several by input name) behind the protocol."""
    if hasattr(cube, "read") and hasattr(cube, "describe"):
        return cube
    from .arrays import DataArraySource

    return DataArraySource(cube)


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
    return lazy_dataset(job)


def lazy_dataset(job: Job) -> xr.Dataset:
    """Return the Dataset of a job; see `map_pixels`."""
    import dask
    import dask.array as da
    import xarray as xr

    spec, scale, grid = job.kernel.spec, job.kernel.spec.scale, job.output_grid
    token = uuid.uuid4().hex[:12]
    holder = dask.delayed(_Opaque(job), name=f"tilewright-job-{token}", traverse=False)
    statistics = None
    if spec.statistics is not None:
        statistics = dask.delayed(_statistics, pure=False)(
            holder, dask_key_name=f"tilewright-statistics-{token}"
        )
    lattice: dict[tuple[int, int], Any] = {}
    for shard in job.tiling.shards(job.grid.shape):
        key = f"{spec.name}-{token}-{shard.name}"
        lattice[shard.index] = dask.delayed(_shard, pure=False)(
            holder, statistics, shard.index, dask_key_name=key
        )
    rows, cols = (1 + max(index[axis] for index in lattice) for axis in (0, 1))

    def plane(name: str, bands: int, dtype: str) -> Any:
        def block(i: int, j: int) -> Any:
            window = job.tiling.shard_at(i, j, job.grid.shape).window.times(scale)
            return da.from_delayed(lattice[i, j][name], (bands, *window.shape), dtype=dtype)

        return da.block([[block(i, j) for j in range(cols)] for i in range(rows)])

    variables: dict[str, Any] = {}
    for name, output in spec.outputs.items():
        data = plane(name, output.band_count, output.stored_dtype)
        dims = ("band", "y", "x") if output.band_count > 1 else ("y", "x")
        variables[name] = (dims, data if output.band_count > 1 else data[0], attributes(output))
    reason = {
        "flag_values": [int(r) for r in Reason],
        "flag_meanings": " ".join(r.name.lower() for r in Reason),
    }
    variables["reason"] = (("y", "x"), plane("reason", 1, "uint8")[0], reason)
    return on_grid(xr.Dataset(variables), grid)


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


def _shard(
    holder: _Opaque, statistics: dict[str, Any] | None, index: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Compute one shard; runs in a Dask task."""
    job = holder.job if statistics is None else holder.job.with_statistics(statistics)
    shard = job.tiling.shard_at(*index, job.grid.shape)
    (result,) = Engine(job, [shard]).run([shard])
    return {**result.arrays, "reason": result.reason[None]}
