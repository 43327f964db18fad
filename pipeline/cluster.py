"""Where a run's shards are computed when it is not in this process: Dask workers, started here or joined.

``local:N`` starts N worker processes on this machine for the time of the run. Any other address joins a
scheduler that stands already; its workers may come and go. What the workers do is in `worker`, and how the
shards are handed out in `dispatch`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self

from tilewright.errors import ClusterError, InputError

from .intraop import usable_cores
from .memory import available_memory
from .plan import make_plan

if TYPE_CHECKING:
    from .job import Job
    from .plan import Plan

__all__ = ["Cluster", "Connection", "plan_for"]

SCHEMES = ("tcp", "tls", "ucx", "ws", "wss")
"""Transports of Dask's addresses."""
CONNECT_S = 20.0
"""Seconds that a scheduler may take to answer the first time."""
RECONNECT_S = 60.0
"""Seconds that a scheduler which was lost may take to come back, before the run ends."""
_PAUSE = 0.8
"""Share of its memory limit at which a Dask worker takes no more tasks (``distributed.worker.memory.pause``)."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which workers compute a run, and how patient it is with them."""

    address: str
    """``local:N`` for N worker processes on this machine, or a scheduler's address, ``tcp://host:port``."""
    group: int | None = None
    """Shards of a task; None chooses. It changes no bit."""
    patience: float | None = None
    """Seconds without a finished shard after which a worker counts as hanging and its shards go to another. None
    is ten times the longest that a shard of this run took, at least `dispatch.PATIENCE_S`."""
    wait: float = 60.0
    """Seconds that the run waits for a worker while there is none."""
    client: Any = None
    """A `distributed.Client` that is used instead of a new one, and stays open."""

    @classmethod
    def of(cls, given: Any) -> Self:
        """Return a cluster for an address, a `distributed.Client`, or itself; raises `InputError`."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            text = given.strip()
            known = re.fullmatch(rf"local:[1-9]\d*|({'|'.join(SCHEMES)})://.+", text)
            if known is None:
                raise InputError(
                    f"{given!r} names no cluster",
                    place="--cluster",
                    remedy="write local:N for N workers on this machine, or a scheduler's tcp://HOST:PORT",
                )
            return cls(text)
        if hasattr(given, "scheduler") and hasattr(given, "submit"):
            return cls(str(given.scheduler.address), client=given)
        raise InputError(
            f"a {type(given).__name__} is no cluster",
            place="cluster",
            remedy="give an address, a distributed.Client, or a Cluster",
        )

    @property
    def local_workers(self) -> int | None:
        """How many workers are started here; None where a scheduler is joined."""
        kind, _, count = self.address.partition(":")
        return int(count) if kind == "local" else None


class Connection:
    """A client of the cluster: enter it to start or to join, leave it to stop what was started."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.cluster.client is not None:
                self.client = self.cluster.client
            elif self.cluster.local_workers is not None:
                self.client = stack.enter_context(_started(self.cluster.local_workers))
            else:
                self.client = stack.enter_context(_joined(self.cluster))
            self.wait_for_worker()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def lost(self) -> bool:
        """True while the scheduler does not answer."""
        return bool(self.client.status != "running")

    def workers(self) -> dict[str, Any]:
        """Return what the scheduler says of each worker, by address; none while it does not answer."""
        if self.lost:
            return {}
        try:
            found: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):
            return {}
        return found

    def wait_for_worker(self) -> None:
        """Wait until there is a worker; raises `ClusterError`."""
        until = monotonic() + self.cluster.wait
        while not self.workers():
            if monotonic() > until:
                raise self.no_workers()
            sleep(0.1)

    def no_workers(self) -> ClusterError:
        """Return the error of a cluster without workers."""
        return ClusterError(
            f"no worker has joined for {self.cluster.wait:.0f} s",
            place=f"cluster {self.cluster.address}",
            remedy="start workers and repeat the command; finished shards are kept",
        )

    def reconnect(self) -> None:
        """Wait until a scheduler that was lost is back with a worker; raises `ClusterError` where it is not."""
        from distributed import Client

        until, ours = monotonic() + RECONNECT_S, self.cluster.client is None
        while self.lost and monotonic() < until:
            if ours and self.client.status != "connecting":
                with suppress(OSError):
                    self.client = self._stack.enter_context(Client(self.cluster.address, timeout=5))
            sleep(0.2)
        if self.lost:
            raise ClusterError(
                "the connection to the scheduler was lost",
                place=f"cluster {self.cluster.address}",
                remedy="finished shards are kept: start scheduler and workers, and repeat the command",
            )
        self.wait_for_worker()

    def give_up(self, address: str) -> None:
        """Take a worker that hangs out of the cluster: its tasks go to others. Its nanny, if any, starts a new one."""
        # The nanny kills the process, which may be stopped and deaf to everything else. Where there is none, or
        # it is as deaf as its worker, the scheduler forgets the worker.
        with suppress(ValueError, OSError, KeyError):
            self.client.restart_workers([address], timeout=20, raise_for_error=False)
        if address in self.workers():
            self.client.run_on_scheduler(_remove_worker, address=address)


