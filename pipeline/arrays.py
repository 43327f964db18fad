"""xarray objects as a source: a cube that the user made himself, an opened NetCDF, a Zarr store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, nearest_name

from .array_grid import array_geobox
from .grid import Grid, Window
from .raster_files import canonical_bands, check_nodata, grid_difference
from .source import Block, Layer

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = ["ArrayCube", "DataArraySource", "Stack", "cube_of", "stack_cubes"]

_READ_THREADS = 4
"""Threads in which dask computes the chunks of one window."""
_TIME_DIMS = ("time", "t")
_BAND_DIMS = ("band", "bands", "variable")


@dataclass(frozen=True, eq=False)
class ArrayCube:
    """A DataArray in known order: its dimensions named, its rows from north to south."""

    array: xr.DataArray
    """The pixels, dims among time, band, y, x."""
    dims: tuple[str | None, str | None, str, str]
    """Names of the dimensions time, band, y, x; None where there is none."""
    geobox: GeoBox
    """Its grid, rows from the top."""
    flipped: bool
    """True where the array's rows run from the bottom up."""
    bands: tuple[str, ...]
    """Names of its bands."""
    order: tuple[int, ...]
    """Indices along time, oldest first."""
    times: tuple[np.datetime64 | None, ...]
    """Times in that order."""
    nodata: float | None
    """Value of an invalid pixel besides NaN."""
    channels: tuple[int, ...]
    """Indices along the band dimension, in the order wanted."""

    @property
    def chunk(self) -> tuple[int, int] | None:
        """Rows and columns of a chunk as it is stored; None where the array does not say, or rows run upward."""
        chunks = self.array.encoding.get("chunks")
        if chunks is None or len(chunks) != self.array.ndim or self.flipped:
            return None
        sizes = dict(zip(self.array.dims, chunks, strict=True))
        return int(sizes[self.dims[2]]), int(sizes[self.dims[3]])

    def planes(self, window: Window) -> tuple[Any, Any]:
        """Return lazy ``([T, C, rows, columns], reason or None)`` of ``window``."""
        time, band, y, x = self.dims
        height = self.geobox.shape[0]
        rows = slice(window.row0, window.row1)
        if self.flipped:
            rows = slice(height - window.row1, height - window.row0)
        picks: dict[str, Any] = {y: rows, x: slice(window.col0, window.col1)}
        if time is not None:
            picks[time] = _indexer(self.order)
        cube = self.array.isel(picks)
        reason = cube.coords.get("reason") if _is_reason(self.array, self.dims) else None
        if band is not None:
            cube = cube.isel({band: _indexer(self.channels)})
        return cube.variable, None if reason is None else reason.variable

    def arrange(self, values: NDArray[Any], names: Sequence[Any]) -> NDArray[Any]:
        """Return ``values`` with dimensions ``names`` as ``[T, C, rows, columns]``, rows from the top."""
        present = [name for name in self.dims if name in names]
        values = values.transpose([list(names).index(name) for name in present])
        index = tuple(slice(None) if name in names and name is not None else None for name in self.dims)
        values = values[index]
        return values[:, :, ::-1] if self.flipped else values


