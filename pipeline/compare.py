"""Where and by how much two results differ, and why that may be: block by block, in bounded memory.

The memory is that of one block of both sides (a shard of the first, at most 2,048 px a side) in all bands, a
handful of planes of float64 of it, and 4 MB of histogram an output.
"""

from __future__ import annotations

import heapq
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, ResumeError

from .grid import Window
from .ledger import Ledger, differences
from .objects import fetch, is_remote, local_path, run_place
from .stored import READ_SIDE, StoredLayer, StoredRasters, open_rasters
from .warp import transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

__all__ = [
    "BlockDifference",
    "Difference",
    "Extent",
    "OutputDifference",
    "blocks_of",
    "diff",
    "grid_differences",
    "label_of",
]

WORST = 5
"""Blocks that are named."""
SHIFT = 12
"""Bits of a float32 that the histogram of distances leaves out: a quantile is exact to 2^-11 of itself."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The rectangle around all pixels that differ."""

    rows: tuple[int, int]
    """First and last row."""
    columns: tuple[int, int]
    """First and last column."""
    bounds: tuple[float, float, float, float]
    """(left, bottom, right, top) in the grid's CRS."""
    lonlat: tuple[float, float, float, float] | None
    """(west, south, east, north) in degrees; None without a CRS."""