async def _remove_worker(dask_scheduler: Any, address: str) -> None:
    """Runs on the scheduler."""
    await dask_scheduler.remove_worker(address, stimulus_id="tilewright-hanging-worker")


def plan_for(job: Job, cluster: Any = None) -> Plan:
    """Return the plan of a job where it will be run: on ``cluster``, as `Cluster.of` takes it, or in this process."""
    return make_plan(job) if cluster is None else _plan_on(Cluster.of(cluster), job)


def _plan_on(cluster: Cluster, job: Job, connection: Connection | None = None) -> Plan:
    """Return the plan of a job for a worker of ``cluster``, with the memory and the cores that it may use.

    Workers that are started here share what this machine has. Of a joined cluster the smallest worker counts: its
    memory limit, to the share at which Dask pauses it, and its threads, for which it has cores.

    Parameters
    ----------
    cluster
        Where the run will be.
    job
        What is run. The memory and the cores in its settings bound those of a worker.
    connection
        To ask; without one a scheduler is joined for the time of the call.
    """
    settings, threads, notes = job.settings, job.settings.threads or 1, []
    room: int | None
    if (count := cluster.local_workers) is not None:
        cores, room = max(1, usable_cores() // count), available_memory() // count
        if settings.device == "cpu" and threads > cores:
            notes.append(
                f"{count} workers of {threads} threads share {usable_cores()} cores; --threads {cores} would be"
                " faster, and has bits of its own"
            )
    elif connection is None:
        with Connection(cluster) as asked:
            return _plan_on(cluster, job, asked)
    else:
        workers = connection.workers().values()
        limits = [int(w["memory_limit"]) for w in workers if w.get("memory_limit")]
        room = int(min(limits) * _PAUSE) if limits else None
        cores = min((int(w["nthreads"]) for w in workers), default=1)
    cores = min(settings.cores or cores, cores)
    allowed = min((one for one in (settings.memory, room) if one is not None), default=None)
    return make_plan(replace(job, settings=replace(settings, cores=cores)), allowed, notes)


@contextmanager
def _started(count: int) -> Iterator[Any]:
    """Give a client of ``count`` worker processes on this machine, which end with it."""
    from distributed import Client, LocalCluster

    # No memory limit: Dask would pause and kill workers at shares of the machine that know nothing of the plan,
    # which was checked against what the machine has free.
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _joined(cluster: Cluster) -> Iterator[Any]:
    """Give a client of a scheduler that stands; raises `ClusterError` where none answers."""
    from distributed import Client

    with quiet_dask():
        try:
            client = Client(cluster.address, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise ClusterError(
                "no scheduler answers",
                place=f"cluster {cluster.address}",
                remedy="start one by `dask scheduler`, or check address and port",
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=5)


@contextmanager
def quiet_dask() -> Iterator[None]:
    """Keep Dask's log of what we say ourselves (lost workers, lost connections) from the terminal."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
