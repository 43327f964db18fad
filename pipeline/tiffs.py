"""A Cloud Optimized GeoTIFF put together from tiles that are compressed already.

GDAL encodes the tiles and writes the tags (`encode_tiles`, `tags_like`); what is our own is only the layout of
the file, so that each tile is compressed once: the COG driver decodes and encodes again whatever it is given.

The layout is that of GDAL's COG driver (https://gdal.org/en/stable/drivers/raster/cog.html#file-format-details):
the header; the ghost area, which tells readers the promises below; the directories of the full resolution and
of the overviews, largest first; the tables of tiles; then the tiles of the smallest overview, of the next, and of
the full resolution last. Promised and kept: tiles in row-major order, before each its size as four bytes,
behind each its last four bytes once more. Sources: TIFF 6.0; the BigTIFF design of AWare Systems and libtiff.
"""

from __future__ import annotations

import math
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Level",
    "Spool",
    "Tag",
    "cog_bytes",
    "cog_size",
    "encode_tiles",
    "needs_bigtiff",
    "read_tags",
    "tags_like",
]

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
"""Bytes of one value of each TIFF type."""
SHORT, LONG, LONG8 = 3, 4, 16
SUBFILE, WIDTH, HEIGHT, OFFSETS, COUNTS = 254, 256, 257, 324, 325
OF_FULL_ONLY = (33550, 33922, 34264, 34735, 34736, 34737, 42112)
"""Tags that overviews do not repeat: place on Earth, and GDAL's metadata."""
CLASSIC_LIMIT = 2**32 - 2**16
"""Bytes up to which the offsets of a classic TIFF reach, with a margin."""
PIECE = 8 << 20
"""Bytes that are copied at a time."""


@dataclass(frozen=True, slots=True)
class Tag:
    """One entry of a directory."""

    kind: int
    """TIFF type."""
    count: int
    """Values."""
    data: bytes
    """They, little-endian."""


class Spool:
    """A scratch file of compressed tiles in the order of their making; the tables in memory say where each lies.

    12 bytes a tile: 0.6 MB at 100,000 x 100,000 px and one band. Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close and remove the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.path.unlink(missing_ok=True)

    def append(self, tiles: Sequence[bytes | memoryview]) -> int:
        """Write tiles behind one another and return where the first begins."""
        data = b"".join(tiles)
        with self._lock:
            start = self._end
            self._end += len(data)
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, memoryview(data)[done:], start + done)
        return start

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on."""
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise OSError(f"the scratch file {self.path} was cut short")
        return data


class Level:
    """The tiles of one level: where each lies in the spool, and checksums of its pixels and of its bytes."""

    def __init__(self, shape: tuple[int, int], block: int, planes: int = 1) -> None:
        """``planes`` is the number of bands where each has tiles of its own, otherwise 1."""
        self.shape, self.block, self.planes = shape, block, planes
        self.across, self.down = math.ceil(shape[1] / block), math.ceil(shape[0] / block)
        table = (planes, self.down, self.across)
        self.offsets = np.full(table, -1, dtype=np.int64)
        self.sizes = np.zeros(table, dtype=np.uint32)
        self.bytes_crc = np.zeros(table, dtype=np.uint32)
        self.pixels_crc = np.zeros((self.down, self.across), dtype=np.uint32)

    def put(self, spool: Spool, row: int, col: int, tiles: NDArray[Any]) -> None:
        """Spool ``tiles [planes, rows, columns]`` of bytes whose first is tile ``(row, col)``."""
        where = (slice(None), slice(row, row + tiles.shape[1]), slice(col, col + tiles.shape[2]))
        plain: list[bytes] = tiles.ravel().tolist()
        sizes = np.array([len(tile) for tile in plain], dtype=np.int64).reshape(tiles.shape)
        starts = np.cumsum(sizes.ravel()).reshape(tiles.shape) - sizes
        self.bytes_crc[where] = np.array([zlib.crc32(t) for t in plain], np.uint32).reshape(tiles.shape)
        self.sizes[where] = sizes
        self.offsets[where] = spool.append(plain) + starts

    @property
    def nbytes(self) -> int:
        """Bytes of the level's tiles in the file, leaders and trailers included."""
        return int(self.sizes.sum(dtype=np.int64)) + 8 * self.sizes.size