class DataArraySource:
    """Any DataArray with a grid as a source, such as the result of stackstac, odc-stac or rioxarray.

    The grid comes from the coordinates and the CRS that rioxarray finds; stackstac's coordinates are corners
    unless it was called with ``xy_coords="center"``, which is told by its ``transform`` attribute. Dates are
    sorted oldest first. A pixel is invalid where any of its bands is nodata or not finite, or where a
    coordinate ``reason`` (`Reason` codes over the dimensions of the array but band) says so.

    Parameters
    ----------
    cube
        One array for the only input, or input name -> array. Dimensions: y and x, or latitude and longitude;
        at most time and band besides. A Dataset is taken as one array whose bands are its variables.
    nodata
        Value of an invalid pixel where the array does not state one, such as stackstac's ``fill_value``.
    name
        Input name of a single array.

    Raises
    ------
    InputError
        No CRS, uneven coordinates, other dimensions, a nodata value that the type cannot hold, or arrays on
        different grids.
    """

    def __init__(
        self,
        cube: xr.DataArray | xr.Dataset | Mapping[str, xr.DataArray],
        *,
        nodata: float | None = None,
        name: str = "image",
    ) -> None:
        import xarray as xr

        single = isinstance(cube, (xr.DataArray, xr.Dataset))
        arrays: Mapping[str, Any] = {name: cube} if single else cube  # type: ignore[assignment]
        if not arrays:
            raise InputError("no array is given", place="cube", remedy="give a DataArray")
        self._layers = {
            key: stack_cubes([[cube_of(_as_array(value, key), nodata, key)]], key)
            for key, value in arrays.items()
        }
        self.coarser: tuple[DataArraySource, ...] = ()
        """The same ground in stored coarser levels, finest first, where there are some."""
        self._check_grids()

    @classmethod
    def from_stacks(
        cls, layers: Mapping[str, Stack], coarser: Sequence[DataArraySource] = ()
    ) -> DataArraySource:
        """Return the source of stacked cubes by input name, with coarser levels of the same ground."""
        source = object.__new__(cls)
        source._layers = dict(layers)
        source.coarser = tuple(coarser)
        source._check_grids()
        return source

    def _check_grids(self) -> None:
        names = list(self._layers)
        for other in names[1:]:
            difference = grid_difference(self._layers[names[0]].geobox, self._layers[other].geobox)
            if difference:
                raise InputError(
                    f"{difference} than input {names[0]!r}",
                    place=f"input {other!r}",
                    remedy="bring all inputs to one grid first (odc.geo's xr_reproject, rio.reproject_match)",
                )

    @cached_property
    def grid(self) -> Grid:
        """The grid of the arrays; every pixel is wanted."""
        return Grid(next(iter(self._layers.values())).geobox)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Input name -> bands, dates, type and units."""
        return {name: stack.layer for name, stack in self._layers.items()}

    def select(self, bands: Sequence[str]) -> DataArraySource:
        """Return the source with only ``bands`` of each input, in that order."""
        chosen = {name: stack.select(bands, name) for name, stack in self._layers.items()}
        return self.from_stacks(chosen, [level.select(bands) for level in self.coarser])

    def renamed(self, name: str) -> DataArraySource:
        """Return the same pixels, of a single input, for the kernel's input ``name``."""
        (stack,) = self._layers.values()
        return self.from_stacks({name: stack}, [level.renamed(name) for level in self.coarser])

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a stored chunk, the largest of the arrays; None where they have none."""
        found = [cube.chunk for stack in self._layers.values() for row in stack.rows for cube in row]
        known = [shape for shape in found if shape is not None]
        if len(known) < len(found):
            return None
        return max(rows for rows, _ in known), max(cols for _, cols in known)

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``; dask chunks are computed in a few threads of their own."""
        if not self.grid.window.contains(window):
            raise InputError(f"{window} is not inside the grid {self.grid.shape}", place="window")
        data, reasons, count = {}, {}, 0
        for name, stack in self._layers.items():
            data[name], reasons[name] = stack.read(window)
            count += data[name].nbytes
        return Block(window, data, reasons, count)

    def describe(self) -> Mapping[str, Any]:
        """Return shape, type, bands and times of the arrays, and dask's token of what they are made from."""
        return {"kind": "arrays", "inputs": {name: stack.describe() for name, stack in self._layers.items()}}


