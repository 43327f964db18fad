"""Change mapped coarse to fine: one coarse level whole, then the places that changed there, as fine as is allowed.

The second look reads cells of one finer level, those in which the coarse map has change and their neighbours, and
follows places that run on. A kernel that fits its line to the scene is fitted again on that level, to a sample in which
the cells have the share of the ground that they have in the scene: what was read because it changed is no fair sample.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation, label

from tilewright.kernels.ask import BudgetSpentError, Request

from .change_map import spread_of, stratified
from .change_places import Piece, area_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Scene, View

    from .change_map import Changed, ChangeMap

__all__ = ["Survey", "Surveyor"]

CELL = 512
"""Side of the pieces of the second look, in pixels of its level: a block of most COGs."""
STRIP = 4_000_000
"""Pixels that are asked for at a time."""
_SAMPLE = 1_000_000
"""Most pixels of a sample of the second look."""
_ORDINARY = 32
"""Windows of ordinary ground that stand for the rest of the scene in that sample."""
_ORDINARY_SIDE = 128
_GOLDEN = 0.6180339887498949
_ROUNDS = 4
"""Times that the second look grows by the cells into which places run on."""


@dataclass(frozen=True)
class Survey:
    """What was mapped."""

    pieces: tuple[Piece, ...]
    """The map, all of one level."""
    level: int
    """That level."""
    scanned: int
    """The level that was mapped whole."""
    looked: float
    """What was compared, in square metres; in pixels of `level` where the scene does not know their size."""
    bar: float
    """Strength that a pixel must have to count."""
    spent: bool = False
    """True where the budget ended the second look."""
    beyond: int = 0
    """Cells into which places run on that were not read, by the limits of the second look or the budget."""


@dataclass(frozen=True)
class Surveyor:
    """Maps the change of one scene."""

    scene: Scene
    """What is asked."""
    tool: ChangeMap
    """Maps the change of a window."""
    scan: int
    """Most pixels of the level that is mapped whole."""
    fine: int
    """Most pixels of the second look."""
    least: float
    """See `ChangeTalk`."""
    smallest: int = 1
    """Pixels of a place that counts."""

    def survey(self) -> Generator[list[Request], list[View], Survey]:
        """Map a coarse level whole, then what changed there on a finer one; use with ``yield from`` in a policy.

        Where the budget is too small for the scan a coarser level is scanned, and where it ends the second look the
        scan is the answer. Raises `BudgetSpentError` where not even the coarsest level can be read.
        """
        level, pixels, valid = yield from self._scanned()
        sample = self.tool.samples(pixels, valid, min(1.0, _SAMPLE / max(1, int(valid.sum()))))
        if not len(sample):
            return Survey((), level, level, 0.0, -np.inf)
        window = Request(level, 0, 0, *valid.shape)
        areas = area_of(self.scene, window)
        looked = float(areas[valid].sum()) if areas is not None else float(valid.sum())
        if self.tool.same(pixels, valid):
            return Survey((), level, level, looked, -np.inf)
        self.tool.fit(sample)
        found = self.tool(pixels, valid, level=level)
        bar = self._bar(found.strength)
        piece = _piece(window, found, bar)
        scan = Survey((piece,), level, level, looked, bar)
        near = binary_dilation(piece.change, np.ones((3, 3), bool))
        finer, cells = self._cells(level, near)
        if finer == level or not cells:
            return scan
        zoom = self.scene.levels[level].factor / self.scene.levels[finer].factor
        threshold = self.tool.statistics
        try:
            pieces, bar, beyond = yield from self._closer(finer, cells, float(valid.sum()) * zoom**2)
        except BudgetSpentError:
            self.tool.statistics = threshold
            return replace(scan, spent=True)
        if areas is None:
            looked *= zoom**2
        return Survey(pieces, finer, level, looked, bar, beyond=beyond)

    def _scanned(
        self,
    ) -> Generator[list[Request], list[View], tuple[int, NDArray[Any], NDArray[np.bool_]]]:
        """Read the finest level that is small enough, whole; a coarser one where the budget is too small for it."""
        levels = self.scene.levels
        small = [n for n, one in enumerate(levels) if one.shape[0] * one.shape[1] <= self.scan]
        for level in small or [self.scene.coarsest]:
            try:
                return level, *(yield from _whole(self.scene, level))
            except BudgetSpentError:
                if level == self.scene.coarsest:
                    raise
        raise AssertionError

    def _bar(self, strength: NDArray[np.float32]) -> float:
        if not self.tool.fits:
            return -np.inf
        middle, spread = spread_of(strength)
        return middle + self.least * spread

    def _cells(self, coarse: int, near: NDArray[np.bool_]) -> tuple[int, set[tuple[int, int]]]:
        """Return the finest level on which few enough cells hold what is ``near`` change, and these cells."""
        for level in range(coarse):
            zoom = self.scene.levels[coarse].factor / self.scene.levels[level].factor
            if near.sum() * zoom**2 > self.fine:
                continue
            cells = _cells_of(near, zoom, self.scene.levels[level].shape)
            if len(cells) * CELL**2 <= self.fine:
                return level, cells
        return coarse, set()

    def _closer(
        self, level: int, cells: set[tuple[int, int]], total: float
    ) -> Generator[list[Request], list[View], tuple[tuple[Piece, ...], float, int]]:
        """Map cells of a level; return their pieces, the strength from which a pixel counts, and `Survey.beyond`.

        ``total`` is how many pixels of that level were measured in the whole scene.
        """
        views = yield from self._read(level, sorted(cells))
        ordinary: list[View] = []
        share = 1.0
        if self.tool.fits:
            ordinary = yield from self._ordinary(level, cells)
            count = sum(int(one.valid.sum()) for one in views.values())
            drawn = min(1.0, _SAMPLE / max(1, count))
            inside = np.concatenate(
                [self.tool.samples(one.pixels, one.valid, drawn) for one in views.values()]
            )
            rest = [inside[:0], *(self.tool.samples(one.pixels, one.valid) for one in ordinary)]
            share = min(1.0, count / total) if sum(map(len, rest)) else 1.0
            self.tool.fit(stratified(inside, np.concatenate(rest), share, _SAMPLE))
        mapped = {cell: self._mapped(level, cell, view) for cell, view in views.items()}
        bar = -np.inf
        if self.tool.fits:
            strong = np.concatenate([one.strength[np.isfinite(one.strength)] for one in mapped.values()])
            usual = [self.tool(one.pixels, one.valid).strength[one.valid] for one in ordinary]
            bar = self._bar(stratified(strong, np.concatenate([strong[:0], *usual]), share, _SAMPLE))
        pieces = {cell: _piece(self._core(level, cell), found, bar) for cell, found in mapped.items()}
        shape = self.scene.levels[level].shape
        more = _running_on(shape, pieces, self.smallest)
        for _ in range(_ROUNDS):
            if not more or (len(pieces) + len(more)) * CELL**2 > self.fine:
                break
            try:
                views = yield from self._read(level, sorted(more))
            except BudgetSpentError:
                break
            for cell, view in views.items():
                pieces[cell] = _piece(self._core(level, cell), self._mapped(level, cell, view), bar)
            more = _running_on(shape, pieces, self.smallest)
        return tuple(pieces.values()), bar, len(more)

    def _ordinary(
        self, level: int, cells: set[tuple[int, int]]
    ) -> Generator[list[Request], list[View], list[View]]:
        """Read small windows spread over the rest of the scene, the same ones each time."""
        shape = self.scene.levels[level].shape
        wanted = []
        for n in range(_ORDINARY):
            shares = (n + 0.5) / _ORDINARY, (n * _GOLDEN + 0.5) % 1.0
            row, col = (
                max(0, min(int(share * length) - _ORDINARY_SIDE // 2, length - _ORDINARY_SIDE))
                for share, length in zip(shares, shape, strict=True)
            )
            end = min(row + _ORDINARY_SIDE, shape[0]), min(col + _ORDINARY_SIDE, shape[1])
            touched = {(r // CELL, c // CELL) for r in (row, end[0] - 1) for c in (col, end[1] - 1)}
            if not touched & cells:
                wanted.append(Request(level, row, col, *end))
        return (yield wanted) if wanted else []

    def _core(self, level: int, cell: tuple[int, int]) -> Request:
        """Return the window of a cell."""
        rows, cols = self.scene.levels[level].shape
        row, col = cell[0] * CELL, cell[1] * CELL
        return Request(level, row, col, min(row + CELL, rows), min(col + CELL, cols))

    def _read(
        self, level: int, cells: Sequence[tuple[int, int]]
    ) -> Generator[list[Request], list[View], dict[tuple[int, int], View]]:
        """Read cells with a halo of real neighbours, some at a time."""
        halo = self.tool.halo
        rows, cols = self.scene.levels[level].shape
        each = max(1, STRIP // (CELL + 2 * halo) ** 2)
        views: dict[tuple[int, int], View] = {}
        for n in range(0, len(cells), each):
            part = cells[n : n + each]
            cores = [self._core(level, cell) for cell in part]
            wanted = [
                Request(
                    level,
                    max(0, core.row0 - halo),
                    max(0, core.col0 - halo),
                    min(rows, core.row1 + halo),
                    min(cols, core.col1 + halo),
                )
                for core in cores
            ]
            views.update(zip(part, (yield wanted), strict=True))
        return views

    def _mapped(self, level: int, cell: tuple[int, int], view: View) -> Changed:
        """Return the change of a cell, without its halo."""
        core, read = self._core(level, cell), view.request
        found = self.tool(view.pixels, view.valid, level=level, at=(read.row0, read.col0))
        return found.part(
            slice(core.row0 - read.row0, core.row1 - read.row0),
            slice(core.col0 - read.col0, core.col1 - read.col0),
        )


def _whole(
    scene: Scene, level: int
) -> Generator[list[Request], list[View], tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Read a level in strips, and return its pixels and what of it is valid."""
    rows, cols = scene.levels[level].shape
    each = max(1, STRIP // cols)
    pixels, valid = [], []
    for row in range(0, rows, each):
        (view,) = yield [Request(level, row, 0, min(row + each, rows), cols)]
        pixels.append(view.pixels)
        valid.append(view.valid)
    return np.concatenate(pixels, axis=1), np.concatenate(valid)


def _piece(window: Request, found: Changed, bar: float) -> Piece:
    strong = found.change & (np.nan_to_num(found.strength, nan=-np.inf) >= bar)
    return Piece(window, strong, found.strength, found.kinds)


def _cells_of(flagged: NDArray[np.bool_], zoom: float, shape: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the cells of a level of ``shape`` that hold flagged pixels, each ``zoom`` of its pixels wide."""
    at = np.argwhere(flagged)
    most = np.array([-(-length // CELL) - 1 for length in shape])
    first = np.minimum(np.floor(at * zoom / CELL).astype(np.int64), most)
    last = np.minimum(np.ceil((at + 1) * zoom / CELL).astype(np.int64) - 1, most)
    spans = np.unique(np.concatenate([first, last], axis=1), axis=0).tolist()
    return {
        (row, col)
        for row0, col0, row1, col1 in spans
        for row in range(row0, row1 + 1)
        for col in range(col0, col1 + 1)
    }


def _running_on(
    shape: tuple[int, int], pieces: Mapping[tuple[int, int], Piece], smallest: int
) -> set[tuple[int, int]]:
    """Return the cells of a level, not read yet, into which places run on.

    A place that is cut into four has at least a quarter of its pixels in one of them: less than that of the
    ``smallest`` place is noise at an edge.
    """
    limits = [-(-length // CELL) for length in shape]
    found = set()
    for (row, col), piece in pieces.items():
        numbers, _ = label(piece.change)
        large = np.bincount(numbers.ravel()) >= -(-smallest // 4)
        large[0] = False
        edges = {
            (row - 1, col): numbers[0],
            (row + 1, col): numbers[-1],
            (row, col - 1): numbers[:, 0],
            (row, col + 1): numbers[:, -1],
        }
        found |= {
            (r, c)
            for (r, c), edge in edges.items()
            if large[edge].any() and 0 <= r < limits[0] and 0 <= c < limits[1] and (r, c) not in pieces
        }
    return found
