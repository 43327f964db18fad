"""How a raster lies on a grid, and the lattice of blocks on which it is warped.

GDAL's warp depends on the rectangle that it is asked for: the approximate transformer interpolates between the
ends of each rectangle's rows, and XSCALE / YSCALE are estimated for each rectangle
(https://gdal.org/en/stable/api/gdalwarp_cpp.html). So a raster is warped in blocks whose places follow from
the grid alone, each always whole, with one scale for the whole raster: the same pixel has the same bits in
every window, chunk and shard. Only where a row begins and ends matters for its coordinates, so blocks below each
other are warped in one call (`unit_boxes`). ``docs/reprojection.md`` has the numbers.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import ReadError

from .grid import Grid, Window
from .outlines import points_inside

if TYPE_CHECKING:
    import pyproj
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "BLOCK",
    "TOLERANCE",
    "WARP_OPTIONS",
    "BlockCache",
    "Placement",
    "blocks_of",
    "place",
    "runs_of",
    "source_window",
    "through",
    "transformer",
    "unit_boxes",
]

BLOCK = 256
"""Side of a block of the lattice in grid pixels. Blocks of 512 take about a third less time a pixel, but a read
window of 2,048 px and its halo then touches 3,072 squared pixels instead of 2,560 squared."""
TOLERANCE = 1e-4
"""Largest error of GDAL's approximate transformer in source pixels. Measured between UTM zones: at most 6e-5 px, in
a quarter to a half of the exact transformer's time."""
WARP_OPTIONS = {"SRC_FILL_RATIO_HEURISTICS": "FALSE", "warp_mem_limit": 1024}
"""What keeps GDAL from cutting the rows of a call in two, which it does by the share of its source pixels that exist,
and by memory (in MB; a call needs less than 300)."""
_WHOLE = 1e-3
"""Pixels by which two grids may drift apart and still be called shifted by whole pixels."""
_SOURCE_SIDE = 4096
"""Source pixels a side that one call may need; where a block would need more, the lattice is finer."""
_RUN = 4
"""Most blocks below each other that one call of GDAL warps: one by one they took half as long again."""
_KERNEL = 3
"""Source pixels on each side that the widest resampling (Lanczos) looks at, times the shrinking."""
_EDGE_POINTS = 21
_ASKED_SIDE = 128
"""Side of the squares in which a window is compared with an outline."""


@dataclass(frozen=True)
class Placement:
    """A raster on a grid: read as it is, or warped, and which grid pixels it can touch at all."""

    raster: GeoBox
    """The raster's own grid."""
    shift: tuple[int, int] | None
    """``(rows, columns)`` to add to a grid pixel to get the raster's, where they agree up to whole pixels; else
    None: the raster must be warped."""
    scale: tuple[float, float]
    """Grid pixels per raster pixel ``(x, y)``, at most 1: GDAL's XSCALE and YSCALE, so that a coarser grid
    takes all pixels under a target pixel into account, by the same support everywhere."""
    block: int
    """Side of the lattice's blocks in grid pixels."""
    run: int
    """Most blocks below each other that are warped in one call."""
    footprint: BaseGeometry | None
    """The raster's ground in grid pixels (x = column, y = row); None where it has no finite outline there."""

    def touches(self, window: Window) -> bool:
        """True where ``window`` may hold pixels of the raster."""
        if self.footprint is None:
            return True
        x0, y0, x1, y1 = self.footprint.bounds
        return bool(window.col0 < x1 and window.col1 > x0 and window.row0 < y1 and window.row1 > y0)

    def covers(self, window: Window) -> NDArray[np.bool_]:
        """Return ``[rows, columns]`` of bool: True where the centre of the pixel lies on the raster."""
        if self.shift is None:
            return centres_inside(self.footprint, window)
        found = np.zeros(window.shape, bool)
        rows, cols = (int(n) for n in self.raster.shape)
        own = Window(-self.shift[0], rows - self.shift[0], -self.shift[1], cols - self.shift[1])
        if (common := own.overlap(window)) is not None:
            found[common.slices(window)] = True
        return found


def centres_inside(outline: BaseGeometry | None, window: Window) -> NDArray[np.bool_]:
    """Return ``[rows, columns]``: True where a pixel's centre is inside ``outline`` (in pixels); None is all.

    Asked square by square: a whole square is inside or outside by one question, and only those on the outline
    are asked pixel by pixel. (Pixel by pixel a window took 200 ns a pixel, more than to decode it.)
    """
    import shapely

    if outline is None:
        return np.ones(window.shape, bool)
    found = np.empty(window.shape, bool)
    for part in blocks_of(window, _ASKED_SIDE):
        common = part.overlap(window)
        assert common is not None
        x = np.arange(common.col0, common.col1) + 0.5
        y = np.arange(common.row0, common.row1) + 0.5
        box = shapely.box(common.col0, common.row0, common.col1, common.row1)
        found[common.slices(window)] = points_inside(outline, box, x[None, :], y[:, None])
    return found


