"""The dynamic image pyramid: into which views an image of any size is cut before a vision tower of 336 px sees it.

Levels have 1, 1/2, 1/4, ... of the image's size down to a long side of 1,008 px, then 1,008 px itself; the overview has
a long side of 336 px. Each level is stretched a little so that it fills whole tiles along one side at least. A tile is
576 tokens of 14 px; of a level's tiles 2 x 2 of them are averaged, so that a token there stands for 28 px of the level.

From "When Large Vision-Language Model Meets Large Remote Sensing Imagery" (Luo et al. 2025,
https://arxiv.org/abs/2503.07588) and the geometry of its official implementation, which it equals but for one case: an
image whose long side is exactly 336 px has no level there and cannot be asked. Here its only view serves twice, as
level and as overview, as it does for images a pixel smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from tilewright.errors import KernelError

__all__ = ["LONG_SIDE", "MAP_SIDE", "TILE", "TOKENS", "TOKEN_SIDE", "DynamicPyramid", "PyramidLevel"]

TILE = 336
"""Side of a tile in pixels: what the vision tower takes."""
TOKENS = 24
"""Tokens along the side of a tile."""
MAP_SIDE = 12
"""Tokens along the side of a tile of a level, after 2 x 2 were averaged."""
TOKEN_SIDE = TILE // MAP_SIDE
"""Pixels of a level along the side of such a token."""
LONG_SIDE = 1008
"""Long side of the coarsest level in pixels, before it is fitted to tiles."""


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """One view of the image, cut into tiles from the upper left; what the last ones lack is black."""

    image: tuple[int, int]
    """Rows and columns of the image."""
    size: tuple[int, int]
    """Rows and columns of the image in this view."""
    tiles: tuple[int, int]
    """Rows and columns of tiles."""

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of pixels with those that fill the last tiles."""
        return self.tiles[0] * TILE, self.tiles[1] * TILE

    @property
    def ratio(self) -> tuple[float, float]:
        """Pixels of this view for one of the image, along rows and columns."""
        return self.size[0] / self.image[0], self.size[1] / self.image[1]

    def token_shape(self, *, first: bool) -> tuple[int, int]:
        """Return rows and columns of the tokens that show the image, without the newlines.

        The map of all tiles is cut at the lower or right edge so that its aspect is that of the image. Where
        ``first``, the aspect is that of the image itself; else of `size`, which was rounded to pixels: for the same
        view both may differ by a token.
        """
        rows, cols = self.tiles[0] * MAP_SIDE, self.tiles[1] * MAP_SIDE
        height, width = self.image if first else self.size
        if width / height > cols / rows:
            return int(height * (cols / width)), cols
        return rows, int(width * (rows / height))

    def token_box(self, row: int, col: int) -> tuple[float, float, float, float]:
        """Return ``(col0, row0, col1, row1)`` of a token in pixels of the image, cut to the image."""
        down, right = self.ratio
        height, width = self.image
        return (
            min(col * TOKEN_SIDE / right, width),
            min(row * TOKEN_SIDE / down, height),
            min((col + 1) * TOKEN_SIDE / right, width),
            min((row + 1) * TOKEN_SIDE / down, height),
        )


@dataclass(frozen=True)
class DynamicPyramid:
    """All views of an image."""

    image: tuple[int, int]
    """Rows and columns of the image."""
    overview: PyramidLevel
    """The image in one tile."""
    levels: tuple[PyramidLevel, ...]
    """The others, coarse to fine. Two may have the same size."""

    @classmethod
    def of(cls, height: int, width: int) -> DynamicPyramid:
        """Return the pyramid of an image; raises `KernelError` for one without pixels."""
        if height < 1 or width < 1:
            raise KernelError(f"an image of {height} x {width} px", place="pyramid")
        ratios = _ratios(max(height, width))
        views = [_fitted((height, width), ratio) for ratio in ratios]
        *finer, overview = views
        return cls((height, width), overview, tuple(reversed(finer)) or (overview,))

    @cached_property
    def tile_counts(self) -> tuple[int, ...]:
        """Tiles of the overview and of each level."""
        return tuple(math.prod(view.tiles) for view in (self.overview, *self.levels))

    def below(self, level: int) -> int:
        """Return the next finer level, or the same where there is none: then it is looked at twice."""
        return min(level + 1, len(self.levels) - 1)


def _ratios(long_side: int) -> list[float]:
    """Sizes of the views, fine to coarse."""
    least = LONG_SIDE / long_side
    found, ratio = [1.0], 0.5
    while ratio >= least:
        found.append(ratio)
        ratio /= 2
    if found[-1] > least:
        found.append(least)
    found.append(TILE / long_side)
    return sorted(set(found), reverse=True)


def _fitted(image: tuple[int, int], ratio: float) -> PyramidLevel:
    """The view of a size, stretched until it fills its tiles along one side."""
    wanted = [max(1, round(side * ratio)) for side in image]
    tiles = [-(-side // TILE) for side in wanted]
    scale = min(count * TILE / side for count, side in zip(tiles, wanted, strict=True))
    rows, cols = (round(side * scale) for side in wanted)
    return PyramidLevel(image, (rows, cols), (tiles[0], tiles[1]))
