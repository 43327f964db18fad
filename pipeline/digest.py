"""One number for the pixels of a result, and one for each shard.

The digest of a run is the root of a Merkle tree whose leaves are the decoded pixels of fixed blocks of
512 x 512 px, aligned to the grid's origin. Blocks do not know of shards, codecs or files: equal pixels give
an equal digest at every shard size. It is computed in a second reading of the finished level 0, and so it
also proves that what was written can be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .store import ResultStore

__all__ = ["DIGEST_BLOCK", "merkle_root", "result_digest", "shard_digest"]

DIGEST_BLOCK = 512
"""Pixels a side of a leaf."""

READ_BLOCKS = 4
"""Leaves a side that are read at a time: 2,048 px, so that inner chunks are decoded about once."""


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


def result_digest(store: ResultStore, *, threads: int = 2) -> str:
    """Return the Merkle root over the decoded pixels of level 0 of all outputs and ``reason``.

    Reads 2,048 px squares, one a thread, so memory is ``threads * 2048 * 2048`` pixels of all layers and 64
    bytes a leaf: 5 MB at 100,000 x 100,000 px.
    """
    rows, cols = store.grid.shape
    side = DIGEST_BLOCK * READ_BLOCKS

    def leaves_of(place: tuple[tuple[int, int], tuple[int, int]]) -> dict[tuple[int, int], str]:
        (row0, row1), (col0, col1) = place
        arrays = {name: store.read(name, Window(row0, row1, col0, col1)) for name in store.names}
        return {
            (row0 + r0, col0 + c0): shard_digest({n: a[..., r0:r1, c0:c1] for n, a in arrays.items()})
            for r0, r1 in _spans(row1 - row0, DIGEST_BLOCK)
            for c0, c1 in _spans(col1 - col0, DIGEST_BLOCK)
        }

    leaves: dict[tuple[int, int], str] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        for span in _spans(rows, side):
            for found in pool.map(leaves_of, [(span, columns) for columns in _spans(cols, side)]):
                leaves |= found
    return merkle_root(leaves[place] for place in sorted(leaves))
