"""Tiles out of blocks into batches: always the same shape, filled across tiles and across shards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .source import Reason
from .stitch import take

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .grid import Tile, Window
    from .job import Job
    from .source import Block

__all__ = ["Batch", "Batcher", "Seat", "blank_batch", "spanned_shards"]


@dataclass(frozen=True, slots=True)
class Seat:
    """A tile's place in a batch."""

    tile: Tile
    """Which tile."""
    owner: Any
    """Who gets the result; opaque to the forward."""


@dataclass(slots=True)
class Batch:
    """Tiles that go through the kernel together."""

    data: dict[str, NDArray[np.float32]]
    """Input -> ``[N, T, C, tile, tile]``, raw; places without a seat repeat the last tile."""
    valid: dict[str, NDArray[np.bool_]]
    """Input -> ``[N, T, 1, tile, tile]``, True = measured."""
    seats: list[Seat] = field(default_factory=list)
    """The tiles, in the order of the first axis; none where only shards without a tile are told."""
    begun: list[Any] = field(default_factory=list)
    """What begins with this batch (shards): told here, so that those without a tile keep their place."""


class Batcher:
    """Cuts tiles out of blocks and gathers them in batches of constant shape.

    Parameters
    ----------
    job
        What is run: its bindings, tile and batch.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.size = job.settings.batch or 1
        self._most_begun = spanned_shards(job)
        self._pinned = job.settings.device.startswith("cuda")

    def batches[S](self, shards: Iterable[tuple[S, list[tuple[Tile, Any]], Block | None]]) -> Iterator[Batch]:
        """Yield batches of ``(what begins, its tiles with their owners, its block)``.

        A batch waits for tiles of further shards, but not for many: where only a few tiles have data it goes
        on its way unfilled, so that the shards held open are bounded. Blocks are let go tile by tile.
        """
        batch = self._new()
        for state, tiles, block in shards:
            batch.begun.append(state)
            for tile, owner in tiles:
                assert block is not None
                self._put(batch, tile, owner, block)
                if len(batch.seats) == self.size:
                    yield batch
                    batch = self._new()
            del block
            if batch.begun and (not batch.seats or len(batch.begun) >= self._most_begun):
                yield self._filled_up(batch)
                batch = self._new()
        if batch.begun or batch.seats:
            yield self._filled_up(batch)

    def _new(self) -> Batch:
        tile = self.job.tiling.tile
        data, valid = {}, {}
        for name, b in self.job.bindings.items():
            data[name] = self._empty((self.size, b.dates, len(b.channels), tile, tile))
            valid[name] = np.empty((self.size, b.dates, 1, tile, tile), dtype=bool)
        return Batch(data, valid)

    def _empty(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if not self._pinned:
            return np.empty(shape, dtype=np.float32)
        import torch

        pinned: NDArray[np.float32] = torch.empty(shape, dtype=torch.float32, pin_memory=True).numpy()
        return pinned  # page-locked, so that the copy to the GPU runs beside its work

    def _put(self, batch: Batch, tile: Tile, owner: Any, block: Block) -> None:
        """Cut a tile; beyond the grid it is mirrored, and invalid where the boundary is fill."""
        place, shape = len(batch.seats), self.job.grid.shape
        beyond = None if self.job.settings.boundary == "reflect" else _beyond(tile.read, shape)
        for name, binding in self.job.bindings.items():
            pixels = take(block.data[binding.layer], block.window, tile.read, shape)
            if binding.channels != tuple(range(pixels.shape[1])):
                pixels = pixels[:, list(binding.channels)]
            batch.data[name][place] = pixels
            reason = take(block.reason[binding.layer], block.window, tile.read, shape)
            ok = batch.valid[name][place]
            np.equal(reason, Reason.VALID, out=ok)
            if beyond is not None:
                ok &= ~beyond
        batch.seats.append(Seat(tile, owner))

    def _filled_up(self, batch: Batch) -> Batch:
        """Repeat the last tile on the places that are left: every batch has the same shape."""
        seats = len(batch.seats)
        if 0 < seats < self.size:
            for arrays in (batch.data, batch.valid):
                for values in arrays.values():
                    values[seats:] = values[seats - 1]
        return batch


def spanned_shards(job: Job) -> int:
    """Return how many shards may be open at a time: those that the batches in the kernel span, and more."""
    per_shard = (job.tiling.shard // job.tiling.core) ** 2
    return 2 + math.ceil(job.lanes * (job.settings.batch or 1) / max(1, per_shard))


def blank_batch(job: Job) -> Batch:
    """Return a batch of valid zeros, to learn what a forward costs without reading a pixel."""
    size, side = job.settings.batch or 1, job.tiling.tile
    data, valid = {}, {}
    for name, b in job.bindings.items():
        data[name] = np.zeros((size, b.dates, len(b.channels), side, side), dtype=np.float32)
        valid[name] = np.ones((size, b.dates, 1, side, side), dtype=bool)
    return Batch(data, valid, [Seat(job.tiling.tile_at(0, 0, job.grid.shape), None)] * size)


def _beyond(read: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
    rows, cols = np.arange(read.row0, read.row1), np.arange(read.col0, read.col1)
    off_rows, off_cols = (rows < 0) | (rows >= shape[0]), (cols < 0) | (cols >= shape[1])
    beyond: NDArray[np.bool_] = off_rows[:, None] | off_cols[None, :]
    return beyond