# -- tiles and tags by GDAL ----------------------------------------------------------------------------------


def encode_tiles(values: NDArray[Any], block: int, options: Mapping[str, Any]) -> NDArray[Any]:
    """Compress ``values [C, rows, columns]`` by GDAL and return its tiles as an object array of bytes.

    Parameters
    ----------
    values
        Any number of whole tiles, or less at the lower and right edge: there the last row and column are
        repeated, so that the bytes depend on the pixels alone.
    block
        Pixels a side of a tile.
    options
        Of rasterio's GTiff writer: ``compress``, ``zlevel``, ``predictor``, ``interleave``.

    Returns
    -------
    ``[planes, rows, columns]``; ``planes`` is C for ``interleave="band"``, otherwise 1. In one thread and without
    Python's lock: call it from as many threads as there are cores.
    """
    bands, rows, cols = values.shape
    planes = bands if options.get("interleave") == "band" else 1
    down, across = math.ceil(rows / block), math.ceil(cols / block)
    if _is_constant(values):
        tile = np.ascontiguousarray(np.broadcast_to(values[:, :1, :1], (bands, block, block)))
        one = _encode(tile, block, options)
        return np.tile(one, (1, down, across)).reshape(planes, down, across)
    if (rows, cols) != (down * block, across * block):
        values = np.pad(values, [(0, 0), (0, down * block - rows), (0, across * block - cols)], mode="edge")
    return _encode(values, block, options)


def _is_constant(values: NDArray[Any]) -> bool:
    """Return True where each band holds one value: of the mark of nodata there may be many square kilometres."""
    bits = values.view(f"u{values.dtype.itemsize}")
    if (bits[:, :1] != bits[:, :1, :1]).any():  # almost always the end of the question
        return False
    return bool((bits == bits[:, :1, :1]).all())


def _encode(values: NDArray[Any], block: int, options: Mapping[str, Any]) -> NDArray[Any]:
    with _written(values, block, options) as memory:
        data = memoryview(memory.getbuffer())
        tags = read_tags(data)
        offsets, counts = (_numbers(tags[code]) for code in (OFFSETS, COUNTS))
        down, across = values.shape[1] // block, values.shape[2] // block
        tiles = np.empty(len(offsets), dtype=object)
        tiles[:] = [bytes(data[o : o + n]) for o, n in zip(offsets, counts, strict=True)]
        data.release()
    return tiles.reshape(-1, down, across)


def _written(values: NDArray[Any], block: int, options: Mapping[str, Any], describe: Any = None) -> Any:
    """Return a memory file that holds ``values`` as a plain tiled GeoTIFF."""
    from affine import Affine
    from rasterio.io import MemoryFile

    bands, rows, cols = values.shape
    memory = MemoryFile()
    layout: dict[str, Any] = {
        "driver": "GTiff", "count": bands, "height": rows, "width": cols, "dtype": values.dtype, "tiled": True,
        "blockxsize": block, "blockysize": block, "photometric": "minisblack", "bigtiff": "no",
        "transform": Affine(2, 0, 0, 0, -2, 0),  # any place: GDAL warns of none, and tiles do not know theirs
    }  # fmt: skip
    with memory.open(**{**layout, **options}) as dataset:
        if describe is not None:
            describe(dataset)
        dataset.write(values)
    return memory


def tags_like(
    dtype: Any, bands: int, block: int, options: Mapping[str, Any], describe: Any
) -> dict[int, Tag]:
    """Return the tags that GDAL writes for a raster: ``describe(dataset)`` sets CRS, nodata, colours and so on.

    The raster that GDAL is shown is one tile large; `cog_bytes` puts in sizes and tables.
    """
    blank = np.zeros((bands, block, block), dtype=dtype)
    with _written(blank, block, options, describe) as memory:
        return read_tags(memory.getbuffer())


# -- reading a directory -------------------------------------------------------------------------------------


