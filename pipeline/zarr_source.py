"""Zarr stores as a source: dates of plain rasters that xarray reads, our own results among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

from .arrays import ArrayCube, DataArraySource, cube_of, stack_cubes
from .handles import is_local
from .raster_files import canonical_bands

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["zarr_source"]


def zarr_source(
    dates: Sequence[Sequence[str]], *, bands: Sequence[str | int] | None = None, name: str = "image"
) -> DataArraySource:
    """Return the source over Zarr stores that xarray reads, our own ``result.zarr`` among them.

    One entry a date, oldest first; the variables of the stores of a date are its bands. Values stay in their
    stored type unless the store scales them.
    """
    rows = [[cube for href in date for cube in _zarr_cubes(href)] for date in dates]
    stack = stack_cubes(rows, ", ".join(dates[0]))
    if bands is not None:
        known = stack.layer.bands
        wanted = [known[int(b) - 1] if str(b).isdigit() and int(b) <= len(known) else str(b) for b in bands]
        stack = stack.select(wanted, name)
    return DataArraySource.from_stacks({name: stack})


def _zarr_cubes(href: str) -> list[ArrayCube]:
    dataset = _open_zarr(href)
    rasters = [
        str(n)
        for n, v in dataset.data_vars.items()
        if v.ndim >= 2 and v.dtype.kind in "biuf" and n != "reason"
    ]
    if not rasters:
        raise InputError(
            "the store holds no rasters", place=href, remedy="give a store with variables over y and x"
        )
    cubes = []
    for variable in rasters:
        array = dataset[variable]
        if "band" in array.dims:
            cubes.append(cube_of(array, None, href))
        else:
            cubes.append(cube_of(array, None, href, canonical_bands([variable])))
    return cubes


def _open_zarr(href: str) -> xr.Dataset:
    import xarray as xr
    import zarr

    try:
        store: Any = href if is_local(href) else _object_store(href)
        group = zarr.open_group(store, mode="r")
        # A multiscale store, such as ours, keeps its levels in the groups 0, 1, ...: the finest is wanted.
        path = "0" if not list(group.array_keys()) and "0" in set(group.group_keys()) else None
        scaled = any(
            "scale_factor" in array.attrs or "add_offset" in array.attrs
            for _, array in (group[path] if path else group).arrays()  # type: ignore[union-attr]
        )
        opened: xr.Dataset = xr.open_zarr(
            store, group=path, chunks=None, consolidated=False, mask_and_scale=scaled
        )
    except (OSError, KeyError, ValueError, zarr.errors.BaseZarrError) as error:
        raise InputError(
            f"not a readable Zarr store: {error}",
            place=href,
            remedy="give a store that xarray.open_zarr reads",
        ) from error
    return opened


def _object_store(href: str) -> Any:
    import obstore.store
    import zarr.storage

    return zarr.storage.ObjectStore(obstore.store.from_url(href), read_only=True)
