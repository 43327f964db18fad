"""The engine: for each shard read core and halo, batch, run, stitch, reduce. All of it side by side.

Four stages, a thread each (`stream.ahead`), every one at most one item ahead of the next: read a block, cut
tiles into a batch, call the kernel, put shards together. What `Engine.run` yields is written behind by a fifth
(see `tilewright.pipeline.run`). Batches are filled across shards and always have the same shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tilewright.errors import GridError, KernelError

from .assembly import Assembly, Blended, Cut, ShardResult, fresh_seams
from .batches import Batcher
from .edges import Edges
from .forward import Counters, Forward
from .job import used
from .margins import MarginStore, Travelling, receivers
from .reduce import combine_reasons
from .source import Reason
from .stream import ahead

if TYPE_CHECKING:
    from pathlib import Path

    from .batches import Batch
    from .grid import Shard, Tile
    from .job import Job
    from .source import Block

__all__ = ["Engine"]

type Read = tuple[Shard, list[Tile], list[Tile], Block | None, float]
"""A shard, the tiles it owns, neighbours' tiles to compute again for it, its pixels (None outside of the
region), and the seconds that reading took."""


class Engine:
    """Runs shards of a job in one process.

    Parameters
    ----------
    job
        What is run.
    shards
        All shards that this engine will run, over one or several calls of `run`. When blending, margins travel
        between them, to higher rows and columns.
    elsewhere
        Indices of shards that other engines of the same run compute. Margins travel between engines as well:
        what comes from them is given to `receive`, what goes to them is in `outgoing`. Tiles of a neighbour
        that is neither here nor there (finished by an earlier start) are computed again for the strip they
        share, and counted as ``recomputed``.
    scratch
        Folder for margins that memory should not hold; None is the system's temporary one.
    """

    def __init__(
        self,
        job: Job,
        shards: Iterable[Shard],
        elsewhere: Iterable[tuple[int, int]] = (),
        *,
        scratch: Path | None = None,
    ) -> None:
        self.job = job
        self._ours = {s.index for s in shards}
        self._elsewhere = set(elsewhere) - self._ours
        self.forward = Forward(job)
        self.seams = fresh_seams(job)
        """Output -> differences between predictions of neighbouring tiles, for outputs that can have a seam."""
        self.outgoing: list[Travelling] = []
        """Margins for shards that are computed elsewhere."""
        self._edges = Edges(job)
        self._margins = MarginStore(scratch)
        self._begun: set[tuple[int, int]] = set()
        self._pixels = 0

    @property
    def counters(self) -> Counters:
        """What was counted at the kernel's call."""
        return self.forward.counters

    def continue_from(self, former: Engine) -> None:
        """Go on with the counts of an engine that failed half-way."""
        self.forward.counters, self.seams = former.counters, former.seams
        self.forward.size = former.forward.size

    def receive(self, margins: Iterable[Travelling]) -> None:
        """Take margins that other engines have for shards of this one; before the shard is run."""
        self._margins.leave(one for one in margins if one.target in self._ours)

    def run(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        """Compute the next of this engine's shards, and yield each as soon as it is final, in their order."""
        opened: deque[Assembly] = deque()
        with (
            ahead(map(self._read, shards), "read") as reads,
            ahead(Batcher(self.job).batches(map(self._begin, reads)), "cut") as batches,
            ahead(self.forward.run(batches), "infer") as inferred,
        ):
            for batch, outputs in inferred:
                opened.extend(batch.begun)
                self._place(batch, outputs)
                del batch, outputs
                while opened and opened[0].waiting == 0:
                    yield self._close(opened.popleft())

    def _read(self, shard: Shard) -> Read:
        started = perf_counter()
        per = self.job.tiling.shard // self.job.tiling.core
        own = self.job.tiles(shard)
        known = self._ours | self._elsewhere
        foreign = [
            tile
            for tile in self.job.incoming(shard)
            if (tile.index[0] // per, tile.index[1] // per) not in known
        ]
        block = None
        if self.job.grid.inside(shard.window).any() or (own and self.job.blends):
            window = shard.window
            if tiles := [*own, *foreign]:
                window = window.union(self.job.span(tiles))
            block = self.job.source.read(window)
        return shard, own, foreign, block, perf_counter() - started

    def _begin(self, read: Read) -> tuple[Assembly, list[tuple[Tile, Any]], Block | None]:
        """Open a shard; return it with the tiles to compute, each with its owner (shard, is it foreign)."""
        shard, own, foreign, block, seconds = read
        self._check_order(shard)
        state: Assembly
        if self.job.blends:
            state = Blended(self.job, shard, block, seconds)
        else:
            state = Cut(self.job, shard, block, seconds, self._edges)
        wanted: list[tuple[Tile, Any]] = []
        if block is not None:
            wanted = [(tile, (state, True)) for tile in foreign if self._is_needed(tile, state, block)]
            self.counters.recomputed += len(wanted)
            wanted += [(tile, (state, False)) for tile in own if self._is_needed(tile, state, block)]
            state.needed = sum(not is_foreign for _, (_, is_foreign) in wanted)
        state.waiting = len(wanted)
        return state, wanted, block

    def _is_needed(self, tile: Tile, state: Assembly, block: Block) -> bool:
        """True where a pixel of what the tile gives will have a value."""
        if state.shard.window.contains(tile.gives):
            at = tile.gives.slices(state.shard.window)
            return any(bool((reasons[at] == Reason.VALID).any()) for reasons in state.reasons.values())
        inside, at = self.job.grid.inside(tile.gives), tile.gives.slices(block.window)
        layers = [layer[..., *at] for layer in used(block, self.job.bindings).values()]
        specs = self.job.kernel.spec.outputs.values()
        return any(
            bool((combine_reasons(layers, inside, spec.valid_rule) == Reason.VALID).any()) for spec in specs
        )

    def _check_order(self, shard: Shard) -> None:
        """Refuse a shard whose neighbours are still to come: their margins would be lost."""
        i, j = shard.index
        late = {(i - 1, j - 1), (i - 1, j), (i, j - 1)} & (self._ours - self._begun)
        if self.job.blends and late:
            raise GridError(
                f"shard {shard.name} came before its neighbour {'.'.join(map(str, min(late)))}",
                place="engine",
                remedy="run shards in order when blending: neighbours above and to the left first",
            )
        self._begun.add(shard.index)

    def _place(self, batch: Batch, outputs: list[dict[str, Any]]) -> None:
        if batch.seats:
            self._pixels += len(next(iter(batch.data.values()))) * self.job.tiling.tile**2
        for place, (seat, given) in enumerate(zip(batch.seats, outputs, strict=True)):
            state, foreign = seat.owner
            valid = [masks[place] for masks in batch.valid.values()]
            kept = self.forward.kept(seat.tile)
            for name, values in given.items():
                state.place(seat.tile, name, values, kept, valid, foreign=foreign)
            state.waiting -= 1
            state.tiles += not foreign

    def _close(self, state: Assembly) -> ShardResult:
        self._exchange(state)
        pixels, self._pixels = self._pixels, 0
        result = state.result(pixels)
        self._edges.forget(state.shard.index)
        for name, seam in result.seams.items():
            self.seams[name].merge(seam)
        for name, clipped in result.clipped.items():
            self._count_clipped(name, clipped)
        return result

    def _exchange(self, state: Assembly) -> None:
        """Take the margins that wait for this shard, and leave those that its tiles give to later ones."""
        for name, margins in self._margins.take(state.shard.index):
            state.receive(name, margins)
        job, left = self.job, []
        for name, margins in state.margins():
            for target in receivers(state.shard, margins, job.tiling, job.grid.shape, job.kernel.spec.scale):
                if target in self._ours:
                    left.append(Travelling(target, name, margins))
                elif target in self._elsewhere:
                    self.outgoing.append(Travelling(target, name, margins))
        self._margins.leave(left)

    def _count_clipped(self, name: str, clipped: int) -> None:
        self.counters.bad[name] = self.counters.bad.get(name, 0) + clipped
        if not self.job.settings.allow_clipping:
            low, high = self.job.kernel.spec.outputs[name].range or (0, 1)
            raise KernelError(
                f"{clipped} values lie outside of the declared range {low:g}..{high:g}",
                place=f"kernel {self.job.kernel.spec.name}, output {name}",
                remedy="declare the true range, or allow clipping",
            )
