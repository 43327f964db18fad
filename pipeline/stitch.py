"""Stitching: tiles out of blocks, and tiles back into shards, by cutting or by blending in fixed point.

Blending adds integers, and integer sums do not depend on their order, so a shard has the same bits however
its tiles came: that is why values are quantised to 2^-20 of the declared range and tapers are small integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import GridError, KernelError

from .grid import Window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .grid import Shard, Tile, Tiling

__all__ = ["Accumulator", "Margins", "Seam", "mirror", "ramp", "take"]

QUANTUM = 1 << 20
"""Steps of a declared range."""
TAPER_SUM = 32
"""Sum of the two tapers of an axis. The four of a corner sum to 2^10, and 2^20 * 2^10 fits int32."""


def mirror(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return where ``index`` falls when an axis of ``length`` pixels is mirrored without repeating its edge.

    The same as ``numpy.pad(..., mode="reflect")`` at any distance, and for a length of 1.
    """
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = np.abs(index) % period
    mirrored: NDArray[np.int64] = np.minimum(folded, period - folded)
    return mirrored


def take(
    array: NDArray[np.generic], covers: Window, read: Window, shape: tuple[int, int]
) -> NDArray[np.generic]:
    """Return ``read`` out of ``array [..., rows, columns]``, which covers ``covers`` of a grid of ``shape``.

    Pixels beyond the grid are mirrored. Raises `GridError` where a mirrored pixel is not in ``covers``.
    """
    rows = mirror(np.arange(read.row0, read.row1), shape[0]) - covers.row0
    cols = mirror(np.arange(read.col0, read.col1), shape[1]) - covers.col0
    if rows.min() < 0 or cols.min() < 0 or rows.max() >= covers.height or cols.max() >= covers.width:
        raise GridError(f"{read} needs pixels outside of what was read, {covers}", place="window")
    if not (_is_plain(rows) and _is_plain(cols)):
        return array[..., rows[:, None], cols[None, :]]
    return array[..., rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _is_plain(index: NDArray[np.int64]) -> bool:
    return bool(index[-1] - index[0] == len(index) - 1)


def needed(read: Window, shape: tuple[int, int]) -> Window:
    """Return the smallest window of a grid of ``shape`` that `take` wants for ``read``."""
    rows = mirror(np.arange(read.row0, read.row1), shape[0])
    cols = mirror(np.arange(read.col0, read.col1), shape[1])
    return Window(int(rows.min()), int(rows.max()) + 1, int(cols.min()), int(cols.max()) + 1)


def ramp(k: int, count: int, length: int, core: int, overlap: int) -> NDArray[np.int32]:
    """Return the integer taper of tile ``k`` of ``count`` over the ``length`` pixels it gives along an axis.

    Two neighbours sum to `TAPER_SUM` on every pixel of their overlap; the first and the last tile of an axis
    are flat towards the edge of the grid. At least 1, so that a tile alone still counts.
    """
    taper = np.full(length, TAPER_SUM, dtype=np.int32)
    if overlap:
        rising = np.floor(TAPER_SUM * (np.arange(overlap) + 0.5) / overlap + 0.5).clip(1, TAPER_SUM - 1)
        rising = rising.astype(np.int32)
        if k > 0:
            taper[:overlap] = rising[: min(overlap, length)]
        if k < count - 1:
            taper[core : core + overlap] = TAPER_SUM - rising
    return taper


@dataclass(slots=True)
class Margins:
    """What the tiles of one shard give to the shard below, to the right, or diagonally below it."""

    window: Window
    """Which pixels of the finer (output) grid."""
    total: NDArray[np.int32]
    """``[C, rows, columns]``: sum of taper x quantised value."""
    weight: NDArray[np.int32]
    """``[rows, columns]``: sum of tapers over valid contributions."""
    low: NDArray[np.int32]
    """``[C, rows, columns]``: smallest quantised value given."""
    high: NDArray[np.int32]
    """``[C, rows, columns]``: largest quantised value given."""


class Seam:
    """Differences between two predictions of the same pixel by neighbouring tiles, in output units.

    Counted in bins of an eighth of an octave, so that a scene of any size needs 1,024 numbers and the order
    does not matter; reported to six digits.
    """

    BINS = 1024
    OCTAVE = 8

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.span = high - low
        self.counts = np.zeros(self.BINS, dtype=np.int64)
        self.steps = 0
        self.rest = 0.0
        self.largest = 0.0

    def add(self, low: NDArray[np.int32], high: NDArray[np.int32]) -> None:
        """Add pixels that at least two tiles predicted: their smallest and largest quantised values."""
        steps = high.astype(np.int64) - low
        self.steps += int(steps.sum())  # integers, so that the mean does not depend on the order either
        self._count(steps * (self.span / QUANTUM))

    def add_differences(self, differences: NDArray[np.floating]) -> None:
        """Add absolute differences in output units; NaN is left out."""
        found = np.abs(differences[np.isfinite(differences)]).astype(np.float64)
        self.rest += float(found.sum())
        self._count(found)

    def _count(self, found: NDArray[np.floating]) -> None:
        found = found.ravel()
        if found.size:
            with np.errstate(divide="ignore"):
                octaves = np.floor(np.log2(found) * self.OCTAVE) + self.BINS // 2
            bins = octaves.clip(0, self.BINS - 1).astype(np.int64)
            self.counts += np.bincount(bins, minlength=self.BINS)
            self.largest = max(self.largest, float(found.max()))

    def as_plain(self) -> dict[str, Any]:
        """Return what was counted as plain data, for the ledger."""
        bins = {str(i): int(self.counts[i]) for i in np.flatnonzero(self.counts)}
        return {"steps": self.steps, "rest": self.rest, "max": self.largest, "bins": bins}

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add what another one counted (`as_plain`)."""
        self.steps += plain["steps"]
        self.rest += plain["rest"]
        self.largest = max(self.largest, plain["max"])
        for place, count in plain["bins"].items():
            self.counts[int(place)] += count

    @property
    def pixels(self) -> int:
        """Values that two or more tiles predicted."""
        return int(self.counts.sum())

    def summary(self) -> dict[str, float | int]:
        """Return mean, p99 (upper edge of its bin), max in output units, and the number of values."""
        pixels = self.pixels
        if not pixels:
            return {"mean": 0.0, "p99": 0.0, "max": 0.0, "pixels": 0}
        place = int(np.searchsorted(np.cumsum(self.counts), 0.99 * pixels))
        total = self.steps * (self.span / QUANTUM) + self.rest
        edge = 2.0 ** ((place + 1 - self.BINS // 2) / self.OCTAVE) if place else 0.0
        mean, p99, largest = (
            float(f"{v:.6g}") for v in (total / pixels, min(edge, self.largest), self.largest)
        )
        return {"mean": mean, "p99": p99, "max": largest, "pixels": pixels}


class Accumulator:
    """The fixed-point sums of one shard and of the margins that its tiles give beyond it.

    Parameters
    ----------
    shard
        The shard, in input pixels.
    shape
        ``(rows, columns)`` of the grid, in input pixels.
    tiling
        With ``taper > 0``.
    scale
        Output pixels per input pixel and axis.
    channels
        Channels of the forward's output.
    span
        Its declared range ``(low, high)``.
    """

    def __init__(
        self,
        shard: Shard,
        shape: tuple[int, int],
        tiling: Tiling,
        scale: int,
        channels: int,
        span: tuple[float, float],
    ) -> None:
        self.tiling, self.shape, self.scale, self.span = tiling, shape, scale, span
        own = shard.window
        reach = Window(
            own.row0,
            min(own.row1 + tiling.overlap, shape[0]),
            own.col0,
            min(own.col1 + tiling.overlap, shape[1]),
        )
        self.own, self.reach = own.times(scale), reach.times(scale)
        self.total = np.zeros((channels, *self.reach.shape), dtype=np.int32)
        self.weight = np.zeros(self.reach.shape, dtype=np.int32)
        self.low = np.full((channels, *self.reach.shape), QUANTUM, dtype=np.int32)
        self.high = np.zeros((channels, *self.reach.shape), dtype=np.int32)
        self.clipped = 0

    def add(
        self,
        tile: Tile,
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
        *,
        foreign: bool = False,
    ) -> None:
        """Add a tile's contribution.

        ``values`` is ``[C, rows, columns]`` and ``valid`` ``[rows, columns]`` (True = counts), both over
        ``tile.gives`` in output pixels. A ``foreign`` tile belongs to a neighbour whose margins did not travel
        (a lazy chunk, a resume): it counts on this shard's own pixels alone.
        """
        gives = tile.gives.times(self.scale)
        part = gives.overlap(self.own if foreign else self.reach)
        if part is None:
            return
        inner, at = part.slices(gives), part.slices(self.reach)
        values, valid = values[:, *inner], valid[inner]
        low, high = self.span
        scaled = (values.astype(np.float64) - low) / (high - low)
        finite = valid & np.isfinite(scaled).all(axis=0)
        self.clipped += int((((scaled < -1e-6) | (scaled > 1 + 1e-6)) & finite).sum())
        quantised = np.rint(np.where(finite, scaled, 0.0).clip(0, 1) * QUANTUM).astype(np.int32)
        rows, cols = (self._taper(tile, axis) for axis in (0, 1))
        weight = rows[inner[0], None] * cols[None, inner[1]] * finite
        self.weight[at] += weight
        self.total[:, *at] += quantised * weight
        self.low[:, *at] = np.where(finite, np.minimum(self.low[:, *at], quantised), self.low[:, *at])
        self.high[:, *at] = np.where(finite, np.maximum(self.high[:, *at], quantised), self.high[:, *at])

    def _taper(self, tile: Tile, axis: int) -> NDArray[np.int32]:
        tiling, s = self.tiling, self.scale
        length = (tile.gives.height, tile.gives.width)[axis] * s
        count = tiling.count(self.shape[axis])
        return ramp(tile.index[axis], count, length, tiling.core * s, tiling.overlap * s)

    def margins(self) -> list[Margins]:
        """Return what goes to the neighbours: the parts of the reach outside the shard's own pixels."""
        own, reach = self.own, self.reach
        spans_r = [(own.row0, own.row1), (own.row1, reach.row1)]
        spans_c = [(own.col0, own.col1), (own.col1, reach.col1)]
        parts = []
        for i, (r0, r1) in enumerate(spans_r):
            for j, (c0, c1) in enumerate(spans_c):
                if (i or j) and r1 > r0 and c1 > c0:
                    window = Window(r0, r1, c0, c1)
                    at = window.slices(reach)
                    parts.append(
                        Margins(
                            window,
                            self.total[:, *at].copy(),
                            self.weight[at].copy(),
                            self.low[:, *at].copy(),
                            self.high[:, *at].copy(),
                        )
                    )
        return parts

    def receive(self, margins: Margins) -> None:
        """Add the part of a neighbour's margins that falls on this shard's own pixels."""
        common = margins.window.overlap(self.own)
        if common is None:
            return
        here, there = common.slices(self.reach), common.slices(margins.window)
        self.total[:, *here] += margins.total[:, *there]
        self.weight[here] += margins.weight[there]
        np.minimum(self.low[:, *here], margins.low[:, *there], out=self.low[:, *here])
        np.maximum(self.high[:, *here], margins.high[:, *there], out=self.high[:, *here])

    def result(self, seam: Seam) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return ``(values [C, rows, columns] float32, valid [rows, columns])`` of the shard's own pixels.

        The spread of every pixel that several tiles predicted is added to ``seam``. A pixel on which no valid
        contribution fell is invalid and NaN.
        """
        at = self.own.slices(self.reach)
        weight, total = self.weight[at], self.total[:, *at]
        valid = weight > 0
        low, high = self.span
        share = total / (np.maximum(weight, 1).astype(np.float64) * QUANTUM)
        values = np.where(valid, low + share * (high - low), np.nan).astype(np.float32)
        several = self._shared(valid)
        if several.any():
            seam.add(self.low[:, *at][:, several], self.high[:, *at][:, several])
        return values, valid

    def _shared(self, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """True on valid pixels in the overlap of two or more tiles of the lattice."""

        def axis(start: int, stop: int, n: int) -> NDArray[np.bool_]:
            index = np.arange(start, stop)
            step, overlap = self.tiling.core * self.scale, self.tiling.overlap * self.scale
            k = index // step
            return (index % step < overlap) & (k > 0) & (k < self.tiling.count(n))

        rows = axis(self.own.row0, self.own.row1, self.shape[0])
        cols = axis(self.own.col0, self.own.col1, self.shape[1])
        shared: NDArray[np.bool_] = (rows[:, None] | cols[None, :]) & valid
        return shared


def check_blendable(name: str, span: tuple[float, float] | None) -> tuple[float, float]:
    """Return the range of output ``name``; raises `KernelError` where there is none to quantise by."""
    if span is None:
        raise KernelError(
            "an output without a range can not be blended",
            place=f"output {name}",
            remedy="give it a range, or stitch by cut",
        )
    return span
