"""`map_tiles`: kernels that give a record a tile (a vector, a text, boxes), mapped into one table.

The record of a tile stands for its core; the halo around it (the kernel's radius, or an eighth of the tile
where it declares none) is context. Kernels of detection give boxes in the manner of torchvision, for each
tile a mapping of

- ``boxes``: ``[n, 4]`` (xmin, ymin, xmax, ymax) in pixels of the tile as the kernel sees it, halo included,
- ``scores``: ``[n]``, and
- ``labels``: ``[n]``, names or indices into the output's ``classes``; may be left out.

An object that several tiles see is *owned* by the one whose core holds the centre of its box, so it is in the
table once. That is exact for objects that lie within a halo of their centre, for the owner sees them whole:
give the kernel a radius of at least the largest object. Larger ones are cut at the edge of the tile. Boxes
are cut to the grid first, so what a mirrored edge makes a kernel see beyond the data is left out.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.catalogs.outputs import OutputAsset
from tilewright.errors import KernelError, ResumeError

from . import outputs as publishing
from .assembly import shard_reasons
from .batches import Batcher
from .failures import Failure, as_plain, failures_of
from .forward import Counters, Forward
from .job import prepare
from .lazy import as_source
from .reduce import combine_reasons
from .run import Run
from .settings import Settings
from .source import Reason
from .statistics import gather_statistics
from .stream import ahead
from .table import Box, Record, RecordWriter

if TYPE_CHECKING:
    import geopandas
    import xarray as xr

    from tilewright.kernels.contract import Kernel, OutputSpec

    from .batches import Seat
    from .grid import Grid, Shard, Tile
    from .job import Job
    from .report import Report
    from .run import Progress, Request
    from .source import Block, Source
    from .worker import Work

__all__ = ["RecordEngine", "RecordRun", "ShardRecords", "execute_records", "map_tiles"]

PARQUET_MEDIA = "application/vnd.apache.parquet"


def map_tiles(
    kernel: Kernel,
    cube: xr.DataArray | Mapping[str, xr.DataArray] | Source,
    *,
    settings: Settings | None = None,
    **wishes: Any,
) -> geopandas.GeoDataFrame:
    """Map a kernel that gives records over a cube, tile by tile, now.

    Parameters
    ----------
    kernel
        A kernel with outputs of kind vector, text or boxes.
    cube
        As in `tilewright.pipeline.lazy.map_pixels`.
    settings, **wishes
        `Settings`, or its fields: ``tile``, ``shard``, ``batch``, ``threads``, ``device``, ...

    Returns
    -------
    geopandas.GeoDataFrame
        In longitude and latitude (OGC:CRS84), sorted by tile. A row a tile that holds a valid pixel, with its
        ``tile_row``, ``tile_col``, centre ``x``, ``y`` in the cube's CRS and the footprint of its core; or a
        row a box, with the box as geometry and ``score``, ``label``, ``xmin``, ... in pixels of the grid.
        Neither shard nor batch changes a bit.

    Raises
    ------
    KernelError, GridError
        Where kernel, cube and settings do not fit, or the kernel gives what its description does not say.
    """
    import geopandas

    if kernel.spec.mapping != "map_tiles":
        raise KernelError(
            "gives rasters, not records", place=f"kernel {kernel.spec.name}", remedy="use map_pixels"
        )
    job = prepare(kernel, as_source(cube), settings or Settings(**wishes))
    job = job.with_statistics(gather_statistics(job))
    shards = list(job.tiling.shards(job.grid.shape))
    with TemporaryDirectory(prefix="tilewright-") as folder:
        writer = RecordWriter(Path(folder) / publishing.RECORDS, job.grid, job.kernel.spec.outputs)
        with closing(RecordEngine(job).run(shards)) as results:
            for result in results:
                writer.write(result.shard, result.records)
        return geopandas.read_parquet(writer.finish())


def execute_records(job: Job, request: Request, progress: Progress | None = None) -> Report:
    """Run a ``job`` of records into a folder; errors and resuming are those of `tilewright.pipeline.run.execute`."""
    return RecordRun(job, request, progress).carry_out()


@dataclass(slots=True)
class ShardRecords:
    """The records of the tiles that a shard owns."""

    shard: Shard
    """Which."""
    reasons: dict[str, int]
    """Reason -> input pixels of the shard."""
    bytes_read: int
    """Bytes read for it."""
    seconds_read: float
    """Seconds of reading."""
    begun: float
    """When its reading began, by `time.perf_counter`."""
    needed: int = 0
    """Tiles with a valid pixel in their core: one record each, or any number of boxes."""
    pixels_forward: int = 0
    """Input pixels of the batches since the shard before it."""
    skipped: int = 0
    """Tiles without one; the kernel was not called for them."""
    records: list[Record] = field(default_factory=list)
    """What the kernel gave, in the order of tiles."""
    failures: list[Failure] = field(default_factory=list)
    """Tolerated failures of reading that may have touched it."""


class RecordEngine:
    """Runs shards of a job of records: one thread reads a shard ahead, batches are filled across shards."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.forward = Forward(job)

    @property
    def counters(self) -> Counters:
        """What was counted at the kernel's call."""
        return self.forward.counters

    def continue_from(self, former: RecordEngine) -> None:
        """Go on with the counts of an engine that failed half-way."""
        self.forward.counters, self.forward.size = former.counters, former.forward.size

    def run(self, shards: Iterable[Shard]) -> Generator[ShardRecords, None, None]:
        """Compute shards, and yield each as soon as all its tiles are through, in their order."""
        opened: deque[ShardRecords] = deque()
        pixels = 0
        with (
            ahead(map(self._read, shards), "read") as reads,
            ahead(Batcher(self.job).batches(reads), "cut") as batches,
            ahead(self.forward.run(batches), "infer") as inferred,
        ):
            for batch, outputs in inferred:
                opened.extend(batch.begun)
                if batch.seats:
                    pixels += len(next(iter(batch.data.values()))) * self.job.tiling.tile**2
                for seat, given in zip(batch.seats, outputs, strict=True):
                    self._keep(seat, given)
                while opened and len(opened[0].records) == opened[0].needed:
                    state = opened.popleft()
                    state.pixels_forward, pixels = pixels, 0
                    state.failures = failures_of(self.job, state.shard)
                    yield state

    def _read(self, shard: Shard) -> tuple[ShardRecords, list[tuple[Tile, Any]], Block | None]:
        """Return a shard's state, its tiles with a valid pixel, and its block (None outside of the region)."""
        started = perf_counter()
        job, tiles = self.job, self.job.tiles(shard)
        block = job.source.read(job.span(tiles)) if job.grid.inside(shard.window).any() else None
        wanted = [] if block is None else [tile for tile in tiles if self._has_pixel(tile, block)]
        reason = np.minimum.reduce(list(shard_reasons(job, shard, block).values()))
        counts = Counter(
            {Reason(code).name.lower(): int((reason == code).sum()) for code in np.unique(reason)}
        )
        state = ShardRecords(
            shard,
            dict(counts),
            block.bytes_read if block else 0,
            perf_counter() - started,
            started,
            len(wanted),
            len(tiles) - len(wanted),
        )
        return state, [(tile, state) for tile in wanted], block

    def _has_pixel(self, tile: Tile, block: Block) -> bool:
        """True where a pixel of the tile's core is valid by the rule of any output."""
        at = tile.gives.slices(block.window)
        layers = [block.reason[b.layer][..., *at] for b in self.job.bindings.values()]
        inside = self.job.grid.inside(tile.gives)
        rules = {spec.valid_rule for spec in self.job.kernel.spec.outputs.values()}
        return any(bool((combine_reasons(layers, inside, rule) == Reason.VALID).any()) for rule in rules)

    def _keep(self, seat: Seat, given: dict[str, Any]) -> None:
        spec, tile, values = self.job.kernel.spec, seat.tile, {}
        for name, output in spec.outputs.items():
            value = given[name]
            if output.kind == "boxes":
                value = owned_boxes(value, tile, self.job.grid, output, f"{spec.name}, output {name}")
            values[name] = value
        seat.owner.records.append(Record(tile.index, tile.gives, values))