@dataclass(frozen=True, slots=True)
class BlockDifference:
    """A block in which pixels differ."""

    name: str
    """``row.column`` of the shard, or of the square of 2,048 px where shards are larger or there are none."""
    window: Window
    """Its pixels."""
    pixels: int
    """Pixels of it that differ."""
    largest: float | None
    """Largest difference in units of the output; None for labels."""


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How one output, or the layer ``reason``, differs."""

    name: str
    """Which."""
    units: str | None
    """Units of the output, in which differences are told."""
    pixels: int
    """Pixels that were compared."""
    differing: int
    """Pixels that differ by more than the tolerance in any band, or have a value on one side alone."""
    only_a: int
    """Of these, pixels with a value in A and none in B."""
    only_b: int
    """Of these, pixels with a value in B and none in A."""
    largest: float | None
    """Largest |difference|, in units; None for labels, or where no two values differ."""
    mean: float | None
    """Mean |difference| of the pixels whose values differ."""
    p99: float | None
    """|difference| that 99 % of the pixels whose values differ do not exceed, to 0.05 % of itself."""
    changed: tuple[tuple[str, str, int], ...] = ()
    """For labels and reasons: (in A, in B, pixels), the most frequent first."""
    extent: Extent | None = None
    """Where; None where nothing differs."""
    worst: tuple[BlockDifference, ...] = ()
    """The blocks with most differing pixels, at most five."""

    @property
    def share(self) -> float:
        """Differing pixels of all."""
        return self.differing / self.pixels if self.pixels else 0.0


@dataclass(frozen=True)
class Difference:
    """How two results differ."""

    a: str
    """The one."""
    b: str
    """The other."""
    tolerance: float
    """Differences up to this do not count."""
    grid: tuple[str, ...] = ()
    """How the grids differ: then nothing else can be compared."""
    outputs: tuple[OutputDifference, ...] = ()
    """A line an output that both have; ``reason`` where both have a Zarr."""
    only: tuple[str, ...] = ()
    """Outputs that one of them alone has, as sentences."""
    records: tuple[str, str] | None = None
    """Digests of the tables, where the results are records."""
    causes: tuple[str, ...] = ()
    """``key: in A -> in B`` for what differs between the fingerprints of two runs."""
    same_fingerprint: bool = field(default=False)
    """True where both are runs and their fingerprints are equal: then their pixels should be."""

    @property
    def equal(self) -> bool:
        """True where nothing differs beyond the tolerance."""
        tables = self.records is None or self.records[0] == self.records[1]
        return not self.grid and not self.only and tables and not any(o.differing for o in self.outputs)

    @property
    def exit_code(self) -> int:
        """0 equal, 1 different, 2 not comparable."""
        return 2 if self.grid else (0 if self.equal else 1)


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    tolerance: float = 0.0,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Difference:
    """Say where and by how much two results differ.

    Parameters
    ----------
    a, b
        Each the folder of a run (finished or not), a ``.zarr`` of tilewright, or a GeoTIFF; a path, or an
        address in an object store.
    tolerance
        Differences up to this, in units of the output, do not count. A value against nodata, another label
        and another reason always do.
    out
        A GeoTIFF to write: |difference| as float32 COG, a band an output, NaN where a side has no value; for
        labels 1 where they differ.
    progress
        Called with (blocks done, blocks in all).

    Raises
    ------
    InputError
        Where there is nothing to compare.
    ReadError
        Where pixels cannot be read.
    """
    first, second = os.fspath(a), os.fspath(b)
    if tolerance < 0:
        raise InputError(f"tolerance is {tolerance:g}", place="--tolerance", remedy="give 0 or more")
    said: dict[str, Any] = {"a": first, "b": second, "tolerance": tolerance, **_causes(first, second)}
    tables = _table(first), _table(second)
    if tables[0] and tables[1]:
        return Difference(**said, records=(tables[0], tables[1]))
    with ExitStack() as stack:
        one, other = (stack.enter_context(open_rasters(place)) for place in (first, second))
        if grid := tuple(grid_differences(one.geobox, other.geobox)):
            return Difference(**said, grid=grid)
        pairs, only = _pairs(one, other)
        if not pairs:
            raise InputError(
                "they have no output in common", place=f"{first}, {second}", remedy="; ".join(only)
            )
        picture = stack.enter_context(_Picture(Path(out), one.geobox, [p[0] for p in pairs])) if out else None
        found = _compare(one, other, pairs, tolerance, picture, progress)
        if picture is not None:
            picture.finish()
        return Difference(**said, outputs=tuple(o.told(one.geobox) for o in found), only=only)


def grid_differences(a: GeoBox, b: GeoBox) -> Iterator[str]:
    """Yield in words how two grids differ."""
    if a.crs != b.crs:
        yield f"CRS: {a.crs} in A, {b.crs} in B"
    if not a.affine.almost_equals(b.affine, 1e-9 * max(1.0, abs(a.affine.c), abs(a.affine.f))):
        yield f"transform: {_six(a)} in A, {_six(b)} in B"
    if tuple(a.shape) != tuple(b.shape):
        yield f"shape: {a.shape[0]} x {a.shape[1]} px in A, {b.shape[0]} x {b.shape[1]} px in B"


def _six(box: GeoBox) -> str:
    return f"({', '.join(f'{v:.12g}' for v in tuple(box.affine)[:6])})"


def _pairs(
    a: StoredRasters, b: StoredRasters
) -> tuple[list[tuple[StoredLayer, StoredLayer]], tuple[str, ...]]:
    """Return the layers that both have; two single files are compared whatever their names are."""
    if len(a.layers) == len(b.layers) == 1:
        return [(next(iter(a.layers.values())), next(iter(b.layers.values())))], ()
    both = [name for name in a.layers if name in b.layers]
    only = [
        f"{side} alone has output {name!r}"
        for side, mine, others in (("A", a.layers, b.layers), ("B", b.layers, a.layers))
        for name in mine
        if name not in others and name != "reason"  # a result that kept no Zarr has no reasons to compare
    ]
    return [(a.layers[name], b.layers[name]) for name in both], tuple(only)


def _compare(
    a: StoredRasters,
    b: StoredRasters,
    pairs: list[tuple[StoredLayer, StoredLayer]],
    tolerance: float,
    picture: _Picture | None,
    progress: Callable[[int, int], Any] | None,
) -> list[_Tally]:
    tallies = [_Tally(mine, theirs, tolerance) for mine, theirs in pairs]
    blocks = list(blocks_of(a))
    for done, (name, window) in enumerate(blocks):
        for band, (tally, (mine, theirs)) in enumerate(zip(tallies, pairs, strict=True), 1):
            values = a.read(mine.name, window), b.read(theirs.name, window)
            if values[0].shape != values[1].shape:
                raise InputError(
                    f"{mine.name} has {values[0].shape[0]} bands in A and {values[1].shape[0]} in B",
                    place="diff",
                )
            distance = tally.add(name, window, *values)
            if picture is not None:
                picture.write(band, window, distance)
        if progress:
            progress(done + 1, len(blocks))
    return tallies


def blocks_of(rasters: StoredRasters) -> Iterator[tuple[str, Window]]:
    """Yield name and window of the blocks in which rasters are compared."""
    rows, cols = rasters.geobox.shape
    side = min(rasters.side, READ_SIDE)
    for i in range(-(-rows // side)):
        for j in range(-(-cols // side)):
            yield (
                f"{i}.{j}",
                Window(i * side, min((i + 1) * side, rows), j * side, min((j + 1) * side, cols)),
            )


class _Tally:
    """What has been found of one output so far."""

    def __init__(self, a: StoredLayer, b: StoredLayer, tolerance: float) -> None:
        self.a, self.b = a, b
        self._alike = (a.scale, a.offset) == (b.scale, b.offset)
        self._tolerance = 0.0 if a.labels else tolerance
        self.pixels = self.differing = self.only_a = self.only_b = self.unequal = 0
        self.largest = self.total = 0.0
        self._bins = np.zeros(1 << (31 - SHIFT), dtype=np.int64)
        self._changed: Counter[tuple[float, float]] = Counter()
        self._rows: tuple[int, int] | None = None
        self._cols: tuple[int, int] | None = None
        self._worst: list[tuple[int, float, int, BlockDifference]] = []

    def add(self, name: str, window: Window, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
        """Compare the stored values ``[C, rows, columns]`` of a block; returns |difference|, the largest band's."""
        in_a, in_b = self.a.valid(a), self.b.valid(b)
        distance = self._distance(a, b)
        both = in_a & in_b
        distance[~both] = 0
        beyond = np.isnan(distance) | (distance > self._tolerance)  # infinity less infinity of another sign
        lost, gained = (in_a & ~in_b).any(axis=0), (in_b & ~in_a).any(axis=0)
        values = beyond.any(axis=0)
        differs = values | lost | gained
        worst: NDArray[np.float64] = np.nan_to_num(distance, nan=np.inf).max(axis=0)
        self.pixels += differs.size
        self.differing += int(differs.sum())
        self.only_a += int(lost.sum())
        self.only_b += int((gained & ~lost).sum())
        if differs.any():
            self._note(name, window, differs, worst, values)
            if self.a.labels:
                self._count_labels(a, b, in_a, in_b)
        worst[~both.all(axis=0)] = np.nan
        return worst

    def _distance(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
        if self._alike or self.a.labels:
            return self.a.distance(a, b)
        x, y = (
            v * layer.scale + layer.offset
            for v, layer in ((a.astype(float), self.a), (b.astype(float), self.b))
        )
        found: NDArray[np.float64] = np.abs(x - y)
        found[x == y] = 0
        return found

    def _note(
        self,
        name: str,
        window: Window,
        differs: NDArray[np.bool_],
        worst: NDArray[np.float64],
        values: NDArray[np.bool_],
    ) -> None:
        rows, cols = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        self._rows = _span(self._rows, window.row0 + int(rows[0]), window.row0 + int(rows[-1]))
        self._cols = _span(self._cols, window.col0 + int(cols[0]), window.col0 + int(cols[-1]))
        far = worst[values]
        if far.size:
            self.unequal += far.size
            self.total += float(far.sum())
            self.largest = max(self.largest, float(far.max()))
            codes = far.astype(np.float32).view(np.uint32) >> SHIFT
            self._bins += np.bincount(codes, minlength=self._bins.size)
        largest = None if self.a.labels or not far.size else float(far.max())
        block = BlockDifference(name, window, int(differs.sum()), largest)
        heapq.heappush(self._worst, (block.pixels, largest or 0.0, -len(self._worst), block))
        self._worst = heapq.nlargest(WORST, self._worst)
        heapq.heapify(self._worst)

    def _count_labels(
        self, a: NDArray[Any], b: NDArray[Any], in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]
    ) -> None:
        at = (in_a | in_b) & ((a != b) | (in_a != in_b))
        x, y = np.where(in_a, a, -1.0)[at], np.where(in_b, b, -1.0)[at]
        found, counts = np.unique(np.stack([x, y], axis=1), axis=0, return_counts=True)
        for (one, other), count in zip(found.tolist(), counts.tolist(), strict=True):
            self._changed[one, other] += count

    def told(self, box: GeoBox) -> OutputDifference:
        """Return what was found."""
        numbers = bool(self.unequal) and not self.a.labels
        changed = tuple(
            (label_of(self.a, x), label_of(self.b, y), count) for (x, y), count in self._changed.most_common()
        )
        return OutputDifference(
            name=self.a.name,
            units=self.a.units,
            pixels=self.pixels,
            differing=self.differing,
            only_a=self.only_a,
            only_b=self.only_b,
            largest=self.largest if numbers else None,
            mean=self.total / self.unequal if numbers else None,
            p99=self._quantile(0.99) if numbers else None,
            changed=changed,
            extent=self._extent(box),
            worst=tuple(entry[-1] for entry in sorted(self._worst, reverse=True)),
        )

    def _quantile(self, share: float) -> float:
        at = int(np.searchsorted(np.cumsum(self._bins), share * self.unequal))
        # The upper end of the bin, so that the share is never understated.
        top = float(np.array([((at + 1) << SHIFT) - 1], dtype=np.uint32).view(np.float32)[0])
        return min(top, self.largest) if np.isfinite(top) else self.largest

    def _extent(self, box: GeoBox) -> Extent | None:
        if self._rows is None or self._cols is None:
            return None
        (r0, r1), (c0, c1) = self._rows, self._cols
        part = box[r0 : r1 + 1, c0 : c1 + 1]
        left, bottom, right, top = (float(v) for v in part.extent.boundingbox.bbox)
        lonlat = None
        if box.crs is not None:
            lonlat = transformer(str(box.crs), "OGC:CRS84").transform_bounds(left, bottom, right, top)
        return Extent((r0, r1), (c0, c1), (left, bottom, right, top), lonlat)


