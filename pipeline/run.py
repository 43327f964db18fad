"""Carry out a job into a folder: resume, compute, write behind, check the coverage, publish.

A run's folder is finished when `report.json` is there, which is written last. Until then the Zarr is
``result.zarr.partial``, no ``.tif`` has its final name, and the ledger says which shards are durable.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

from tilewright.errors import ResumeError, StoreError

from . import outputs as publishing
from .cluster import Cluster, Connection, plan_for
from .delivery import Delivery
from .durable import FINGERPRINT, is_current, write_shard
from .engine import Engine
from .failures import forget_failures, merge_failures, shards_to_redo
from .folder import held, unpublish
from .ledger import Ledger
from .memory import PeakMemory
from .order import cache_bytes, in_order
from .progress import Meter, Progress, Status
from .report import Report, versions
from .statistics import gather_statistics
from .stitch import Seam
from .store import ResultStore
from .stream import behind

if TYPE_CHECKING:
    from .dispatch import Dispatcher
    from .grid import Shard
    from .job import Job
    from .worker import Work

__all__ = ["Progress", "Request", "Run", "Status", "execute"]

STARTED_AS = "tilewright:run"
"""Root attribute of a result's Zarr: the start whose ledger speaks of its shards, as that ledger calls it."""


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
    retry_failed: bool = False
    """Compute again the shards, finished ones too, of which a read failed and was tolerated."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the report (recipe, region)."""
    item_id: str = "result"
    """Id of the Item: letters, digits, ``.``, ``_`` and ``-``."""
    items: tuple[Any, ...] = ()
    """The pystac Items that the source was made of, for ``derived_from``."""
    remote: str | None = None
    """Address in an object store to which the result goes; ``out`` is then the work folder (see `objects`)."""
    cluster: Any = None
    """Where shards are computed, as `Cluster.of` takes it; None is this process."""
    begin: Callable[[Path], Any] | None = None
    """Called with the folder as soon as it is this run's: writes what belongs beside the result."""


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
    return Run(job, request, progress).carry_out()


