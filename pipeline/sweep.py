"""One reading of a finished result that serves everything made from it: digest, COGs, pyramid.

Level 0 is read once, in squares of at most 2,048 px. From a square follow its pixels at the next levels while
they are whole 512 px blocks; above that, four blocks make one. So the squares are visited along a Z-order curve
(Morton, 1966), and what is held does not grow with the raster: a square for each thread, and three blocks for
each level.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import Window
from .overviews import level_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .store import ResultStore

__all__ = ["BLOCK", "Consumer", "Piece", "square_side", "sweep"]

BLOCK = 512
"""Pixels a side of the smallest piece; a multiple of a COG's tiles and equal to the digest's."""
LARGEST_BLOCKS = 4
"""Blocks along the side of the largest square: 2,048 px, so that inner chunks of the Zarr are decoded about once."""
SQUARE_BYTES = 64 << 20
"""Bytes that a square of all layers may take; where a pixel has many bands, squares are smaller."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The pixels of all layers in one square of one level."""

    level: int
    """0 is the full resolution."""
    window: Window
    """Where, in the level's own pixels; starts at multiples of 512."""
    arrays: Mapping[str, NDArray[Any]]
    """Layer -> stored values ``[C, rows, columns]``, or ``[rows, columns]`` of one band."""


type Consumer = Callable[[Piece], None]
"""Takes a piece; called from several threads at a time, never twice for the same pixels."""


def square_side(pixel_bytes: int) -> int:
    """Return the side in pixels of the squares in which level 0 is read: 2,048, 1,024 or 512."""
    blocks = LARGEST_BLOCKS
    while blocks > 1 and (blocks * BLOCK) ** 2 * pixel_bytes > SQUARE_BYTES:
        blocks //= 2
    return blocks * BLOCK


def sweep(
    store: ResultStore,
    names: Sequence[str],
    consumers: Sequence[Consumer],
    *,
    levels: int | None = None,
    threads: int = 2,
) -> None:
    """Read level 0 of ``names`` once and show each consumer every piece of every level.

    Parameters
    ----------
    store
        A store whose shards are all written; its levels above 0 are not looked at.
    names
        Layers.
    consumers
        Called for each piece. The order differs from run to run where there are several threads.
    levels
        Levels, the full resolution included; all of the store's unless given.
    threads
        Squares that are worked on at a time.

    Raises
    ------
    StoreError
        If a layer cannot be read. What a consumer raises comes out as it is.
    """
    _Sweep(store, names, consumers, store.levels if levels is None else levels, threads).run()


class _Sweep:
    def __init__(
        self,
        store: ResultStore,
        names: Sequence[str],
        consumers: Sequence[Consumer],
        levels: int,
        threads: int,
    ) -> None:
        self.store, self.names, self.consumers, self.levels = store, names, consumers, levels
        self.threads = threads
        blocks = square_side(sum(store.pixel_bytes(name) for name in names)) // BLOCK
        self.own = blocks.bit_length() - 1
        """Levels above 0 that follow from a square alone."""
        self.waiting: deque[Future[dict[str, NDArray[Any]]]] = deque()

    def run(self) -> None:
        top = max(self.levels - 1, self.own)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="tilewright-sweep") as pool:
            squares = self._squares(top)
            try:
                self._submit(pool, squares, self.threads + 2)
                for i, j in self._children(top, None):
                    self._node(pool, squares, top, i, j)
            finally:
                for future in self.waiting:
                    future.cancel()

    def _submit(self, pool: ThreadPoolExecutor, squares: Iterator[tuple[int, int]], count: int) -> None:
        for _ in range(count):
            place = next(squares, None)
            if place is not None:
                self.waiting.append(pool.submit(self._square, *place))

    def _count(self, level: int) -> tuple[int, int]:
        rows, cols = level_shape(self.store.grid.shape, level)
        return -(-rows // BLOCK), -(-cols // BLOCK)

    def _children(self, level: int, parent: tuple[int, int] | None) -> list[tuple[int, int]]:
        """Return the blocks of ``level`` under a block of the level above it, or all of them, in row-major order."""
        down, across = self._count(level)
        if parent is None:
            return [(i, j) for i in range(down) for j in range(across)]
        rows, cols = ((2 * n, 2 * n + 1) for n in parent)
        return [(i, j) for i in rows if i < down for j in cols if j < across]

    def _squares(self, top: int) -> Iterator[tuple[int, int]]:
        """Yield the squares, as blocks of level ``own``, in the order in which `_node` asks for them."""

        def below(level: int, i: int, j: int) -> Iterator[tuple[int, int]]:
            if level == self.own:
                yield i, j
                return
            for child in self._children(level - 1, (i, j)):
                yield from below(level - 1, *child)

        for i, j in self._children(top, None):
            yield from below(top, i, j)

    def _node(
        self, pool: ThreadPoolExecutor, squares: Iterator[tuple[int, int]], level: int, i: int, j: int
    ) -> dict[str, NDArray[Any]]:
        """Return a block of ``level`` after everything below it has been shown."""
        if level == self.own:
            found = self.waiting.popleft().result()
            self._submit(pool, squares, 1)
            return found
        rows: dict[int, list[dict[str, NDArray[Any]]]] = {}
        for child in self._children(level - 1, (i, j)):
            rows.setdefault(child[0], []).append(self._node(pool, squares, level - 1, *child))
        arrays = {}
        for name in self.names:
            strips = [np.concatenate([block[name] for block in row], axis=-1) for row in rows.values()]
            arrays[name] = self.store.halved(name, np.concatenate(strips, axis=-2))
        self._show(level, i, j, BLOCK, arrays)
        return arrays

    def _square(self, i: int, j: int) -> dict[str, NDArray[Any]]:
        """Read one square, show it at the levels that follow from it, and return it at the last of them."""
        side = BLOCK << self.own
        rows, cols = self.store.grid.shape
        window = Window(i * side, min((i + 1) * side, rows), j * side, min((j + 1) * side, cols))
        arrays = {name: self.store.read(name, window) for name in self.names}
        self._show(0, i, j, side, arrays)
        for level in range(1, min(self.own + 1, self.levels)):
            arrays = {name: self.store.halved(name, values) for name, values in arrays.items()}
            self._show(level, i, j, side >> level, arrays)
        return arrays

    def _show(self, level: int, i: int, j: int, side: int, arrays: dict[str, NDArray[Any]]) -> None:
        rows, cols = level_shape(self.store.grid.shape, level)
        window = Window(i * side, min((i + 1) * side, rows), j * side, min((j + 1) * side, cols))
        for consume in self.consumers:
            consume(Piece(level, window, arrays))
