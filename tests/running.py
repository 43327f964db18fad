"""Helpers of the engine's tests: run a job in memory, put its shards together, and the one big pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.user import kernel as describe
from tilewright.pipeline.engine import Engine, ShardResult
from tilewright.pipeline.job import Job, prepare
from tilewright.pipeline.settings import Settings

if TYPE_CHECKING:
    from tilewright.pipeline.grid import Shard

Arrays = dict[str, np.ndarray]


def make_kernel(function: Any, *, bands: Any = 1, dates: Any = 1, **keys: Any) -> Kernel:
    """Return a `Kernel` around ``function``, with one input and one unbounded value unless ``keys`` say more."""
    keys = {
        "name": "probe",
        "inputs": {"image": {"dates": dates, "bands": bands}},
        "outputs": {"out": {"kind": "value"}},
        "radius": 0,
        **keys,
    }
    return describe(**keys)(function)


def job_of(kernel: Kernel, source: Any, **wishes: Any) -> Job:
    """Prepare a job on the CPU with one thread: tests run beside others."""
    return prepare(kernel, source, Settings(**{"device": "cpu", "threads": 1, **wishes}))


def shards_of(job: Job) -> list[Shard]:
    """All shards of a job, row-major."""
    return list(job.tiling.shards(job.grid.shape))


def assemble(job: Job, results: Iterable[ShardResult]) -> Arrays:
    """Put shards together; a pixel that two shards write, or none, fails."""
    scale = job.kernel.spec.scale
    shape = job.output_grid.shape
    owners = np.zeros(shape, dtype=int)
    found: Arrays = {"reason": np.zeros(shape, dtype=np.uint8)}
    for result in results:
        window = result.shard.window.times(scale)
        at = window.slices(job.output_grid.window)
        owners[at] += 1
        found["reason"][at] = result.reason
        for name, values in result.arrays.items():
            found.setdefault(name, np.zeros((values.shape[0], *shape), values.dtype))[:, *at] = values
    assert (owners == 1).all()
    return found


def run_job(job: Job, groups: Sequence[Sequence[Shard]] | None = None) -> tuple[Arrays, list[Engine]]:
    """Run a job: each group of shards in an engine of its own (a resume); all in one unless given."""
    engines, results = [], []
    for group in groups or [shards_of(job)]:
        engine = Engine(job, group)
        engines.append(engine)
        results += list(engine.run(group))
    return assemble(job, results), engines


def same(a: Arrays, b: Arrays) -> bool:
    """True where two results have the same names, types and bits."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a
    )


def one_pass(
    kernel: Kernel, array: np.ndarray, *, pad: int, boundary: str = "reflect", multiple: int = 1
) -> np.ndarray:
    """The reference of DESIGN: the forward on the whole raster padded with the boundary, then cropped.

    ``array`` is ``[T, C, rows, columns]`` with NaN where invalid; returns ``[K, rows, columns]`` float32. The
    lower and right edges are padded further to a ``multiple`` of the network's stride.
    """
    spec = kernel.spec
    (name, wanted), (output,) = next(iter(spec.inputs.items())), spec.outputs
    rows, cols = array.shape[-2:]
    more = [(pad, pad + (-(n + 2 * pad)) % multiple) for n in (rows, cols)]
    edges = [(0, 0), (0, 0), *more]
    valid = np.isfinite(array).all(axis=1, keepdims=True)
    if boundary == "reflect":
        x, ok = np.pad(array, edges, mode="reflect"), np.pad(valid, edges, mode="reflect")
    else:
        x, ok = np.pad(array, edges), np.pad(valid, edges, constant_values=False)
    x = x.astype(np.float32)
    if wanted.mean is not None and wanted.std is not None:
        mean, std = (
            np.broadcast_to(np.array(v, dtype=np.float32).reshape(-1, x.shape[1]), x.shape[:2])[
                ..., None, None
            ]
            for v in (wanted.mean, wanted.std)
        )
        x = (x - mean) / std
    x = np.where(ok, x, np.float32(wanted.fill))
    context = Context(
        origin=torch.tensor([[-pad, -pad]]),
        times=torch.zeros(1, array.shape[0], dtype=torch.int64),
        lonlat=torch.full((1, 2), float("nan"), dtype=torch.float64),
        resolution=10.0,
        seed=spec.seed or 0,
    )
    with torch.inference_mode():
        given = {name: torch.from_numpy(x)[None]}
        result = kernel.apply(given, {name: torch.from_numpy(ok)[None]}, context)[output]
    s = spec.scale
    return result.float().numpy()[0][:, pad * s : (pad + rows) * s, pad * s : (pad + cols) * s]


def image(rows: int, cols: int, *, dates: int = 1, bands: int = 1, seed: int = 0) -> np.ndarray:
    """Noise of unit variance as float32 ``[dates, bands, rows, cols]``."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((dates, bands, rows, cols)).astype(np.float32)


def with_holes(array: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return a copy with NaN: scattered pixels, a block, and a whole row."""
    generator = np.random.default_rng(seed)
    array = array.copy()
    rows, cols = array.shape[-2:]
    array[..., generator.random((rows, cols)) < 0.01] = np.nan
    array[..., rows // 3 : rows // 3 + rows // 8 + 1, cols // 2 : cols // 2 + cols // 8 + 1] = np.nan
    array[..., rows // 2, :] = np.nan
    return array
