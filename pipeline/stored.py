"""Rasters that are there: of a run (its Zarr, or its COGs), or in a GeoTIFF; local or in an object store."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tilewright.errors import InputError, ReadError

from . import objects
from .reduce import quantisation
from .report import Report
from .source import Reason
from .store import REASON, ResultStore

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from .grid import Window

__all__ = ["CogRasters", "StoredLayer", "StoredRasters", "ZarrRasters", "open_rasters"]

ZARR = "result.zarr"
READ_SIDE = 2048
"""Pixels a side that are held of each raster at a time where it has no shards."""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """How the pixels of one output are stored."""

    name: str
    """The output, or ``reason``."""
    labels: bool
    """True where values are labels, which have no distance."""
    nodata: float | None
    """Stored value of a pixel without a value; None: all have one."""
    scale: float = 1.0
    """Value = stored * scale + offset."""
    offset: float = 0.0
    """See ``scale``."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ..."""
    units: str | None = None
    """Of the values."""

    def valid(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where a stored value is one: True."""
        good = np.ones(stored.shape, dtype=bool)
        if stored.dtype.kind == "f":
            good &= ~np.isnan(stored)
        if self.nodata is not None and not np.isnan(self.nodata):
            good &= stored != self.nodata
        return good

    def distance(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
        """Return |a - b| in the output's units; for labels 1 where they differ. Equal infinities have none."""
        if self.labels:
            unequal: NDArray[np.float64] = np.not_equal(a, b).astype(np.float64)
            return unequal
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = np.abs(a.astype(np.float64) - b.astype(np.float64)) * abs(self.scale)
        found[a == b] = 0
        return found


class StoredRasters(Protocol):
    """Rasters on one grid."""

    @property
    def geobox(self) -> GeoBox:
        """The grid."""
        ...

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        """Output name -> how it is stored."""
        ...

    @property
    def side(self) -> int:
        """Pixels a side of the squares in which it is best read: a shard, or 2,048."""
        ...

    def read(self, name: str, window: Window) -> NDArray[Any]:
        """Return stored values ``[C, rows, columns]``; raises `ReadError` where they cannot be read or decoded."""
        ...


class ZarrRasters:
    """The Zarr of a run, finished or not."""

    def __init__(self, store: ResultStore) -> None:
        self.store = store
        self.geobox = store.grid.geobox
        self.side = store.shard
        self.layers: dict[str, StoredLayer] = {}
        for name, spec in store.outputs.items():
            self.layers[name] = StoredLayer(
                name,
                spec.kind == "class",
                float(spec.stored_nodata),
                *quantisation(spec),
                tuple(spec.classes or ()),
                spec.units,
            )
        words = tuple(reason.name.lower() for reason in Reason)
        self.layers[REASON] = StoredLayer(REASON, True, None, classes=words)

    def read(self, name: str, window: Window) -> NDArray[Any]:
        """Return stored values ``[C, rows, columns]``."""
        with _undecodable(self.store.place, name, window):
            values = self.store.read(name, window)
        return values if values.ndim == 3 else values[None]


class CogRasters:
    """GeoTIFFs on one grid, one an output."""

    def __init__(self, files: Mapping[str, str], stack: ExitStack) -> None:
        import rasterio
        from odc.geo.geobox import GeoBox

        self._open: dict[str, Any] = {}
        self.layers: dict[str, StoredLayer] = {}
        self.side = READ_SIDE
        for name, place in files.items():
            try:
                dataset = stack.enter_context(rasterio.open(_readable(place)))
            except (OSError, rasterio.errors.RasterioError) as error:
                raise ReadError(f"cannot be opened: {error}", place=place) from error
            box = GeoBox(dataset.shape, dataset.transform, dataset.crs)
            if not self._open:
                self.geobox = box
            elif box != self.geobox:
                raise InputError(f"{name} is not on the grid of {next(iter(self._open))}", place=place)
            self._open[name] = dataset
            self.layers[name] = _layer_of(name, dataset)

    def read(self, name: str, window: Window) -> NDArray[Any]:
        """Return stored values ``[C, rows, columns]``."""
        from rasterio.windows import Window as RasterWindow

        dataset = self._open[name]
        with _undecodable(str(dataset.name), name, window):
            return np.asarray(
                dataset.read(window=RasterWindow(window.col0, window.row0, window.width, window.height))
            )


def _layer_of(name: str, dataset: Any) -> StoredLayer:
    tags = dataset.tags(1)
    classes = tuple(tags.get("flag_meanings", "").split())
    scale, offset = float(dataset.scales[0]), float(dataset.offsets[0])
    labels = tags.get("kind") == "class" or bool(classes)
    return StoredLayer(name, labels, dataset.nodata, scale, offset, classes, dataset.units[0])


@contextmanager
def _undecodable(place: str, name: str, window: Window) -> Iterator[None]:
    """Turn what decoders raise of damaged bytes into `ReadError`: each has errors of its own."""
    from rasterio.errors import RasterioError

    from tilewright.errors import StoreError

    try:
        yield
    except (OSError, RuntimeError, ValueError, RasterioError, StoreError) as error:
        cause = getattr(error, "cause", None) or (str(error).splitlines() or [type(error).__name__])[0]
        at = f"rows {window.row0}..{window.row1 - 1}, columns {window.col0}..{window.col1 - 1}"
        raise ReadError(f"{name} cannot be decoded: {cause}", place=f"{place}, {at}") from error


@contextmanager
def open_rasters(place: str) -> Iterator[StoredRasters]:
    """Open the folder of a run, a ``.zarr`` of tilewright or a GeoTIFF, at a path or in an object store.

    Raises `InputError` where there is none of them, `ReadError` where it cannot be read.
    """
    with ExitStack() as stack:
        yield _opened(place.rstrip("/"), stack)


def _opened(place: str, stack: ExitStack) -> StoredRasters:
    if place.lower().endswith((".tif", ".tiff")):
        return CogRasters({Path(place).stem: place}, stack)
    if objects.is_remote(place):
        return _opened_remote(place, stack)
    folder = objects.local_path(place)
    if (folder / "zarr.json").exists():
        return ZarrRasters(ResultStore.open(folder))
    for name in (ZARR, f"{ZARR}.partial"):
        if (folder / name).exists():
            return ZarrRasters(ResultStore.open(folder / ZARR))
    report = Report.read(folder) if folder.is_dir() else None
    if report is not None:
        files = {n: str(folder / f) for n, f in report.outputs.items() if f.endswith(".tif")}
    else:
        files = {path.stem: str(path) for path in sorted(folder.glob("*.tif"))}
    if not files:
        raise InputError(
            "there are no rasters here", place=place, remedy="name the folder of a run, a .zarr or a .tif"
        )
    return CogRasters(files, stack)


def _opened_remote(place: str, stack: ExitStack) -> StoredRasters:
    import json

    if place.endswith(".zarr"):
        return ZarrRasters(ResultStore.open(place))
    found = objects.fetch(f"{place}/report.json")
    outputs = json.loads(found)["outputs"] if found is not None else {"zarr": ZARR}
    if "zarr" in outputs:
        return ZarrRasters(ResultStore.open(f"{place}/{outputs['zarr']}"))
    return CogRasters({n: f"{place}/{f}" for n, f in outputs.items() if f.endswith(".tif")}, stack)


def _readable(place: str) -> Any:
    """Return what rasterio opens: a path, or for an object store a file that fetches what is read of it."""
    return _RemoteFile(place) if "://" in place and objects.is_remote(place) else place


class _RemoteFile(io.RawIOBase):
    """A file in an object store, with the keys and the endpoint that the Zarr next to it is read with."""

    def __init__(self, url: str) -> None:
        import obstore
        from obstore.store import from_url

        parent, _, name = url.rpartition("/")
        self.name = url
        self._file = obstore.open_reader(from_url(parent), name, buffer_size=1 << 20)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, or all that are left."""
        return bytes(self._file.read(None if size is None or size < 0 else size))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place in the file."""
        return int(self._file.tell())
