"""Which tokens of a level are kept for a question, and which tiles of the next level they ask for.

The rules are those of the released model of LRS-VQA (https://arxiv.org/abs/2503.07588): the best quarter of the tokens
that are there, newlines among them, and every newline besides; the tiles of the next level that lie under what was
kept. A newline stands at the right edge of the map, so as released the whole right column of tiles is always loaded,
whatever is asked; `tiles_below` leaves newlines out where it is told to.

Tokens go by their place in the map, ``row * width + column`` with the newline as the last column, so that a level of
which a few tiles are known costs what those tiles cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .dynamic_pyramid import MAP_SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TILE_TOKENS", "TokenMap", "best_tiles", "best_tokens", "kept_tokens", "tiles_below"]

TILE_TOKENS = MAP_SIDE * MAP_SIDE
"""Tokens of a tile of a level."""

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenMap:
    """The tokens of one level: how many there could be, and which of them are there."""

    shape: tuple[int, int]
    """Rows and columns of image tokens; the newline of a row is one column further."""
    places: NDArray[np.int64]
    """``[n]``, ascending: the tokens that are there, newlines among them."""

    @classmethod
    def whole(cls, shape: tuple[int, int]) -> TokenMap:
        """Return the map of a level of which all tiles are known."""
        return cls(shape, np.arange(shape[0] * (shape[1] + 1)))

    @classmethod
    def of_tiles(cls, shape: tuple[int, int], tiles: list[Place], *, all_newlines: bool) -> TokenMap:
        """Return the map of a level of which some tiles are known.

        Parameters
        ----------
        shape
            Rows and columns of image tokens.
        tiles
            Rows and columns of the tiles.
        all_newlines
            True gives every row its newline, as released; False only rows in which a tile is known.
        """
        rows, cols = shape
        found = [np.arange(rows if all_newlines else 0) * (cols + 1) + cols]
        for down, right in tiles:
            r = np.arange(down * MAP_SIDE, min((down + 1) * MAP_SIDE, rows))[:, None]
            c = np.arange(right * MAP_SIDE, min((right + 1) * MAP_SIDE, cols))
            found += [(r * (cols + 1) + c).ravel(), (r * (cols + 1) + cols).ravel()]
        return cls(shape, np.unique(np.concatenate(found)).astype(np.int64))

    @property
    def width(self) -> int:
        """Columns with the newline."""
        return self.shape[1] + 1

    @property
    def size(self) -> int:
        """Tokens of the whole level."""
        return self.shape[0] * self.width

    @property
    def rows(self) -> NDArray[np.int64]:
        """``[n]``: row of each token."""
        return self.places // self.width

    @property
    def cols(self) -> NDArray[np.int64]:
        """``[n]``: column of each token."""
        return self.places % self.width

    @property
    def newline(self) -> NDArray[np.bool_]:
        """``[n]``: True where the token is the newline of its row."""
        last: NDArray[np.bool_] = self.cols == self.shape[1]
        return last

    def __len__(self) -> int:
        return len(self.places)


def best_tokens(score: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the indices of the ``count`` largest scores, ascending; of equal ones the first.

    >>> best_tokens(np.array([0.2, 0.5, 0.5, 0.1]), 2)
    array([1, 2])
    """
    return np.sort(np.argsort(-score, kind="stable")[:count])


def kept_tokens(tokens: TokenMap, score: NDArray[np.floating], share: float) -> NDArray[np.int64]:
    """Return which tokens of a map are kept, as ascending indices into its ``places``.

    Parameters
    ----------
    tokens
        What is there.
    score
        ``[n]``: relevance of each token that is there.
    share
        Of the tokens that are there, rounded down; 0.25 as released.
    """
    best = best_tokens(score, int(len(tokens) * share))
    return np.union1d(best, np.flatnonzero(tokens.newline))


def tiles_below(
    tokens: TokenMap, kept: NDArray[np.int64], tiles: tuple[int, int], *, newlines: bool
) -> list[Place]:
    """Return the tiles of the next level, as ascending (row, column), that lie under the kept tokens.

    A token goes to a tile by its share of the map's height, and of its width with the newline.

    Parameters
    ----------
    tokens
        The map of this level.
    kept
        Indices into its ``places``.
    tiles
        Rows and columns of tiles of the next level.
    newlines
        True lets newlines choose tiles too, as released.
    """
    chosen = kept if newlines else kept[~tokens.newline[kept]]
    rows = tokens.rows[chosen] * tiles[0] // max(tokens.shape[0], 1)
    cols = tokens.cols[chosen] * tiles[1] // tokens.width
    flat = np.unique(rows * tiles[1] + cols)
    return [(int(place) // tiles[1], int(place) % tiles[1]) for place in flat]


def best_tiles(
    tokens: TokenMap,
    kept: NDArray[np.int64],
    score: NDArray[np.floating],
    tiles: tuple[int, int],
    asked: list[Place],
) -> list[Place]:
    """Return the tiles ``asked`` for with the most relevant first: by the sum of the kept image tokens over each.

    A budget cuts this list; without one the order does not matter. Equal sums keep the order of ``asked``.
    """
    image = kept[~tokens.newline[kept]]
    rows = tokens.rows[image] * tiles[0] // max(tokens.shape[0], 1)
    cols = tokens.cols[image] * tiles[1] // tokens.width
    sums = dict.fromkeys(asked, 0.0)
    for row, col, value in zip(rows.tolist(), cols.tolist(), score[image].tolist(), strict=True):
        if (row, col) in sums:
            sums[row, col] += value
    return sorted(asked, key=lambda tile: -sums[tile])
