"""The seam of a cut without an exact radius: neighbours' predictions of the same pixel, compared where cores meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .grid import Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .grid import Tile
    from .job import Job
    from .stitch import Seam

__all__ = ["Edges"]


class Edges:
    """Strips of one pixel that tiles leave for the tiles that own them: to the right of a core, and below it.

    In row-major order those come later. Strips for tiles that never come (of another start) are forgotten.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._left: dict[tuple[int, int, str], list[tuple[Window, NDArray[np.float32]]]] = {}

    def compare(
        self,
        seam: Seam,
        tile: Tile,
        name: str,
        values: NDArray[np.float32],
        kept: Window,
        valid: NDArray[np.bool_],
    ) -> None:
        """Add to ``seam`` the first pixels of a core against what was left for it, and leave strips of its own.

        ``values`` ``[C, rows, columns]`` cover ``kept`` (input pixels), ``valid`` ``[rows, columns]`` the core;
        both in output pixels.
        """
        scale, (row, col) = self.job.kernel.spec.scale, tile.index
        gives, covers = tile.gives.times(scale), kept.times(scale)
        for strip, given in self._left.pop((row, col, name), []):
            if (common := strip.overlap(gives)) is not None:
                here = values[:, *common.slices(covers)]
                there = given[:, *common.slices(strip)]
                seam.add_differences((here - there)[:, valid[common.slices(gives)]])
        right = Window(gives.row0, gives.row1, gives.col1, gives.col1 + scale)
        below = Window(gives.row1, gives.row1 + scale, gives.col0, gives.col1)
        counts = [self.job.tiling.count(length) for length in self.job.grid.shape]
        for target, strip in (((row, col + 1), right), ((row + 1, col), below)):
            if covers.contains(strip) and target[0] < counts[0] and target[1] < counts[1]:
                copy = values[:, *strip.slices(covers)].copy()
                self._left.setdefault((*target, name), []).append((strip, copy))

    def forget(self, shard: tuple[int, int]) -> None:
        """Drop strips that wait for tiles of a shard that is finished."""
        per = self.job.tiling.shard // self.job.tiling.core
        self._left = {k: v for k, v in self._left.items() if (k[0] // per, k[1] // per) != shard}