@dataclass(frozen=True, eq=False)
class Stack:
    """The cubes of one input: rows of them one after another in time, those of a row as bands."""

    rows: tuple[tuple[ArrayCube, ...], ...]
    """Dates x cubes."""

    @property
    def geobox(self) -> GeoBox:
        """The common grid."""
        return self.rows[0][0].geobox

    @cached_property
    def layer(self) -> Layer:
        """Bands, dates, type and units."""
        cubes = [cube for row in self.rows for cube in row]
        dtype = np.result_type(*(_plain_dtype(cube.array.dtype) for cube in cubes))
        units = {cube.array.attrs.get("units") for cube in cubes}
        unit = units.pop() if len(units) == 1 else None
        names = tuple(name for cube in self.rows[0] for name in cube.bands)
        times = tuple(time for row in self.rows for time in row[0].times)
        return Layer(names, times, str(dtype), unit if isinstance(unit, str) else None)

    def select(self, bands: Sequence[str], place: str) -> Stack:
        """Return only ``bands``, in that order; raises `InputError` with the nearest name."""
        wanted = canonical_bands(list(bands))
        for name, own in zip(wanted, bands, strict=True):
            if name not in self.layer.bands:
                raise InputError(
                    f"there is no band {own!r}",
                    place=f"input {place!r}",
                    remedy=nearest_name(own, self.layer.bands),
                )
        rows = []
        for row in self.rows:
            owner = {name: (cube, i) for cube in row for i, name in enumerate(cube.bands)}
            picked = [owner[name] for name in wanted]
            rows.append(
                tuple(
                    replace(cube, bands=(name,), channels=(cube.channels[i],))
                    for name, (cube, i) in zip(wanted, picked, strict=True)
                )
            )
        merged = tuple(_merge(row) for row in rows)
        return Stack(merged)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return ``([T, C, rows, columns], reason [T, 1, rows, columns])`` of ``window``."""
        layer = self.layer
        data = np.empty((len(layer.times), len(layer.bands), *window.shape), layer.dtype)
        reason = np.zeros((len(layer.times), 1, *window.shape), np.uint8)
        lazy = [[cube.planes(window) for cube in row] for row in self.rows]
        parts = [part for row in lazy for pair in row for part in pair if part is not None]
        values = iter(_compute(parts))
        t = 0
        for row, pairs in zip(self.rows, lazy, strict=True):
            dates = slice(t, t + len(row[0].times))
            c = 0
            for cube, (pixels, why) in zip(row, pairs, strict=True):
                block = cube.arrange(next(values), pixels.dims)
                data[dates, c : c + len(cube.bands)] = block
                codes = _invalid(block, cube.nodata).any(axis=1, keepdims=True).astype(np.uint8)
                if why is not None:
                    # The code says why; a value that is nodata all the same is NODATA at least.
                    codes = np.maximum(codes, cube.arrange(next(values), why.dims).astype(np.uint8))
                np.maximum(reason[dates], codes, out=reason[dates])
                c += len(cube.bands)
            t = dates.stop
        return data, reason

    def describe(self) -> dict[str, Any]:
        """Return what identifies the pixels, as plain data."""
        from dask.base import tokenize

        cubes = [cube for row in self.rows for cube in row]
        layer = self.layer
        return {
            "shape": [len(layer.times), len(layer.bands), *(int(n) for n in self.geobox.shape)],
            "dtype": layer.dtype,
            "bands": list(layer.bands),
            "times": [None if time is None else str(time) for time in layer.times],
            "nodata": [None if cube.nodata is None else repr(cube.nodata) for cube in cubes],
            "sources": sorted({str(cube.array.encoding.get("source", "")) for cube in cubes} - {""}),
            "token": tokenize([cube.array.variable for cube in cubes]),
        }


def _indexer(indices: Sequence[int]) -> slice | list[int]:
    """Return consecutive ``indices`` as a slice, which lazy arrays follow with less work."""
    first, last = indices[0], indices[-1]
    return slice(first, last + 1) if list(indices) == list(range(first, last + 1)) else list(indices)


def _merge(row: tuple[ArrayCube, ...]) -> tuple[ArrayCube, ...]:
    """Join neighbours that read the same array, so that its chunks are computed once."""
    merged: list[ArrayCube] = []
    for cube in row:
        last = merged[-1] if merged else None
        if last is not None and last.array is cube.array:
            merged[-1] = replace(last, bands=last.bands + cube.bands, channels=last.channels + cube.channels)
        else:
            merged.append(cube)
    return tuple(merged)


def _compute(variables: Sequence[Any]) -> list[NDArray[Any]]:
    from dask.base import compute

    chunked = [v.chunks is not None for v in variables]
    if not any(chunked):
        return [np.asarray(v.values) for v in variables]
    lazy = [v.data if is_chunked else v.values for v, is_chunked in zip(variables, chunked, strict=True)]
    # A scheduler of our own: the task that reads may itself run on a worker of a cluster.
    done = compute(*lazy, scheduler="threads", num_workers=_READ_THREADS)
    return [np.asarray(a) for a in done]


def _invalid(block: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    bad = ~np.isfinite(block) if block.dtype.kind in "fc" else np.zeros(block.shape, bool)
    if nodata is not None and not math.isnan(nodata):
        bad |= block == nodata
    return bad


def _plain_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "biuf":
        raise InputError(
            f"an array of type {dtype} holds no pixels", place="cube", remedy="give integers or floats"
        )
    return np.dtype("uint8") if dtype.kind == "b" else dtype


def _as_array(cube: Any, place: str) -> xr.DataArray:
    import xarray as xr

    if isinstance(cube, xr.DataArray):
        return cube
    if not isinstance(cube, xr.Dataset):
        raise InputError(
            f"{type(cube).__name__} is no DataArray",
            place=f"input {place!r}",
            remedy="give an xarray.DataArray",
        )
    import rioxarray  # noqa: F401 - registers the accessor

    # Not the grid mapping, which NetCDF files keep as a variable beside the rasters.
    names = [n for n, v in cube.data_vars.items() if v.ndim >= 2 and v.dtype.kind in "biuf"]
    if not names:
        raise InputError("the Dataset holds no rasters", place=f"input {place!r}", remedy="give a DataArray")
    array: xr.DataArray = cube[names[0]] if len(names) == 1 else cube[names].to_dataarray("band")
    if len(names) > 1:
        marks = {_stated_nodata(cube[n]) for n in names}
        known = {"nodata": marks.pop()} if len(marks) == 1 and None not in marks else {}
        array = array.assign_attrs(cube.attrs | known)
    crs = cube.rio.crs or _mapped_crs(cube, str(names[0]))
    georeferenced: xr.DataArray = array if crs is None else array.rio.write_crs(crs)
    return georeferenced


def _mapped_crs(cube: xr.Dataset, name: str) -> str | None:
    """Return the CRS of a grid mapping that is a variable of its own, as openEO's NetCDF files have it."""
    mapping = cube[name].attrs.get("grid_mapping") or cube[name].encoding.get("grid_mapping")
    if mapping is None or mapping not in cube.variables:
        return None
    attrs = cube.variables[mapping].attrs
    wkt = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    return None if wkt is None else str(wkt)


