"""Arrays in NumPy archives, opened as rasterio opens pictures: some datasets lie so."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray

__all__ = ["opened_array"]


@contextmanager
def opened_array(path: Path, name: str) -> Iterator[rasterio.DatasetReader]:
    """Give the array ``name`` of an ``.npz`` as a dataset with its bands; no code in the archive is run.

    Raises `InputError` for what is no archive of plain numbers, has no such array, or one of another shape.
    """
    import rasterio
    from rasterio.io import MemoryFile

    bands = _bands(path, name)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands.shape[0],
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype,
        "photometric": "MINISBLACK",
        "alpha": "NO",
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(bands)
        with rasterio.open(memory.name) as dataset:
            yield dataset


def _bands(path: Path, name: str) -> NDArray[Any]:
    """Return the array as ``[bands, rows, columns]``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if name not in archive:
                raise InputError(
                    f"the archive has no array {name!r}", place=str(path), remedy=nearest_name(name, archive)
                )
            found = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise InputError(
            f"not a readable archive of arrays: {error}", place=str(path), remedy="fetch it again"
        ) from error
    if found.ndim not in (2, 3) or 0 in found.shape:
        raise InputError(
            f"its array {name!r} has the shape {found.shape}", place=str(path), remedy="rows, columns, bands"
        )
    if found.dtype.kind not in "iuf":
        raise InputError(f"its array {name!r} holds {found.dtype}, no numbers", place=str(path))
    planes: NDArray[Any] = found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)
    return planes.astype(np.float32) if planes.dtype == np.float16 else planes