def read_tags(data: Any) -> dict[int, Tag]:
    """Return the tags of the first directory of a little-endian TIFF or BigTIFF in memory."""
    view = memoryview(data)
    big = {42: False, 43: True}[struct.unpack_from("<H", view, 2)[0]]
    at = struct.unpack_from("<Q" if big else "<I", view, 8 if big else 4)[0]
    count = struct.unpack_from("<Q" if big else "<H", view, at)[0]
    at += 8 if big else 2
    tags = {}
    for i in range(count):
        entry = at + i * (20 if big else 12)
        code, kind, values = struct.unpack_from("<HHQ" if big else "<HHI", view, entry)
        size, place = SIZES[kind] * values, entry + (12 if big else 8)
        if size > (8 if big else 4):
            place = struct.unpack_from("<Q" if big else "<I", view, place)[0]
        tags[code] = Tag(kind, values, bytes(view[place : place + size]))
    return tags


def _numbers(tag: Tag) -> list[int]:
    return np.frombuffer(tag.data, dtype={SHORT: "<u2", LONG: "<u4", LONG8: "<u8"}[tag.kind]).tolist()


# -- the file ------------------------------------------------------------------------------------------------


def _ghost(separate: bool) -> bytes:
    lines = [
        "LAYOUT=IFDS_BEFORE_DATA", "BLOCK_ORDER=ROW_MAJOR", "BLOCK_LEADER=SIZE_AS_UINT4",
        "BLOCK_TRAILER=LAST_4_BYTES_REPEATED", *(["INTERLEAVE=BAND"] if separate else []),
        "KNOWN_INCOMPATIBLE_EDITION=NO", " ",  # the blank: whoever edits the file may put YES in the place of NO
    ]  # fmt: skip
    told = "\n".join(lines)
    return f"GDAL_STRUCTURAL_METADATA_SIZE={len(told):06d} bytes\n{told}".encode()


def _directory(level: Level, tags: Mapping[int, Tag], overview: bool, big: bool) -> dict[int, Tag]:
    """Return a level's tags without its tables: those come when their places are known."""

    def number(value: int) -> Tag:
        kind = SHORT if value < 2**16 else LONG
        return Tag(kind, 1, struct.pack("<H" if kind == SHORT else "<I", value))

    mine = {code: tag for code, tag in tags.items() if not (overview and code in OF_FULL_ONLY)}
    mine |= {HEIGHT: number(level.shape[0]), WIDTH: number(level.shape[1])}
    if overview:
        mine[SUBFILE] = Tag(LONG, 1, struct.pack("<I", 1))
    tiles, wide = level.sizes.size, 8 if big else 4
    mine[OFFSETS] = Tag(LONG8 if big else LONG, tiles, bytes(wide * tiles))
    mine[COUNTS] = Tag(LONG, tiles, bytes(4 * tiles))
    return dict(sorted(mine.items()))


