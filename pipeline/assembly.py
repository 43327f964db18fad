"""A shard on its way: what its tiles gave, put together by cutting or by blending, until it is final."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .failures import Failure, failures_of
from .job import used
from .reduce import combine_reasons, reduce_output
from .source import Reason
from .stitch import Accumulator, Seam

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tilewright.kernels.contract import OutputSpec

    from .edges import Edges
    from .grid import Shard, Tile, Window
    from .job import Job
    from .source import Block
    from .stitch import Margins

__all__ = ["Assembly", "Blended", "Cut", "ShardResult", "fresh_seams", "shard_reasons"]


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
    begun: float = field(default_factory=perf_counter)
    """When its reading began, by `time.perf_counter`."""
    failures: list[Failure] = field(default_factory=list)
    """Tolerated failures of reading that may have touched it."""


class Assembly:
    """What every shard under way has: the reasons of its pixels, and counts."""

    def __init__(self, job: Job, shard: Shard, block: Block | None, seconds_read: float) -> None:
        self.job, self.shard = job, shard
        self.reasons = shard_reasons(job, shard, block)
        """Output -> reasons ``[rows, columns]`` in input pixels."""
        self.seams = fresh_seams(job)
        self.waiting = 0
        """Tiles that are still to come."""
        self.tiles = 0
        self.needed = 0
        self.bytes_read = block.bytes_read if block else 0
        self.seconds_read = seconds_read
        self._begun = perf_counter() - seconds_read

    def place(
        self,
        tile: Tile,
        name: str,
        values: NDArray[np.float32],
        kept: Window,
        valid: Iterable[NDArray[np.bool_]],
        *,
        foreign: bool,
    ) -> None:
        """Take what a tile gave for an output.

        ``values`` ``[C, rows, columns]`` cover ``kept`` of the tile (input pixels of the grid) in output
        pixels; ``valid`` are the masks ``[T, 1, tile, tile]`` of its inputs. A ``foreign`` tile belongs to a
        neighbour whose margins did not travel.
        """
        raise NotImplementedError

    def receive(self, output: str, margins: Margins) -> None:
        """Take a neighbour's margins."""
        raise NotImplementedError

    def margins(self) -> Iterable[tuple[str, Margins]]:
        """Return what its tiles give beyond the shard: (output, margins)."""
        return ()

    @property
    def clipped(self) -> dict[str, int]:
        """Output -> values outside of the declared range."""
        return {}

    def stored(self, name: str, output: OutputSpec) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the stored values ``[C, rows, columns]`` of an output, and where they are valid."""
        raise NotImplementedError

    def result(self, pixels_forward: int) -> ShardResult:
        """Return the finished shard."""
        scale = self.job.kernel.spec.scale
        arrays: dict[str, NDArray[Any]] = {}
        best = np.full(self.shard.window.times(scale).shape, 255, dtype=np.uint8)
        for name, output in self.job.kernel.spec.outputs.items():
            arrays[name], ok = self.stored(name, output)
            reason = repeated(self.reasons[name], scale)
            reason = np.where(ok, np.uint8(Reason.VALID), np.maximum(reason, np.uint8(Reason.NODATA)))
            np.minimum(best, reason, out=best)
        return ShardResult(
            shard=self.shard,
            arrays=arrays,
            reason=best,
            tiles=self.tiles,
            tiles_needed=self.needed,
            bytes_read=self.bytes_read,
            seconds_read=self.seconds_read,
            begun=self._begun,
            pixels_forward=pixels_forward,
            seams={name: seam.as_plain() for name, seam in self.seams.items()},
            clipped=self.clipped,
            failures=failures_of(self.job, self.shard),
        )


class Cut(Assembly):
    """Cores side by side. A core is final at once: a hundred planes of scores live for one batch, not for a shard."""

    def __init__(
        self, job: Job, shard: Shard, block: Block | None, seconds_read: float, edges: Edges
    ) -> None:
        super().__init__(job, shard, block, seconds_read)
        self._edges = edges
        self._cores: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}

    def place(
        self,
        tile: Tile,
        name: str,
        values: NDArray[np.float32],
        kept: Window,
        valid: Iterable[NDArray[np.bool_]],
        *,
        foreign: bool,
    ) -> None:
        """Reduce the core and put it where it belongs; see `Assembly.place`."""
        scale, output = self.job.kernel.spec.scale, self.job.kernel.spec.outputs[name]
        window = self.shard.window.times(scale)
        if name not in self._cores:
            self._cores[name] = _empty(output, window.shape)
        stored, done = self._cores[name]
        at = tile.gives.times(scale).slices(window)
        ready = self.reasons[name][tile.gives.slices(self.shard.window)] == Reason.VALID
        core = values[:, *tile.gives.times(scale).slices(kept.times(scale))]
        stored[:, *at], done[at] = reduce_output(name, output, core, repeated(ready, scale))
        if name in self.seams:
            self._edges.compare(self.seams[name], tile, name, values, kept, done[at])

    def stored(self, name: str, output: OutputSpec) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the cores; nodata where no tile was computed."""
        shape = self.shard.window.times(self.job.kernel.spec.scale).shape
        return self._cores.pop(name) if name in self._cores else _empty(output, shape)


