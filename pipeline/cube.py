"""The cube: STAC Items on a grid as a lazy DataArray (time, band, y, x), made of the same reads as a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

from .cube_source import CubeSource, OnError
from .failures import Failure
from .grid import Grid, Window
from .source import Reason

if TYPE_CHECKING:
    import pystac
    import xarray as xr
    from numpy.typing import NDArray

    from tilewright.catalogs.signing import Signer

    from .composite import Composite, Plane
    from .groups import GroupBy

__all__ = ["CubeSource", "Failure", "open_cube", "source_cube"]

_CHUNK = 2048


def open_cube(
    items: Sequence[pystac.Item] | Sequence[Sequence[pystac.Item]],
    grid: Grid,
    *,
    bands: Sequence[str] | None = None,
    reader: str = "odc",
    groupby: GroupBy | None = "solar_day",
    mask: str | Collection[str | int] | None = "default",
    resampling: str | Mapping[str, str] = "nearest",
    chunks: int = _CHUNK,
    composite: Composite | str | None = None,
    offsets: Mapping[str, Sequence[float]] | None = None,
    nodata: Mapping[str, float] | None = None,
    on_error: OnError = "raise",
    dtype: str = "float32",
    signer: Signer | None = None,
) -> xr.DataArray:
    """Return the Items on the grid as a lazy cube with dims ``(time, band, y, x)``.

    Nothing is opened before the cube is computed. A dask chunk is one date over ``chunks`` squared pixels and
    all bands, read whole by one task; the pixels do not depend on ``chunks``, to the bit. Values are in
    physical units, scale and offset applied, NaN where invalid; the coordinate ``reason (time, y, x)`` tells
    why (`Reason`). CRS, transform and nodata are where rioxarray finds them. The other parameters and the
    errors are those of `CubeSource`.
    """
    source = CubeSource(
        items,
        grid,
        bands=bands,
        reader=reader,
        groupby=groupby,
        mask=mask,
        resampling=resampling,
        composite=composite,
        offsets=offsets,
        nodata=nodata,
        on_error=on_error,
        dtype=dtype,
        signer=signer,
    )
    return source_cube(source, chunks)


def source_cube(source: CubeSource, chunks: int = _CHUNK) -> xr.DataArray:
    """Return ``source`` as a lazy DataArray; see `open_cube`."""
    import xarray as xr

    if chunks < 1:
        raise InputError(f"chunks is {chunks}", place="chunks", remedy="give pixels a side, at least 1")
    grid = source.grid
    (layer,) = source.layers.values()
    data, reason = _lazy(source, chunks)
    units = source.band_units
    codes = ", ".join(f"{code.value} {code.name.lower()}" for code in Reason)
    attrs = {
        "long_name": "harmonised pixels" if len(layer.bands) > 1 else layer.bands[0],
        "_FillValue": np.dtype(layer.dtype).type(np.nan),
        "calibration": "scale and offset applied",
    }
    if layer.units is not None:
        attrs["units"] = layer.units
    coords: dict[str, Any] = {
        "time": ("time", np.array([np.datetime64(t, "ns") for t in layer.times], "datetime64[ns]")),
        "band": ("band", np.array(layer.bands, dtype=np.str_)),
        "reason": (
            ("time", "y", "x"),
            reason,
            {
                "long_name": f"why a pixel has no value: {codes}",
                "flag_values": np.array([code.value for code in Reason], np.uint8),
                "flag_meanings": " ".join(code.name.lower() for code in Reason),
            },
        ),
        "band_units": ("band", np.array([units[band] for band in layer.bands], dtype=np.str_)),
    }
    cube = xr.DataArray(data, dims=("time", "band", "y", "x"), coords=coords, attrs=attrs, name="cube")
    return _georeferenced(cube, grid)


def _georeferenced(cube: xr.DataArray, grid: Grid) -> xr.DataArray:
    import rioxarray  # noqa: F401 - registers the accessor
    from affine import Affine

    a, b, c, d, e, f = grid.transform
    if not (b or d):
        rows, cols = grid.shape
        cube = cube.assign_coords(y=f + e * (np.arange(rows) + 0.5), x=c + a * (np.arange(cols) + 0.5))
    cube = cube.rio.write_crs(grid.crs)
    cube = cube.rio.write_transform(Affine(a, b, c, d, e, f))
    result: xr.DataArray = cube.rio.write_coordinate_system() if not (b or d) else cube
    return result


def _lazy(source: CubeSource, chunks: int) -> tuple[Any, Any]:
    """Return dask arrays ``[T, C, rows, columns]`` and ``[T, rows, columns]`` over the same reads.

    Three tasks a block: the read, and one that takes each half of it, so that values and reasons computed
    together are read once.
    """
    import dask.array
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    (layer,) = source.layers.values()
    rows, cols = (_cuts(n, chunks) for n in source.grid.shape)
    token = tokenize(source.describe(), str(source.grid.geobox), str(source.grid.region), chunks)
    root, read, values, codes = (f"{kind}-{token}" for kind in ("source", "read", "cube", "reason"))
    reads: dict[Any, Any] = {}
    data: dict[Any, Any] = {}
    reasons: dict[Any, Any] = {}
    for t in range(len(layer.times)):
        for i, (row0, row1) in enumerate(rows):
            for j, (col0, col1) in enumerate(cols):
                reads[(read, t, i, j)] = (_read_block, root, t, row0, row1, col0, col1)
                data[(values, t, 0, i, j)] = (_values, (read, t, i, j))
                reasons[(codes, t, i, j)] = (_codes, (read, t, i, j))
    layers = {root: {root: source}, read: reads, values: data, codes: reasons}
    needs: dict[str, set[str]] = {root: set(), read: {root}, values: {read}, codes: {read}}
    sizes = tuple(tuple(stop - start for start, stop in axis) for axis in (rows, cols))
    times = (1,) * len(layer.times)

    def array(name: str, axes: tuple[tuple[int, ...], ...], dtype: str) -> Any:
        kept = {root, read, name}
        graph = HighLevelGraph({k: layers[k] for k in kept}, {k: needs[k] for k in kept})
        return dask.array.Array(graph, name, axes, dtype=dtype)

    return (
        array(values, (times, (len(layer.bands),), *sizes), layer.dtype),
        array(codes, (times, *sizes), "uint8"),
    )


def _cuts(length: int, chunk: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _read_block(source: CubeSource, t: int, row0: int, row1: int, col0: int, col1: int) -> Plane:
    return source.read_period(t, Window(row0, row1, col0, col1))


def _values(plane: Plane) -> NDArray[Any]:
    return plane[0][None]


def _codes(plane: Plane) -> NDArray[np.uint8]:
    return plane[1][None]
