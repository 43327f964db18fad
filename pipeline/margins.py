"""Margins on their way: what blended tiles give to shards that come later, held in bounded memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .stitch import Margins

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .grid import Shard, Tiling

__all__ = ["MARGIN_BYTES", "MarginStore", "Travelling", "receivers"]

MARGIN_BYTES = 64 << 20
"""Bytes of margins held in memory; what is more waits in a file. A row of shards of 100,000 px with a taper of
64 px a tile and ten classes would be 160 MB."""


@dataclass(frozen=True, slots=True)
class Travelling:
    """Margins with their address."""

    target: tuple[int, int]
    """Index of the shard that they are for."""
    output: str
    """Which output's sums."""
    margins: Margins
    """The sums themselves."""


def receivers(
    shard: Shard, margins: Margins, tiling: Tiling, shape: tuple[int, int], scale: int
) -> list[Any]:
    """Return the indices of the shards on which ``margins`` of ``shard`` fall: below, right and diagonally so."""
    i, j = shard.index
    rows, cols = shape
    found = []
    for target in ((i, j + 1), (i + 1, j), (i + 1, j + 1)):
        if target[0] * tiling.shard < rows and target[1] * tiling.shard < cols:
            window = tiling.shard_at(*target, shape).window.times(scale)
            if window.overlap(margins.window) is not None:
                found.append(target)
    return found


class MarginStore:
    """Margins that wait for their shards: the first ones in memory, beyond a bound in a scratch file each.

    Shards come in the order in which their margins were left, so what is needed next is in memory. A scratch
    file has no name and is gone with the process, whatever ends it.

    Parameters
    ----------
    scratch
        Folder for scratch files; None is the system's temporary one.
    limit
        Bytes that may be held in memory.
    """

    def __init__(self, scratch: Path | None = None, limit: int = MARGIN_BYTES) -> None:
        self._scratch, self._limit = scratch, limit
        self._waiting: dict[tuple[int, int], list[tuple[str, Margins | Any]]] = {}
        self.held = 0
        """Bytes in memory now."""

    def leave(self, found: Iterable[Travelling]) -> None:
        """Keep margins until their shard takes them."""
        for one in found:
            size = _size(one.margins)
            kept: Any = one.margins
            if self.held + size > self._limit:
                kept = _written(one.margins, self._scratch)
            else:
                self.held += size
            self._waiting.setdefault(one.target, []).append((one.output, kept))

    def take(self, target: tuple[int, int]) -> list[tuple[str, Margins]]:
        """Return and forget what waits for a shard: (output, margins)."""
        found = []
        for output, kept in self._waiting.pop(target, []):
            if isinstance(kept, Margins):
                self.held -= _size(kept)
                found.append((output, kept))
            else:
                found.append((output, _read_back(kept)))
        return found


def _arrays(margins: Margins) -> list[Any]:
    return [getattr(margins, f.name) for f in fields(margins) if f.name != "window"]


def _size(margins: Margins) -> int:
    return sum(int(values.nbytes) for values in _arrays(margins))


def _written(margins: Margins, folder: Path | None) -> tuple[Any, Any]:
    file = tempfile.TemporaryFile(dir=folder, prefix=".margins-")  # noqa: SIM115 - open until it is read back
    for values in _arrays(margins):
        np.save(file, values, allow_pickle=False)
    return margins.window, file


def _read_back(kept: tuple[Any, Any]) -> Margins:
    window, file = kept
    with file:
        file.seek(0)
        return Margins(window, *(np.load(file, allow_pickle=False) for _ in range(len(fields(Margins)) - 1)))
