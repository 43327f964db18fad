"""Zarr stores as a source: dates of plain rasters that xarray reads, our own results among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import zarr

from tilewright.errors import InputError

from .arrays import ArrayCube, DataArraySource, Stack, cube_of, stack_cubes
from .handles import is_local
from .raster_files import canonical_bands

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["zarr_source"]

_UNREADABLE = (OSError, KeyError, ValueError, zarr.errors.BaseZarrError)
"""What zarr and xarray raise of a store that is absent, foreign or damaged."""


def zarr_source(
    dates: Sequence[Sequence[str]], *, bands: Sequence[str | int] | None = None, name: str = "image"
) -> DataArraySource:
    """Return the source over Zarr stores that xarray reads, our own ``result.zarr`` among them.

    One entry a date, oldest first; the variables of the stores of a date are its bands. Values stay in their
    stored type unless the store scales them. Where all stores are hierarchies with the same number of levels, as
    ours are, the coarser ones are the source's ``coarser``.
    """
    levels = min(_levels(href) for date in dates for href in date)
    finest, *coarser = (_one_level(dates, bands, name, level) for level in range(levels))
    return DataArraySource.from_stacks(
        {name: finest}, [DataArraySource.from_stacks({name: c}) for c in coarser]
    )


def _one_level(
    dates: Sequence[Sequence[str]], bands: Sequence[str | int] | None, name: str, level: int
) -> Stack:
    rows = [[cube for href in date for cube in _zarr_cubes(href, level)] for date in dates]
    stack = stack_cubes(rows, ", ".join(dates[0]))
    if bands is not None:
        known = stack.layer.bands
        wanted = [known[int(b) - 1] if str(b).isdigit() and int(b) <= len(known) else str(b) for b in bands]
        stack = stack.select(wanted, name)
    return stack


def _levels(href: str) -> int:
    """Return how many levels the store holds: the groups 0, 1, ... of a hierarchy, else 1."""
    try:
        group = _group(href)
        names = set() if list(group.array_keys()) else set(group.group_keys())
    except _UNREADABLE as error:
        raise _unreadable(href, error) from error
    return next((n for n in count() if str(n) not in names), 0) or 1


def _zarr_cubes(href: str, level: int) -> list[ArrayCube]:
    dataset = _open_zarr(href, level)
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


def _open_zarr(href: str, level: int) -> xr.Dataset:
    import xarray as xr

    try:
        group = _group(href)
        # A multiscale store, such as ours, keeps its levels in the groups 0, 1, ...
        path = str(level) if not list(group.array_keys()) and "0" in set(group.group_keys()) else None
        scaled = any(
            "scale_factor" in array.attrs or "add_offset" in array.attrs
            for _, array in (group[path] if path else group).arrays()  # type: ignore[union-attr]
        )
        opened: xr.Dataset = xr.open_zarr(
            _store(href), group=path, chunks=None, consolidated=False, mask_and_scale=scaled
        )
    except _UNREADABLE as error:
        raise _unreadable(href, error) from error
    return opened


def _group(href: str) -> zarr.Group:
    return zarr.open_group(_store(href), mode="r")


def _store(href: str) -> Any:
    return href if is_local(href) else _object_store(href)


def _unreadable(href: str, error: Exception) -> InputError:
    return InputError(
        f"not a readable Zarr store: {error}", place=href, remedy="give a store that xarray.open_zarr reads"
    )


def _object_store(href: str) -> Any:
    import obstore.store
    import zarr.storage

    return zarr.storage.ObjectStore(obstore.store.from_url(href), read_only=True)
