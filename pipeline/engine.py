"""The engine: for each shard read core and halo, batch, run, stitch, reduce. Reading and writing overlap it.

One thread reads one shard ahead, the caller's thread infers, and what it yields is written behind it by a third
(see `tilewright.pipeline.run`). Batches are filled across shards and always have the same shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import GridError, KernelError

from .failures import Failure, failures_of
from .forward import Counters, Forward, Sample
from .grid import Window
from .job import used
from .reduce import combine_reasons, reduce_output
from .source import Reason
from .stitch import Accumulator, Margins, Seam

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.contract import OutputSpec

    from .grid import Shard, Tile
    from .job import Job
    from .source import Block

__all__ = ["Engine", "ShardResult", "shard_reasons"]


@dataclass(slots=True)
class ShardResult:
    """A finished shard, as it is written."""

    shard: Shard
    """Which, in input pixels."""
    arrays: dict[str, NDArray[Any]]
    """Output -> stored values ``[C, rows, columns]`` in output pixels."""
    reason: NDArray[np.uint8]
    """``[rows, columns]`` in output pixels: `Reason.VALID` where any output has a value."""
    tiles: int = 0
    """Tiles of its own that the kernel was called with."""
    tiles_needed: int = 0
    """Tiles of its own that hold a pixel with a result, from grid and valid mask."""
    bytes_read: int = 0
    """Bytes read for it."""
    pixels_forward: int = 0
    """Input pixels of the batches since the shard before it."""
    seams: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Output -> differences between neighbouring tiles on its pixels (`Seam.as_plain`)."""
    clipped: dict[str, int] = field(default_factory=dict)
    """Output -> values clipped to the declared range."""
    seconds_read: float = 0.0
    """Seconds of reading."""
    failures: list[Failure] = field(default_factory=list)
    """Tolerated failures of reading that may have touched it."""


@dataclass(slots=True)
class _Open:
    """A shard on its way: what is read and what is still to come."""

    shard: Shard
    reasons: dict[str, NDArray[np.uint8]]
    waiting: int
    bytes_read: int
    seconds_read: float
    tiles: int = 0
    needed: int = 0
    cores: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = field(default_factory=dict)
    sums: dict[str, Accumulator] = field(default_factory=dict)
    seams: dict[str, Seam] = field(default_factory=dict)


