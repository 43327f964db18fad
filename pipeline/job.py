"""A job: one kernel over one source, with everything decided that the answer depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError, nearest_name

from .grid import Grid, Shard, Tile, Tiling, Window
from .inputs import select_bands
from .intraop import usable_cores
from .settings import Settings, choose_tiling
from .shift import coregister
from .stitch import check_blendable, needed

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

    from .source import Block, Layer, Source

__all__ = ["Binding", "Job", "prepare"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Which pixels of the source feed an input of the kernel."""

    layer: str
    """Name of the source's layer."""
    channels: tuple[int, ...]
    """Indices of its bands, in the order of the kernel's channels."""
    dates: int
    """Number of dates."""


@dataclass(frozen=True)
class Job:
    """One kernel over one source. Picklable, so that a Dask worker gets it whole."""

    kernel: Kernel
    """The model."""
    source: Source
    """The pixels."""
    tiling: Tiling
    """How the source's grid is cut, in input pixels."""
    settings: Settings
    """Resolved settings: nothing is None but wishes that the tiling has met."""
    bindings: Mapping[str, Binding]
    """Kernel input -> what feeds it."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """What the statistics pass found; empty before it ran."""
    notes: tuple[str, ...] = ()
    """What the user should be told about the choices made, one sentence each."""

    @property
    def grid(self) -> Grid:
        """The grid of the inputs."""
        return self.source.grid

    @property
    def output_grid(self) -> Grid:
        """The grid of the outputs: finer by the kernel's scale."""
        return self.source.grid.zoom(self.kernel.spec.scale)

    @property
    def blends(self) -> bool:
        """True where tiles are blended."""
        return self.tiling.taper > 0

    @property
    def lanes(self) -> int:
        """Batches that the kernel computes side by side: as many as the cores hold on a CPU, one on a GPU."""
        if self.settings.device != "cpu" or not self.kernel.spec.concurrent:
            return 1
        return max(1, (self.settings.cores or usable_cores()) // (self.settings.threads or 1))

    def with_lanes(self, lanes: int) -> Job:
        """Return the job with so many batches side by side, which changes no bit."""
        return replace(self, settings=replace(self.settings, cores=lanes * (self.settings.threads or 1)))

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of all dates and bands of one pixel as read, reasons included."""
        return bytes_per_pixel(self.source, self.bindings)

    def read_window(self, window: Window) -> Window:
        """Return what must be read to compute the tiles whose read windows ``window`` spans."""
        return needed(window, self.grid.shape)

    def tiles(self, shard: Shard) -> list[Tile]:
        """Return the tiles that ``shard`` owns, whether or not they hold a valid pixel."""
        return list(self.tiling.tiles(shard, self.grid.shape))

    def incoming(self, shard: Shard) -> list[Tile]:
        """Return the neighbours' tiles that reach into ``shard`` (blending only)."""
        i, j = shard.index
        found = []
        for di, dj in ((-1, -1), (-1, 0), (0, -1)):
            if self.blends and i + di >= 0 and j + dj >= 0:
                other = self.tiling.shard_at(i + di, j + dj, self.grid.shape)
                found += [t for t in self.tiles(other) if t.gives.overlap(shard.window)]
        return found

    def span(self, tiles: list[Tile]) -> Window:
        """Return the window that must be read for ``tiles``."""
        reads = [t.read for t in tiles]
        return self.read_window(
            Window(
                min(w.row0 for w in reads),
                max(w.row1 for w in reads),
                min(w.col0 for w in reads),
                max(w.col1 for w in reads),
            )
        )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything the answer depends on, as plain data. The shard is not in it: it changes no bit."""
        from tilewright import __version__

        spec, grid, s = self.kernel.spec, self.grid, self.settings
        region = grid.region
        return {
            "tilewright": __version__,
            "kernel": {
                "name": spec.name,
                "digest": self.kernel.digest,
                "options": json.loads(json.dumps(dict(self.kernel.options), default=str)),
                "weights_sha256": self.kernel.weights_sha256,
            },
            "grid": {
                "crs": grid.crs,
                "transform": list(grid.transform),
                "shape": list(grid.shape),
                "region": hashlib.sha256(region.wkb).hexdigest() if region is not None else None,
            },
            "stitch": {
                "mode": s.stitch,
                "tile": self.tiling.tile,
                "halo": self.tiling.halo,
                "taper": self.tiling.taper,
                "stride": self.tiling.stride,
                "boundary": s.boundary,
            },
            "arithmetic": {
                "batch": s.batch,
                "threads": s.threads,
                "device": s.device,
                "precision": s.precision,
                "versions": arithmetic_versions(s.device),
            },
            "bindings": {name: [b.layer, list(b.channels), b.dates] for name, b in self.bindings.items()},
            "source": self.source.describe(),
        }

    def with_statistics(self, statistics: Mapping[str, Any]) -> Job:
        """Return the job with the numbers of the statistics pass."""
        return replace(self, statistics=dict(statistics))


def arithmetic_versions(device: str) -> dict[str, str]:
    """Return what bits depend on besides the job: torch's build, the device's model, and who reads and warps."""
    import pyproj
    import rasterio
    import torch

    found = {
        "torch": str(torch.__version__),
        "gdal": str(rasterio.__gdal_version__),
        "proj": str(pyproj.proj_version_str),
    }
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def bytes_per_pixel(source: Source, bindings: Mapping[str, Binding]) -> int:
    """Return bytes of all dates and bands of one pixel as read, one byte of reason a date included."""
    total = 0
    for binding in bindings.values():
        layer = source.layers[binding.layer]
        total += len(layer.times) * (len(layer.bands) * np.dtype(layer.dtype).itemsize + 1)
    return total


def prepare(kernel: Kernel, source: Source, settings: Settings | None = None) -> Job:
    """Check that ``kernel`` and ``source`` fit, and decide all that is still open.

    Raises `KernelError` for inputs, bands or dates that do not fit, `GridError` for a tiling that can not be.
    """
    settings = settings or Settings()
    spec = kernel.spec
    if kernel.untrained and not settings.untrained:
        raise KernelError(
            "it has no weights, so its results would mean nothing",
            place=f"kernel {spec.name}",
            remedy="give --weights (a path or hf://owner/name@revision), or --untrained to see what it costs",
        )
    if spec.mapping == "map_tiles":
        if settings.stitch == "blend" or spec.scale != 1:
            raise KernelError("records have no scale and are not blended", place=f"kernel {spec.name}")
        settings = replace(settings, stitch="cut")
    source = _narrowed(kernel, source)
    told: tuple[str, ...] = ()
    if settings.coregister:
        source, moved = coregister(source)
        told = (moved,)
    bindings = _bind(kernel, source)
    tiling = choose_tiling(spec, settings, source.grid.shape, bytes_per_pixel(source, bindings))
    resolved = settings.resolve(spec, tiling, source.grid.shape)
    if tiling.taper:
        for name, output in spec.outputs.items():
            if output.is_raster:
                check_blendable(name, output.range)
    notes = (*told, *_notes(kernel, source, tiling, settings))
    return Job(kernel, source, tiling, resolved, bindings, notes=notes)


def _narrowed(kernel: Kernel, source: Source) -> Source:
    """Return the source with the bands that the kernel names, where it takes one input."""
    wanted = [spec.bands for spec in kernel.spec.inputs.values()]
    return select_bands(source, wanted[0]) if len(wanted) == 1 else source


def _bind(kernel: Kernel, source: Source) -> dict[str, Binding]:
    spec, layers = kernel.spec, source.layers
    bindings = {}
    for name, wanted in spec.inputs.items():
        layer_name = name
        if name not in layers:
            if len(spec.inputs) == 1 and len(layers) == 1:
                layer_name = next(iter(layers))
            elif wanted.optional:
                continue
            else:
                raise KernelError(
                    f"there is no input {name!r}",
                    place=f"kernel {spec.name}",
                    remedy=nearest_name(name, layers),
                )
        layer = layers[layer_name]
        low, high = wanted.date_range
        count = len(layer.times)
        if not low <= count <= high:
            needs = f"{low} date" if low == high == 1 else f"{wanted.dates} dates"
            raise KernelError(
                f"input {name!r} needs {needs}, {count} given",
                place=f"kernel {spec.name}",
                remedy="give one raster (or period) a date, oldest first",
            )
        bindings[name] = Binding(layer_name, _channels(kernel, name, layer), count)
    return bindings


def _channels(kernel: Kernel, name: str, layer: Layer) -> tuple[int, ...]:
    wanted = kernel.spec.inputs[name].bands
    if isinstance(wanted, int):
        if wanted != len(layer.bands):
            raise KernelError(
                f"input {name!r} needs {wanted} bands, {len(layer.bands)} given ({', '.join(layer.bands)})",
                place=f"kernel {kernel.spec.name}",
                remedy="choose them by --bands",
            )
        return tuple(range(wanted))
    missing = [band for band in wanted if band not in layer.bands]
    if not missing:
        return tuple(layer.bands.index(band) for band in wanted)
    unnamed = all(band.startswith("band_") for band in layer.bands)
    if unnamed and len(layer.bands) == len(wanted):
        return tuple(range(len(wanted)))
    raise KernelError(
        f"input {name!r} needs band {missing[0]!r}; there are {', '.join(layer.bands)}",
        place=f"kernel {kernel.spec.name}",
        remedy=f"{nearest_name(missing[0], layer.bands)}; choose or name the bands of the files by --bands",
    )


def _notes(kernel: Kernel, source: Source, tiling: Tiling, wished: Settings) -> tuple[str, ...]:
    notes = []
    if wished.tile and tiling.tile != wished.tile:
        notes.append(
            f"tile {wished.tile} px became {tiling.tile} px: the core is a multiple of stride {tiling.stride}"
        )
    if wished.shard and tiling.shard != wished.shard:
        notes.append(
            f"shard {wished.shard} px became {tiling.shard} px: a multiple of core {tiling.core} and of 16"
        )
    resolution = source.grid.resolution
    for name, spec in kernel.spec.inputs.items():
        if spec.resolution and not 0.8 <= resolution / spec.resolution <= 1.25:
            notes.append(
                f"input {name!r} was made for {spec.resolution:g} m, the grid has {resolution:g} in its CRS units"
            )
    return tuple(notes)


def used(block: Block, bindings: Mapping[str, Binding]) -> dict[str, Any]:
    """Return the reasons of the layers that the kernel uses, by layer name."""
    return {b.layer: block.reason[b.layer] for b in bindings.values()}