def place(raster: GeoBox, grid: Grid) -> Placement:
    """Return how ``raster`` lies on ``grid``."""
    shift = _whole_shift(raster, grid)
    outline = _outline(raster, grid)
    scale = (1.0, 1.0) if shift is not None else _scale(raster, grid, outline)
    shrink = 1 / min(scale)
    block = BLOCK
    while block > 16 and block * shrink > _SOURCE_SIDE:
        block //= 2
    run = max(1, min(_RUN, int(_SOURCE_SIDE / (block * shrink))))
    return Placement(raster, shift, scale, block, run, outline)


def _whole_shift(raster: GeoBox, grid: Grid) -> tuple[int, int] | None:
    if raster.crs != grid.geobox.crs:
        return None
    to_raster = ~raster.affine * grid.geobox.affine
    col0, row0 = to_raster * (0.0, 0.0)
    shift = (round(row0), round(col0))
    rows, cols = (max(a, int(b)) for a, b in zip(grid.shape, raster.shape, strict=True))
    for col, row in ((0, 0), (cols, 0), (0, rows), (cols, rows)):
        x, y = to_raster * (col, row)
        if abs(x - col - shift[1]) > _WHOLE or abs(y - row - shift[0]) > _WHOLE:
            return None
    return shift


@lru_cache(maxsize=256)
def transformer(source: str, target: str) -> pyproj.Transformer:
    """Return the transformer between two CRS, x before y; pyproj keeps one context a thread."""
    import pyproj

    return pyproj.Transformer.from_crs(source, target, always_xy=True)


def through(affine: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return the image of points, numbers or arrays, under an affine."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def _moved(points: NDArray[np.float64], source: GeoBox, target: GeoBox) -> NDArray[np.float64]:
    """Return pixel coordinates ``[n, 2]`` (x, y) of ``source`` as those of ``target``."""
    x, y = through(source.affine, points[:, 0], points[:, 1])
    if source.crs != target.crs:
        x, y = transformer(str(source.crs), str(target.crs)).transform(x, y)
    return np.column_stack(through(~target.affine, np.asarray(x), np.asarray(y)))


def _outline(raster: GeoBox, grid: Grid) -> BaseGeometry | None:
    import shapely

    rows, cols = (int(n) for n in raster.shape)
    ring = shapely.segmentize(shapely.box(0, 0, cols, rows), max(rows, cols) / 64)
    moved = shapely.transform(ring, lambda points: _moved(points, raster, grid.geobox))
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        return None
    return moved if moved.is_valid and moved.area > 0 else None


def _scale(raster: GeoBox, grid: Grid, outline: BaseGeometry | None) -> tuple[float, float]:
    """Return the scale where raster and grid meet, from the lengths of a grid pixel's sides on the raster."""
    import shapely

    rows, cols = grid.shape
    centre = (cols / 2, rows / 2)
    if outline is not None:
        common = outline.intersection(shapely.box(0, 0, cols, rows))
        if common.is_empty:
            common = outline
        centre = (common.centroid.x, common.centroid.y)
    steps = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]]) + centre
    left, right, top, bottom = _moved(steps, grid.geobox, raster)
    # Where axes are turned, a side of the grid's pixel runs along both of the raster's.
    width = max(abs(right[0] - left[0]), abs(bottom[0] - top[0]))
    height = max(abs(right[1] - left[1]), abs(bottom[1] - top[1]))
    return _at_most_one(width), _at_most_one(height)


def _at_most_one(raster_pixels: float) -> float:
    # Within 5 % it is the same resolution in another projection, and widening the kernel would only blur.
    if not math.isfinite(raster_pixels) or raster_pixels <= 1.05:
        return 1.0
    return float(f"{1 / raster_pixels:.6g}")