class Engine:
    """Runs shards of a job in one process.

    Parameters
    ----------
    job
        What is run.
    shards
        All shards that this engine will run, in row-major order, over one or several calls of `run`. When
        blending, margins travel between them; tiles of a neighbour above or to the left that is not among
        them are computed again for the strip they share (counted as ``recomputed``).
    """

    def __init__(self, job: Job, shards: Iterable[Shard]) -> None:
        self.job = job
        self._ours = {s.index for s in shards}
        self.forward = Forward(job)
        self.seams = _seams(job)
        """Output -> differences between predictions of neighbouring tiles, for outputs that can have a seam."""
        self._edges: dict[tuple[int, int, str], list[tuple[Window, NDArray[np.float32]]]] = {}
        self._margins: dict[tuple[int, int], list[tuple[str, Margins]]] = {}
        self._begun: set[tuple[int, int]] = set()

    @property
    def counters(self) -> Counters:
        """What was counted at the kernel's call."""
        return self.forward.counters

    def run(self, shards: Iterable[Shard]) -> Iterator[ShardResult]:
        """Compute the next of this engine's shards, and yield each as soon as it is final, in their order."""
        opened: list[_Open] = []
        pending: list[Sample] = []
        for shard, own, foreign, block, seconds in read_ahead(shards, self._read):
            state = self._open(shard, own, foreign, block, seconds)
            opened.append(state)
            for tile, is_foreign, pixels in self._needed(own, foreign, block):
                state.waiting += 1
                state.needed += not is_foreign
                pending.append(self.forward.sample(tile, (state, is_foreign), pixels))
                if len(pending) == self.forward.size:
                    self._infer(pending)
                    pending = []
            del block  # the next one is already being read: two are alive, not three
            while opened and opened[0].waiting == 0:
                yield self._close(opened.pop(0))
        if pending:
            self._infer(pending)
        for state in opened:
            yield self._close(state)

    def _read(self, shard: Shard) -> tuple[Shard, list[Tile], list[Tile], Block | None, float]:
        """Return a shard with its own and foreign tiles, its block (None outside the region) and seconds."""
        started = perf_counter()
        per = self.job.tiling.shard // self.job.tiling.core
        own = self.job.tiles(shard)
        foreign = [
            tile
            for tile in self.job.incoming(shard)
            if (tile.index[0] // per, tile.index[1] // per) not in self._ours
        ]
        block = None
        if self.job.grid.inside(shard.window).any() or (own and self.job.blends):
            window = shard.window
            if tiles := [*own, *foreign]:
                window = _union(self.job.span(tiles), window)
            block = self.job.source.read(window)
        return shard, own, foreign, block, perf_counter() - started

    def _needed(
        self, own: list[Tile], foreign: list[Tile], block: Block | None
    ) -> Iterator[tuple[Tile, bool, Block]]:
        """Yield the tiles to compute, each with whether it is foreign and its block, and count them."""
        if block is None:
            return
        for tiles, is_foreign in ((foreign, True), (own, False)):
            for tile in tiles:
                if self._is_needed(tile, block):
                    self.counters.recomputed += is_foreign
                    yield tile, is_foreign, block

    def _is_needed(self, tile: Tile, block: Block) -> bool:
        """True where a pixel of what the tile gives will have a value."""
        inside = self.job.grid.inside(tile.gives)
        layers = self._layers(block, tile.gives)
        specs = self.job.kernel.spec.outputs.values()
        return any(
            bool((combine_reasons(layers, inside, spec.valid_rule) == Reason.VALID).any()) for spec in specs
        )

    def _layers(self, block: Block, window: Any) -> list[NDArray[np.uint8]]:
        at = window.slices(block.window)
        return [layer[..., *at] for layer in used(block, self.job.bindings).values()]

    def _open(
        self, shard: Shard, own: list[Tile], foreign: list[Tile], block: Block | None, seconds: float
    ) -> _Open:
        spec = self.job.kernel.spec
        self._check_order(shard)
        reasons = shard_reasons(self.job, shard, block)
        state = _Open(shard, reasons, 0, block.bytes_read if block else 0, seconds, seams=_seams(self.job))
        if self.job.blends and spec.mapping == "map_pixels":
            for name, output in spec.outputs.items():
                span = output.range or (0.0, 1.0)
                channels = max(output.forward_channels)
                state.sums[name] = Accumulator(
                    shard, self.job.grid.shape, self.job.tiling, spec.scale, channels, span
                )
        return state

    def _check_order(self, shard: Shard) -> None:
        """Refuse a shard whose neighbours are still to come: their margins would be lost."""
        i, j = shard.index
        late = {(i - 1, j - 1), (i - 1, j), (i, j - 1)} & (self._ours - self._begun)
        if self.job.blends and late:
            raise GridError(
                f"shard {shard.name} came before its neighbour {'.'.join(map(str, min(late)))}",
                place="engine",
                remedy="run shards in row-major order when blending",
            )
        self._begun.add(shard.index)

    def _infer(self, samples: list[Sample]) -> None:
        for sample, outputs in self.forward.run(samples):
            state, foreign = sample.owner
            state.waiting -= 1
            state.tiles += not foreign
            for name, values in outputs.items():
                self._place(state, sample, name, values, foreign)

    def _place(
        self, state: _Open, sample: Sample, name: str, whole: NDArray[np.float32], foreign: bool
    ) -> None:
        scale, tile = self.job.kernel.spec.scale, sample.tile
        values = self.forward.crop(sample, whole)
        if self.job.blends:
            inner = tile.gives.slices(tile.read)
            rule = self.job.kernel.spec.outputs[name].valid_rule
            layers = [
                np.where(ok[..., *inner], np.uint8(Reason.VALID), np.uint8(Reason.NODATA))
                for ok in sample.valid.values()
            ]
            inside = np.ones(tile.gives.shape, dtype=bool)
            valid = _repeat(combine_reasons(layers, inside, rule) == Reason.VALID, scale)
            state.sums[name].add(tile, values, valid, foreign=foreign)
            return
        window = state.shard.window.times(scale)
        output = self.job.kernel.spec.outputs[name]
        stored, done = state.cores.setdefault(name, _empty(output, window.shape))
        at = tile.gives.times(scale).slices(window)
        ready = state.reasons[name][tile.gives.slices(state.shard.window)] == Reason.VALID
        # A core is final at once: a hundred planes of class scores live for one batch, not for a shard.
        stored[:, *at], done[at] = reduce_output(name, output, values, _repeat(ready, scale))
        if name in self.seams:
            self._compare_edges(state.seams[name], tile, name, values, whole, done[at])

    def _compare_edges(
        self,
        seam: Seam,
        tile: Tile,
        name: str,
        values: NDArray[np.float32],
        whole: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """Measure the seam of a cut: the first pixels of a core against what its neighbours before it gave there.

        A tile leaves the row below and the column right of its core to the tiles that own them; in row-major
        order those come later.
        """
        scale, (row, col) = self.job.kernel.spec.scale, tile.index
        gives, read = tile.gives.times(scale), tile.read.times(scale)
        for strip, given in self._edges.pop((row, col, name), []):
            if (common := strip.overlap(gives)) is not None:
                at = common.slices(gives)
                there = given[:, *common.slices(strip)]
                seam.add_differences((values[:, *at] - there)[:, valid[at]])
        right = Window(gives.row0, gives.row1, gives.col1, gives.col1 + scale)
        below = Window(gives.row1, gives.row1 + scale, gives.col0, gives.col1)
        for target, strip in (((row, col + 1), right), ((row + 1, col), below)):
            if read.contains(strip) and all(
                k < self.job.tiling.count(n) for k, n in zip(target, self.job.grid.shape, strict=True)
            ):
                self._edges.setdefault((*target, name), []).append(
                    (strip, whole[:, *strip.slices(read)].copy())
                )

    def _close(self, state: _Open) -> ShardResult:
        spec, scale = self.job.kernel.spec, self.job.kernel.spec.scale
        window = state.shard.window.times(scale)
        arrays: dict[str, NDArray[Any]] = {}
        best = np.full(window.shape, 255, dtype=np.uint8)
        self._exchange(state)
        for name, output in spec.outputs.items():
            reason = _repeat(state.reasons[name], scale)
            if name in state.sums:
                values, filled = state.sums[name].result(state.seams[name])
                self._count_clipped(name, state.sums[name].clipped)
                arrays[name], ok = reduce_output(name, output, values, filled & (reason == Reason.VALID))
            else:
                arrays[name], ok = (
                    state.cores.pop(name) if name in state.cores else _empty(output, window.shape)
                )
            reason = np.where(ok, np.uint8(Reason.VALID), np.maximum(reason, np.uint8(Reason.NODATA)))
            best = np.minimum(best, reason)
        clipped = {name: sums.clipped for name, sums in state.sums.items() if sums.clipped}
        return ShardResult(
            shard=state.shard,
            arrays=arrays,
            reason=best,
            tiles=state.tiles,
            tiles_needed=state.needed,
            bytes_read=state.bytes_read,
            seconds_read=state.seconds_read,
            pixels_forward=self.counters.new_pixels(),
            seams=self._told_seams(state),
            clipped=clipped,
            failures=failures_of(self.job, state.shard),
        )

    def continue_from(self, former: Engine) -> None:
        """Go on with the counts of an engine that failed half-way."""
        self.forward.counters, self.seams = former.counters, former.seams

    def _told_seams(self, state: _Open) -> dict[str, dict[str, Any]]:
        """Add a closed shard's seams to the engine's, and forget strips that wait for tiles it did not run."""
        per = self.job.tiling.shard // self.job.tiling.core
        here = state.shard.index
        self._edges = {k: v for k, v in self._edges.items() if (k[0] // per, k[1] // per) != here}
        plain = {name: seam.as_plain() for name, seam in state.seams.items()}
        for name, seam in plain.items():
            self.seams[name].merge(seam)
        return plain

    def _exchange(self, state: _Open) -> None:
        """Take the margins that wait for this shard, and leave those that its tiles give to later ones."""
        for name, margins in self._margins.pop(state.shard.index, []):
            state.sums[name].receive(margins)
        i, j = state.shard.index
        for name, sums in state.sums.items():
            for margins in sums.margins():
                for target in ((i, j + 1), (i + 1, j), (i + 1, j + 1)):
                    if target in self._ours and _reaches(self.job, target, margins):
                        self._margins.setdefault(target, []).append((name, margins))

    def _count_clipped(self, name: str, clipped: int) -> None:
        if not clipped:
            return
        self.counters.bad[name] = self.counters.bad.get(name, 0) + clipped
        if not self.job.settings.allow_clipping:
            low, high = self.job.kernel.spec.outputs[name].range or (0, 1)
            raise KernelError(
                f"{clipped} values lie outside of the declared range {low:g}..{high:g}",
                place=f"kernel {self.job.kernel.spec.name}, output {name}",
                remedy="declare the true range, or allow clipping",
            )


def shard_reasons(job: Job, shard: Shard, block: Block | None) -> dict[str, NDArray[np.uint8]]:
    """Return for each output the reasons ``[rows, columns]`` of a shard in input pixels."""
    inside = job.grid.inside(shard.window)
    if block is None:
        outside = np.full(shard.window.shape, np.uint8(Reason.OUTSIDE))
        return dict.fromkeys(job.kernel.spec.outputs, outside)
    at = shard.window.slices(block.window)
    layers = [layer[..., *at] for layer in used(block, job.bindings).values()]
    rules = {spec.valid_rule for spec in job.kernel.spec.outputs.values()}
    by_rule = {rule: combine_reasons(layers, inside, rule) for rule in rules}
    return {name: by_rule[spec.valid_rule] for name, spec in job.kernel.spec.outputs.items()}


def read_ahead[T, R](items: Iterable[T], read: Callable[[T], R], depth: int = 1) -> Iterator[R]:
    """Yield ``read(item)`` in order, computed by one thread that is at most ``depth`` items ahead.

    An error of ``read`` is raised here, in its place. Leaving the loop early waits for the read under way.
    """
    ahead: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="tilewright-read") as pool:
        try:
            for item in items:
                ahead.append(pool.submit(read, item))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _empty(output: OutputSpec, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return stored values ``[C, rows, columns]`` of nodata alone, and that no pixel has a value."""
    stored = np.full((output.band_count, *shape), output.stored_nodata, dtype=output.stored_dtype)
    return stored, np.zeros(shape, dtype=bool)


def _seams(job: Job) -> dict[str, Seam]:
    """Return a measure for each output that can have a seam: blended, or cut without an exact radius."""
    outputs = job.kernel.spec.outputs
    if job.blends:
        return {name: Seam(*spec.range) for name, spec in outputs.items() if spec.range is not None}
    exact = job.kernel.spec.radius is not None
    return {} if exact else {name: Seam() for name, spec in outputs.items() if spec.is_raster}


def _union(a: Any, b: Any) -> Any:
    return type(a)(min(a.row0, b.row0), max(a.row1, b.row1), min(a.col0, b.col0), max(a.col1, b.col1))


def _repeat(array: NDArray[Any], scale: int) -> NDArray[Any]:
    return array if scale == 1 else array.repeat(scale, axis=0).repeat(scale, axis=1)


def _reaches(job: Job, target: tuple[int, int], margins: Margins) -> bool:
    rows, cols = job.grid.shape
    side = job.tiling.shard
    if target[0] * side >= rows or target[1] * side >= cols:
        return False
    shard = job.tiling.shard_at(*target, job.grid.shape)
    return shard.window.times(job.kernel.spec.scale).overlap(margins.window) is not None
