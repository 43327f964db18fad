"""One number for the pixels of a result, and one for each shard.

The digest of a run is the root of a Merkle tree whose leaves are the decoded pixels of fixed blocks of
512 x 512 px, aligned to the grid's origin. Blocks do not know of shards, codecs or files: equal pixels give
an equal digest at every shard size. It is computed in a second reading of the finished level 0, and so it
also proves that what was written can be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .sweep import Piece, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .store import ResultStore

__all__ = ["DIGEST_BLOCK", "Leaves", "merkle_root", "result_digest", "shard_digest"]

DIGEST_BLOCK = 512
"""Pixels a side of a leaf."""


def _canonical(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values in C order and little-endian, each NaN as the one quiet NaN."""
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    if values.dtype.kind == "f" and (missing := np.isnan(values)).any():
        values = np.where(missing, np.array(np.nan, dtype=values.dtype), values)
    return values


def shard_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 in hex over name, type, shape and C-order bytes of each array, sorted by name.

    A NaN counts as a NaN whatever its bits; -0.0 differs from 0.0. A single band may be ``[1, h, w]`` or
    ``[h, w]``: both count as ``[h, w]``.
    """
    hasher = hashlib.sha256(b"\0")  # leaves and nodes differ in their first byte (RFC 6962, section 2.1)
    for name in sorted(arrays):
        values = arrays[name]
        values = _canonical(values[0] if values.ndim == 3 and values.shape[0] == 1 else values)
        hasher.update(f"{name}\n{values.dtype.str}\n{values.shape}\n".encode())
        hasher.update(values.data)
    return hasher.hexdigest()


def merkle_root(leaves: Iterable[str]) -> str:
    """Return the root in hex of the Merkle tree over ``leaves`` (hex), in row-major order.

    Neighbours are hashed in pairs, level by level; a leftover at the end goes up as it is. The root of no
    leaf is the sha256 of nothing.
    """
    level = [bytes.fromhex(leaf) for leaf in leaves]
    if not level:
        return hashlib.sha256().hexdigest()
    while len(level) > 1:
        pairs = [
            hashlib.sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0].hex()


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, step):
        yield start, min(start + step, length)


class Leaves:
    """Takes the pieces of a sweep over all layers and gives the digest: 100 bytes a leaf, 4 MB at 100,000 squared."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], str] = {}

    def __call__(self, piece: Piece) -> None:
        """Hash the blocks of a piece of level 0; other levels follow from it."""
        if piece.level:
            return
        window, arrays = piece.window, piece.arrays
        for r0, r1 in _spans(window.height, DIGEST_BLOCK):
            for c0, c1 in _spans(window.width, DIGEST_BLOCK):
                block = {name: values[..., r0:r1, c0:c1] for name, values in arrays.items()}
                self._found[window.row0 + r0, window.col0 + c0] = shard_digest(block)

    def root(self) -> str:
        """Return the Merkle root over all leaves seen."""
        return merkle_root(self._found[place] for place in sorted(self._found))


def result_digest(store: ResultStore, *, threads: int = 2) -> str:
    """Return the Merkle root over the decoded pixels of level 0 of all outputs and ``reason``."""
    leaves = Leaves()
    sweep(store, store.names, (leaves,), levels=1, threads=threads)
    return leaves.root()
