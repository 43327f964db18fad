"""Items on a grid as a source: dates, mosaics and composites, read window by window without dask."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.catalogs.stores import check_access
from tilewright.errors import InputError, ReadError, nearest_name

from .composite import Composite, Plane, first_valid
from .failures import Failure
from .grid import Grid, Window
from .groups import GroupBy, ItemGroup, group_items
from .handles import plain_href
from .harmonise import ItemPlan, describe_plan, item_reason, plan_item, read_item
from .readers import CACHE_BYTES, RESAMPLINGS, BandReader, make_reader, tallied
from .reading import AHEAD_BYTES, concurrently, planes_ahead, strips_bytes
from .source import Block, Layer, Reason
from .warp import BLOCK

if TYPE_CHECKING:
    import pystac

    from tilewright.catalogs.signing import Signer

__all__ = ["CubeDate", "CubeSource"]

_STACK_BYTES = 256 << 20
"""Bytes of all dates that a median or percentile holds at once; larger windows are made in strips."""

OnError = Literal["raise", "reason"]


@dataclass(frozen=True)
class CubeDate:
    """One date: a mosaic of its Items."""

    time: np.datetime64
    """Acquisition (UTC) of the earliest Item."""
    cloud_cover: float
    """Mean of the Items in percent; infinite where one states none."""
    items: tuple[ItemPlan, ...]
    """The first valid one gives a pixel."""


class CubeSource:
    """STAC Items on a grid, as the engine reads them and as the blocks of `open_cube` are made.

    A date is a mosaic of its Items: a pixel comes, with all its bands, from the first Item that is valid
    there; Items are ordered by acquisition time, then by collection and id. A period is one date, or a
    composite of its dates. Nothing is opened before `read`.

    Parameters
    ----------
    items
        Items, or one sequence of them for each period, oldest first.
    grid
        Where the pixels are wanted.
    bands
        Band names (common or native); None takes the reflectance or power bands that all Items have.
    reader
        ``"odc"`` or ``"stackstac"``; only where pixels are warped does it matter.
    groupby
        What makes one date: ``"solar_day"``, ``"time"``, ``"id"``; None is ``"id"``.
    mask
        ``"default"`` masks clouds, shadows, saturation and layover as the sensor's mask band tells; None masks
        only nodata; a list replaces the classes or bits that are left out.
    resampling
        One of `RESAMPLINGS`, or band -> one. Classes are always read by nearest.
    composite
        How the dates of a period become one; None keeps every date. With plain ``items`` they are one period.
    offsets, nodata
        Overrides of the recipe: band -> ``[scale, offset]``, band -> digital number.
    on_error
        ``"raise"``, or ``"reason"``: pixels of a failed read become `Reason.READ_ERROR`, and the failure is
        listed in ``failures``.
    dtype
        ``float32`` or ``float64``.
    signer
        Signs hrefs at open; None chooses by the href.
    name
        Name of the kernel's input for which the pixels stand.
    cache
        Bytes of warped blocks to keep.

    Raises
    ------
    InputError
        No Items, an option that is unknown, a band that an Item lacks or whose scale is undecided, a bucket
        for which the environment has no keys.
    """

    def __init__(
        self,
        items: Sequence[pystac.Item] | Sequence[Sequence[pystac.Item]],
        grid: Grid,
        *,
        bands: Sequence[str] | None = None,
        reader: str = "odc",
        groupby: GroupBy | None = "solar_day",
        mask: str | Collection[str | int] | None = "default",
        resampling: str | Mapping[str, str] = "nearest",
        composite: Composite | str | None = None,
        offsets: Mapping[str, Sequence[float]] | None = None,
        nodata: Mapping[str, float] | None = None,
        on_error: OnError = "raise",
        dtype: str = "float32",
        signer: Signer | None = None,
        name: str = "image",
        cache: int = CACHE_BYTES,
    ) -> None:
        periods = _periods(items)
        self.grid = grid
        self.failures: list[Failure] = []
        self._lock = threading.Lock()
        self._name = name
        self._composite = None if composite is None else Composite.parse(composite)
        self._on_error = _one_of("on_error", on_error, ("raise", "reason"))
        self._dtype = _one_of("dtype", str(np.dtype(dtype)), ("float32", "float64"))
        self._mask = None if mask is None or (isinstance(mask, str) and mask == "none") else mask
        flat = [item for period in periods for item in period]
        wanted = list(bands) if bands is not None else _common_bands(flat)
        self._periods = _dates(periods, grid, groupby, self._composite, wanted, self._mask, offsets, nodata)
        _check_reach(self._periods, grid)
        _check_access(self._periods)
        plan = self._periods[0][0].items[0]
        self._bands = tuple(source.band for source in plan.sources)
        self._units = {source.band: source.units for source in plan.sources}
        self._categorical = {source.band: source.categorical for source in plan.sources}
        if self._composite is not None and self._composite.method in ("mean", "median", "percentile"):
            _refuse_classes(self._categorical, str(self._composite))
        self._resampling = _resamplings(self._bands, wanted, resampling)
        self._groupby = groupby
        self._reader = BandReader(grid, make_reader(reader), signer, cache)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "failures", "layers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()
        self.failures = []

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The only input: its bands, one time a period (that of its earliest Item), type and units."""
        units = set(self._units.values())
        times = tuple(period[0].time for period in self._periods)
        return {self._name: Layer(self._bands, times, self._dtype, units.pop() if len(units) == 1 else None)}

    @property
    def periods(self) -> tuple[tuple[CubeDate, ...], ...]:
        """The periods, oldest first, each with its dates."""
        return self._periods

    def at_period(self, index: int) -> CubeSource:
        """Return one period as a cube of its own: its pixels do not depend on the others."""
        other = object.__new__(CubeSource)
        other.__setstate__(self.__getstate__() | {"_periods": (self._periods[index],)})
        return other

    @property
    def composite(self) -> Composite | None:
        """How the dates of a period become one; None where each period is a date."""
        return self._composite

    @property
    def bands_reader(self) -> BandReader:
        """What reads the files."""
        return self._reader

    @cached_property
    def _hrefs(self) -> tuple[str, ...]:
        plans = (plan for period in self._periods for date in period for plan in date.items)
        return tuple({file.href for plan in plans for file in plan.files})

    def read_item(self, plan: ItemPlan, window: Window) -> Plane:
        """Return what one Item has over ``window``, before any mosaic; see `harmonise.read_item`."""
        return read_item(plan, self._reader, window, self._resampling, self._dtype)

    @property
    def band_units(self) -> Mapping[str, str]:
        """Band -> physical units."""
        return dict(self._units)

    @property
    def scratch_bytes(self) -> int:
        """Most bytes that reading takes besides the pixels it returns.

        Warped blocks, a composite's dates, dates that wait for those before them, and the strips of all threads.
        """
        stack = 2 * _STACK_BYTES if self._composite is not None and self._composite.keeps_dates else 0
        return self._reader.cache.limit + stack + AHEAD_BYTES + strips_bytes(self._hrefs)

    def read(self, window: Window) -> Block:
        """Return all periods over ``window``; raises `ReadError` unless told to go on."""
        periods = range(len(self._periods))
        data = np.empty((len(periods), len(self._bands), *window.shape), self._dtype)
        reason = np.empty((len(periods), 1, *window.shape), np.uint8)
        size = window.size * len(self._bands) * data.itemsize

        def read_into(t: int) -> None:
            data[t], reason[t, 0] = self.read_period(t, window)

        with tallied() as tally:
            reads = [partial(read_into, t) for t in periods]
            for _ in concurrently(self._hrefs, reads, ahead=planes_ahead(size)):
                pass
        return Block(window, {self._name: data}, {self._name: reason}, tally.bytes)

    def read_period(self, index: int, window: Window) -> Plane:
        """Return ``([C, rows, columns], reason [rows, columns])`` of one period; values are NaN where invalid."""
        if not self.grid.window.contains(window):
            raise InputError(f"{window} is not inside the grid {self.grid.shape}", place="window")
        dates = self._periods[index]
        return self._period(dates, window)

    def _period(self, dates: tuple[CubeDate, ...], window: Window) -> Plane:
        if self._composite is None:
            return self._mosaic(dates[0], window)
        if self._composite.method == "least_cloudy":
            dates = tuple(sorted(dates, key=lambda date: date.cloud_cover))  # stable: the earlier one first
        values = np.empty((len(self._bands), *window.shape), self._dtype)
        codes = np.empty(window.shape, np.uint8)
        for strip in self._strips(window, len(dates)):
            at = strip.slices(window)
            planes = (self._mosaic(date, strip) for date in dates)
            shape = (len(self._bands), *strip.shape)
            values[:, *at], codes[at] = self._composite.apply(planes, shape, self._dtype)
        return values, codes

    def _strips(self, window: Window, dates: int) -> Iterator[Window]:
        """Yield strips whose dates fit into memory; they end on rows of the lattice, as far as that goes."""
        assert self._composite is not None
        height = window.height
        if self._composite.keeps_dates:
            row = dates * len(self._bands) * window.width * np.dtype(self._dtype).itemsize
            height = max(1, _STACK_BYTES // max(1, row))
            height = height // BLOCK * BLOCK or height
        start = window.row0
        while start < window.row1:
            stop = min(start + height, window.row1)
            if height >= BLOCK and stop < window.row1:
                stop = stop // BLOCK * BLOCK
            yield Window(start, stop, window.col0, window.col1)
            start = stop

    def _mosaic(self, date: CubeDate, window: Window) -> Plane:
        shape = (len(self._bands), *window.shape)
        return first_valid(self._items(date, window), shape, self._dtype, scenes=True)

    def _items(self, date: CubeDate, window: Window) -> Iterator[Plane]:
        for plan in date.items:
            if not plan.touches(window):
                continue
            try:
                values, codes = self.read_item(plan, window)
            except ReadError as error:
                if self._on_error == "raise":
                    raise
                self._fail(plan, window, error)
                values = np.full((len(self._bands), *window.shape), np.nan, self._dtype)
                codes = item_reason(plan, window, Reason.READ_ERROR)
            yield values, codes

    def _fail(self, plan: ItemPlan, window: Window, error: ReadError) -> None:
        with self._lock:
            self.failures.append(Failure(plan.item_id, window, str(error)))

    def describe(self) -> Mapping[str, Any]:
        """Return Items with their band rules, and every option that a pixel depends on, as plain data."""
        return {
            "kind": "items",
            "input": self._name,
            "reader": self._reader.reader.name,
            "resampling": dict(self._resampling),
            "groupby": self._groupby or "id",
            "mask": self._mask if self._mask is None or isinstance(self._mask, str) else list(self._mask),
            "composite": None if self._composite is None else str(self._composite),
            "dtype": self._dtype,
            "periods": [
                [{"time": str(date.time), "items": [describe_plan(p) for p in date.items]} for date in period]
                for period in self._periods
            ],
        }


def _periods(items: Sequence[Any]) -> list[Sequence[pystac.Item]]:
    listed = list(items)
    nested = bool(listed) and not hasattr(listed[0], "assets")
    periods: list[Sequence[pystac.Item]] = [list(period) for period in listed] if nested else [listed]
    empty = [i for i, period in enumerate(periods) if not period]
    if not listed or empty:
        which = (
            f"period {empty[0] + 1} of {len(periods)} has no Items"
            if nested and listed
            else "no Items are given"
        )
        raise InputError(which, place="items", remedy="widen the region or the dates")
    return periods


def _dates(
    periods: Sequence[Sequence[pystac.Item]],
    grid: Grid,
    groupby: GroupBy | None,
    composite: Composite | None,
    bands: Sequence[str],
    mask: str | Collection[str | int] | None,
    offsets: Mapping[str, Sequence[float]] | None,
    nodata: Mapping[str, float] | None,
) -> tuple[tuple[CubeDate, ...], ...]:
    longitude = _longitude(grid)

    def date(group: ItemGroup) -> CubeDate:
        plans = (
            plan_item(item, bands, grid, mask=mask, offsets=offsets, nodata=nodata) for item in group.items
        )
        return CubeDate(group.time, group.cloud_cover, tuple(plans))

    grouped = [group_items(period, groupby, longitude) for period in periods]
    if composite is not None:
        return tuple(tuple(date(group) for group in groups) for groups in grouped)
    crowded = [len(groups) for groups in grouped if len(groups) > 1]
    if len(grouped) > 1 and crowded:
        raise InputError(
            f"a period has {crowded[0]} dates and no composite makes one of them",
            place="composite",
            remedy="name one (median, mean, first_valid, least_cloudy, percentile:Q), or give plain Items",
        )
    return tuple((date(group),) for groups in grouped for group in groups)


def _check_reach(periods: Sequence[Sequence[CubeDate]], grid: Grid) -> None:
    plans = [plan for period in periods for date in period for plan in date.items]
    if not any(plan.touches(grid.window) for plan in plans):
        raise InputError(
            f"none of the {len(plans)} Items reaches the grid",
            place="region",
            remedy="choose a region on the scenes, or search with this one",
        )


def _check_access(periods: Sequence[Sequence[CubeDate]]) -> None:
    """Look for the keys of all files before the first is opened: a run shall not end at its last scene."""
    for plan in (plan for period in periods for date in period for plan in date.items):
        for file in (*plan.files, *(() if plan.mask is None else (plan.mask.file,))):
            check_access(file.href, f"{file.place}, {plain_href(file.href)}")


def _longitude(grid: Grid) -> float:
    from .warp import transformer

    x, y = grid.geobox.affine * (grid.shape[1] / 2, grid.shape[0] / 2)
    longitude, _ = transformer(str(grid.geobox.crs), "OGC:CRS84").transform(x, y)
    return float(longitude)


def _common_bands(items: Sequence[pystac.Item]) -> list[str]:
    """Return the bands that all Items have, in the order of the first one's product, classes left out."""
    from tilewright.catalogs.sensors import sensor_for
    from tilewright.catalogs.sources import band_source

    def has(item: pystac.Item, name: str) -> bool:
        try:
            band_source(item, name)
        except InputError:
            return False
        return True

    names = [band.name for band in sensor_for(items[0]).bands if not band.categorical]
    found = [name for name in names if all(has(item, name) for item in items)]
    if not found:
        raise InputError("the Items have no band in common", place="bands", remedy="name the bands")
    return found


def _resamplings(
    bands: Sequence[str], asked: Sequence[str], resampling: str | Mapping[str, str]
) -> Mapping[str, str]:
    if isinstance(resampling, str):
        chosen = dict.fromkeys(bands, resampling)
    else:
        chosen = {
            band: resampling.get(band, resampling.get(own, resampling.get("*", "nearest")))
            for band, own in zip(bands, asked, strict=True)
        }
    for method in chosen.values():
        _one_of("resampling", method, RESAMPLINGS)
    return chosen


def _refuse_classes(categorical: Mapping[str, bool], composite: str) -> None:
    classes = [band for band, flag in categorical.items() if flag]
    if classes:
        raise InputError(
            f"a {composite} of classes ({', '.join(classes)}) means nothing",
            place="composite",
            remedy="use first_valid or least_cloudy, or leave the band out",
        )


def _one_of[T: str](name: str, value: T, known: Sequence[str]) -> T:
    if value not in known:
        raise InputError(f"unknown {name} {value!r}", place=name, remedy=nearest_name(str(value), known))
    return value
