"""Two dates that do not lie on each other: how far they are apart, and the second one moved back.

The shift is measured in a few windows of which most must agree, by the correlation of the directions of gradients
(Fitch et al. 2002, Orientation Correlation, https://doi.org/10.5244/C.16.11), whose peak is refined to parts of a
pixel (Guizar-Sicairos et al. 2008, https://doi.org/10.1364/OL.33.000156). Directions do not mind that one date is
brighter; plain phase correlation, with whitened spectra, was off by 0.2 px on a smooth surface with 7 % of noise, this
by 0.02. It is one shift for the scene, a residual of georeferencing; relief needs orthorectification.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, KernelError

from .grid import Window
from .source import Block, Layer, Reason, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .grid import Grid

__all__ = [
    "LIMIT",
    "Coregistered",
    "Shift",
    "coregister",
    "grey_dates",
    "measure_shift",
    "sample_windows",
]

LIMIT = 0.5
"""Pixels of shift from which a user is told: at half a pixel edges of fields become change."""
AGREE = 0.35
"""Pixels by which windows may differ from their median and still agree."""
FEWEST = 2
"""Windows that must agree."""
FARTHEST = 32.0
"""Pixels that are still called a residual."""
SIDE = 256
"""Most pixels a side of a window."""
SMALLEST = 64
"""Fewest, where the grid has so many."""
PLACES = (0.5, 1 / 6, 5 / 6)
"""Where windows lie, as shares of the grid's height and width: nine in all."""
_PARTS = 50
"""Parts of a pixel to which the peak is refined."""
_VALID = 0.5
"""Share of a window that must be valid in both dates."""


@dataclass(frozen=True, slots=True)
class Shift:
    """Where the ground of the first date is found in the second."""

    pixels: tuple[float, float]
    """Rows and columns: the pixel (r, c) of the first date shows what (r + rows, c + columns) of the second does."""
    windows: int
    """Windows that agree on it."""


