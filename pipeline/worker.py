"""What runs on a Dask worker: a group of shards is read, computed and written there; facts alone come back.

The run reaches each worker once, as a plugin that the scheduler keeps for those that join late. The kernel is
loaded once a process. A group is one task and has one engine; a process works on one group at a time, however
many threads its worker has, because the plan promises the memory of one.

Importing this module imports distributed; only `tilewright.pipeline.cluster` and the workers do.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin, get_worker

from tilewright.errors import ClusterError

from .failures import forget_failures
from .job import arithmetic_versions
from .memory import PeakMemory
from .order import LEAST_CACHE
from .spool import FOLDER, Spool
from .stream import behind

if TYPE_CHECKING:
    from .grid import Shard
    from .job import Job

__all__ = ["Group", "GroupDone", "Work", "WorkPlugin", "compute_group", "work_of"]


@dataclass(frozen=True)
class Work:
    """A run as a worker needs it."""

    job: Job
    """What is run, with its statistics."""
    engine: Callable[[Job, list[Shard], frozenset[tuple[int, int]]], Any]
    """Makes the engine of a group from the job, its shards, and those computed elsewhere."""
    write: Callable[[Any], tuple[str, dict[str, Any]]]
    """Makes a finished shard durable; returns its name and the facts for the ledger."""
    current: Callable[[], bool]
    """False once the folder belongs to another run, or to none: what is still computed must not be written."""
    spool: Spool
    """Where margins lie."""
    folders: tuple[str, ...]
    """Local folders that every worker must see."""
    versions: Mapping[str, str]
    """Libraries that bits depend on, as the client has them."""


def work_of(
    job: Job,
    engine: Callable[[Job, list[Shard], frozenset[tuple[int, int]]], Any],
    write: Callable[[Any], tuple[str, dict[str, Any]]],
    current: Callable[[], bool],
    place: str,
    folders: tuple[str, ...],
) -> Work:
    """Return the `Work` of a run whose result grows at ``place``: its margins lie beside it."""
    from tilewright import __version__

    spool = Spool(f"{place.rpartition('/')[0]}/{FOLDER}")
    versions = {**arithmetic_versions(job.settings.device), "tilewright": __version__}
    return Work(job, engine, write, current, spool, folders, versions)


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of a task: neighbouring shards of one row."""

    name: str
    """First shard and number of shards, ``row.column+count``."""
    shards: tuple[tuple[int, int], ...]
    """Their indices, in order."""
    elsewhere: frozenset[tuple[int, int]]
    """Neighbours that other tasks compute: their margins travel."""
    margins: Mapping[str, tuple[int, int]]
    """Name in the spool -> the shard of this group that the margins are for."""


@dataclass(frozen=True, slots=True)
class GroupDone:
    """What comes back of a group."""

    attempt: str
    """Names this execution: a group whose worker was lost has several."""
    shards: tuple[tuple[str, dict[str, Any]], ...]
    """(Name, facts for the ledger) of each shard, all of them durable."""
    margins: Mapping[tuple[int, int], str]
    """Shard of another group -> name of its margins in the spool."""
    recomputed: int
    """Neighbours' tiles that were computed again because their margins did not travel."""
    seconds_forward: float
    """Seconds in the kernel."""
    seconds_write: float
    """Seconds of writing shards."""
    seconds: float
    """Seconds in all."""
    peak: int
    """Highest resident memory of the process meanwhile, in bytes."""


@dataclass(slots=True)
class _Loaded:
    payload: bytes | None
    work: Work | None = None
    revoked: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_RUNS: dict[str, _Loaded] = {}
"""Token -> a run of this process."""
_ONE_GROUP = threading.Lock()


class WorkPlugin(WorkerPlugin):
    """Brings a run to a worker when it is registered or the worker joins, and takes it away in the end."""

    def __init__(self, token: str, payload: bytes) -> None:
        self.name, self.token, self.payload = f"tilewright-{token}", token, payload

    def setup(self, worker: Any) -> None:
        """Keep the run; it is unpacked by the first task, so that an error reaches the user."""
        _RUNS[self.token] = _Loaded(self.payload)

    def teardown(self, worker: Any) -> None:
        """Stop what still computes for it at its next shard."""
        if (loaded := _RUNS.pop(self.token, None)) is not None:
            loaded.revoked = True