class Blended(Assembly):
    """Weighted sums in fixed point (`Accumulator`), final when all tiles and margins are in."""

    def __init__(self, job: Job, shard: Shard, block: Block | None, seconds_read: float) -> None:
        super().__init__(job, shard, block, seconds_read)
        self._sums: dict[str, Accumulator] = {}

    def _sum(self, name: str) -> Accumulator:
        if name not in self._sums:  # not before it is needed: shards are opened while others are computed
            output = self.job.kernel.spec.outputs[name]
            self._sums[name] = Accumulator(
                self.shard,
                self.job.grid.shape,
                self.job.tiling,
                self.job.kernel.spec.scale,
                max(output.forward_channels),
                output.range or (0.0, 1.0),
            )
        return self._sums[name]

    def place(
        self,
        tile: Tile,
        name: str,
        values: NDArray[np.float32],
        kept: Window,
        valid: Iterable[NDArray[np.bool_]],
        *,
        foreign: bool,
    ) -> None:
        """Add the tile's weighted values; see `Assembly.place`."""
        scale, output = self.job.kernel.spec.scale, self.job.kernel.spec.outputs[name]
        inner = tile.gives.slices(tile.read)
        masks = np.concatenate([ok[:, 0, *inner] for ok in valid])
        counts = masks.all(axis=0) if output.valid_rule == "all" else masks.any(axis=0)
        given = values[:, *tile.gives.times(scale).slices(kept.times(scale))]
        self._sum(name).add(tile, given, repeated(counts, scale), foreign=foreign)

    def receive(self, output: str, margins: Margins) -> None:
        """Add a neighbour's margins."""
        self._sum(output).receive(margins)

    def margins(self) -> Iterable[tuple[str, Margins]]:
        """Yield what the tiles gave beyond the shard; nothing where none was computed."""
        for name, sums in self._sums.items():
            for margins in sums.margins():
                yield name, margins

    @property
    def clipped(self) -> dict[str, int]:
        """Output -> values outside of the declared range."""
        return {name: sums.clipped for name, sums in self._sums.items() if sums.clipped}

    def stored(self, name: str, output: OutputSpec) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Divide the sums by their weights, and reduce."""
        values, filled = self._sum(name).result(self.seams[name])
        ready = repeated(self.reasons[name], self.job.kernel.spec.scale) == Reason.VALID
        return reduce_output(name, output, values, filled & ready)


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


def fresh_seams(job: Job) -> dict[str, Seam]:
    """Return a measure for each output that can have a seam: blended, or cut without an exact radius."""
    outputs = job.kernel.spec.outputs
    if job.blends:
        return {name: Seam(*spec.range) for name, spec in outputs.items() if spec.range is not None}
    exact = job.kernel.spec.radius is not None
    return {} if exact else {name: Seam() for name, spec in outputs.items() if spec.is_raster}


def repeated(array: NDArray[Any], scale: int) -> NDArray[Any]:
    """Return ``[rows, columns]`` with every pixel ``scale`` times a side."""
    return array if scale == 1 else array.repeat(scale, axis=0).repeat(scale, axis=1)


def _empty(output: OutputSpec, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return stored values ``[C, rows, columns]`` of nodata alone, and that no pixel has a value."""
    stored = np.full((output.band_count, *shape), output.stored_nodata, dtype=output.stored_dtype)
    return stored, np.zeros(shape, dtype=bool)
