"""Carry out a job into a folder: resume, compute, write behind, check the coverage, publish.

A run's folder is finished when `report.json` is there, which is written last. Until then the Zarr is
``result.zarr.partial``, no ``.tif`` has its final name, and the ledger says which shards are durable.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import InputError, ResumeError, StoreError

from . import outputs as publishing
from .digest import shard_digest
from .engine import Engine, ShardResult
from .ledger import Ledger
from .memory import GDAL_CACHE
from .plan import Plan, make_plan
from .report import PeakMemory, Report, versions
from .source import Reason
from .statistics import gather_statistics
from .store import ResultStore

if TYPE_CHECKING:
    from .grid import Shard
    from .job import Job

__all__ = ["Progress", "Request", "execute"]

type Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all) whenever a shard is durable."""

PRODUCTS = ("report.json", "item.json", "quicklook.png", "items.json")


@dataclass(frozen=True)
class Request:
    """What of a run is not the answer itself: where it goes and how it is presented."""

    out: Path
    """The folder of the run."""
    title: str
    """Its name."""
    only: Literal["cog", "zarr"] | None = None
    """Keep just one of the two forms of the rasters."""
    fresh: bool = False
    """Start over, removing what an earlier run of tilewright left in the folder."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the report (recipe, region)."""
    items: tuple[Any, ...] = ()
    """The pystac Items that the source was made of, for ``derived_from``."""


def execute(job: Job, request: Request, progress: Progress | None = None) -> Report:
    """Run ``job`` into a folder and return its report; the same request resumes what was interrupted.

    Raises
    ------
    ResumeError
        If the folder holds another run, or one that is under way.
    PlanError
        If it would not fit into the memory allowed.
    ReadError, StoreError, KernelError
        Where it failed; finished shards are kept.
    """
    started = datetime.now(UTC)
    clock = perf_counter()
    with _locked(request.out, fresh=request.fresh), _gdal(), PeakMemory() as memory:
        plan = make_plan(job)
        plan.check()
        ledger = Ledger.open(request.out, job.fingerprint, {"shard": job.tiling.shard, "only": request.only})
        if (finished := Report.read(request.out)) is not None:
            return finished
        if "statistics" not in ledger.header:
            ledger.note(statistics=gather_statistics(job))
        job = job.with_statistics(ledger.header["statistics"])
        store = _store(job, request.out, ledger)
        state = _compute(job, store, ledger, progress)
        shards = list(job.tiling.shards(job.grid.shape))
        reasons = check_coverage(ledger, shards, job)
        tick = perf_counter()
        made = publishing.publish(job, request, store, started)
        state.seconds_write += perf_counter() - tick
        report = _report(job, request, plan, ledger, state, reasons, made, started)
        report = _timed(report, perf_counter() - clock, memory.peak)
        report.write(request.out)
    return report


@dataclass(slots=True)
class _State:
    """What one start of a run did."""

    engine: Engine
    reused: list[str]
    seconds_write: float = 0.0


def _store(job: Job, out: Path, ledger: Ledger) -> ResultStore:
    """Open the unpublished store that the ledger speaks of, or create one (and forget the ledger's shards)."""
    url = out / publishing.ZARR
    scale = job.kernel.spec.scale
    if ledger.entries:
        try:
            return ResultStore.open(url)
        except StoreError as error:
            raise ResumeError(
                "the ledger names finished shards, but their Zarr is gone",
                place=str(url),
                remedy="use --fresh",
            ) from error
    return ResultStore.create(url, job.output_grid, job.kernel.spec.outputs, job.tiling.shard * scale)


def _compute(job: Job, store: ResultStore, ledger: Ledger, progress: Progress | None) -> _State:
    shards = list(job.tiling.shards(job.grid.shape))
    todo = [s for s in shards if s.name not in ledger.entries]
    state = _State(Engine(job), [s.name for s in shards if s.name in ledger.entries])
    done = len(state.reused)

    def write(result: ShardResult) -> None:
        tick = perf_counter()
        _write(job, store, ledger, result)
        state.seconds_write += perf_counter() - tick

    with ThreadPoolExecutor(1, thread_name_prefix="tilewright-write") as pool:
        behind: Future[None] | None = None
        for result in state.engine.run(todo):
            if behind is not None:
                behind.result()
                done += 1
                if progress:
                    progress(done, len(shards))
            behind = pool.submit(write, result)
        if behind is not None:
            behind.result()
            if progress:
                progress(done + 1, len(shards))
    return state


def _write(job: Job, store: ResultStore, ledger: Ledger, result: ShardResult) -> None:
    from .grid import Shard

    window = result.shard.window.times(job.kernel.spec.scale)
    store.write(Shard(result.shard.index, window), result.arrays, result.reason)
    counts = np.bincount(result.reason.ravel(), minlength=len(Reason))
    ledger.finish(
        result.shard.name,
        digest=shard_digest({**result.arrays, "reason": result.reason}),
        pixels=int(result.reason.size),
        reasons={Reason(code).name.lower(): int(n) for code, n in enumerate(counts) if n},
        tiles=result.tiles,
        tiles_needed=result.tiles_needed,
        bytes_read=result.bytes_read,
        seconds_read=round(result.seconds_read, 4),
        statistics=_value_statistics(result, job),
    )


