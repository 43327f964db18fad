"""The vectors of an index, as they are read: rows in a block or one by one, never all of them at once.

They are stored uncompressed, for such numbers do not compress, so a chunk of the Zarr on a local disk is the vectors
themselves and is mapped into memory: half a million of them are compared in 0.06 s, and in 0.7 s where each chunk is
copied through the library. Whatever is stored in another way is read through it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import ReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Vectors"]


class Vectors:
    """Rows ``[rows, dim]`` float32 of a Zarr array; take them by a slice, a number or an array of numbers."""

    def __init__(self, place: Path) -> None:
        """Open the array; raises `ReadError` where it cannot be read."""
        import zarr

        self.place = place
        try:
            self._array: Any = zarr.open_array(place, mode="r")
        except (OSError, KeyError, ValueError, zarr.errors.BaseZarrError) as error:
            raise self._unreadable(error) from error
        self.shape: tuple[int, int] = (self._array.shape[0], self._array.shape[1])
        """Rows and length of a vector."""
        self._chunk: int = self._array.chunks[0]
        self._plain = _is_plain(self._array)
        self._chunks: dict[int, NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return ``[n, dim]``, or ``[dim]`` for one number; raises `ReadError`."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self._block(start, stop)
        if isinstance(rows, (int, np.integer)):
            (one,) = self._block(int(rows), int(rows) + 1)
            return np.asarray(one, np.float32)
        return self._rows(rows)

    def _block(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the rows from ``start`` to before ``stop``: a view where they lie in one chunk."""
        pieces = [
            self._of_chunk(n)[max(start - n * self._chunk, 0) : stop - n * self._chunk]
            for n in range(start // self._chunk, -(-stop // self._chunk))
        ]
        if not pieces:
            return np.empty((0, self.shape[1]), np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _rows(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        found = np.empty((len(rows), self.shape[1]), np.float32)
        chunks = rows // self._chunk
        for n in np.unique(chunks):
            here = chunks == n
            found[here] = self._of_chunk(int(n))[rows[here] - n * self._chunk]
        return found

    def _of_chunk(self, number: int) -> NDArray[np.float32]:
        """Return the rows of a chunk; what lies behind the last row of the array is not to be used."""
        if number in self._chunks:
            return self._chunks[number]
        found = self._mapped(number) if self._plain else None
        if found is None:  # copied, so not kept
            return self._copied(number)
        self._chunks[number] = found
        return found

    def _mapped(self, number: int) -> NDArray[np.float32] | None:
        """Return a chunk as it lies on the disk; None where the library left out one of zeros."""
        path = self.place / self._array.metadata.encode_chunk_key((number, 0))
        shape = (self._chunk, self.shape[1])
        try:
            if path.stat().st_size != 4 * shape[0] * shape[1]:
                raise ReadError("a chunk of the vectors is cut short", place=str(path))
            return np.memmap(path, np.float32, "r", shape=shape)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(error) from error

    def _copied(self, number: int) -> NDArray[np.float32]:
        if not (self.place / "zarr.json").is_file():  # zarr would give zeros
            raise ReadError(
                "the vectors are gone", place=str(self.place), remedy="open the index again: it has grown"
            )
        try:
            found = self._array[number * self._chunk : (number + 1) * self._chunk]
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(error) from error
        rows: NDArray[np.float32] = np.asarray(found, np.float32)
        return rows

    def _unreadable(self, error: Exception) -> ReadError:
        return ReadError(f"the vectors cannot be read: {error}", place=str(self.place))


def _is_plain(array: Any) -> bool:
    """Return True where the file of a chunk is its float32 rows and nothing else."""
    from zarr.codecs import BytesCodec

    if array.metadata.zarr_format != 3 or array.dtype != np.dtype("<f4") or array.shards is not None:
        return False
    (codec, *others) = array.metadata.codecs
    little = isinstance(codec, BytesCodec) and getattr(codec.endian, "value", codec.endian) in (
        None,
        "little",
    )
    return little and not others and array.chunks[1] == array.shape[1]
