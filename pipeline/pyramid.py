"""A raster or a cube as levels from fine to coarse, read in windows, with an account of the bytes.

Levels that are stored (overviews of a COG, groups of a Zarr hierarchy) are read where they lie; coarser ones are
averaged from the coarsest stored one on the way. No level is ever held whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, KernelError
from tilewright.kernels.ask import LevelInfo, Request, Scene, View

from .areas import pixel_areas
from .coarse import CoarseSource
from .grid import Window
from .warp import through, transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .grid import Grid
    from .source import Source

__all__ = ["Account", "Level", "Pyramid", "open_pyramid"]

COARSEST = 256
"""Levels are added until the longer side of the last one is at most this many pixels."""
MOST_PIXELS = 2**26
"""Most pixels that may be asked for at once: what keeps a policy from holding a level."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid."""

    source: Source
    """Its pixels, on its own grid."""
    factor: float
    """Full-resolution pixels along the side of one of its pixels."""
    block: tuple[int, int] | None
    """Rows and columns of a stored block of `stored`; None where pixels are read singly."""
    stored: int
    """Number of the level that is really read: its own, or a finer one that is averaged."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.source.grid.shape


@dataclass
class Account:
    """What was read of a pyramid.

    Bytes are those of decoded blocks, overviews among them: a window costs every stored block that it touches, whole,
    once for all the windows that were asked for together.
    """

    windows: list[list[Request]] = field(default_factory=list)
    """The windows, step by step."""
    bytes_of_level: dict[int, int] = field(default_factory=dict)
    """Level -> bytes that its windows cost."""
    pixels: int = 0
    """Pixels that were given to the policy."""

    @property
    def bytes_read(self) -> int:
        """All of them."""
        return sum(self.bytes_of_level.values())


@dataclass(frozen=True)
class Pyramid:
    """Levels over one piece of ground; see `open_pyramid`."""

    levels: tuple[Level, ...]
    """Level 0 is full resolution."""
    input: str = "image"
    """Name of the source's layer that is read."""

    @property
    def grid(self) -> Grid:
        """The grid at full resolution."""
        return self.levels[0].source.grid

    @cached_property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel of one level: all bands of all dates."""
        layer = self.levels[0].source.layers[self.input]
        return np.dtype(layer.dtype).itemsize * len(layer.bands) * len(layer.times)

    @property
    def total_bytes(self) -> int:
        """Bytes of full resolution, decoded: what reading everything would cost."""
        rows, cols = self.grid.shape
        return rows * cols * self.pixel_bytes

    @property
    def scene(self) -> Scene:
        """What a policy is told."""
        layer = self.levels[0].source.layers[self.input]
        crs = self.grid.geobox.crs
        metres = crs is not None and crs.projected and set(crs.units) == {"metre"}
        return Scene(
            tuple(LevelInfo(level.factor, level.shape) for level in self.levels),
            layer.bands,
            self.grid.resolution if metres else None,
            len(layer.times),
            units=layer.units,
            areas=None if crs is None else self._areas,
            locate=None if crs is None else self._locate,
        )

    def _areas(self, request: Request) -> NDArray[np.float64]:
        return pixel_areas(self.levels[request.level].source.grid.geobox, _window(request))

    def _locate(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        box = self.grid.geobox
        x, y = through(box.affine, places[:, 1], places[:, 0])
        return np.stack(transformer(str(box.crs), "OGC:CRS84").transform(x, y), axis=1)

    def read(self, requests: Sequence[Request], account: Account | None = None) -> list[View]:
        """Return the views of ``requests``, in their order; raises `KernelError`, `ReadError`."""
        pixels = sum(request.shape[0] * request.shape[1] for request in requests)
        if pixels > MOST_PIXELS:
            raise KernelError(
                f"{pixels:,} px were asked for at once, the most is {MOST_PIXELS:,}",
                place="ask",
                remedy="ask for a coarser level, or for parts one after another",
            )
        views = [self._view(request) for request in requests]
        if account is not None:
            account.windows.append(list(requests))
            account.pixels += pixels
            for level, cost in self._cost(requests).items():
                account.bytes_of_level[level] = account.bytes_of_level.get(level, 0) + cost
        return views

    def _view(self, request: Request) -> View:
        if request.level >= len(self.levels):
            raise KernelError(
                f"there is no level {request.level}", place="ask", remedy=f"{len(self.levels)} are"
            )
        source = self.levels[request.level].source
        window = _window(request)
        if not source.grid.window.contains(window):
            raise KernelError(
                f"{request} is not inside the level's {source.grid.shape}",
                place="ask",
                remedy="a policy cuts its windows to `Scene.levels[n].shape`",
            )
        block = source.read(window)
        data = block.data[self.input]
        valid = (block.reason[self.input] == 0).all(axis=(0, 1))
        return View(request, data.reshape(-1, *data.shape[-2:]), valid)

    def cost(self, requests: Iterable[Request]) -> int:
        """Return the bytes that ``requests`` would cost if they were asked for together."""
        return sum(self._cost(requests).values())

    def _cost(self, requests: Iterable[Request]) -> dict[int, int]:
        """Return level -> bytes of the stored blocks that its windows touch."""
        touched: dict[int, set[tuple[int, int]]] = {}
        cost: dict[int, int] = {}
        for request in requests:
            level = self.levels[request.level]
            fine = self.levels[level.stored]
            zoom = round(level.factor / fine.factor)
            window = _window(request).times(zoom).overlap(fine.source.grid.window)
            assert window is not None
            if level.block is None:
                cost[request.level] = cost.get(request.level, 0) + window.size * self.pixel_bytes
            else:
                touched.setdefault(request.level, set()).update(_touched(window, level.block))
        for number, blocks in touched.items():
            level = self.levels[number]
            assert level.block is not None
            cost[number] = len(blocks) * level.block[0] * level.block[1] * self.pixel_bytes
        return cost


def _window(request: Request) -> Window:
    return Window(request.row0, request.row1, request.col0, request.col1)


def _touched(window: Window, block: tuple[int, int]) -> set[tuple[int, int]]:
    rows = range(window.row0 // block[0], -(-window.row1 // block[0]))
    cols = range(window.col0 // block[1], -(-window.col1 // block[1]))
    return {(row, col) for row in rows for col in cols}


def open_pyramid(source: Source, *, coarsest: int = COARSEST) -> Pyramid:
    """Return the pyramid of a source with one input: stored levels where it has some, and averaged ones above.

    Parameters
    ----------
    source
        Rasters with overviews, a Zarr hierarchy, a cube, or any other source.
    coarsest
        Levels end with the first one whose longer side is at most this many pixels.

    Raises
    ------
    InputError
        The source has several inputs.
    """
    if len(source.layers) > 1:
        names = ", ".join(source.layers)
        raise InputError(f"a pyramid has one input, not {names}", place="pyramid", remedy="take one of them")
    full = source.grid.shape
    levels = [Level(source, 1.0, getattr(source, "block", None), 0)]
    for stored in _stored(source):
        factor = full[1] / stored.grid.shape[1] if full[1] > full[0] else full[0] / stored.grid.shape[0]
        levels.append(Level(stored, factor, getattr(stored, "block", None), len(levels)))
    last, number, factor = levels[-1], len(levels) - 1, 2
    while max(last.shape) > coarsest * factor // 2:
        coarse = CoarseSource(last.source, factor)
        levels.append(Level(coarse, last.factor * factor, last.block, number))
        factor *= 2
    return Pyramid(tuple(levels), next(iter(source.layers)))


def _stored(source: Any) -> list[Source]:
    """Return the stored levels above full resolution, finest first."""
    if hasattr(source, "at_overview"):
        return [source.at_overview(number) for number in range(len(source.overviews))]
    return list(getattr(source, "coarser", ()))
