"""Tiles of the dynamic pyramid from windows of a scene's stored levels, so that no level is ever held whole.

The official preparation shrinks the whole image to each level by bilinear interpolation without antialiasing: an
output pixel is a mean of the four image pixels nearest to its centre, however small the level is. `TileReader` does the
same arithmetic in the frame of the image and asks only for the pixels that it touches. It takes them from the coarsest
stored level that is at least as fine as the view: where only the full resolution is stored the official pixels come
out, but for rounding; from overviews, which were averaged when they were made, come smoother ones.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..ask import Request, Scene, View
from .dynamic_pyramid import TILE, PyramidLevel

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PixelTile", "Taps", "TileReader"]

Reading = Generator[list[Request], list[View], "list[PixelTile]"]

MOST_PIXELS = 2**23
"""Pixels of a scene that are asked for at a time: 24 MiB of three bands of 8 bits."""


@dataclass(frozen=True, slots=True)
class PixelTile:
    """A tile of a view."""

    pixels: NDArray[np.float32]
    """``[C, TILE, TILE]`` in the values of the scene; zero beyond the image."""
    weight: NDArray[np.float32]
    """``[TILE, TILE]``: the part of each pixel that was measured; zero beyond the image."""
    shape: tuple[int, int]
    """Rows and columns that lie on the image."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis: the two source pixels of each output pixel, and how much the second counts."""

    low: NDArray[np.int64]
    """``[n]``: the one before its centre."""
    high: NDArray[np.int64]
    """``[n]``: the next one, or the same at the edge."""
    weight: NDArray[np.float32]
    """``[n]``: how much ``high`` counts, 0 to 1."""

    @classmethod
    def of(cls, first: int, count: int, step: float, size: int) -> Taps:
        """Return the taps of ``count`` output pixels of ``step`` source pixels each, as torch has them in float32."""
        centre = np.float32(step) * (np.arange(first, first + count, dtype=np.float32) + np.float32(0.5))
        at = np.maximum(centre - np.float32(0.5), np.float32(0))
        low = np.minimum(at.astype(np.int64), size - 1)
        weight = np.clip(at - low.astype(np.float32), 0, 1).astype(np.float32)
        return cls(low, np.minimum(low + 1, size - 1), weight)

    @property
    def span(self) -> tuple[int, int]:
        """First and end of the source pixels."""
        return int(self.low[0]), int(self.high[-1]) + 1

    def part(self, begin: int, end: int) -> Taps:
        """Return those of some output pixels."""
        return Taps(self.low[begin:end], self.high[begin:end], self.weight[begin:end])


@dataclass(frozen=True, slots=True)
class _Strip:
    """Rows of a tile that one request gives."""

    tile: int
    row: int
    rows: Taps
    cols: Taps
    request: Request


@dataclass(frozen=True)
class TileReader:
    """Reads tiles of one view of a scene."""

    scene: Scene
    """What is asked."""
    level: PyramidLevel
    """The view."""
    most: int = MOST_PIXELS
    """Pixels of the scene that are asked for at a time."""
    stored: int = field(init=False)
    """Number of the scene's level that is read."""

    def __post_init__(self) -> None:
        finest = min(1 / ratio for ratio in self.level.ratio)
        object.__setattr__(self, "stored", self.scene.level_for(max(finest, 1.0)))

    def read(self, tiles: Sequence[tuple[int, int]]) -> Reading:
        """Ask for tiles by (row, column), and return them in that order.

        A generator in the manner of a policy: it yields lists of requests of at most `most` pixels (or of one row of
        output) and is sent their views.
        """
        taps = [self._taps(*tile) for tile in tiles]
        made: list[PixelTile | None] = [None] * len(tiles)
        for group in _grouped(self._strips(taps), self.most):
            views = yield [strip.request for strip in group]
            for strip, view in zip(group, views, strict=True):
                made[strip.tile] = _filled(made[strip.tile], taps[strip.tile], strip, view)
        return [tile for tile in made if tile is not None]

    def cost(self, tile: tuple[int, int]) -> int:
        """Return how many pixels of the scene a tile takes."""
        return sum(
            strip.request.shape[0] * strip.request.shape[1] for strip in self._strips([self._taps(*tile)])
        )

    def _taps(self, row: int, col: int) -> tuple[Taps, Taps]:
        made = []
        for axis, index in enumerate((row, col)):
            stored = self.scene.levels[self.stored]
            factor = 1.0 if self.stored == 0 else stored.factor
            step = self.scene.shape[axis] / self.level.size[axis] / factor
            count = min(TILE, self.level.size[axis] - index * TILE)
            made.append(Taps.of(index * TILE, count, step, stored.shape[axis]))
        return made[0], made[1]

    def _strips(self, taps: Iterable[tuple[Taps, Taps]]) -> Generator[_Strip, None, None]:
        for number, (rows, cols) in enumerate(taps):
            col0, col1 = cols.span
            begin = 0
            while begin < len(rows.low):
                allowed = max(self.most // (col1 - col0), 1)
                end = int(np.searchsorted(rows.high, rows.low[begin] + allowed, side="left"))
                part = rows.part(begin, max(end, begin + 1))
                row0, row1 = part.span
                yield _Strip(number, begin, part, cols, Request(self.stored, row0, col0, row1, col1))
                begin += len(part.low)


def _grouped(strips: Iterable[_Strip], most: int) -> Generator[list[_Strip], None, None]:
    group: list[_Strip] = []
    held = 0
    for strip in strips:
        size = strip.request.shape[0] * strip.request.shape[1]
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(strip)
        held += size
    if group:
        yield group


def _filled(tile: PixelTile | None, taps: tuple[Taps, Taps], strip: _Strip, view: View) -> PixelTile:
    """Interpolate the pixels of a view into the rows of a tile."""
    if tile is None:
        shape = len(taps[0].low), len(taps[1].low)
        pixels = np.zeros((view.pixels.shape[0], TILE, TILE), np.float32)
        tile = PixelTile(pixels, np.zeros((TILE, TILE), np.float32), shape)
    place = slice(strip.row, strip.row + len(strip.rows.low)), slice(tile.shape[1])
    values, weight = _interpolated(view, strip)
    tile.pixels[:, *place], tile.weight[place] = values, weight
    return tile


def _interpolated(view: View, strip: _Strip) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values ``[C, rows, columns]``, means of what was measured, and how much of each pixel was."""
    lines, known = [], []
    rows, cols = strip.rows, strip.cols
    for row in (rows.low, rows.high):
        for col in (cols.low, cols.high):
            window = np.ix_(row - strip.request.row0, col - strip.request.col0)
            valid = view.valid[window]
            lines.append(np.where(valid, view.pixels[:, *window], 0).astype(np.float32))
            known.append(valid.astype(np.float32))
    values, weight = _mixed(lines, strip), _mixed(known, strip)
    if view.valid.all():
        return values, weight
    return np.divide(values, weight, out=np.zeros_like(values), where=weight > 0), weight


def _mixed(corners: list[NDArray[np.float32]], strip: _Strip) -> NDArray[np.float32]:
    """Interpolate between the pixels above left, above right, below left and below right."""
    down, right = strip.rows.weight[:, None], strip.cols.weight
    upper = corners[0] * (1 - right) + corners[1] * right
    lower = corners[2] * (1 - right) + corners[3] * right
    return (upper * (1 - down) + lower * down).astype(np.float32, copy=False)
