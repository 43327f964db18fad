"""Plain rasters as a source: one input a date, read in windows as they lie on disk or behind a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from tilewright.errors import InputError, ReadError, nearest_name

from .failures import Failure
from .grid import Grid, Window
from .handles import Handles, is_local, plain_href, read_retrying
from .raster_files import BandInfo, FileInfo, canonical_bands, check_nodata, check_same_grid, inspect_file
from .source import Block, Layer, Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RasterSource", "input_files", "is_zarr", "raster_source"]


class RasterSource:
    """Files on one grid, stacked: dates oldest first, the files of a date one after another as bands.

    ``read`` returns the pixels in their stored type (the common type of the files where they differ). A pixel
    of a date is valid where all bands of the date are: not nodata, not masked by the file's mask or alpha
    band, and finite.

    Parameters
    ----------
    dates
        For each date its files; a string may join several by commas (``"VV.tif,VH.tif"``).
    bands
        Names or 1-based numbers of the bands to take, in the order wanted; or, where the files do not
        name their bands, a name for each of them in order. None takes all.
    name
        Name of the kernel's input for which the pixels stand.
    times
        Acquisition times, one a date; None where unknown.
    nodata
        Marks invalid pixels of all bands in place of what the files state, which may be nothing.
    on_error
        ``"raise"``, or ``"reason"``: pixels of a failed read become `Reason.READ_ERROR` in their date, and the
        failure is listed in ``failures``.

    Raises
    ------
    InputError
        A file is absent, truncated or no raster, has no CRS, lies on another grid than the first, states a
        nodata value that its type cannot hold, or lacks a band.
    """

    def __init__(
        self,
        dates: Sequence[str | Path | Sequence[str | Path]],
        *,
        bands: Sequence[str | int] | None = None,
        name: str = "image",
        times: Sequence[np.datetime64 | None] | None = None,
        nodata: float | None = None,
        on_error: Literal["raise", "reason"] = "raise",
    ) -> None:
        if not dates:
            raise InputError("no input is given", place="inputs", remedy="name at least one raster")
        self._handles = Handles()
        self._on_error = on_error
        self.failures: list[Failure] = []
        """Reads that failed and were tolerated, in the order in which they did."""
        self._dates = tuple(
            tuple(inspect_file(href, self._handles) for href in input_files(entry)) for entry in dates
        )
        check_same_grid([file for date in self._dates for file in date])
        self._picks = tuple(_pick(date, bands) for date in self._dates)
        if nodata is not None:
            self._picks = tuple(_with_nodata(pick, nodata) for pick in self._picks)
        self._name = name
        self._times = tuple(times) if times is not None else (None,) * len(self._dates)
        if len(self._times) != len(self._dates):
            raise InputError(
                f"{len(self._times)} times for {len(self._dates)} dates",
                place="times",
                remedy="give one a date",
            )
        self._check_counts()

    def _check_counts(self) -> None:
        counts = {len(pick) for pick in self._picks}
        if len(counts) > 1:
            found = ", ".join(str(len(pick)) for pick in self._picks)
            raise InputError(
                f"the dates have {found} bands", place="inputs", remedy="name the common ones by --bands"
            )

    @property
    def grid(self) -> Grid:
        """The grid of the first file; every pixel is wanted."""
        return Grid(self._dates[0][0].geobox)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """The only input: its bands, its dates and its stored type."""
        picked = [(file, band) for pick in self._picks for file, band in pick]
        units = {file.units for file, _ in picked}
        dtype = np.result_type(*(np.dtype(band.dtype) for _, band in picked))
        names = tuple(band.name for _, band in self._picks[0])
        return {self._name: Layer(names, self._times, str(dtype), units.pop() if len(units) == 1 else None)}

    @property
    def named(self) -> bool:
        """True where the files, or the caller, name the bands."""
        return all(band.native for pick in self._picks for _, band in pick)

    @property
    def overviews(self) -> tuple[int, ...]:
        """How many times coarser the overviews are that all files have, in their order."""
        files = [file for date in self._dates for file in date]
        first = files[0].overviews
        return first if all(file.overviews == first for file in files) else ()

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a stored block: the largest of the files."""
        shapes = [file.block for date in self._dates for file in date]
        return max(rows for rows, _ in shapes), max(cols for _, cols in shapes)

    def at_overview(self, number: int) -> Self:
        """Return the same bands and dates of an overview, from 0, as rasters on their own grid."""
        other = self._copy()
        found = {
            file.href: inspect_file(file.href, self._handles, number) for date in self._dates for file in date
        }
        other._dates = tuple(tuple(found[file.href] for file in date) for date in self._dates)
        other._picks = tuple(tuple((found[file.href], band) for file, band in pick) for pick in self._picks)
        return other

    def renamed(self, name: str) -> Self:
        """Return the same pixels for the kernel's input ``name``."""
        other = self._copy()
        other._name = name
        return other

    def select(self, bands: Sequence[str] | int) -> Self:
        """Return the source with the bands a kernel wants: by name where the bands have names, else in order.

        Raises `InputError` where a name is unknown, or the number does not fit.
        """
        other = self._copy()
        picks = []
        for date, pick in zip(self._dates, self._picks, strict=True):
            place = _names_of(date)
            if isinstance(bands, int) or not all(band.native for _, band in pick):
                count = bands if isinstance(bands, int) else len(bands)
                if len(pick) != count:
                    have = ", ".join(band.name for _, band in pick)
                    raise InputError(
                        f"{count} bands are wanted, and there are {len(pick)} ({have})",
                        place=place,
                        remedy="choose them by --bands",
                    )
                picks.append(pick)
            else:
                picks.append(_by_name(pick, bands, place))
        other._picks = tuple(picks)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Let relative paths become absolute: a worker may stand in another folder."""
        dates = tuple(tuple(_absolute(file) for file in date) for date in self._dates)
        picks = tuple(tuple((_absolute(file), band) for file, band in pick) for pick in self._picks)
        return {k: v for k, v in self.__dict__.items() if k != "layers"} | {"_dates": dates, "_picks": picks}

    def _copy(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__ |= {k: v for k, v in self.__dict__.items() if k != "layers"}
        return other

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``; raises `ReadError` naming the file."""
        if not self.grid.window.contains(window):
            raise InputError(f"{window} is not inside the grid {self.grid.shape}", place="window")
        layer = self.layers[self._name]
        shape = (len(self._picks), len(layer.bands), *window.shape)
        data = np.empty(shape, dtype=layer.dtype)
        codes = np.zeros((len(self._picks), 1, *window.shape), dtype=np.uint8)
        count = 0
        for t, pick in enumerate(self._picks):
            for file, places in _by_file(pick):
                count += self._read_or_mark(file, places, window, data[t], codes[t, 0])
        reason = codes
        return Block(window, {self._name: data}, {self._name: reason}, count)

    def _read_or_mark(
        self,
        file: FileInfo,
        places: Sequence[tuple[int, BandInfo]],
        window: Window,
        out: NDArray[Any],
        codes: NDArray[np.uint8],
    ) -> int:
        """Read a file into ``out`` and raise ``codes`` where it is invalid; return bytes."""
        valid = np.ones(window.shape, dtype=bool)
        try:
            count = self._read_file(file, places, window, out, valid)
        except ReadError as error:
            if self._on_error == "raise":
                raise
            # A damaged block of a file costs its own pixels, in whatever window it is read. A server that does not
            # answer is not asked again for each block.
            blocks = self._blocks_of(file, window) if is_local(file.href) else []
            if len(blocks) > 1:
                parts = ((block, block.slices(window)) for block in blocks)
                return sum(self._read_or_mark(file, places, b, out[:, *at], codes[at]) for b, at in parts)
            self.failures.append(Failure(plain_href(file.href), window, str(error)))
            for channel, _ in places:
                out[channel] = 0
            codes[...] = np.uint8(Reason.READ_ERROR)
            return 0
        np.maximum(codes, np.where(valid, np.uint8(Reason.VALID), np.uint8(Reason.NODATA)), out=codes)
        return count

    def _blocks_of(self, file: FileInfo, window: Window) -> list[Window]:
        """Return the parts of ``window`` that each lie in one stored block of the file."""
        height, width = file.block
        blocks = []
        for row in range(window.row0 // height * height, window.row1, height):
            for col in range(window.col0 // width * width, window.col1, width):
                block = Window(row, row + height, col, col + width).overlap(window)
                assert block is not None
                blocks.append(block)
        return blocks

    def _read_file(
        self,
        file: FileInfo,
        places: Sequence[tuple[int, BandInfo]],
        window: Window,
        out: NDArray[Any],
        valid: NDArray[np.bool_],
    ) -> int:
        from rasterio.windows import Window as RioWindow

        region = RioWindow(window.col0, window.row0, window.width, window.height)
        indexes = [band.index for _, band in places]
        masked = [band.index for _, band in places if band.masked]

        def once(opened_as: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
            with self._handles.lend(file.href, opened_as=opened_as, overview=file.overview) as dataset:
                pixels = dataset.read(indexes, window=region)
                return pixels, dataset.read_masks(masked, window=region) if masked else None

        pixels, masks = read_retrying(
            once, file.href, self._handles, place=f"{plain_href(file.href)} {_text(window)}"
        )
        for plane, (channel, band) in zip(pixels, places, strict=True):
            out[channel] = plane
            if band.nodata is not None:
                valid &= plane != band.nodata
            if plane.dtype.kind in "fc":
                valid &= np.isfinite(plane)
        if masks is not None:
            valid &= (masks != 0).all(axis=0)
        return int(pixels.nbytes) + (int(masks.nbytes) if masks is not None else 0)

    def describe(self) -> Mapping[str, Any]:
        """Return the files with size and time of change, and the bands taken, as plain data."""
        return {
            "kind": "rasters",
            "input": self._name,
            "dates": [
                {
                    "time": None if time is None else str(time),
                    "files": [dict(file.record) for file in date],
                    "bands": [
                        {
                            "file": plain_href(file.href),
                            "index": band.index,
                            "name": band.name,
                            "nodata": None if band.nodata is None else repr(band.nodata),
                            "mask": band.masked,
                        }
                        for file, band in pick
                    ],
                }
                for date, pick, time in zip(self._dates, self._picks, self._times, strict=True)
            ],
        }


def raster_source(
    inputs: Sequence[str | Path | Sequence[str | Path]],
    *,
    bands: Sequence[str | int] | None = None,
    name: str = "image",
    on_error: Literal["raise", "reason"] = "raise",
) -> Any:
    """Return the `Source` of ``tilewright apply``'s inputs: rasters, or Zarr stores where a path is one.

    One entry a date, oldest first; see `RasterSource` for ``bands``, ``on_error`` (which Zarr stores do not
    know) and the errors.
    """
    entries = [input_files(entry) for entry in inputs]
    zarrs = [href for entry in entries for href in entry if is_zarr(href)]
    if not zarrs:
        return RasterSource(entries, bands=bands, name=name, on_error=on_error)
    if len(zarrs) != sum(len(entry) for entry in entries):
        raise InputError(
            "Zarr stores and raster files are mixed", place="inputs", remedy="give all dates in one form"
        )
    from .zarr_source import zarr_source

    return zarr_source(entries, bands=bands, name=name)


def is_zarr(href: str) -> bool:
    """True where ``href`` names a Zarr store: by its suffix, or a folder with Zarr's metadata."""
    path = href.split("?", 1)[0].rstrip("/")
    if path.endswith(".zarr"):
        return True
    return is_local(href) and any((Path(href) / name).is_file() for name in ("zarr.json", ".zgroup"))


def input_files(entry: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return the files of one date: an entry may be a path, several joined by commas, or a sequence of them."""
    if isinstance(entry, Path):
        return (str(entry),)
    if not isinstance(entry, str):
        return tuple(part for item in entry for part in input_files(item))
    if is_local(entry) and Path(entry).exists():
        return (entry,)
    # In a URL with a query a comma parts two files only where a path or another URL follows.
    comma = r",(?=[A-Za-z][\w+.\-]*://|/|\./)" if "?" in entry else ","
    parts = re.split(comma, entry)
    return tuple(part.strip() for part in parts if part.strip())


def _absolute(file: FileInfo) -> FileInfo:
    found = is_local(file.href) and Path(file.href).exists()
    return replace(file, href=str(Path(file.href).absolute())) if found else file


def _names_of(date: Sequence[FileInfo]) -> str:
    return ", ".join(plain_href(file.href) for file in date)


def _text(window: Window) -> str:
    return f"rows {window.row0}..{window.row1}, columns {window.col0}..{window.col1}"


def _by_file(pick: Sequence[tuple[FileInfo, BandInfo]]) -> list[tuple[FileInfo, list[tuple[int, BandInfo]]]]:
    groups: dict[str, tuple[FileInfo, list[tuple[int, BandInfo]]]] = {}
    for channel, (file, band) in enumerate(pick):
        groups.setdefault(file.href, (file, []))[1].append((channel, band))
    return list(groups.values())


def _pick(
    date: Sequence[FileInfo], bands: Sequence[str | int] | None
) -> tuple[tuple[FileInfo, BandInfo], ...]:
    everything = [(file, band) for file in date for band in file.bands]
    if len(date) > 1 and not all(band.native for _, band in everything):
        # Files of one date are told apart by their place: band_1, band_2, ... over all of them.
        everything = [
            (file, band if band.native else replace(band, name=f"band_{n}"))
            for n, (file, band) in enumerate(everything, start=1)
        ]
    if bands is None:
        return tuple(everything)
    wanted = [int(b) if isinstance(b, str) and b.strip().isdigit() else b for b in bands]
    if all(isinstance(b, str) for b in wanted):
        wanted = list(canonical_bands([str(b) for b in wanted]))
    known = {band.name for _, band in everything}
    unnamed = not any(band.native for _, band in everything)
    fresh = all(isinstance(name, str) and name not in known for name in wanted)
    if unnamed and fresh and len(wanted) == len(everything):
        return tuple(
            (file, replace(band, name=str(name), native=str(name)))
            for (file, band), name in zip(everything, wanted, strict=True)
        )
    return _by_name(everything, wanted, _names_of(date))


def _with_nodata(
    pick: Sequence[tuple[FileInfo, BandInfo]], nodata: float
) -> tuple[tuple[FileInfo, BandInfo], ...]:
    for file, band in pick:
        check_nodata(nodata, np.dtype(band.dtype), f"{plain_href(file.href)}, band {band.index}")
    mark = None if np.isnan(nodata) else nodata
    return tuple((file, replace(band, nodata=mark)) for file, band in pick)


def _by_name(
    pick: Sequence[tuple[FileInfo, BandInfo]], wanted: Sequence[str | int], place: str
) -> tuple[tuple[FileInfo, BandInfo], ...]:
    names = {
        key.lower(): (file, band)
        for file, band in reversed(pick)
        for key in (band.native, band.name)
        if key is not None
    }
    result = []
    for name in wanted:
        if isinstance(name, int):
            if not 1 <= name <= len(pick):
                raise InputError(
                    f"there is no band {name}", place=place, remedy=f"bands are numbered 1..{len(pick)}"
                )
            result.append(pick[name - 1])
        elif name.strip().lower() in names:
            result.append(names[name.strip().lower()])
        else:
            raise InputError(f"there is no band {name!r}", place=place, remedy=nearest_name(name, names))
    return tuple(result)
