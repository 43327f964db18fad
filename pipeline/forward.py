"""The kernel on its device: batches in, outputs per tile out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.contract import Context

from .ahead import map_ahead
from .blame import blamed, is_out_of_memory
from .grid import Window
from .intraop import torch_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tilewright.kernels.contract import Kernel

    from .batches import Batch, Seat
    from .grid import Tile
    from .job import Job

__all__ = ["Counters", "Forward"]


@dataclass(slots=True)
class Counters:
    """What was counted at the kernel's call."""

    tiles: int = 0
    """Tiles given to the kernel, filler not counted."""
    recomputed: int = 0
    """Of these, tiles of a neighbour that were computed again because its margins did not travel."""
    pixels: int = 0
    """Input pixels of all batches: halo, padding and filler included."""
    batches: int = 0
    """Calls of the kernel."""
    seconds: float = 0.0
    """Seconds in the forward, transfers to and from the device included; of batches side by side their mean."""
    bad: dict[str, int] = field(default_factory=dict)
    """Output -> values that were clipped to the declared range."""


@dataclass(slots=True)
class _Launched:
    """A batch on its way through the device."""

    batch: Batch
    pieces: list[tuple[int, dict[str, Any]]]
    """For consecutive parts of the batch the number of tiles, and the outputs on the host or on their way to it."""
    done: Any = None
    """CUDA event after which they are there; None on a CPU."""


