"""Where a run's rasters are written: one Zarr v3 hierarchy with sharded arrays and a pyramid.

Layout: group ``0`` holds the grid's own pixels, ``1``, ``2``, ... hold half of them a side each. Every group
has one variable per output, ``reason``, ``spatial_ref`` and the coordinates, so that
``xarray.open_zarr(url, group="0", consolidated=False)`` has CRS and transform at every scale. The metadata
conventions are named in `zarrmeta`.

The shard is the unit of writing and has one owner. Eight threads that wrote 512 px blocks into 2,048 px
shards lost 71.9 % of the pixels without a word; whole shards lose none and are six times faster
(zarr-python #3560, xarray #8371). So `ResultStore.write` takes a whole shard and nothing else.

A shard that holds nodata alone is not stored: Zarr reads the fill value in its place. The fill of ``reason``
is `Reason.OUTSIDE`, so ground outside the region costs no byte and is still said rightly.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tilewright.errors import StoreError, nearest_name

from . import zarrmeta
from .ahead import map_ahead
from .grid import COG_BLOCK, Grid, Shard, Window
from .objects import fsync_path, is_remote, local_path, zarr_store
from .overviews import average, level_count, level_shape, mode
from .source import Reason

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from tilewright.kernels.contract import OutputSpec

__all__ = ["REASON", "ResultStore", "inner_chunk"]

REASON = "reason"
"""Name of the layer that says why a pixel has no result."""

INNER_CHUNK = 512
"""Wished side of the chunks inside a shard, the unit of reading: about what a viewer asks for at a time."""

COARSE = 4096
"""Pixels a side of the largest level that `ResultStore.make_coarse` lays out: more than any picture needs."""

RESERVED = (REASON, "spatial_ref", "x", "y", "band")
"""Names of variables that an output cannot have."""


def inner_chunk(shard: int) -> int:
    """Return the divisor of ``shard`` nearest to 512 (by ratio): the side of the chunks that readers fetch."""
    divisors = [d for d in range(1, shard + 1) if shard % d == 0]
    return min(divisors, key=lambda d: (abs(math.log(d / INNER_CHUNK)), d))


def _compressor(dtype: np.dtype[Any]) -> Any:
    # Measured on a 2,048 px shard of smooth scores with noise, two cores: zstd 1 with shuffle writes float32
    # in 64 ms at ratio 0.683; level 5 takes 228 ms for 0.673; without shuffle 0.761; lz4 43 ms, 0.719. Labels:
    # bitshuffle 17 ms at 0.077, byte shuffle 22 ms at 0.085, lz4 13 ms at 0.158.
    from zarr.codecs import BloscCodec

    return BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle" if dtype.itemsize == 1 else "shuffle")


@dataclass(frozen=True)
class ResultStore:
    """The rasters of one run, on disk or in an object store.

    Made by `create` or `open`. Safe to use from several threads and, pickled, from several processes, as long
    as every shard is written by one of them.
    """

    url: str
    """Path or object-store URL of the finished hierarchy."""
    place: str
    """Where it is now: ``url``, or ``url`` + ``.partial`` for a local one that is not published yet."""
    grid: Grid
    """The pixels of level 0."""
    outputs: Mapping[str, OutputSpec]
    """Output name -> its description."""
    shard: int
    """Pixels a side of a shard."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Options of `obstore.store.from_url`."""

    @classmethod
    def create(
        cls,
        url: str | Path,
        grid: Grid,
        outputs: Mapping[str, OutputSpec],
        shard: int,
        attrs: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Lay out an empty result; what an earlier, unpublished one left at the same place is removed.

        Parameters
        ----------
        url
            Where the finished result shall be: a path, or ``s3://bucket/prefix``. A local one is built under
            ``url`` + ``.partial`` and renamed by `publish`. In an object store nothing can be renamed: there
            the root attribute ``tilewright:complete`` is false until `publish`.
        grid
            The grid of the outputs: already zoomed by the kernel's scale.
        outputs
            Name -> description of each raster.
        shard
            Pixels a side of a shard on ``grid``; a multiple of 16.
        attrs
            More root attributes; plain JSON.
        options
            Options of `obstore.store.from_url`.

        Raises
        ------
        StoreError
            If a name is taken or unfit, the shard is not a multiple of 16, or something is published there.
        """
        import zarr

        text = str(url)
        _check_outputs(outputs, shard)
        remote = is_remote(text)
        place = text if remote else f"{local_path(text)}.partial"
        if not remote and local_path(text).exists():
            remedy = "choose another output folder, or remove this one"
            raise StoreError("a finished result is already there", place=text, remedy=remedy)
        store = cls(text, place, grid, dict(outputs), shard, dict(options or {}))
        if not remote:
            shutil.rmtree(place, ignore_errors=True)
        extra = dict(attrs or {})
        with _said("creating the result", place):
            zarr.create_group(
                store._backend(),
                overwrite=True,
                attributes=zarrmeta.root_attributes(
                    grid, dict(outputs), 1, shard, complete=False, extra=extra
                ),
            )
            store._make_level(0)
        return store

    @classmethod
    def open(cls, url: str | Path, *, options: Mapping[str, Any] | None = None) -> Self:
        """Open a result to read it or, where it is not published yet, to go on with it.

        Raises `StoreError` where neither ``url`` nor ``url`` + ``.partial`` holds one.
        """
        import zarr

        text = str(url)
        place = text
        if not is_remote(text) and not local_path(text).exists():
            place = f"{local_path(text)}.partial"
        try:
            group = zarr.open_group(zarr_store(place, options=options), mode="r", zarr_format=3)
            attributes: dict[str, Any] = dict(group.attrs)
            grid = zarrmeta.grid_from_attributes(attributes)
            outputs = zarrmeta.outputs_from_attributes(attributes)
            shard = int(attributes["tilewright:shard"])
        except (FileNotFoundError, KeyError) as error:
            raise StoreError("no result of tilewright is there", place=text) from error
        return cls(text, place, grid, outputs, shard, dict(options or {}))

    def __getstate__(self) -> dict[str, Any]:
        # Open handles stay behind: each process opens its own.
        names = ("url", "place", "grid", "outputs", "shard", "options")
        return {name: getattr(self, name) for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, then ``reason``."""
        return (*self.outputs, REASON)

    @property
    def levels(self) -> int:
        """Levels that the pyramid has, or will have after `finish`; level 0 included."""
        return level_count(self.grid.shape)

    @property
    def attrs(self) -> dict[str, Any]:
        """The root attributes as they are stored now."""
        import zarr

        return dict(zarr.open_group(self._backend(read_only=True), mode="r").attrs)

    @property
    def complete(self) -> bool:
        """True once `publish` is through."""
        return bool(self.attrs["tilewright:complete"])

    def shape(self, level: int = 0) -> tuple[int, int]:
        """Return ``(rows, columns)`` of a level."""
        return level_shape(self.grid.shape, level)

    def shards(self, level: int = 0) -> Iterator[Shard]:
        """Yield the shards of a level in row-major order."""
        (rows, cols), side = self.shape(level), self.shard
        for i in range(-(-rows // side)):
            for j in range(-(-cols // side)):
                window = Window(i * side, min((i + 1) * side, rows), j * side, min((j + 1) * side, cols))
                yield Shard((i, j), window)

    def write(self, shard: Shard, arrays: Mapping[str, NDArray[Any]], reason: NDArray[np.uint8]) -> None:
        """Write one whole shard of every output and of ``reason``.

        Parameters
        ----------
        shard
            A shard of this store's grid.
        arrays
            Output name -> stored values ``[C, rows, columns]``, or ``[rows, columns]`` for one band, in the
            stored type (see `reduce.reduce_output`).
        reason
            ``[rows, columns]`` uint8 of `Reason` codes.

        Raises
        ------
        StoreError
            If the window is not exactly a shard, a name, shape or type differs from the layout, or the disk
            or the object store refuses the bytes.
        """
        self._check_shard(shard)
        missing = sorted(set(self.outputs) ^ set(arrays))
        if missing:
            raise StoreError(
                f"the shard needs exactly {', '.join(self.outputs)}; differs in {', '.join(missing)}",
                place=f"shard {shard.name}",
            )
        for name, values in (*arrays.items(), (REASON, reason)):
            self._put(0, name, shard.window, values, f"shard {shard.name}")
            self._make_durable(name, shard)

    def _make_durable(self, name: str, shard: Shard) -> None:
        """Bring a shard's bytes to the disk: the ledger's line, which comes next, says that they are there."""
        if is_remote(self.place):
            return
        array = self._array(0, name)
        prefix = (0,) * (array.ndim - 2)
        key = array.metadata.chunk_key_encoding.encode_chunk_key((*prefix, *shard.index))  # type: ignore[union-attr]
        path = local_path(self.place) / "0" / name / key
        if path.exists():  # a shard of nodata alone is not stored
            with _said(f"writing {name}", f"shard {shard.name}"):
                fsync_path(path)

    def read(self, name: str, window: Window, level: int = 0) -> NDArray[Any]:
        """Return stored values: ``[C, rows, columns]``, or ``[rows, columns]`` for one band and ``reason``."""
        rows, cols = self.shape(level)
        if not Window(0, rows, 0, cols).contains(window):
            raise StoreError(f"{window} is not inside level {level} of {rows} x {cols} px", place=self.url)
        with _said(f"reading {name}", self.place):
            return np.asarray(self._array(level, name)[..., slice(*_rows(window)), slice(*_cols(window))])

    def pixel_bytes(self, name: str) -> int:
        """Return the bytes that a pixel of a layer takes, all bands together."""
        return self._bands(name) * self._dtype(name).itemsize

    def halved(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return a layer's pixels at the next level: mode for classes and ``reason``, average for the rest."""
        classes = name == REASON or self.outputs[name].kind == "class"
        return (mode if classes else average)(values, self._nodata(name))

    def finish(self, *, threads: int = 2) -> None:
        """Build levels 1, 2, ... from the shards (see `halved`).

        Each level comes from the one before it, a shard a thread in strips, so memory does not grow with the
        raster: for each thread about one shard of a layer, and what a strip of ``1024 * 2 * shard`` pixels and
        its reduction take. Repeating it gives the same bits.
        """
        import zarr

        extra = {key: value for key, value in self.attrs.items() if not key.startswith("tilewright:")}

        def build(place: tuple[int, str, Shard]) -> None:
            level, name, shard = place
            self._put(level, name, shard.window, self._reduced(name, level, shard.window), shard.name)

        with ThreadPoolExecutor(threads, thread_name_prefix="tilewright-pyramid") as pool:
            for level in range(1, self.levels):
                self._make_level(level)
                for _ in map_ahead(pool, build, self._layers_of(level), 2 * threads):
                    pass
        with _said("writing the layout", self.place):
            root = zarr.open_group(self._backend(), mode="r+")
            keep = {key: value for key, value in self.attrs.items() if key.startswith("tilewright:")}
            layout = zarrmeta.root_attributes(
                self.grid, dict(self.outputs), self.levels, self.shard, complete=False, extra=extra
            )
            root.attrs.update({**keep, **layout})

    def _layers_of(self, level: int) -> Iterator[tuple[int, str, Shard]]:
        for shard in self.shards(level):
            for name in self.names:
                yield level, name, shard

    def make_coarse(self, most: int = COARSE) -> list[int]:
        """Lay out only the levels with at most ``most`` px a side, to be filled by `write_coarse`; return them.

        For a store that is thrown away after its COGs are written: a picture of it needs no more.
        """
        levels = [level for level in range(1, self.levels) if max(self.shape(level)) <= most]
        for level in levels:
            self._make_level(level, shard=INNER_CHUNK)
        return levels

    def write_coarse(self, level: int, window: Window, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write whole 512 px squares of a level of `make_coarse`."""
        for name, values in arrays.items():
            self._put(level, name, window, values, f"level {level}")

    def publish(self, attrs: Mapping[str, Any] | None = None) -> Self:
        """Make the result visible under its own name and mark it complete; returns the store at its place.

        ``attrs`` are more root attributes, such as the digest. Repeating it changes nothing.
        """
        import zarr

        with _said("publishing", self.place):
            root = zarr.open_group(self._backend(), mode="r+")
            root.attrs.update({**(attrs or {}), "tilewright:complete": True})
            with warnings.catch_warnings():
                # zarr warns that Zarr v3 does not specify consolidated metadata; `multiscales` asks for it,
                # and readers that do not know it pass over it.
                warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
                for level in range(self.levels):
                    zarr.consolidate_metadata(self._backend(), path=str(level))
                zarr.consolidate_metadata(self._backend())
            if self.place != self.url and not is_remote(self.url):
                target = local_path(self.url)
                Path(self.place).rename(target)
                fsync_path(target.parent)
        return type(self)(self.url, self.url, self.grid, self.outputs, self.shard, self.options)

    def withdraw(self) -> Self:
        """Undo `publish`: mark the result as unfinished and hide a local one again, so that shards may be redone."""
        import zarr

        with _said("withdrawing", self.place):
            root = zarr.open_group(self._backend(), mode="r+")
            root.attrs.update({"tilewright:complete": False})
            place = self.place
            if not is_remote(self.url):
                place = f"{local_path(self.url)}.partial"
                if self.place != place:
                    shutil.rmtree(place, ignore_errors=True)
                    local_path(self.place).rename(place)
                    fsync_path(local_path(self.url).parent)
        return type(self)(self.url, place, self.grid, self.outputs, self.shard, self.options)

    # -- inside ----------------------------------------------------------------------------------------

    def _backend(self, *, read_only: bool = False) -> Store:
        return zarr_store(self.place, options=self.options, read_only=read_only)

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def _array(self, level: int, name: str) -> zarr.Array[Any]:
        import zarr

        path = f"{level}/{name}"
        if path not in self._arrays:
            if name not in self.names:
                raise StoreError(
                    f"there is no layer {name!r}; {nearest_name(name, self.names)}", place=self.url
                )
            try:
                self._arrays[path] = zarr.open_array(self._backend(), path=path, mode="r+", zarr_format=3)
            except FileNotFoundError as error:
                raise StoreError(f"level {level} of {name} is not there", place=self.url) from error
        return self._arrays[path]

    def _bands(self, name: str) -> int:
        return 1 if name == REASON else self.outputs[name].band_count

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(np.uint8 if name == REASON else self.outputs[name].stored_dtype)

    def _nodata(self, name: str) -> float | None:
        return None if name == REASON else float(zarrmeta.fill_value(self.outputs[name]))

    def _check_shard(self, shard: Shard) -> None:
        i, j = shard.index
        (rows, cols), side = self.grid.shape, self.shard
        whole = (i * side, min((i + 1) * side, rows), j * side, min((j + 1) * side, cols))
        window = shard.window
        if (window.row0, window.row1, window.col0, window.col1) != whole:
            raise StoreError(
                f"{window} is not a whole shard: {Window(*whole)} of side {side} px",
                place=f"shard {shard.name}",
            )

    def _put(self, level: int, name: str, window: Window, values: NDArray[Any], place: str) -> None:
        if values.ndim == 3 and values.shape[0] == 1 and self._bands(name) == 1:
            values = values[0]
        shape = window.shape if self._bands(name) == 1 else (self._bands(name), *window.shape)
        if values.shape != shape or values.dtype != self._dtype(name):
            raise StoreError(
                f"{name} is {values.dtype} {values.shape}, the layout wants {self._dtype(name)} {shape}",
                place=place,
            )
        with _said(f"writing {name}", place):
            self._array(level, name)[..., slice(*_rows(window)), slice(*_cols(window))] = values

    def _reduced(self, name: str, level: int, window: Window) -> NDArray[Any]:
        """Return the pixels of ``window`` of a level, from the level before it, strip by strip."""
        rows, cols = self.shape(level - 1)
        bands = () if self._bands(name) == 1 else (self._bands(name),)
        result = np.empty((*bands, *window.shape), dtype=self._dtype(name))
        for row in range(window.row0, window.row1, INNER_CHUNK):
            end = min(row + INNER_CHUNK, window.row1)
            source = Window(2 * row, min(2 * end, rows), 2 * window.col0, min(2 * window.col1, cols))
            strip = self.halved(name, self.read(name, source, level - 1))
            result[..., row - window.row0 : end - window.row0, :] = strip
        return result

    def _make_level(self, level: int, shard: int | None = None) -> None:
        """Create a level's group with its coordinates and its empty arrays."""
        import zarr

        group = zarr.create_group(
            self._backend(),
            path=str(level),
            overwrite=True,
            attributes=zarrmeta.group_attributes(self.grid, level),
        )
        for path in [path for path in self._arrays if path.startswith(f"{level}/")]:
            del self._arrays[path]
        _put_small(group, "spatial_ref", np.int64(0), (), zarrmeta.spatial_ref_attributes(self.grid, level))
        for axis, centres in (zarrmeta.axis_coordinates(self.grid, level) or {}).items():
            _put_small(group, axis, centres, (axis,), zarrmeta.axis_attributes(self.grid, axis))
        for name, dim, labels in self._band_axes():
            if dim not in group:
                _put_small(group, dim, labels, (dim,), {"long_name": f"bands of {name}"})
        for name, spec in self.outputs.items():
            fill, attributes = zarrmeta.fill_value(spec), zarrmeta.variable_attributes(spec)
            self._make_array(group, level, name, fill, attributes, shard or self.shard)
        fill, attributes = np.uint8(Reason.OUTSIDE), zarrmeta.reason_attributes()
        self._make_array(group, level, REASON, fill, attributes, shard or self.shard)

    def _make_array(
        self, group: zarr.Group, level: int, name: str, fill: Any, attributes: Any, shard: int
    ) -> None:
        bands, chunk = self._bands(name), inner_chunk(shard)
        shape, shards, chunks = self.shape(level), (shard, shard), (chunk, chunk)
        dims: tuple[str, ...] = ("y", "x")
        if bands > 1:
            axis = next(dim for owner, dim, _ in self._band_axes() if owner == name)
            shape, shards, chunks = (bands, *shape), (bands, *shards), (1, *chunks)  # type: ignore[assignment]
            dims = (axis, *dims)
        group.create_array(
            name,
            shape=shape,
            shards=shards,
            chunks=chunks,
            dtype=self._dtype(name),
            compressors=[_compressor(self._dtype(name))],
            fill_value=fill,
            dimension_names=dims,
            attributes=attributes,
        )

    def _band_axes(self) -> list[tuple[str, str, NDArray[Any]]]:
        """Return ``(output, dimension, labels)`` of the outputs with several bands.

        All share the dimension ``band`` where their labels agree; otherwise each has one of its own.
        """
        found = []
        for name, spec in self.outputs.items():
            if spec.band_count > 1:
                bands = spec.bands
                labels = np.arange(1, bands + 1) if isinstance(bands, int) else np.array(bands, dtype=object)
                found.append((name, labels))
        alike = len({tuple(labels) for _, labels in found}) == 1
        return [(name, "band" if alike else f"{name}_band", labels) for name, labels in found]


def _rows(window: Window) -> tuple[int, int]:
    return window.row0, window.row1


def _cols(window: Window) -> tuple[int, int]:
    return window.col0, window.col1


def _put_small(group: zarr.Group, name: str, values: Any, dims: tuple[str, ...], attributes: Any) -> None:
    """Write a coordinate or scalar in one chunk."""
    data = np.asarray(values)
    dtype: Any = str if data.dtype == object else data.dtype
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=data.shape or "auto",
        dtype=dtype,
        dimension_names=dims,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    array[...] = data


def _check_outputs(outputs: Mapping[str, OutputSpec], shard: int) -> None:
    for name, spec in outputs.items():
        if not name.isidentifier() or name in RESERVED:
            raise StoreError(
                f"an output cannot be called {name!r}",
                remedy=f"use letters, digits and underscores, and none of {', '.join(RESERVED)}",
            )
        if not spec.is_raster:
            raise StoreError(f"output {name} is a {spec.kind}: a record, not a raster", place="result.zarr")
    if shard <= 0 or shard % COG_BLOCK:
        raise StoreError(f"shard {shard} is not a multiple of {COG_BLOCK} px", place="result.zarr")


class _said:
    """Turn the errors of disks and object stores into `StoreError` with what was being done, and where."""

    def __init__(self, doing: str, place: str) -> None:
        self.doing, self.place = doing, place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from obstore.exceptions import BaseError

        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            remedy = "free space or choose another disk" if error.errno == 28 else None
            raise StoreError(f"{self.doing} failed: {error}", place=self.place, remedy=remedy) from error
        if isinstance(error, BaseError):
            cause = f"{self.doing} failed: {str(error).splitlines()[0]}"
            remedy = "check the object store; finished shards are kept, and the same command goes on"
            raise StoreError(cause, place=self.place, remedy=remedy) from error