def sample_windows(shape: tuple[int, int]) -> Iterator[Window]:
    """Yield up to nine windows over a grid, the middle first, that do not overlap.

    Their side is a third of the grid's shorter one, but 64 to 256 px.
    """
    side = min(SIDE, max(SMALLEST, min(shape) // 3))
    found: set[tuple[int, int]] = set()
    rows, cols = (min(side, n) for n in shape)
    for down in PLACES:
        for right in PLACES:
            row = min(max(0, round(shape[0] * down - rows / 2)), shape[0] - rows)
            col = min(max(0, round(shape[1] * right - cols / 2)), shape[1] - cols)
            if all(abs(row - r) >= rows or abs(col - c) >= cols for r, c in found):
                found.add((row, col))
                yield Window(row, row + rows, col, col + cols)


def grey_dates(data: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return dates ``[T, C, rows, columns]`` as grey pictures ``[T, rows, columns]``, NaN where not ``valid``."""
    grey: NDArray[np.float64] = np.where(valid[:, 0], data.mean(axis=1, dtype=np.float64), np.nan)
    return grey


def measure_shift(pairs: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> Shift | None:
    """Return the shift between pictures of two dates, or None where windows do not agree on one.

    Parameters
    ----------
    pairs
        A window each: both dates as ``[rows, columns]``, NaN where invalid. Windows with few valid pixels, or of one
        value, say nothing.
    """
    from skimage.registration import phase_cross_correlation

    found = []
    for a, b in pairs:
        both = np.isfinite(a) & np.isfinite(b)
        if min(a.shape) < 32 or both.mean() < _VALID or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
            continue
        taper = np.outer(np.hanning(a.shape[0]), np.hanning(a.shape[1]))
        one, other = (_directions(x) * taper for x in (a, b))
        moved, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
            one, other, upsample_factor=_PARTS, normalization=None
        )
        found.append(-np.asarray(moved, dtype=np.float64))
    if len(found) < FEWEST:
        return None
    middle = np.median(found, axis=0)
    near = [one for one in found if np.hypot(*(one - middle)) <= AGREE]
    if len(near) < max(FEWEST, math.ceil(len(found) / 2)):
        return None
    rows, cols = np.median(near, axis=0)
    return Shift((round(float(rows), 3), round(float(cols), 3)), len(near))


def _directions(picture: NDArray[np.floating]) -> NDArray[np.complex128]:
    """Return the direction of the gradient of each pixel, of length 1; 0 where there is none, or it is unknown."""
    down, right = np.gradient(picture.astype(np.float64))
    gradient = np.nan_to_num(right + 1j * down)
    length = np.abs(gradient)
    found: NDArray[np.complex128] = np.divide(gradient, length, out=np.zeros_like(gradient), where=length > 0)
    return found


def coregister(source: Source) -> tuple[Source, str]:
    """Return the source with its later dates moved onto the first, and what was done in a sentence.

    Raises
    ------
    InputError
        The windows do not agree on a shift, or it is too far to be a residual.
    KernelError
        scikit-image is not installed.
    """
    name, layer = next(iter(source.layers.items()))
    if len(source.layers) != 1 or len(layer.times) < 2:
        raise InputError("there are not several dates of one input to line up", place="--coregister")
    pictures = []
    for window in sample_windows(source.grid.shape):
        block = source.read(window)
        pictures.append(grey_dates(block.data[name], block.reason[name] == Reason.VALID))
    shifts: list[tuple[float, float]] = [(0.0, 0.0)]
    for date in range(1, len(layer.times)):
        try:
            shift = measure_shift([(one[0], one[date]) for one in pictures])
        except ImportError as error:
            raise KernelError(
                "the shift is measured by scikit-image, which cannot be imported",
                place="--coregister",
                remedy="install 'tilewright[coregister]'",
            ) from error
        if shift is None:
            raise InputError(
                f"no shift of date {date + 1} could be measured: too few windows agree on one",
                place="--coregister",
                remedy="look at the dates; leave --coregister out where they lie on each other",
            )
        if math.hypot(*shift.pixels) > FARTHEST:
            raise InputError(
                f"date {date + 1} lies {math.hypot(*shift.pixels):.0f} px off, which is no residual",
                place="--coregister",
                remedy="check the georeference of the files",
            )
        shifts.append(shift.pixels)
    told = "; ".join(f"date {i} by {r:+.2f} rows, {c:+.2f} columns" for i, (r, c) in enumerate(shifts[1:], 2))
    return Coregistered(source, tuple(shifts)), f"lined up with the first date: {told}"


@dataclass(frozen=True)
class Coregistered:
    """A source of which dates are moved: by whole pixels, and by cubic convolution for the rest.

    Cubic convolution (Keys 1981, a = -0.5) has four taps an axis, so a pixel has the same bits in every window. A pixel
    is valid where all sixteen that it is made of are; pixels beyond the grid are nodata.
    """

    source: Source
    """What is moved; it has one layer."""
    shifts: tuple[tuple[float, float], ...]
    """Rows and columns by which the pixels of each date are found further on."""

    @property
    def grid(self) -> Grid:
        """The grid, unchanged."""
        return self.source.grid

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers; pixels are float32."""
        return {
            name: Layer(layer.bands, layer.times, "float32", layer.units)
            for name, layer in self.source.layers.items()
        }

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``."""
        reach = max(math.ceil(max(abs(r), abs(c))) for r, c in self.shifts) + 2
        rows, cols = self.grid.shape
        around = Window(
            max(0, window.row0 - reach),
            min(rows, window.row1 + reach),
            max(0, window.col0 - reach),
            min(cols, window.col1 + reach),
        )
        block = self.source.read(around)
        (name,) = self.source.layers
        before = (around.row0 - (window.row0 - reach), around.col0 - (window.col0 - reach))
        after = (window.row1 + reach - around.row1, window.col1 + reach - around.col1)
        pad = ((before[0], after[0]), (before[1], after[1]))
        size = (window.height, window.width)
        data = np.empty((*block.data[name].shape[:2], *size), np.float32)
        reason = np.empty((len(self.shifts), 1, *size), np.uint8)
        for date, shift in enumerate(self.shifts):
            codes = np.pad(block.reason[name][date, 0], pad, constant_values=int(Reason.NODATA))
            reason[date, 0] = _worst(codes, shift, reach, size)
            for band, plane in enumerate(
                block.data[name][date]
            ):  # a band at a time: little is held beside the block
                values = np.pad(plane.astype(np.float32), pad)
                values[codes != Reason.VALID] = 0
                data[date, band] = _moved(values, shift, reach, size)
        return Block(window, {name: data}, {name: reason}, block.bytes_read)

    @property
    def failures(self) -> Any:
        """The reads that failed and were tolerated: the source's own list."""
        return getattr(self.source, "failures", ())

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the source holds while it reads."""
        return int(getattr(self.source, "scratch_bytes", 0))

    @property
    def scratch_pixel_bytes(self) -> int:
        """Bytes a pixel of a window that are held beside the block while it is read: the source's, and of one band."""
        layers = self.source.layers.values()
        inner = sum(len(one.times) * (len(one.bands) * np.dtype(one.dtype).itemsize + 1) for one in layers)
        return inner + 4 + 6 * 8  # a band in float32, and its four taps with their sum

    def describe(self) -> Mapping[str, Any]:
        """Return what the pixels depend on, the shifts included."""
        return {**self.source.describe(), "coregistered": [list(shift) for shift in self.shifts]}


def _moved(
    values: NDArray[np.float32], shift: tuple[float, float], reach: int, size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the pixels of a window out of a plane that is ``reach`` larger on each side."""
    moved: NDArray[np.float64] = values.astype(np.float64)
    for axis in (0, 1):
        whole = math.floor(shift[axis])
        parts = [
            weight * np.take(moved, np.arange(size[axis]) + reach + whole + offset, axis=axis)
            for offset, weight in _taps(shift[axis] - whole)
        ]
        moved = sum(parts[1:], parts[0])
    return moved


def _worst(
    codes: NDArray[np.uint8], shift: tuple[float, float], reach: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the highest code of the pixels that each pixel of a window is made of."""
    for axis in (0, 1):
        whole = math.floor(shift[axis])
        parts = [
            np.take(codes, np.arange(size[axis]) + reach + whole + offset, axis=axis)
            for offset, _ in _taps(shift[axis] - whole)
        ]
        codes = np.maximum.reduce(parts)
    return codes


def _taps(part: float) -> list[tuple[int, float]]:
    """Return offsets and weights of cubic convolution at a share of a pixel; one tap of 1 where it is none."""
    if part == 0:
        return [(0, 1.0)]
    found = []
    for offset in (-1, 0, 1, 2):
        x = abs(part - offset)
        weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        found.append((offset, weight))
    return found