class _Layout:
    """Where everything lies in the file."""

    def __init__(self, levels: Sequence[Level], tags: Mapping[int, Tag], big: bool) -> None:
        self.levels, self.big = levels, big
        self.ghost = _ghost(levels[0].planes > 1)
        self.directories = [_directory(level, tags, i > 0, big) for i, level in enumerate(levels)]
        at = self.begin = _even((16 if big else 8) + len(self.ghost), 16)
        self.places: list[int] = []
        """Where each directory begins."""
        self.far: list[dict[int, int]] = []
        """Where the values lie that do not fit into an entry, for each directory."""
        inline = 8 if big else 4
        for directory in self.directories:
            self.places.append(at)
            at += len(directory) * (20 if big else 12) + (16 if big else 6)
            far = {}
            for code, tag in directory.items():
                if len(tag.data) > inline and code not in (OFFSETS, COUNTS):
                    far[code] = at = _even(at, 8)
                    at += len(tag.data)
            self.far.append(far)
            at = _even(at, 8)
        for directory, far in zip(self.directories, self.far, strict=True):
            for code in (OFFSETS, COUNTS):
                if len(directory[code].data) > inline:
                    far[code] = at
                    at += _even(len(directory[code].data), 8)
        self.header = at
        self.size = at + sum(level.nbytes for level in levels)
        self._put_tables()

    def _put_tables(self) -> None:
        at = self.header
        for i in reversed(range(len(self.levels))):
            sizes = self.levels[i].sizes.ravel().astype(np.int64)
            ends = at + np.cumsum(sizes + 8)
            starts = ends - sizes - 4  # behind the leader, before the trailer
            at = int(ends[-1])
            directory = self.directories[i]
            for code, values in ((OFFSETS, starts), (COUNTS, sizes)):
                tag = directory[code]
                data = values.astype("<u8" if tag.kind == LONG8 else "<u4").tobytes()
                directory[code] = Tag(tag.kind, tag.count, data)

    def header_bytes(self) -> bytes:
        """Return all that comes before the first tile."""
        out, big = bytearray(self.header), self.big
        first = self.places[0]
        out[: 16 if big else 8] = (
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else struct.pack("<2sHI", b"II", 42, first)
        )
        start = 16 if big else 8
        out[start : start + len(self.ghost)] = self.ghost
        following = [*self.places[1:], 0]
        for place, directory, far, after in zip(
            self.places, self.directories, self.far, following, strict=True
        ):
            at = place
            struct.pack_into("<Q" if big else "<H", out, at, len(directory))
            at += 8 if big else 2
            for code, tag in directory.items():
                struct.pack_into("<HHQ" if big else "<HHI", out, at, code, tag.kind, tag.count)
                at += 12 if big else 8
                if code in far:
                    struct.pack_into("<Q" if big else "<I", out, at, far[code])
                    out[far[code] : far[code] + len(tag.data)] = tag.data
                else:
                    out[at : at + len(tag.data)] = tag.data
                at += 8 if big else 4
            struct.pack_into("<Q" if big else "<I", out, at, after)
        return bytes(out)


def _even(number: int, step: int) -> int:
    return -(-number // step) * step


def needs_bigtiff(levels: Sequence[Level], tags: Mapping[int, Tag]) -> bool:
    """Return True where offsets of four bytes would not reach. The sizes are known here, so nothing is guessed."""
    return _Layout(levels, tags, big=False).size > CLASSIC_LIMIT if _small_enough(levels) else True


def _small_enough(levels: Sequence[Level]) -> bool:
    return sum(level.nbytes for level in levels) <= CLASSIC_LIMIT


def cog_size(levels: Sequence[Level], tags: Mapping[int, Tag], big: bool) -> int:
    """Return the bytes of the file that `cog_bytes` gives."""
    return _Layout(levels, tags, big).size


def cog_bytes(
    spool: Spool, levels: Sequence[Level], tags: Mapping[int, Tag], *, big: bool = False
) -> Iterator[bytes]:
    """Yield the file from its first byte to its last, in pieces of about 8 MiB: to a disk or into an upload.

    Parameters
    ----------
    spool
        Where the tiles lie.
    levels
        Full resolution first, each complete.
    tags
        Of the full resolution (`tags_like`); overviews take theirs from them.
    big
        True writes BigTIFF.

    Raises
    ------
    OSError
        If a tile is missing, or in the spool is not what was put there.
    """
    for i, level in enumerate(levels):
        if (level.offsets < 0).any():
            raise OSError(f"level {i} lacks {int((level.offsets < 0).sum())} tiles")
    yield _Layout(levels, tags, big).header_bytes()
    parts: list[bytes] = []
    held = 0
    for level in reversed(levels):
        tables = (level.offsets.ravel(), level.sizes.ravel(), level.bytes_crc.ravel())
        for offset, size, crc in zip(*tables, strict=True):
            tile = spool.read(int(offset), int(size))
            if zlib.crc32(tile) != crc:
                raise OSError(f"the scratch file {spool.path} does not hold what was written to it")
            parts += [struct.pack("<I", size), tile, tile[-4:]]
            held += len(tile) + 8
            if held >= PIECE:
                yield b"".join(parts)
                parts, held = [], 0
    if parts:
        yield b"".join(parts)