class Run:
    """A run under way: enter it, compute all of ``todo`` (at once or in groups), and publish.

    Entering checks the plan, opens or begins the ledger, takes the statistics, and holds the folder against
    other processes until it is left. ``progress`` is told of the statistics pass, of every durable shard and of
    each step of the end.
    """

    def __init__(self, job: Job, request: Request, progress: Progress | None = None) -> None:
        self.cluster = None if request.cluster is None else Cluster.of(request.cluster)
        if self.cluster is not None:  # workers may have another working directory
            request = replace(request, out=request.out.resolve())
        self.job, self.request = job, request
        self._clock, self._started = perf_counter(), datetime.now(UTC)
        self._seconds_write = 0.0
        self._memory = PeakMemory(children=self.cluster is None)
        self._stack = ExitStack()
        self.delivery = Delivery(request.out, request.remote) if request.remote else None
        self._engine: Any = None
        self._engine_is_whole = False
        self._meter: Meter | None = None
        self._progress = progress
        self._dispatcher: Dispatcher | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            out, job = self.request.out, self.job
            stack.enter_context(_gdal(cache_bytes(job)))
            stack.enter_context(self._memory)
            self.plan = plan_for(job, self.cluster)
            self.plan.check()  # before the folder is made, or a former run removed from it
            self.job = job = job.with_lanes(self.plan.lanes)
            stack.enter_context(held(out, fresh=self.request.fresh))
            layout = {"shard": job.tiling.shard, "only": self.request.only}
            if self.delivery is not None:
                stack.enter_context(self.delivery.lease)
                stack.callback(self.delivery.leave)
                if self.request.fresh:
                    self.delivery.clear()
                elif self._lies_in_the_store:
                    self.delivery.fetch_ledger(job.fingerprint, layout)
            self.ledger = Ledger.open(out, job.fingerprint, layout)
            if self.delivery is not None:
                self.delivery.begin(self.ledger.header["fingerprint"])
            if self.request.begin is not None:
                self.request.begin(out)
            if self.request.retry_failed:
                self._take_back_failed()
            self.finished = Report.read(out)
            """The report of an earlier start that came to the end; nothing is left to do then."""
            self.reused = tuple(self.ledger.entries)
            if self.finished is None:
                self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"{len(self.ledger.entries)} of {len(self.shards)} shards are kept")

    def carry_out(self) -> Report:
        """Enter the run, compute all that is to do, publish, and leave it."""
        with self:
            if self.finished is None:
                self.compute(self.todo)
            return self.publish()

    def _open(self) -> None:
        forget_failures(self.job.source)  # of a run before this one, in the same process
        if "request" not in self.ledger.header:
            self.ledger.note(request={"title": self.request.title, **self.request.extra})
        if "statistics" not in self.ledger.header:
            statistics = gather_statistics(self.job, self._progress)
            self.ledger.note(statistics=statistics, statistics_failures=forget_failures(self.job.source))
        self.job = self.job.with_statistics(self.ledger.header["statistics"])
        if self.delivery is not None and self._lies_in_the_store:
            self.delivery.follow(self.ledger)
        self._open_results()

    def _take_back_failed(self) -> None:
        """Make the run unfinished where reads had failed: their shards are to do, and all others are kept."""
        failed = shards_to_redo(self.job, self.ledger.header, self.ledger.entries)
        if not failed:
            return
        self._reopen()  # refuses before anything is changed
        report = Report.read(self.request.out)
        if self.delivery is not None:
            self.delivery.withdraw()
        if report is not None:
            unpublish(self.request.out, report)
        self._hide()
        everything = ("statistics", "statistics_failures") if len(failed) == len(self.ledger.entries) else ()
        self.ledger.redo(failed, everything)

    @property
    def _lies_in_the_store(self) -> bool:
        """True where a finished shard is in the object store, so that its line of the ledger holds everywhere."""
        return self.request.only != "cog"

    # The steps in which runs of rasters differ from those of records (`tilewright.pipeline.tiles`).

    def _open_results(self) -> None:
        self.store = self._zarr()

    def _reopen(self) -> None:
        """Refuse where a finished result can not be worked on again."""
        self._zarr()

    def _hide(self) -> None:
        """Give what `publish` made visible its unfinished name again."""
        self._zarr().withdraw()

    def _zarr(self) -> ResultStore:
        return _store(self.job, self.request, self.ledger)

    def _new_engine(self, shards: list[Shard]) -> Any:
        return Engine(self.job, shards, scratch=self.request.out)

    def _writer(self) -> Callable[[Any], tuple[str, dict[str, Any]]]:
        """Return what makes a shard durable, here or on a worker; it gives the shard's name and its facts."""
        return partial(write_shard, self.job, self.store)

    def _work(self) -> Work:
        """Return the run as Dask workers need it."""
        from .worker import work_of

        local = (str(self.request.out),) if self.store.place.startswith("/") else ()
        current = partial(is_current, self.store, self.ledger.header["fingerprint"])
        return work_of(self.job, Engine, self._writer(), current, self.store.place, local)

    def _publish(self, step: publishing.Step) -> publishing.Published:
        return publishing.publish(self.job, self.request, self.store, self._started, step)

    @property
    def shards(self) -> list[Shard]:
        """All shards of the run."""
        return list(self.job.tiling.shards(self.job.grid.shape))

    @property
    def todo(self) -> list[Shard]:
        """The shards that are not durable yet, in the order in which they are best computed."""
        left = [s for s in self.shards if s.name not in self.ledger.entries]
        return left if self.cluster is not None else in_order(self.job, left)

    def compute(self, shards: list[Shard]) -> None:
        """Compute and write ``shards``, the next ones of ``todo``; those that are durable are passed over.

        What fails leaves the finished ones durable, and the same call may be repeated: it goes on with the
        first that is missing.
        """
        shards = [s for s in shards if s.name not in self.ledger.entries]
        meter = self._meter = self._meter or Meter(self.job, self.shards, self.ledger.entries)
        if self.cluster is not None:
            self._compute_on(self.cluster, shards, meter)
            return
        engine = self._whole_engine()
        meter.begin(engine.counters.seconds)

        def done() -> None:
            if self._progress:
                self._progress(meter.status(engine.counters.seconds))

        self._engine_is_whole = False
        behind(engine.run(shards), self._write, "write", done)
        self._engine_is_whole = True

    def _compute_on(self, cluster: Cluster, shards: list[Shard], meter: Meter) -> None:
        """Let workers compute and write ``shards``, and write their lines of the ledger here."""
        if not shards:
            return
        if self._dispatcher is None:  # begun at the first shard: a finished run needs no workers
            from .dispatch import Dispatcher

            connection = self._stack.enter_context(Connection(cluster))
            token = hashlib.sha256(f"{self.ledger.header['fingerprint']} {self.request.out}".encode())
            dispatcher = Dispatcher(connection, self._work(), token.hexdigest()[:16])
            self._dispatcher = self._stack.enter_context(dispatcher)
        counters = self._dispatcher.counters
        meter.begin(counters.seconds)

        def durable(name: str, facts: dict[str, Any]) -> None:
            self.ledger.finish(name, **facts)
            if self._progress:
                # How busy this process is says nothing of the workers.
                self._progress(replace(meter.status(counters.seconds), cpu_busy=None))

        self._dispatcher.compute(shards, durable, self.ledger.entries)

    def _whole_engine(self) -> Any:
        """Return the engine of the calls before, or a new one with its counts where a call failed half-way.

        What failed may have taken margins with it that later shards need; a new engine computes them again.
        """
        if self._engine is None or not self._engine_is_whole:
            former, self._engine = self._engine, self._new_engine(self.todo)
            if former is not None:
                self._engine.continue_from(former)
        return self._engine

    def _write(self, result: Any) -> None:
        tick = perf_counter()
        name, facts = self._writer()(result)
        self.ledger.finish(name, **facts)
        self._seconds_write += perf_counter() - tick

    def publish(self) -> Report:
        """Check the coverage, write pyramid, COGs, quicklook and Item, and the report last of all."""

        def step(name: str, done: int, total: int) -> None:
            if self._progress:
                self._progress(Status(name, done, total))

        if self.finished is not None:
            if self.delivery is not None:
                self.delivery.deliver(self.finished)
            return replace(self.finished, shards_reused=self.finished.shards)
        reasons = check_coverage(self.ledger, self.shards, self.job)
        tick = perf_counter()
        made = self._publish(step)
        self._seconds_write += perf_counter() - tick
        report = self._report(reasons, made)
        report.write(self.request.out)
        if self.delivery is not None:
            self.delivery.deliver(report)
        return report

    def _report(self, reasons: dict[str, int], made: publishing.Published) -> Report:
        job, entries = self.job, self.ledger.entries
        spec, away = job.kernel.spec, self._dispatcher
        counters = (away or self._engine or self._new_engine([])).counters
        needed = sum(e["tiles_needed"] for e in entries.values())
        run = counters.tiles + sum(entries[name]["tiles"] for name in self.reused)
        fresh = [e for name, e in entries.items() if name not in self.reused]
        return Report(
            title=self.request.title,
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
            pixels_forward=sum(e["pixels_forward"] for e in entries.values()),
            tile=job.tiling.tile,
            core=job.tiling.core,
            halo=job.tiling.halo,
            stride=job.tiling.stride,
            stitch=job.settings.stitch or "cut",
            shard_size=job.tiling.shard,
            batch=job.settings.batch or 1,
            threads=job.settings.threads or 1,
            lanes=job.lanes,
            device=job.settings.device,
            precision=job.settings.precision,
            shards=len(entries),
            shards_reused=len(self.reused),
            seconds=round(perf_counter() - self._clock, 3),
            seconds_read=round(sum(e["seconds_read"] for e in fresh), 3),
            seconds_forward=round(counters.seconds, 3),
            seconds_write=round(self._seconds_write + (away.seconds_write if away else 0.0), 3),
            bytes_read=sum(e["bytes_read"] for e in entries.values()),
            peak_rss_bytes=self._memory.peak,
            projected_memory_bytes=self.plan.memory.total,
            workers=len(away.workers) if away else 0,
            peak_worker_bytes=away.peak if away else 0,
            pixels=sum(reasons.values()),
            pixels_valid=reasons.get("valid", 0),
            reasons=reasons,
            seam=_seams(job, entries) or None,
            clipped=_clipped(entries),
            failures=merge_failures(entries),
            digest=made.digest,
            fingerprint=self.ledger.header["fingerprint"],
            statistics=job.statistics,
            notes=[*job.notes, *(away.notes() if away else ()), *_nothing_valid(reasons)],
            started=self._started.isoformat(timespec="seconds"),
            versions=versions(),
            extra=dict(self.request.extra),
        )


