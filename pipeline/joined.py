"""Connected areas of a raster that is read block by block: pieces that meet at a block's edge become one.

An area is a set of pixels of one kind that share edges (4-connected). Within a block it is found by
`scipy.ndimage.label`; areas of neighbouring blocks are one where pixels of the same kind face each other over the
edge. So nothing is cut at the edge of a tile, a shard or a block, and the answer does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .warp import through

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

    from .grid import Window

__all__ = ["Joined", "Joiner"]


@dataclass(slots=True)
class Joined:
    """One connected area."""

    kind: int
    """Of its pixels; above 0."""
    pixels: int
    """How many they are."""
    sums: dict[str, float]
    """Of the weights that were given with them."""
    pieces: list[BaseGeometry] = field(default_factory=list)
    """Polygons in (column, row) of the raster, one a block."""

    @property
    def geometry(self) -> BaseGeometry:
        """The whole area along pixel edges, in (column, row) of the raster."""
        import shapely

        whole = self.pieces[0] if len(self.pieces) == 1 else shapely.union_all(self.pieces)
        return shapely.normalize(whole)

    def placed(self, box: GeoBox) -> BaseGeometry:
        """Return the area in the CRS of a grid."""
        import shapely

        return shapely.transform(self.geometry, lambda x, y: through(box.affine, x, y), interleaved=False)

    def absorb(self, other: Joined) -> None:
        """Take the other's pixels."""
        self.pixels += other.pixels
        self.sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        self.pieces += other.pieces


class Joiner:
    """Takes blocks row by row, each row from left to right with blocks of one height, and joins their areas.

    Between blocks it holds the areas, and the numbers of the pixels along one row of the raster.
    """

    def __init__(self, width: int) -> None:
        self._above = np.zeros(width, np.int64)
        self._left: NDArray[np.int64] | None = None
        self._areas: list[Joined] = []
        self._parents: list[int] = []

    def add(
        self, window: Window, kinds: NDArray[np.integer[Any]], weights: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Add a block.

        Parameters
        ----------
        window
            Where it is.
        kinds
            ``[rows, columns]``; 0 for pixels that are in no area.
        weights
            Name -> ``[rows, columns]``, summed over each area; every block has the same names.
        """
        numbers = self._label(window, kinds, weights)
        if window.col0 == 0:
            self._left = None
        if self._left is not None:
            self._meet(self._left, numbers[:, 0])
        self._meet(self._above[window.col0 : window.col1], numbers[0])
        self._above[window.col0 : window.col1] = numbers[-1]
        self._left = numbers[:, -1]

    def finish(self) -> list[Joined]:
        """Return the areas, in the order of their first block."""
        for i, area in enumerate(self._areas):
            if (root := self._root(i)) != i:
                self._areas[root].absorb(area)
        return [area for i, area in enumerate(self._areas) if self._parents[i] == i]

    def _label(
        self, window: Window, kinds: NDArray[np.integer[Any]], weights: Mapping[str, NDArray[np.float64]]
    ) -> NDArray[np.int64]:
        """Return the number of each pixel's area, 1 and more, and note the areas."""
        from affine import Affine
        from rasterio.features import shapes
        from scipy.ndimage import label
        from shapely.geometry import shape

        found = np.zeros(kinds.shape, np.int32)
        of_number: list[int] = []
        for kind in np.unique(kinds[kinds > 0]).tolist():
            numbers, count = label(kinds == kind)
            found = np.where(numbers > 0, numbers + len(of_number), found)
            of_number += [kind] * count
        first = len(self._areas)
        pixels = np.bincount(found.ravel(), minlength=len(of_number) + 1)
        sums = {
            name: np.bincount(found.ravel(), weights=w.ravel(), minlength=len(of_number) + 1)
            for name, w in weights.items()
        }
        for i, kind in enumerate(of_number, 1):
            self._areas.append(Joined(kind, int(pixels[i]), {n: float(s[i]) for n, s in sums.items()}))
            self._parents.append(first + i - 1)
        at = Affine.translation(window.col0, window.row0)
        for polygon, number in shapes(found, mask=found > 0, connectivity=4, transform=at):
            self._areas[first + int(number) - 1].pieces.append(shape(polygon))
        return np.where(found > 0, found.astype(np.int64) + first, 0)

    def _meet(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Join the areas whose pixels face each other, where they are of one kind."""
        for a, b in self._pairs(one, other):
            i, j = self._root(a), self._root(b)
            if i != j and self._areas[i].kind == self._areas[j].kind:
                self._parents[max(i, j)] = min(i, j)

    @staticmethod
    def _pairs(one: NDArray[np.int64], other: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        both = np.stack([one, other], axis=1)[(one > 0) & (other > 0)]
        for a, b in np.unique(both, axis=0).tolist():
            yield a - 1, b - 1

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i