class Forward:
    """The kernel of a job on its device, called with batches of constant shape.

    On a CPU as many batches are computed side by side as `Job.lanes` says, each with few intra-op threads: on two
    cores a U-Net takes 4.7 s for what takes 6.1 s with one batch and two threads. On a GPU the next batch is copied
    there while one is computed, and results are fetched one batch behind, so that the device never waits for the
    host. Where a batch does not fit, it is halved from then on.
    """

    def __init__(self, job: Job) -> None:
        import torch

        self.job = job
        self.counters = Counters()
        self.size = job.settings.batch or 1
        """Tiles a call: the batch, or a half, a quarter, ... of it where the memory was too small."""
        self.device = torch.device(job.settings.device)
        self._on_gpu = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if self._on_gpu else None
        self._counting = threading.Lock()
        function = job.kernel.function
        if isinstance(function, torch.nn.Module):
            function.eval().to(self.device)
            if job.kernel.spec.channels_last:
                function.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._on_gpu:
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        self._kernels: SimpleQueue[Kernel] = SimpleQueue()  # one for each batch under way
        for kernel in (job.kernel, *(job.kernel.twin() for _ in range(job.lanes - 1))):
            self._kernels.put(kernel)
        self._norm = {name: self._normalisation(name) for name in job.bindings}
        self._geo = _lonlat(job)
        self._kept = _kept(job)

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

    def run(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
        """Yield each batch with its outputs, one mapping a seat, in order.

        Raster outputs come as float32 ``[C, rows, columns]`` over `kept` of the tile in output pixels (not yet
        masked), records as the kernel gave them. Raises `KernelError` for what the kernel raises or gives
        amiss, and where not even one tile fits into the memory.
        """
        if not self._on_gpu:
            yield from self._side_by_side(batches)
            return
        before: _Launched | None = None
        for batch, sent in self._sent_ahead(batches):
            launched = self._launch(batch, sent)
            if before is not None:
                yield before.batch, self._fetch(before)
            before = launched
        if before is not None:
            yield before.batch, self._fetch(before)

    def kept(self, tile: Tile) -> Window:
        """Return the part of a tile that its raster outputs cover, in input pixels of the grid."""
        row, col = tile.read.row0, tile.read.col0
        first, last = self._kept
        return Window(row + first, row + last, col + first, col + last)

    def _side_by_side(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[dict[str, Any]]]]:
        """Yield batches that were computed on a CPU; one more than there are lanes waits, so that none is idle."""

        def compute(batch: Batch) -> tuple[Batch, list[dict[str, Any]]]:
            return batch, self._fetch(self._launch(batch, self._host(batch)))

        lanes = self.job.lanes
        if lanes == 1:
            yield from map(compute, batches)
            return
        with ThreadPoolExecutor(lanes, thread_name_prefix="tilewright-lane") as pool:
            yield from map_ahead(pool, compute, batches, lanes + 1)

    # -- to the device -----------------------------------------------------------------------------------

    def _host(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        import torch

        return {
            name: (torch.from_numpy(batch.data[name]), torch.from_numpy(batch.valid[name]))
            for name in (self.job.bindings if batch.seats else ())
        }

    def _sent_ahead(
        self, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, dict[str, tuple[Tensor, Tensor]]]]:
        """Yield batches on the GPU, while the copy of the next one is under way on a stream of its own."""
        import torch

        before: tuple[Batch, dict[str, tuple[Tensor, Tensor]], Any] | None = None
        for batch in batches:
            with torch.cuda.stream(self._copies):
                sent = {
                    name: (x.to(self.device, non_blocking=True), ok.to(self.device, non_blocking=True))
                    for name, (x, ok) in self._host(batch).items()
                }
                there = torch.cuda.Event()
                there.record()
            if before is not None:
                yield self._arrived(*before)
            before = batch, sent, there
        if before is not None:
            yield self._arrived(*before)

    def _arrived(
        self, batch: Batch, sent: dict[str, tuple[Tensor, Tensor]], there: Any
    ) -> tuple[Batch, dict[str, tuple[Tensor, Tensor]]]:
        import torch

        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(there)
        for pair in sent.values():
            for tensor in pair:
                tensor.record_stream(stream)  # so that its memory is not given away while this stream uses it
        return batch, sent

    # -- the call ----------------------------------------------------------------------------------------

    def _launch(self, batch: Batch, sent: dict[str, tuple[Tensor, Tensor]]) -> _Launched:
        """Run a batch in parts of ``size``; where one does not fit into the memory, in smaller ones from now on."""
        started = perf_counter()
        pieces: list[tuple[int, dict[str, Any]]] | None = None if batch.seats else []
        while pieces is None:
            pieces = self._try(batch, sent)
        done = None
        if self._on_gpu:
            import torch

            done = torch.cuda.Event()
            done.record()
        self._count(perf_counter() - started)
        return _Launched(batch, pieces, done)

    def _try(
        self, batch: Batch, sent: dict[str, tuple[Tensor, Tensor]]
    ) -> list[tuple[int, dict[str, Any]]] | None:
        """Return the outputs of a batch, or None where it does not fit; then ``size`` is at most half of it."""
        size, kernel = self.size, self._kernels.get()
        spec, whole = self.job.kernel.spec, {name: bool(ok.all()) for name, ok in batch.valid.items()}
        pieces: list[tuple[int, dict[str, Any]]] = []
        try:
            with blamed(f"kernel {spec.name}"):
                for at in range(0, len(batch.seats), size):
                    seats = batch.seats[at : at + size]
                    pieces.append((len(seats), self._call(kernel, seats, size, sent, at, whole)))
        except (KernelError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise KernelError(
                    "a single tile does not fit into the memory",
                    place=f"kernel {spec.name} on {self.device}",
                    remedy="use a smaller --tile",
                ) from error
        else:
            return pieces
        finally:
            self._kernels.put(kernel)
        # Outside of the handler: the error's frames would keep the tensors that did not fit.
        with self._counting:
            self.size = min(self.size, -(-size // 2))
        if self._on_gpu:
            import torch

            torch.cuda.empty_cache()
        return None

    def _call(
        self,
        kernel: Kernel,
        seats: list[Seat],
        size: int,
        sent: dict[str, tuple[Tensor, Tensor]],
        at: int,
        whole: dict[str, bool],
    ) -> dict[str, Any]:
        """Normalise, fill and run ``seats``, which stand from place ``at`` on; always ``size`` of them."""
        import torch

        spec = self.job.kernel.spec
        with torch_threads(self.job.settings.threads or 1), torch.inference_mode():
            inputs, valid = {}, {}
            for name, (x, ok) in sent.items():
                part, valid[name] = _part(x, at, size), _part(ok, at, size)
                if (norm := self._norm[name]) is not None:
                    part = (part - norm[0]).div_(norm[1])
                if not whole[name]:
                    part = part.masked_fill(~valid[name], spec.inputs[name].fill)
                inputs[name] = part
            with self._autocast():
                outputs = kernel.apply(inputs, valid, self._context(seats, size))
            found = self._checked(outputs, size)
        self._count(0.0, len(seats), size * self.job.tiling.tile**2, 1)
        return found

    def _autocast(self) -> Any:
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.job.settings.precision)
        return torch.autocast(self.device.type, dtype=kind, enabled=kind is not None)

    def _checked(self, outputs: dict[str, Any], size: int) -> dict[str, Any]:
        """Check shapes; crop rasters to what is kept of them and send them to the host as float32."""
        import torch

        spec = self.job.kernel.spec
        side = self.job.tiling.tile * spec.scale
        keep = slice(self._kept[0] * spec.scale, self._kept[1] * spec.scale)
        found: dict[str, Any] = {}
        for name, output in spec.outputs.items():
            values, place = outputs[name], f"kernel {spec.name}, output {name}"
            if output.is_raster:
                if not isinstance(values, torch.Tensor):
                    raise KernelError(f"gave a {type(values).__name__}, expected a tensor", place=place)
                if values.ndim == 3:
                    values = values[:, None]
                if values.ndim != 4 or values.shape[0] != size or values.shape[2:] != (side, side):
                    raise KernelError(
                        f"gave shape {tuple(values.shape)}, expected [{size}, C, {side}, {side}]",
                        place=place,
                    )
                values = values[..., keep, keep]
            found[name] = self._to_host(values.float()) if isinstance(values, torch.Tensor) else values
        return found

    def _to_host(self, values: Tensor) -> Tensor:
        if not self._on_gpu:
            return values
        import torch

        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def _fetch(self, launched: _Launched) -> list[dict[str, Any]]:
        """Return the outputs of a batch, one mapping a seat, as soon as they are on the host."""
        started = perf_counter()
        spec, rows = self.job.kernel.spec, []
        if launched.done is not None:
            with blamed(f"kernel {spec.name}"):  # what a GPU finds amiss is told when one waits for it
                launched.done.synchronize()
        for count, piece in launched.pieces:
            arrays = {
                name: values.numpy() if spec.outputs[name].is_raster else values
                for name, values in piece.items()
            }
            rows += [{name: values[i] for name, values in arrays.items()} for i in range(count)]
        self._count(perf_counter() - started)
        return rows

    def _count(self, seconds: float, tiles: int = 0, pixels: int = 0, batches: int = 0) -> None:
        with self._counting:
            self.counters.seconds += seconds / self.job.lanes
            self.counters.tiles += tiles
            self.counters.pixels += pixels
            self.counters.batches += batches

    def _context(self, seats: list[Seat], size: int) -> Context:
        import torch

        job = self.job
        times = np.zeros((size, max(b.dates for b in job.bindings.values())), dtype=np.int64)
        first = next(iter(job.bindings.values()))
        for t, when in enumerate(job.source.layers[first.layer].times):
            times[:, t] = 0 if when is None else np.datetime64(when, "ns").astype(np.int64)
        padded = seats + [seats[-1]] * (size - len(seats))
        origin = np.array([(s.tile.read.row0, s.tile.read.col0) for s in padded], dtype=np.int64)
        return Context(
            origin=torch.from_numpy(origin).to(self.device),
            times=torch.from_numpy(times).to(self.device),
            lonlat=torch.from_numpy(self._geo(origin + job.tiling.tile / 2)).to(self.device),
            resolution=job.grid.resolution,
            statistics=job.statistics,
            seed=job.kernel.spec.seed or 0,
            locate=self._geo,
        )


def _kept(job: Job) -> tuple[int, int]:
    """Return the part ``[first, last)`` of a tile's axis that is of use: what it gives.

    A cut without an exact radius keeps a pixel more, in which neighbours are compared.
    """
    tiling = job.tiling
    last = tiling.lead + tiling.core + tiling.overlap
    if not job.blends and job.kernel.spec.radius is None:
        last = min(last + 1, tiling.tile)
    return tiling.lead, last


def _part(values: Tensor, at: int, size: int) -> Tensor:
    """Return ``size`` rows from ``at`` on, the last one repeated where there are not as many."""
    part = values[at : at + size]
    if (missing := size - part.shape[0]) > 0:
        import torch

        part = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])
    return part


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