def compute_group(token: str, group: Group) -> GroupDone:
    """Compute and write the shards of a group: the task of a run. An event tells the client of every shard."""
    started, worker = perf_counter(), get_worker()
    attempt = uuid.uuid4().hex[:12]

    def tell(shards: Mapping[str, Any], *, ready: bool = True) -> None:
        message = {"group": group.name, "attempt": attempt, "worker": worker.address, "ready": ready}
        worker.log_event(f"tilewright-{token}", message | {"shards": json.dumps(shards, default=str)})

    with _ONE_GROUP, _bounded() as memory:
        tell({}, ready=False)
        loaded, work = _loaded(token, worker.address)
        tell({})
        job = work.job
        shards = [job.tiling.shard_at(i, j, job.grid.shape) for i, j in group.shards]
        engine = work.engine(job, shards, group.elsewhere)
        if group.margins:
            engine.receive(work.spool.take(group.margins))
        writer = _Writer(loaded, work, tell, worker.address)
        behind(engine.run(shards), writer.write, "write")
        margins = work.spool.leave(group.name, getattr(engine, "outgoing", ()))
    return GroupDone(
        attempt,
        tuple(writer.done.items()),
        margins,
        engine.counters.recomputed,
        engine.counters.seconds,
        writer.seconds,
        perf_counter() - started,
        memory.peak,
    )


class _Writer:
    """Writes shards, and tells of each once it is durable."""

    def __init__(
        self, loaded: _Loaded, work: Work, tell: Callable[[Mapping[str, Any]], None], address: str
    ) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._loaded, self._work, self._tell, self._address = loaded, work, tell, address

    def write(self, result: Any) -> None:
        # A worker that nobody waits for any more (it was given up, or the client was interrupted) may still be
        # at work when the folder belongs to another run.
        if self._loaded.revoked or not self._work.current():
            raise ClusterError("the run has ended", place=f"worker {self._address}")
        tick = perf_counter()
        name, facts = self._work.write(result)
        self.seconds += perf_counter() - tick
        self.done[name] = facts
        self._tell({name: facts})


@contextmanager
def _bounded() -> Iterator[PeakMemory]:
    """Bound GDAL's block cache, which belongs to the process, and watch the memory."""
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=LEAST_CACHE), PeakMemory() as memory:
        yield memory


def _loaded(token: str, address: str) -> tuple[_Loaded, Work]:
    """Return the run, unpacked and checked at its first group in this process."""
    loaded, place = _RUNS.get(token), f"worker {address}"
    if loaded is None:
        raise ClusterError("the run has ended", place=place)
    with loaded.lock:
        if loaded.work is None:
            assert loaded.payload is not None
            work = _unpack(loaded.payload, place)
            _check_alike(work, place)
            for folder in work.folders:
                if not Path(folder).is_dir():
                    raise ClusterError(
                        f"does not see the folder {folder}",
                        place=place,
                        remedy="write to a folder that all workers share, or to an object store (s3://)",
                    )
            forget_failures(work.job.source)
            loaded.work, loaded.payload = work, None
    return loaded, loaded.work


def _unpack(payload: bytes, place: str) -> Work:
    import cloudpickle  # type: ignore[import-untyped]

    try:
        work: Work = cloudpickle.loads(payload)
    except (ImportError, AttributeError) as error:
        raise ClusterError(
            f"can not load the run: {error}", place=place, remedy="install the same packages on every worker"
        ) from error
    return work


def _check_alike(work: Work, place: str) -> None:
    """Refuse a worker whose libraries would give other bits."""
    from tilewright import __version__

    here = {**arithmetic_versions(work.job.settings.device), "tilewright": __version__}
    for name, version in work.versions.items():
        if here.get(name) != version:
            raise ClusterError(
                f"has {name} {here.get(name)}, the client has {version}: the bits of the result would depend on"
                " which of them computes",
                place=place,
                remedy="install the same versions on every worker",
            )