def _span(known: tuple[int, int] | None, low: int, high: int) -> tuple[int, int]:
    return (low, high) if known is None else (min(known[0], low), max(known[1], high))


def label_of(layer: StoredLayer, code: float) -> str:
    """Return the name of a label, its number where nobody named it, and ``nodata`` for a negative one."""
    if code < 0:
        return "nodata"
    name = layer.classes[int(code)] if int(code) < len(layer.classes) else None
    return name or f"{code:g}"  # a label that nobody named


class _Picture:
    """The GeoTIFF of differences: written block by block beside its place, and copied there as a COG."""

    def __init__(self, path: Path, box: GeoBox, layers: list[StoredLayer]) -> None:
        self.path, self._box, self._layers = path, box, layers

    def __enter__(self) -> _Picture:
        import rasterio

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix=f".{self.path.stem}.", dir=self.path.parent))
        rows, cols = self._box.shape
        self._dataset = rasterio.open(
            self._scratch / "plain.tif",
            "w",
            driver="GTiff",
            height=rows,
            width=cols,
            count=len(self._layers),
            dtype="float32",
            nodata=float("nan"),
            crs=None if self._box.crs is None else str(self._box.crs),
            transform=self._box.affine,
            tiled=True,
            compress="zstd",
            zstd_level=1,
            interleave="band",
            bigtiff="if_safer",
        )
        for band, layer in enumerate(self._layers, 1):
            self._dataset.set_band_description(band, f"|A - B| of {layer.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self._dataset.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def write(self, band: int, window: Window, distance: NDArray[np.float64]) -> None:
        """Write a block of one output."""
        from rasterio.windows import Window as RasterWindow

        place = RasterWindow(window.col0, window.row0, window.width, window.height)
        self._dataset.write(distance.astype(np.float32), band, window=place)

    def finish(self) -> None:
        """Make the COG, and give it its name."""
        from rasterio.shutil import copy

        self._dataset.close()
        done = self._scratch / self.path.name
        copy(
            self._scratch / "plain.tif",
            done,
            driver="COG",
            COMPRESS="DEFLATE",
            PREDICTOR="YES",
            RESAMPLING="AVERAGE",
            BIGTIFF="IF_SAFER",
        )
        done.replace(self.path)


# -- why -----------------------------------------------------------------------------------------------------


def _causes(a: str, b: str) -> dict[str, Any]:
    """Return what of the fingerprints of two runs differs; of anything but two runs, nothing."""
    headers = _header(a), _header(b)
    if headers[0] is None or headers[1] is None:
        return {}
    found = tuple(differences(headers[0]["depends_on"], headers[1]["depends_on"]))
    return {"causes": found, "same_fingerprint": not found}


def _folder(place: str) -> str:
    """Return the folder of the run that a path may belong to: itself, or of its Zarr or COG the one around."""
    return (
        place if not place.lower().endswith((".zarr", ".tif", ".tiff")) else place.rpartition("/")[0] or "."
    )


def _header(place: str) -> dict[str, Any] | None:
    """Return the first line of the ledger of a run, or None where it is none."""
    import json

    folder = _folder(place.rstrip("/"))
    path = run_place(folder)[0]
    try:
        if is_remote(folder) and not (path / "ledger.jsonl").exists():
            data = fetch(f"{folder}/ledger.jsonl")
            return None if data is None else dict(json.loads(data.splitlines()[0]))
        return Ledger.read(path).header
    except (ResumeError, ValueError):
        return None


def _table(place: str) -> str | None:
    """Return the digest of a result of records, or None where it is none."""
    path = place if place.endswith(".parquet") else f"{place.rstrip('/')}/records.parquet"
    if is_remote(path) or not local_path(path).exists():
        return None
    from .tiles import table_digest

    return table_digest(local_path(path))