def _value_statistics(result: ShardResult, job: Job) -> dict[str, Any]:
    """Least, largest and mean of the stored values of each output, valid pixels only."""
    found: dict[str, Any] = {}
    for name, spec in job.kernel.spec.outputs.items():
        values = result.arrays[name]
        nodata = spec.stored_nodata
        good = values[~np.isnan(values)] if np.isnan(nodata) else values[values != nodata]
        if good.size:
            mean = float(good.mean(dtype=np.float64))
            found[name] = {"min": float(good.min()), "max": float(good.max()), "mean": mean}
    return found


def check_coverage(ledger: Ledger, shards: list[Shard], job: Job) -> dict[str, int]:
    """Return pixels by reason; raises `StoreError` unless every pixel is owned exactly once and accounted for."""
    scale = job.kernel.spec.scale
    missing = [s.name for s in shards if s.name not in ledger.entries]
    strangers = sorted(set(ledger.entries) - {s.name for s in shards})
    totals: Counter[str] = Counter()
    for shard in shards:
        if shard.name in ledger.entries:
            entry = ledger.entries[shard.name]
            if entry["pixels"] != shard.window.size * scale**2:
                strangers.append(shard.name)
            totals.update(entry["reasons"])
    rows, cols = job.output_grid.shape
    if missing or strangers or totals.total() != rows * cols:
        raise StoreError(
            f"{totals.total():,} of {rows * cols:,} pixels are accounted for; missing shards {missing[:3]},"
            f" wrong ones {strangers[:3]}",
            place=str(ledger.path),
            remedy="this is a defect of tilewright; start over with --fresh and report it",
        )
    return dict(totals)


def _report(
    job: Job,
    request: Request,
    plan: Plan,
    ledger: Ledger,
    state: _State,
    reasons: dict[str, int],
    made: publishing.Published,
    started: datetime,
) -> Report:
    spec, counters, entries = job.kernel.spec, state.engine.counters, ledger.entries
    needed = sum(e["tiles_needed"] for e in entries.values())
    run = counters.tiles + sum(entries[name]["tiles"] for name in state.reused)
    seams = {name: seam.summary() for name, seam in state.engine.seams.items()}
    return Report(
        title=request.title,
        kernel={
            **job.fingerprint["kernel"],
            "weights": job.kernel.weights,
            "licence": spec.licence,
            "citation": spec.citation,
            "status": spec.status,
        },
        inputs=dict(job.source.describe()),
        outputs=made.files,
        tiles_needed=needed,
        tiles_run=run,
        work_factor=round(run / needed, 6) if needed else 1.0,
        pixels_forward=counters.pixels,
        tile=job.tiling.tile,
        core=job.tiling.core,
        halo=job.tiling.halo,
        stride=job.tiling.stride,
        stitch=job.settings.stitch or "cut",
        shard_size=job.tiling.shard,
        batch=job.settings.batch or 1,
        threads=job.settings.threads or 1,
        device=job.settings.device,
        precision=job.settings.precision,
        shards=len(entries),
        shards_reused=len(state.reused),
        seconds=0.0,
        seconds_read=round(sum(e["seconds_read"] for n, e in entries.items() if n not in state.reused), 3),
        seconds_forward=round(counters.seconds, 3),
        seconds_write=round(state.seconds_write, 3),
        bytes_read=sum(e["bytes_read"] for e in entries.values()),
        peak_rss_bytes=0,
        projected_memory_bytes=plan.memory.total,
        pixels=sum(reasons.values()),
        pixels_valid=reasons.get("valid", 0),
        reasons=reasons,
        seam=seams or None,
        clipped=dict(counters.bad),
        failures=list(getattr(job.source, "failures", ())),
        digest=made.digest,
        fingerprint=ledger.header["fingerprint"],
        statistics=job.statistics,
        notes=list(job.notes),
        started=started.isoformat(timespec="seconds"),
        versions=versions(),
        extra=dict(request.extra),
    )


def _timed(report: Report, seconds: float, peak: int) -> Report:
    from dataclasses import replace

    return replace(report, seconds=round(seconds, 3), peak_rss_bytes=peak)


@contextmanager
def _gdal() -> Iterator[None]:
    """Bound GDAL's block cache: its default of 5 % of the machine is no promise."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        yield


@contextmanager
def _locked(out: Path, *, fresh: bool) -> Iterator[None]:
    """Hold the folder against a second process; with ``fresh`` remove what a former run left in it."""
    if out.exists() and not out.is_dir():
        raise InputError("is a file", place=str(out), remedy="name a folder by --out")
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ResumeError(
            "another run is writing here", place=str(out), remedy="wait for it, or use another --out"
        ) from error
    try:
        if fresh:
            _clear(out)
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        os.close(handle)


def _clear(out: Path) -> None:
    """Remove the products of a former run, and nothing else: only what a ledger or a report vouches for."""
    report = Report.read(out)
    for name in (*PRODUCTS, *(report.outputs.values() if report else ())):
        target = out / name
        if target.parent == out and target.is_file():
            target.unlink()
    for name in (publishing.ZARR, f"{publishing.ZARR}.partial"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "ledger.jsonl").unlink(missing_ok=True)
