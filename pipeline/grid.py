"""The grid of a run: one GeoBox, and how it is cut into shards (what is written) and tiles (what a model sees).

All pixel coordinates are rows and columns of the grid, counted from its upper left corner; windows are
half-open. A tile *reads* its read window, *gives* its contribution window, and belongs to one shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tilewright.errors import GridError

from .outlines import points_inside

if TYPE_CHECKING:
    import shapely
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from tilewright.catalogs.region import Region

__all__ = ["COG_BLOCK", "Grid", "Shard", "Tile", "Tiling", "Window"]

COG_BLOCK = 16
"""A shard is a multiple of this many pixels: TIFF wants block sides divisible by 16 (TIFF 6.0, section 15)."""


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A half-open rectangle of pixels, ``[row0, row1) x [col0, col1)``; may reach beyond the grid."""

    row0: int
    """First row."""
    row1: int
    """Row after the last one."""
    col0: int
    """First column."""
    col1: int
    """Column after the last one."""

    def __post_init__(self) -> None:
        if self.row1 <= self.row0 or self.col1 <= self.col0:
            cause = f"rows {self.row0}..{self.row1}, columns {self.col0}..{self.col1} hold no pixel"
            raise GridError(cause, place="window")

    @property
    def height(self) -> int:
        """Rows."""
        return self.row1 - self.row0

    @property
    def width(self) -> int:
        """Columns."""
        return self.col1 - self.col0

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``."""
        return self.height, self.width

    @property
    def size(self) -> int:
        """Pixels."""
        return self.height * self.width

    def grow(self, pixels: int) -> Window:
        """Return the window with ``pixels`` more on every side."""
        return Window(self.row0 - pixels, self.row1 + pixels, self.col0 - pixels, self.col1 + pixels)

    def times(self, scale: int) -> Window:
        """Return the same ground in the pixels of a grid ``scale`` times finer."""
        return Window(self.row0 * scale, self.row1 * scale, self.col0 * scale, self.col1 * scale)

    def overlap(self, other: Window) -> Window | None:
        """Return the common pixels, or None where there are none."""
        row0, row1 = max(self.row0, other.row0), min(self.row1, other.row1)
        col0, col1 = max(self.col0, other.col0), min(self.col1, other.col1)
        return Window(row0, row1, col0, col1) if row0 < row1 and col0 < col1 else None

    def union(self, other: Window) -> Window:
        """Return the smallest window that holds both."""
        return Window(
            min(self.row0, other.row0),
            max(self.row1, other.row1),
            min(self.col0, other.col0),
            max(self.col1, other.col1),
        )

    def contains(self, other: Window) -> bool:
        """True where every pixel of ``other`` is one of this window's."""
        return self.overlap(other) == other

    def slices(self, within: Window) -> tuple[slice, slice]:
        """Return ``(rows, columns)`` that pick this window out of an array that covers ``within``."""
        if not within.contains(self):
            raise GridError(f"{self} is not inside {within}", place="window")
        return (
            slice(self.row0 - within.row0, self.row1 - within.row0),
            slice(self.col0 - within.col0, self.col1 - within.col0),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One forward of a kernel: where it reads, and what it gives."""

    index: tuple[int, int]
    """``(row, column)`` in the lattice of tiles."""
    read: Window
    """What the kernel sees: ``tile x tile`` pixels, the halo included; may reach beyond the grid."""
    gives: Window
    """The pixels the tile contributes to, inside the grid: its core, and when blending the taper around it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of writing: a rectangle of the grid that exactly one owner writes, once and whole."""

    index: tuple[int, int]
    """``(row, column)`` in the lattice of shards."""
    window: Window
    """Its pixels, inside the grid."""

    @property
    def name(self) -> str:
        """The name used in ledgers and messages, ``row.column``."""
        return f"{self.index[0]}.{self.index[1]}"


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a plane of pixels is cut. The lattice starts at the grid's origin and knows nothing of shards.

    Tile ``k`` of an axis reads ``[k core - lead, k core - lead + tile)`` and gives
    ``[k core, (k + 1) core + 2 taper)``. With ``taper = 0`` (cut) that is its core alone. When blending, what
    it gives reaches only to higher rows and columns, so a shard is complete as soon as it and its neighbours
    above and to the left have run: margins travel one way.
    """

    tile: int
    """Pixels a side that the kernel sees."""
    halo: int
    """Pixels on each side that a tile reads beyond its core; at least the kernel's radius, or more to blend."""
    taper: int
    """Half the width of the overlap in which neighbours are blended; 0 cuts."""
    stride: int
    """Read windows start at multiples of this from the grid's origin."""
    shard: int
    """Pixels a side of a shard; a multiple of the core, so that no tile straddles two."""

    def __post_init__(self) -> None:
        if self.core <= 0:
            raise GridError(
                f"a halo of {self.halo} px leaves no core in a tile of {self.tile} px",
                place="tiling",
                remedy=f"use a tile above {2 * self.halo} px",
            )
        if min(self.halo, self.taper) < 0 or self.stride < 1:
            raise GridError(f"halo {self.halo}, taper {self.taper}, stride {self.stride}", place="tiling")
        if self.taper > self.halo or 2 * self.taper > self.core:
            raise GridError(
                f"a taper of {self.taper} px fits neither halo {self.halo} nor half of core {self.core}",
                place="tiling",
            )
        if self.core % self.stride or self.lead % self.stride:
            raise GridError(
                f"core {self.core} and lead {self.lead} are not multiples of stride {self.stride}",
                place="tiling",
            )
        if self.shard % self.core:
            raise GridError(f"shard {self.shard} is not a multiple of core {self.core}", place="tiling")

    @property
    def core(self) -> int:
        """Step of the lattice: pixels a side that belong to one tile."""
        return self.tile - 2 * self.halo

    @property
    def lead(self) -> int:
        """Pixels that a tile reads before the first one it contributes to."""
        return self.halo - self.taper

    @property
    def overlap(self) -> int:
        """Pixels of a tile's contribution that its next neighbour contributes to as well."""
        return 2 * self.taper

    @classmethod
    def choose(
        cls,
        *,
        tile: int,
        radius: int,
        stride: int = 1,
        taper: int = 0,
        shard: int = 2048,
    ) -> Tiling:
        """Return the tiling for a wish: ``tile`` rounded down, ``halo`` and ``shard`` rounded up.

        The halo is ``radius`` (plus ``taper`` when blending) rounded up to the stride; the shard becomes a
        multiple of the core and of `COG_BLOCK`. Raises `GridError` where no core is left.
        """
        lead = math.ceil(radius / stride) * stride
        taper = math.ceil(taper / stride) * stride
        halo = lead + taper
        core = (tile - 2 * halo) // stride * stride
        if core <= 0:
            raise GridError(
                f"a radius of {radius} px needs a halo of {halo} px a side, which leaves no core in a tile"
                f" of {tile} px",
                place="tiling",
                remedy=f"use a tile of at least {2 * halo + stride} px (4 halos waste little: {8 * halo} px)",
            )
        step = math.lcm(core, COG_BLOCK)
        return cls(
            tile=core + 2 * halo,
            halo=halo,
            taper=taper,
            stride=stride,
            shard=max(1, math.ceil(shard / step)) * step,
        )

    def count(self, length: int) -> int:
        """Return how many tiles cover an axis of ``length`` pixels."""
        return max(1, math.ceil((length - 2 * self.taper) / self.core))

    def gives(self, k: int, length: int) -> tuple[int, int]:
        """Return the pixels ``[start, stop)`` of an axis to which tile ``k`` contributes."""
        return k * self.core, min((k + 1) * self.core + 2 * self.taper, length)

    def tile_at(self, row: int, col: int, shape: tuple[int, int]) -> Tile:
        """Return the tile of lattice place ``(row, col)`` in a grid of ``shape``."""
        top, left = row * self.core - self.lead, col * self.core - self.lead
        return Tile(
            (row, col),
            Window(top, top + self.tile, left, left + self.tile),
            Window(*self.gives(row, shape[0]), *self.gives(col, shape[1])),
        )

    def shards(self, shape: tuple[int, int]) -> Iterator[Shard]:
        """Yield the shards of a grid of ``shape`` in row-major order; each pixel is in exactly one."""
        for i in range(math.ceil(shape[0] / self.shard)):
            for j in range(math.ceil(shape[1] / self.shard)):
                yield self.shard_at(i, j, shape)

    def shard_at(self, i: int, j: int, shape: tuple[int, int]) -> Shard:
        """Return the shard of lattice place ``(i, j)``."""
        side = self.shard
        return Shard(
            (i, j),
            Window(i * side, min((i + 1) * side, shape[0]), j * side, min((j + 1) * side, shape[1])),
        )

    def tiles(self, shard: Shard, shape: tuple[int, int]) -> Iterator[Tile]:
        """Yield the tiles that ``shard`` owns, row-major; each tile of the grid has exactly one owner."""
        per = self.shard // self.core
        rows, cols = (self.count(n) for n in shape)
        for row in range(shard.index[0] * per, min((shard.index[0] + 1) * per, rows)):
            for col in range(shard.index[1] * per, min((shard.index[1] + 1) * per, cols)):
                yield self.tile_at(row, col, shape)

    def waste(self) -> float:
        """Return pixels computed per pixel kept in the inside of a grid: ``(tile / core) ** 2``."""
        return (self.tile / self.core) ** 2


@dataclass(frozen=True)
class Grid:
    """The pixels of a result: a GeoBox anchored to whole pixels, and the region that is wanted of it."""

    geobox: GeoBox
    """Shape, affine and CRS (odc-geo); the affine maps (column, row) corners to CRS units."""
    region: shapely.Geometry | None = None
    """The wanted ground in the grid's CRS; None wants every pixel. Pixels whose centre is outside are not
    computed and carry the reason `outside`."""

    @classmethod
    def from_region(
        cls,
        region: Region | str | dict[str, Any] | tuple[float, float, float, float],
        resolution: float,
        crs: str = "utm",
        anchor: tuple[float, float] = (0.0, 0.0),
    ) -> Self:
        """Return the smallest grid over ``region`` whose pixel edges lie ``resolution`` apart from ``anchor``.

        Parameters
        ----------
        region
            A `Region`, a file, ``"W,S,E,N"``, GeoJSON, or ``(W, S, E, N)`` in degrees (WGS84).
        resolution
            Pixel side in units of ``crs`` (metres for UTM).
        crs
            Any CRS that pyproj reads, or ``"utm"`` for the zone of the region.
        anchor
            ``(x, y)`` of any pixel corner, in units of ``crs``. Landsat's grids lie at 15 m modulo 30 m, so a
            grid of 30 m on multiples of 30 m would be off by half a pixel and every scene resampled.

        Raises
        ------
        GridError
            If one grid cannot hold the region: over the antimeridian, or with ``"utm"`` over several zones.
            `Grid.split` gives one grid a part.
        """
        grids = cls.split(region, resolution, crs, anchor)
        if len(grids) > 1:
            names = ", ".join(str(g.geobox.crs) for g in grids)
            raise GridError(
                f"the region needs {len(grids)} grids ({names})",
                place="region",
                remedy="use Grid.split, or name one projected CRS",
            )
        return grids[0]

    @classmethod
    def split(
        cls,
        region: Region | str | dict[str, Any] | tuple[float, float, float, float],
        resolution: float,
        crs: str = "utm",
        anchor: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[Self, ...]:
        """Return one grid for each part of ``region``: split at the antimeridian and, for ``"utm"``, at zones.

        Parameters are those of `from_region`; grids come from west to east.
        """
        from .regions import region_grids

        return tuple(
            cls(box, None if rectangle else geometry)
            for box, geometry, rectangle in region_grids(region, resolution, crs, anchor)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``."""
        return int(self.geobox.shape[0]), int(self.geobox.shape[1])

    @property
    def window(self) -> Window:
        """All pixels."""
        return Window(0, self.shape[0], 0, self.shape[1])

    @property
    def crs(self) -> str:
        """The CRS as ``EPSG:n`` where it has a code, else as WKT."""
        return str(self.geobox.crs)

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """The affine's six coefficients ``(a, b, c, d, e, f)``, in rasterio's order."""
        a, b, c, d, e, f = tuple(self.geobox.affine)[:6]
        return a, b, c, d, e, f

    @property
    def resolution(self) -> float:
        """Pixel side in CRS units, along the rows; also right for a rotated grid."""
        return math.hypot(self.geobox.affine.a, self.geobox.affine.d)

    def zoom(self, scale: int) -> Grid:
        """Return the same ground in pixels ``scale`` times smaller, as super-resolution gives it."""
        return self if scale == 1 else Grid(self.geobox.zoom_out(1 / scale), self.region)

    def crop(self, window: Window) -> GeoBox:
        """Return the GeoBox of ``window``, which may reach beyond the grid."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        shift = Affine.translation(window.col0, window.row0)
        return GeoBox(window.shape, self.geobox.affine * shift, self.geobox.crs)

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Return ``[rows, columns]`` of bool: True where a pixel's centre is in the region and on the grid.

        Decided from the pixel's own coordinates, so the answer does not depend on how windows are cut.
        """
        rows = np.arange(window.row0, window.row1)
        cols = np.arange(window.col0, window.col1)
        on_grid = ((rows >= 0) & (rows < self.shape[0]))[:, None] & ((cols >= 0) & (cols < self.shape[1]))
        region = self.region
        if region is None:
            return on_grid
        a, b, c, d, e, f = self.transform
        u, v = cols[None, :] + 0.5, rows[:, None] + 0.5
        # One row of x and one column of y where the grid is not rotated.
        x = a * u + b * v + c if b else a * u + c
        y = d * u + e * v + f if d else e * v + f
        inside = points_inside(region, self.crop(window).extent.geom, x, y)
        return inside & on_grid
