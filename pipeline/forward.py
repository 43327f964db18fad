"""Tiles to tensors and back: normalise, fill, batch to a constant shape, run the kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.contract import Context

from .source import Reason
from .stitch import take

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .grid import Tile, Window
    from .job import Job
    from .source import Block

__all__ = ["Counters", "Forward", "Sample", "blank_samples", "torch_threads"]


@dataclass(slots=True)
class Counters:
    """What was counted at the kernel's call."""

    tiles: int = 0
    """Tiles given to the kernel, filler not counted."""
    recomputed: int = 0
    """Of these, tiles of a neighbour that were computed again because its margins did not travel."""
    pixels: int = 0
    """Input pixels of all batches: halo, padding and filler included."""
    told: int = 0
    """Of these pixels, those that `new_pixels` has given already."""
    batches: int = 0
    """Calls of the kernel."""
    seconds: float = 0.0
    """Seconds in the forward, transfers to and from the device included."""
    bad: dict[str, int] = field(default_factory=dict)
    """Output -> values that were clipped to the declared range."""

    def new_pixels(self) -> int:
        """Return the pixels since the last call: what a shard's line in the ledger says."""
        new, self.told = self.pixels - self.told, self.pixels
        return new


@dataclass(frozen=True, slots=True)
class Sample:
    """One tile, ready to be batched."""

    tile: Tile
    """Which."""
    owner: Any
    """Who gets the result; opaque to the forward."""
    data: dict[str, NDArray[np.float32]]
    """Input -> ``[T, C, tile, tile]``, raw."""
    valid: dict[str, NDArray[np.bool_]]
    """Input -> ``[T, 1, tile, tile]``, True = measured."""


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Hold the process's only forward, with ``count`` intra-op threads; afterwards all is as before.

    The number of threads changes bits (promise 3) and belongs to the process. So the forwards of one process
    take turns, as under a threaded Dask scheduler; each of them keeps ``count`` cores busy anyway.
    """
    import torch

    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class Forward:
    """The kernel of a job on its device, called with batches of constant shape."""

    def __init__(self, job: Job, size: int | None = None) -> None:
        import torch

        self.job = job
        self.counters = Counters()
        self.size = size or job.settings.batch or 1
        self.device = torch.device(job.settings.device)
        function = job.kernel.function
        if isinstance(function, torch.nn.Module):
            function.eval().to(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self._norm = {name: self._normalisation(name) for name in job.bindings}
        self._geo = _lonlat(job)

    def _normalisation(self, name: str) -> tuple[Tensor, Tensor] | None:
        import torch

        spec, dates = self.job.kernel.spec.inputs[name], self.job.bindings[name].dates
        if spec.mean is None or spec.std is None:
            return None
        parts = []
        for values in (spec.mean, spec.std):
            array = np.asarray(values, dtype=np.float32)
            array = np.broadcast_to(array.reshape(-1, array.shape[-1]), (dates, spec.band_count))
            parts.append(torch.from_numpy(array.copy())[None, :, :, None, None].to(self.device))
        return parts[0], parts[1]

    def sample(self, tile: Tile, owner: Any, block: Block) -> Sample:
        """Cut a tile out of a block; beyond the grid it is mirrored, and invalid where the boundary is fill."""
        job, shape = self.job, self.job.grid.shape
        data, valid = {}, {}
        beyond = None if job.settings.boundary == "reflect" else _beyond(tile.read, shape)
        for name, binding in job.bindings.items():
            pixels = take(block.data[binding.layer], block.window, tile.read, shape)
            if binding.channels != tuple(range(pixels.shape[1])):
                pixels = pixels[:, list(binding.channels)]
            ok = take(block.reason[binding.layer], block.window, tile.read, shape) == Reason.VALID
            if beyond is not None:
                ok &= ~beyond
            data[name], valid[name] = np.ascontiguousarray(pixels, dtype=np.float32), ok
        return Sample(tile, owner, data, valid)

    def run(self, samples: list[Sample]) -> Iterator[tuple[Sample, dict[str, Any]]]:
        """Run one batch of at most ``size`` samples; yields each with its outputs.

        Raster outputs come as float32 ``[C, rows, columns]`` over ``tile.gives`` in output pixels (not yet
        masked), records as the kernel gave them.
        """
        from time import perf_counter

        import torch

        started = perf_counter()
        padded = samples + [samples[-1]] * (self.size - len(samples))
        with torch_threads(self.job.settings.threads or 1), torch.inference_mode():
            inputs, valid = {}, {}
            for name in self.job.bindings:
                x = torch.from_numpy(np.stack([s.data[name] for s in padded])).to(self.device)
                ok = torch.from_numpy(np.stack([s.valid[name] for s in padded])).to(self.device)
                if (norm := self._norm[name]) is not None:
                    x = (x - norm[0]) / norm[1]
                fill = torch.tensor(self.job.kernel.spec.inputs[name].fill, device=self.device)
                inputs[name], valid[name] = torch.where(ok, x, fill), ok
            with self._autocast():
                outputs = self.job.kernel.apply(inputs, valid, self._context(padded))
            rasters = self._rasters(outputs)
        self.counters.tiles += len(samples)
        self.counters.pixels += self.size * self.job.tiling.tile**2
        self.counters.batches += 1
        self.counters.seconds += perf_counter() - started
        for i, sample in enumerate(samples):
            yield sample, {name: values[i] for name, values in rasters.items()}

    def _autocast(self) -> Any:
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.job.settings.precision)
        return torch.autocast(self.device.type, dtype=kind, enabled=kind is not None)

    def _rasters(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Check shapes, bring rasters to the host as float32, and crop nothing yet."""
        import torch

        spec, side = self.job.kernel.spec, self.job.tiling.tile * self.job.kernel.spec.scale
        found: dict[str, Any] = {}
        for name, output in spec.outputs.items():
            values = outputs[name]
            if isinstance(values, torch.Tensor):
                values = values.float().cpu()
            if output.is_raster:
                if not isinstance(values, torch.Tensor):
                    raise KernelError(
                        f"gave a {type(values).__name__}, expected a tensor",
                        place=f"kernel {spec.name}, output {name}",
                    )
                if values.ndim == 3:
                    values = values[:, None]
                if values.ndim != 4 or values.shape[0] != self.size or values.shape[2:] != (side, side):
                    raise KernelError(
                        f"gave shape {tuple(values.shape)}, expected [{self.size}, C, {side}, {side}]",
                        place=f"kernel {spec.name}, output {name}",
                    )
                values = values.numpy()
            found[name] = values
        return found

    def crop(self, sample: Sample, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the part of a tile's raster ``[C, rows, columns]`` over ``tile.gives``, in output pixels."""
        scale, tile = self.job.kernel.spec.scale, sample.tile
        inside = tile.gives.times(scale).slices(tile.read.times(scale))
        return values[:, *inside]

    def _context(self, samples: list[Sample]) -> Context:
        import torch

        job = self.job
        times = np.zeros((len(samples), max(b.dates for b in job.bindings.values())), dtype=np.int64)
        first = next(iter(job.bindings.values()))
        for t, when in enumerate(job.source.layers[first.layer].times):
            times[:, t] = 0 if when is None else np.datetime64(when, "ns").astype(np.int64)
        origin = np.array([(s.tile.read.row0, s.tile.read.col0) for s in samples], dtype=np.int64)
        return Context(
            origin=torch.from_numpy(origin).to(self.device),
            times=torch.from_numpy(times).to(self.device),
            lonlat=torch.from_numpy(self._geo(origin + job.tiling.tile / 2)).to(self.device),
            resolution=job.grid.resolution,
            statistics=job.statistics,
            seed=job.kernel.spec.seed or 0,
        )


def blank_samples(job: Job, count: int) -> list[Sample]:
    """Return ``count`` valid tiles of zeros, to learn what a forward costs without reading a pixel."""
    tile = job.tiling.tile_at(0, 0, job.grid.shape)
    side = job.tiling.tile
    data, valid = {}, {}
    for name, b in job.bindings.items():
        data[name] = np.zeros((b.dates, len(b.channels), side, side), dtype=np.float32)
        valid[name] = np.ones((b.dates, 1, side, side), dtype=bool)
    return [Sample(tile, None, data, valid)] * count


def _beyond(read: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
    rows, cols = np.arange(read.row0, read.row1), np.arange(read.col0, read.col1)
    off_rows, off_cols = (rows < 0) | (rows >= shape[0]), (cols < 0) | (cols >= shape[1])
    beyond: NDArray[np.bool_] = off_rows[:, None] | off_cols[None, :]
    return beyond


def _lonlat(job: Job) -> Any:
    """Return a function from ``[N, 2]`` (row, column) to ``[N, 2]`` (longitude, latitude); NaN without CRS."""
    grid = job.grid
    if grid.geobox.crs is None:
        return lambda rc: np.full(rc.shape, np.nan)
    from pyproj import Transformer

    transform = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    a, b, c, d, e, f = grid.transform

    def lonlat(rc: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = a * rc[:, 1] + b * rc[:, 0] + c, d * rc[:, 1] + e * rc[:, 0] + f
        return np.stack(transform.transform(x, y), axis=1)

    return lonlat
