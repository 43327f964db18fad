"""Margins on their way from worker to worker: a scratch folder beside the result, on disk or in an object store.

They do not travel through Dask. As results of tasks they would be lost with the worker that holds them, and
Dask would compute their group again, and for that the groups before it, back to the corner of the raster: a
worker that dies late would cost the whole run. What lies in storage outlives every worker, passes neither the
client nor the scheduler, and is small: a strip of one taper's width a shard.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError

from .grid import Window
from .margins import Travelling
from .objects import is_remote, local_path, remove_tree
from .stitch import Margins

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FOLDER", "Spool"]

FOLDER = "margins.partial"
"""Name of the folder beside the unfinished result."""
_ARRAYS = tuple(f.name for f in fields(Margins) if f.name != "window")


@dataclass(frozen=True)
class Spool:
    """A folder of margins. An object appears whole or not at all, and writing it again gives the same bits."""

    place: str
    """Path, or prefix in an object store."""

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place}  # each process opens its own store

    @cached_property
    def _store(self) -> Any:
        from obstore.store import LocalStore, from_url

        if is_remote(self.place):
            return from_url(self.place)
        return LocalStore(local_path(self.place), mkdir=True)

    def leave(self, group: str, found: Iterable[Travelling]) -> dict[tuple[int, int], str]:
        """Write the margins that a group gives; return for each shard that gets some the name to ask for.

        Raises `StoreError` where the disk or the object store refuses them.
        """
        import obstore

        by_target: dict[tuple[int, int], list[Travelling]] = {}
        for one in found:
            by_target.setdefault(one.target, []).append(one)
        names = {target: f"{target[0]}.{target[1]}-from-{group}.npz" for target in by_target}
        for target, margins in by_target.items():
            with _said("writing margins", self.place):
                obstore.put(self._store, names[target], _packed(margins))
        return names

    def take(self, names: Mapping[str, tuple[int, int]]) -> Iterator[Travelling]:
        """Yield the margins under ``names`` (name -> the shard they are for); raises `StoreError`."""
        import obstore

        for name, target in names.items():
            with _said("reading margins", self.place):
                data = bytes(obstore.get(self._store, name).bytes())
            yield from _unpacked(data, target)

    def remove(self, names: Sequence[str]) -> None:
        """Delete what nobody needs any more."""
        import obstore

        if names:
            with _said("removing margins", self.place):
                obstore.delete(self._store, list(names))

    def clear(self) -> None:
        """Delete the folder with all that an earlier start may have left in it."""
        if is_remote(self.place):
            remove_tree(self.place)
        else:
            shutil.rmtree(local_path(self.place), ignore_errors=True)


def _packed(found: Sequence[Travelling]) -> bytes:
    arrays: dict[str, Any] = {"outputs": np.array([one.output for one in found])}
    for k, one in enumerate(found):
        w = one.margins.window
        arrays[f"{k}.window"] = np.array([w.row0, w.row1, w.col0, w.col1])
        arrays |= {f"{k}.{name}": getattr(one.margins, name) for name in _ARRAYS}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpacked(data: bytes, target: tuple[int, int]) -> Iterator[Travelling]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for k, output in enumerate(arrays["outputs"]):
            window = Window(*(int(n) for n in arrays[f"{k}.window"]))
            yield Travelling(target, str(output), Margins(window, *(arrays[f"{k}.{n}"] for n in _ARRAYS)))


class _said:
    """Turn errors of disks and object stores into `StoreError`."""

    def __init__(self, doing: str, place: str) -> None:
        self.doing, self.place = doing, place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from obstore.exceptions import BaseError

        if isinstance(error, OSError | BaseError):
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(f"{self.doing} failed: {first}", place=self.place) from error