def owned_boxes(found: Any, tile: Tile, grid: Grid, output: OutputSpec, place: str) -> list[Box]:
    """Return the boxes of a tile whose centre its core holds, in pixels of the grid; raises `KernelError`."""
    if not isinstance(found, Mapping) or not {"boxes", "scores"} <= set(found):
        raise KernelError(
            f"gave {type(found).__name__} for a tile",
            place=f"kernel {place}",
            remedy="give a mapping of boxes [n, 4], scores [n] and labels [n]",
        )
    bounds = np.asarray(found["boxes"], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(found["scores"], dtype=np.float64).reshape(-1)
    labels = _labels(found.get("labels"), len(bounds), output, place)
    if not len(bounds) == len(scores) == len(labels):
        raise KernelError(
            f"gave {len(bounds)} boxes, {len(scores)} scores and {len(labels)} labels",
            place=f"kernel {place}",
        )
    rows, cols = grid.shape
    bounds = bounds + np.array([tile.read.col0, tile.read.row0] * 2)
    bounds = np.clip(bounds, 0, [cols, rows, cols, rows])
    middle_x, middle_y = (bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2
    core = tile.gives
    ours = (core.col0 <= middle_x) & (middle_x < core.col1) & (core.row0 <= middle_y) & (middle_y < core.row1)
    ours &= (bounds[:, 0] < bounds[:, 2]) & (bounds[:, 1] < bounds[:, 3])
    return [
        Box((float(x0), float(y0), float(x1), float(y1)), float(scores[i]), labels[i])
        for i, (x0, y0, x1, y1) in enumerate(bounds)
        if ours[i]
    ]


def _labels(labels: Any, count: int, output: OutputSpec, place: str) -> list[str]:
    if labels is None:
        return [output.classes[0] if output.classes else "object"] * count
    names = []
    for label in labels:
        if isinstance(label, str):
            names.append(label)
        elif output.classes is None:
            names.append(str(int(label)))
        elif 0 <= int(label) < len(output.classes):
            names.append(output.classes[int(label)])
        else:
            raise KernelError(
                f"gave label {int(label)}, and there are {len(output.classes)} classes",
                place=f"kernel {place}",
            )
    return names


class RecordRun(Run):
    """A run whose result is one GeoParquet, ``records.parquet``; see `Run`."""

    def _open_results(self) -> None:
        path = self.request.out / publishing.RECORDS
        self.writer = RecordWriter(path, self.job.grid, self.job.kernel.spec.outputs)
        lost = [name for name in self.ledger.entries if not (self.writer.parts / f"{name}.parquet").exists()]
        if lost and not path.exists():
            raise ResumeError(
                f"the ledger names finished shards, but the records of {lost[0]} are gone",
                place=str(self.writer.parts),
                remedy="start over with --fresh",
            )

    @property
    def _lies_in_the_store(self) -> bool:
        """False: the parts of the table are in the work folder."""
        return False

    def _reopen(self) -> None:
        table = self.request.out / publishing.RECORDS
        if table.exists():
            raise ResumeError(
                "the records of the shards are merged into one table, and the failed ones cannot be replaced",
                place=str(table),
                remedy="start over with --fresh",
            )

    def _hide(self) -> None:
        """Leave the parts as they are: they are seen by nobody before they are merged."""

    def _new_engine(self, shards: list[Shard]) -> RecordEngine:
        return RecordEngine(self.job)

    def _writer(self) -> Callable[[ShardRecords], tuple[str, dict[str, Any]]]:
        return partial(write_records, self.writer)

    def _work(self) -> Work:
        from .worker import work_of

        out = self.request.out
        current = (out / "ledger.jsonl").exists
        place = str(self.writer.parts)
        return work_of(self.job, _engine_of_group, self._writer(), current, place, (str(out),))

    def _publish(self, step: publishing.Step) -> publishing.Published:
        """Merge the parts, and describe the table. A table that stands there already is whole: it was renamed."""
        path = self.writer.path
        step("table", 0, 2)
        if not path.exists():
            self.writer.finish()
        shutil.rmtree(self.writer.parts, ignore_errors=True)
        digest = table_digest(path)
        step("Item", 1, 2)
        names = ", ".join(self.job.kernel.spec.outputs)
        asset = OutputAsset("records", path.name, PARQUET_MEDIA, ("data",), f"{names}, by tile")
        publishing.write_item(self.job, self.request, [asset], digest, self._started)
        return publishing.Published({"records": path.name, "item": "item.json"}, digest)


def write_records(writer: RecordWriter, result: ShardRecords) -> tuple[str, dict[str, Any]]:
    """Write a shard's records; return its name and the facts for its line in the ledger."""
    rows = writer.write(result.shard, result.records)
    return result.shard.name, {
        "pixels": sum(result.reasons.values()),
        "reasons": result.reasons,
        "tiles": result.needed,
        "tiles_needed": result.needed,
        "tiles_skipped": result.skipped,
        "rows": rows,
        "bytes_read": result.bytes_read,
        "seconds_read": round(result.seconds_read, 4),
        "seconds": round(perf_counter() - result.begun, 4),
        "pixels_forward": result.pixels_forward,
        "seams": {},
        "clipped": {},
        "failures": as_plain(result.failures),
    }


def _engine_of_group(job: Job, _shards: list[Shard], _elsewhere: object) -> RecordEngine:
    return RecordEngine(job)


def table_digest(path: Path) -> str:
    """Return the sha256 over the columns of a table but those that follow from others (geometry, x, y).

    Each column is hashed in the order of rows and then the columns by name, so row groups and compression, and
    with them shards, do not count.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = sorted(set(file.schema_arrow.names) - {"geometry", "x", "y"})
    hashers = {name: hashlib.sha256() for name in names}
    for batch in file.iter_batches(batch_size=4096, columns=names):
        for name, hasher in hashers.items():
            column = batch.column(name)
            if pa.types.is_string(column.type):
                for text in column.to_pylist():
                    data = text.encode()
                    hasher.update(len(data).to_bytes(8, "little") + data)
            else:
                flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
                values = flat.to_numpy(zero_copy_only=False)
                hasher.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)
    root = hashlib.sha256()
    for name, hasher in hashers.items():
        root.update(name.encode() + b"\n" + hasher.digest())
    return root.hexdigest()