def _seams(job: Job, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Merge what the shards' lines say of seams: of the whole result, whatever was resumed."""
    merged: dict[str, Seam] = {}
    for entry in entries.values():
        for name, plain in entry["seams"].items():
            low, high = job.kernel.spec.outputs[name].range or (0.0, 1.0)
            merged.setdefault(name, Seam(low, high)).merge(plain)
    return {name: seam.summary() for name, seam in merged.items()}


def _clipped(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for entry in entries.values():
        total.update(entry["clipped"])
    return dict(total)


def _store(job: Job, request: Request, ledger: Ledger) -> ResultStore:
    """Open the unpublished store that the ledger speaks of, or create one; if it is not wanted, a local one."""
    place = request.out if request.remote is None or request.only == "cog" else request.remote
    url = f"{place}/{publishing.ZARR}"
    scale = job.kernel.spec.scale
    if ledger.entries:
        try:
            store = ResultStore.open(url)
        except StoreError as error:
            raise ResumeError(
                "the ledger names finished shards, but their Zarr is gone",
                place=str(url),
                remedy="start over with --fresh",
            ) from error
        if store.attrs.get(STARTED_AS, ledger.header.get("run")) != ledger.header.get("run"):
            raise ResumeError(
                "the Zarr was laid out anew by another start, after this ledger was written",
                place=str(url),
                remedy="start over with --fresh",
            )
        return store
    attrs = {FINGERPRINT: ledger.header["fingerprint"], STARTED_AS: ledger.header.get("run")}
    return ResultStore.create(url, job.output_grid, job.kernel.spec.outputs, job.tiling.shard * scale, attrs)


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


def _nothing_valid(reasons: Mapping[str, int]) -> Iterator[str]:
    """Yield a warning where the whole map is empty."""
    if not reasons.get("valid"):
        told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in reasons.items())
        yield f"no pixel has a result: {told}"


@contextmanager
def _gdal(cache: int) -> Iterator[None]:
    """Bound GDAL's block cache: its default of 5 % of the machine is no promise."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=cache):
        yield
