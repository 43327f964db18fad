"""Made rasters of any size for `ask`: ground of one class in which a block of another class is planted.

A raster of 100,000 x 100,000 px has 30 GB of pixels, and a hundred of them are wanted. So the ground repeats after
4,096 px, and the tiles of the TIFF that are alike are stored once: a TIFF names the place of each tile, and many tiles
may name the same. Readers see an ordinary tiled GeoTIFF with overviews (means of two by two pixels) and decode every
tile that they touch; only the disk is spared. Nothing that is asked knows of the period.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Packed", "Planting", "Remembering", "mosaic", "write_planted"]

PERIOD = 4096
"""Pixels after which the ground repeats."""
TILE = 512
"""Side of a tile of the file."""
PICTURE = 64
"""Side of a picture of EuroSAT."""
ORIGIN = (300_000.0, 6_000_000.0)
"""Upper left corner, in metres of UTM zone 32 north."""
RESOLUTION = 10.0


@dataclass(frozen=True)
class Planting:
    """A block of other ground."""

    row: int
    """First row."""
    col: int
    """First column."""
    pixels: NDArray[np.uint8]
    """``[rows, columns, 3]``."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """``(col0, row0, col1, row1)``."""
        height, width = self.pixels.shape[:2]
        return self.col, self.row, self.col + width, self.row + height


def mosaic(
    pictures: NDArray[np.uint8], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return ground ``[rows, columns, 3]`` of pictures ``[n, 64, 64, 3]``, drawn at random, turned and mirrored."""
    down, across = (-(-n // PICTURE) for n in shape)
    ground = np.empty((down * PICTURE, across * PICTURE, 3), np.uint8)
    for row in range(down):
        for col in range(across):
            picture = np.rot90(pictures[rng.integers(len(pictures))], int(rng.integers(4)))
            if rng.integers(2):
                picture = picture[:, ::-1]
            ground[row * PICTURE : (row + 1) * PICTURE, col * PICTURE : (col + 1) * PICTURE] = picture
    return ground[: shape[0], : shape[1]]


def halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return means of two by two pixels, as GDAL's ``average`` rounds them; sides are even."""
    sums = pixels.astype(np.uint16)
    sums = sums[0::2, 0::2] + sums[1::2, 0::2] + sums[0::2, 1::2] + sums[1::2, 1::2]
    return ((sums + 2) // 4).astype(np.uint8)


Packed = dict[tuple[int, int, int], bytes]
"""Factor of a level, row and column within the period -> a tile of ground, compressed."""


def write_planted(
    path: Path, side: int, ground: NDArray[np.uint8], planting: Planting | None, packed: Packed | None = None
) -> Path:
    """Write a square raster of ``side`` pixels, three bands of eight bits, DEFLATE, overviews down to one tile.

    ``ground`` is ``[4096, 4096, 3]`` and is repeated. ``packed`` keeps its compressed tiles, for the next raster of the
    same ground.
    """
    if ground.shape != (PERIOD, PERIOD, 3):
        raise ValueError(f"ground of shape {ground.shape}, expected {(PERIOD, PERIOD, 3)}")
    levels = _levels(side, ground, planting, {} if packed is None else packed)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 8))
        directories = [_Directory(number, size, len(tables)) for number, (size, tables) in enumerate(levels)]
        end = 8 + sum(one.nbytes for one in directories)
        stored: dict[bytes, tuple[int, int]] = {}
        data: list[bytes] = []
        at = 8
        for number, (one, (_, tiles)) in enumerate(zip(directories, levels, strict=True)):
            places = []
            for tile in tiles:
                if tile not in stored:
                    stored[tile] = (end, len(tile))
                    data.append(tile)
                    end += len(tile)
                places.append(stored[tile])
            following = at + one.nbytes if number + 1 < len(directories) else 0
            file.write(one.encode(at, places, following))
            at += one.nbytes
        for tile in data:
            file.write(tile)
    return path


def _levels(
    side: int, ground: NDArray[np.uint8], planting: Planting | None, packed: Packed
) -> list[tuple[int, list[bytes]]]:
    """Return for each level its side and its compressed tiles, row by row."""
    levels = []
    factor, period = 1, ground
    while True:
        size = -(-side // factor)
        levels.append((size, _tiles(size, factor, period, ground, planting, packed)))
        if size <= TILE:
            return levels
        factor *= 2
        period = halved(period) if len(period) > 1 else period


def _tiles(
    size: int,
    factor: int,
    period: NDArray[np.uint8],
    ground: NDArray[np.uint8],
    planting: Planting | None,
    packed: Packed,
) -> list[bytes]:
    patch = None if planting is None else _seen_from(planting, ground, factor)
    count, length = -(-size // TILE), len(period)
    tiles = []
    for i in range(count):
        for j in range(count):
            row, col = i * TILE % length, j * TILE % length
            if patch is not None and _touches(patch, i, j):
                tiles.append(zlib.compress(_with(patch, _repeated(period, row, col), i, j).tobytes(), 1))
                continue
            if (factor, row, col) not in packed:
                packed[factor, row, col] = zlib.compress(_repeated(period, row, col).tobytes(), 1)
            tiles.append(packed[factor, row, col])
    return tiles


def _repeated(period: NDArray[np.uint8], row: int, col: int, side: int = TILE) -> NDArray[np.uint8]:
    rows = (row + np.arange(side)) % len(period)
    cols = (col + np.arange(side)) % len(period)
    return period[rows[:, None], cols[None, :]]


def _seen_from(planting: Planting, ground: NDArray[np.uint8], factor: int) -> Planting:
    """Return the planted block, with the ground that shares its pixels, at a coarser level."""
    col0, row0, col1, row1 = planting.box
    top, left = row0 // factor * factor, col0 // factor * factor
    bottom, right = -(-row1 // factor) * factor, -(-col1 // factor) * factor
    rows, cols = np.arange(top, bottom) % PERIOD, np.arange(left, right) % PERIOD
    pixels = ground[rows[:, None], cols[None, :]].copy()
    pixels[row0 - top : row1 - top, col0 - left : col1 - left] = planting.pixels
    for _ in range(factor.bit_length() - 1):
        pixels = halved(pixels)
    return Planting(top // factor, left // factor, pixels)


def _touches(patch: Planting, i: int, j: int) -> bool:
    col0, row0, col1, row1 = patch.box
    return row0 < (i + 1) * TILE and row1 > i * TILE and col0 < (j + 1) * TILE and col1 > j * TILE


def _with(patch: Planting, tile: NDArray[np.uint8], i: int, j: int) -> NDArray[np.uint8]:
    tile = tile.copy()
    col0, row0, col1, row1 = patch.box
    rows = slice(max(row0, i * TILE), min(row1, (i + 1) * TILE))
    cols = slice(max(col0, j * TILE), min(col1, (j + 1) * TILE))
    tile[rows.start - i * TILE : rows.stop - i * TILE, cols.start - j * TILE : cols.stop - j * TILE] = (
        patch.pixels[rows.start - row0 : rows.stop - row0, cols.start - col0 : cols.stop - col0]
    )
    return tile


class Remembering:
    """An embedder that computes the vectors of equal tiles once. Everything else is the embedder's."""

    def __init__(self, embedder: Any) -> None:
        self._embedder = embedder
        self._known: dict[tuple[str, bytes], Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedder, name)

    def embed_images(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return what the embedder returns."""
        return self._of("images", self._embedder.embed_images, pixels, tower)

    def embed_dense(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return what the embedder returns."""
        return self._of("dense", self._embedder.embed_dense, pixels, tower)

    def _of(self, kind: str, embed: Callable[[Tensor, str], Tensor], pixels: Tensor, tower: str) -> Tensor:
        import torch

        keys = [(kind, hashlib.sha256(tile.numpy().tobytes()).digest()) for tile in pixels]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            self._known |= dict(zip(new, embed(pixels[list(new.values())], tower), strict=True))
        return torch.stack([self._known[key] for key in keys])


_KINDS = {"H": (3, 2), "I": (4, 4), "d": (12, 8)}
"""Type of values, as `struct` names it -> its number in TIFF, and its bytes."""


class _Directory:
    """One image file directory of a classic TIFF (TIFF 6.0, section 2) with its values behind it."""

    def __init__(self, number: int, size: int, tiles: int) -> None:
        self.tiles = tiles
        self.tags: dict[int, tuple[str, list[float]]] = {
            254: ("I", [int(number > 0)]),  # a reduced image
            256: ("I", [size]),
            257: ("I", [size]),
            258: ("H", [8, 8, 8]),
            259: ("H", [8]),  # DEFLATE
            262: ("H", [2]),  # RGB
            277: ("H", [3]),
            284: ("H", [1]),  # pixel interleaved
            322: ("I", [TILE]),
            323: ("I", [TILE]),
            324: ("I", [0] * tiles),
            325: ("I", [0] * tiles),
        }
        if number == 0:  # GeoTIFF 1.1: UTM zone 32 north, pixels are areas
            self.tags[33550] = ("d", [RESOLUTION, RESOLUTION, 0])
            self.tags[33922] = ("d", [0, 0, 0, *ORIGIN, 0])
            self.tags[34735] = ("H", [1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632])

    @property
    def nbytes(self) -> int:
        return 2 + 12 * len(self.tags) + 4 + sum(self._outside(*tag) for tag in self.tags.values())

    def _outside(self, kind: str, values: list[float]) -> int:
        size = _KINDS[kind][1] * len(values)
        return 0 if size <= 4 else size + size % 2

    def encode(self, at: int, places: list[tuple[int, int]], following: int) -> bytes:
        """Return the directory as it lies at ``at``, with where each tile is."""
        self.tags[324] = ("I", [offset for offset, _ in places])
        self.tags[325] = ("I", [size for _, size in places])
        head = struct.pack("<H", len(self.tags))
        behind, values_at = b"", at + 2 + 12 * len(self.tags) + 4
        for tag, (kind, values) in sorted(self.tags.items()):
            packed = struct.pack(f"<{len(values)}{kind}", *values)
            code = _KINDS[kind][0]
            if len(packed) <= 4:
                head += struct.pack("<HHI4s", tag, code, len(values), packed.ljust(4, b"\0"))
            else:
                head += struct.pack("<HHII", tag, code, len(values), values_at + len(behind))
                behind += packed + b"\0" * (len(packed) % 2)
        return head + struct.pack("<I", following) + behind