def source_window(placement: Placement, box: GeoBox) -> Window | None:
    """Return the raster's pixels that a warp to ``box`` looks at, or None where there are none."""
    rows, cols = (int(n) for n in box.shape)
    xs, ys = np.meshgrid(np.linspace(0, cols, _EDGE_POINTS), np.linspace(0, rows, _EDGE_POINTS))
    points = _moved(np.column_stack([xs.ravel(), ys.ravel()]), box, placement.raster)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    support = np.array([_KERNEL / placement.scale[0], _KERNEL / placement.scale[1]])
    slack = support + 2 + 0.02 * (high - low)
    height, width = (int(n) for n in placement.raster.shape)
    col0, row0 = np.maximum(np.floor(low - slack), 0).astype(int)
    col1, row1 = np.minimum(np.ceil(high + slack), [width, height]).astype(int)
    return Window(int(row0), int(row1), int(col0), int(col1)) if row0 < row1 and col0 < col1 else None


def runs_of(blocks: Sequence[Window]) -> list[Window]:
    """Return the windows of ``blocks``, which lie below each other: those that touch are one."""
    runs: list[Window] = []
    for block in blocks:
        if runs and runs[-1].row1 == block.row0:
            runs[-1] = replace(runs[-1], row1=block.row1)
        else:
            runs.append(block)
    return runs


def unit_boxes(grid: Grid, run: Window, at: Placement) -> tuple[GeoBox, GeoBox]:
    """Return the GeoBoxes of ``run``, which is blocks of the lattice below each other, and of its unit.

    A unit is `Placement.run` blocks below each other, and ``run`` is inside of one. All coordinates of a unit
    are multiples of a power of two that leave no sum of its transform to rounding (off by less than 1e-8 m in UTM).
    So a row's coordinates do not depend on where the run begins.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    height = at.run * at.block
    first = run.row0 // height * height
    exact = grid.crop(Window(first, first + height, run.col0, run.col1))
    corners = [exact.affine * corner for corner in ((0, 0), (run.width, 0), (0, height), (run.width, height))]
    largest = max(1.0, *(abs(number) for corner in corners for number in corner))
    quantum = 2.0 ** (math.ceil(math.log2(largest)) + 1 - 52)
    unit = Affine(*(round(number / quantum) * quantum for number in tuple(exact.affine)[:6]))
    down = run.row0 - first
    own = Affine(unit.a, unit.b, unit.c + unit.b * down, unit.d, unit.e, unit.f + unit.e * down)
    return GeoBox(run.shape, own, exact.crs), GeoBox(exact.shape, unit, exact.crs)


def blocks_of(window: Window, side: int) -> Iterator[Window]:
    """Yield the blocks of the lattice that ``window`` touches; the lattice starts at the grid's origin."""
    for row in range(window.row0 // side, -(-window.row1 // side)):
        for col in range(window.col0 // side, -(-window.col1 // side)):
            yield Window(row * side, (row + 1) * side, col * side, (col + 1) * side)


class BlockCache:
    """Warped blocks by key, the least recently used dropped; two threads never make the same one at once.

    It pickles empty: another process warps for itself.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.made = 0
        self._blocks: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._making: dict[Hashable, Future[NDArray[Any]]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._blocks

    def get(
        self, keys: Sequence[Hashable], make: Callable[[list[int]], Iterable[NDArray[Any]]]
    ) -> list[NDArray[Any]]:
        """Return the blocks of ``keys``; the caller must not write to them.

        ``make`` is given the places in ``keys`` of those that are not there, and returns their blocks.
        """
        found: dict[int, NDArray[Any]] = {}
        mine: dict[int, Future[NDArray[Any]]] = {}
        pending: dict[int, Future[NDArray[Any]]] = {}
        with self._lock:
            for i, key in enumerate(keys):
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    found[i] = self._blocks[key]
                elif key in self._making:
                    pending[i] = self._making[key]
                else:
                    mine[i] = self._making[key] = Future()
        if mine:
            found |= self._make(keys, mine, make)
        found |= {i: future.result() for i, future in pending.items()}  # after our own: others wait for those
        return [found[i] for i in range(len(keys))]

    def _make(
        self,
        keys: Sequence[Hashable],
        mine: Mapping[int, Future[NDArray[Any]]],
        make: Callable[[list[int]], Iterable[NDArray[Any]]],
    ) -> dict[int, NDArray[Any]]:
        try:
            made = dict(zip(mine, make(list(mine)), strict=True))
        except BaseException as error:
            with self._lock:
                for i in mine:
                    del self._making[keys[i]]
            for future in mine.values():
                future.set_exception(error if isinstance(error, Exception) else ReadError("interrupted"))
            raise
        with self._lock:
            for i, block in made.items():
                block.setflags(write=False)
                del self._making[keys[i]]
                self.made += 1
                self._blocks[keys[i]] = block
                self._bytes += block.nbytes
            while self._bytes > self.limit and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        for i, future in mine.items():
            future.set_result(made[i])
        return made