def cube_of(
    array: xr.DataArray, nodata: float | None, place: str, names: Sequence[str] | None = None
) -> ArrayCube:
    """Return ``array`` with its dimensions, grid, dates, bands (``names`` or its own) and nodata found out."""
    where = f"input {place!r}"
    dims = _dims(array, where)
    geobox, flipped = array_geobox(array, (dims[2], dims[3]), where)
    dtype = _plain_dtype(array.dtype)
    mark = nodata if nodata is not None else _stated_nodata(array)
    check_nodata(mark, dtype, where)
    order, times = _times(array, dims[0])
    bands = tuple(names) if names is not None else _bands(array, dims[1])
    return ArrayCube(array, dims, geobox, flipped, bands, order, times, mark, tuple(range(len(bands))))


def _dims(array: xr.DataArray, place: str) -> tuple[str | None, str | None, str, str]:
    names = [str(d) for d in array.dims]
    spatial = next(
        (
            (y, x)
            for y, x in (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"))
            if y in names and x in names
        ),
        None,
    )
    if spatial is None:
        raise InputError(f"dimensions {names} hold no y and x", place=place, remedy="rename them to y and x")
    time = next((d for d in _TIME_DIMS if d in names), None)
    band = next((d for d in _BAND_DIMS if d in names), None)
    other = set(names) - {time, band, *spatial}
    if other:
        raise InputError(
            f"dimension {sorted(other)[0]!r} is none of time, band, y, x",
            place=place,
            remedy="select one entry of it, or rename it",
        )
    return time, band, *spatial


def _times(array: xr.DataArray, dim: str | None) -> tuple[tuple[int, ...], tuple[np.datetime64 | None, ...]]:
    if dim is None:
        value = array.coords["time"].values if "time" in array.coords else None
        stamp = value if value is not None and np.ndim(value) == 0 else None
        return (0,), (_stamp(stamp),)
    count = array.sizes[dim]
    if dim not in array.coords:
        return tuple(range(count)), (None,) * count
    stamps = [_stamp(value) for value in array.coords[dim].values]
    if any(stamp is None for stamp in stamps):
        return tuple(range(count)), tuple(stamps)
    order = sorted(range(count), key=lambda i: (stamps[i], i))
    return tuple(order), tuple(stamps[i] for i in order)


def _stamp(value: Any) -> np.datetime64 | None:
    if value is None or not np.issubdtype(np.asarray(value).dtype, np.datetime64):
        return None
    stamp = np.datetime64(np.asarray(value).item(), "ns") if np.ndim(value) == 0 else None
    return None if stamp is None or np.isnat(stamp) else stamp


def _bands(array: xr.DataArray, dim: str | None) -> tuple[str, ...]:
    if dim is None:
        name = array.attrs.get("long_name") or array.name
        return (canonical_bands([str(name)])[0] if name else "band_1",)
    count = array.sizes[dim]
    labels = array.coords[dim].values if dim in array.coords else np.arange(1, count + 1)
    long_names = array.attrs.get("long_name")
    if np.asarray(labels).dtype.kind in "US" or np.asarray(labels).dtype == object:
        return tuple(canonical_bands([str(label) for label in labels]))
    if isinstance(long_names, (tuple, list)) and len(long_names) == count:
        return tuple(canonical_bands([str(name) for name in long_names]))
    return tuple(f"band_{label}" for label in labels)


def _stated_nodata(array: xr.DataArray) -> float | None:
    """Return what rioxarray would: the attributes, by the names in use, else the encoding of raw integers."""
    for key in ("_FillValue", "missing_value", "nodata", "fill_value"):
        value = array.attrs.get(key)
        if value is not None and np.ndim(value) == 0:
            return float(value)
    return None


def _is_reason(array: xr.DataArray, dims: tuple[str | None, str | None, str, str]) -> bool:
    if "reason" not in array.coords:
        return False
    names = {str(d) for d in array.coords["reason"].dims}
    return {dims[2], dims[3]} <= names <= {d for d in (dims[0], dims[2], dims[3]) if d is not None}


def stack_cubes(rows: Sequence[Sequence[ArrayCube]], place: str) -> Stack:
    """Return cubes of one input as one: rows of them along time, each row's along band; checks the grids."""
    first = rows[0][0]
    for cube in [cube for row in rows for cube in row][1:]:
        difference = grid_difference(first.geobox, cube.geobox)
        if difference:
            raise InputError(
                f"{difference} than the first", place=place, remedy="all inputs must lie on one grid"
            )
    names = [tuple(name for cube in row for name in cube.bands) for row in rows]
    if len({len(n) for n in names}) > 1:
        raise InputError(
            f"the dates have {', '.join(str(len(n)) for n in names)} bands",
            place=place,
            remedy="name the common ones by --bands",
        )
    return Stack(tuple(tuple(row) for row in rows))
