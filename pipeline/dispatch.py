"""The client's side of a run on Dask workers: groups of shards are handed out, watched, and written down.

A few groups are in flight for each worker; the next one is submitted when one is done. Every shard that is durable
is told by an event, and this process alone writes the ledger's line of it. No array comes here.

When cutting, groups are independent. When blending, a group needs the margins of those above, to the left and
diagonally between: it is submitted when they are done, and waiting ones in the order of their anti-diagonal, so
that workers run side by side, a group apart in neighbouring rows.
"""

from __future__ import annotations

import heapq
import json
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from tilewright.errors import ClusterError

from .forward import Counters
from .worker import Group, GroupDone, Work, WorkPlugin, compute_group

if TYPE_CHECKING:
    from .cluster import Connection
    from .grid import Shard

__all__ = ["PATIENCE_S", "Dispatcher"]

LARGEST_GROUP = 8
"""Shards of a task, at most: reading and writing overlap within a task, and what a lost worker had is done again."""
AHEAD = 2
"""Groups in flight for each worker: the one that runs, and the next."""
PATIENCE_S = 120.0
"""Seconds without a finished shard that no worker is blamed for."""
FIRST_PATIENCE_S = 1800.0
"""The same until a shard of the run is finished: nobody knows yet how long one takes."""
TIMES_LONGEST = 10
"""A worker hangs after this many times the longest that a shard took."""
GIVEN_UP = 3
"""Workers that may hang in the same group, before the group is blamed."""
LOADING_S = 300.0
"""Seconds that a worker may take to import the libraries and load the kernel."""
LOOK_S = 1.0
"""Seconds between two looks at the workers."""


class _LostError(Exception):
    """The scheduler is away, and all tasks with it."""


@dataclass(slots=True)
class _Running:
    """A group in flight."""

    future: Any
    serial: int
    """Tells its outcome from that of an earlier submission."""
    sign: float
    """When it was begun or last finished a shard, by our clock; while it waits, when it was submitted."""
    worker: str | None = None
    attempt: str | None = None
    ready: bool = False
    """True once the worker has the kernel."""


@dataclass(slots=True)
class _Planned:
    """A group of this call of `Dispatcher.compute`."""

    name: str
    order: tuple[int, ...]
    shards: tuple[tuple[int, int], ...]
    waits_for: set[str] = field(default_factory=set)
    hung: int = 0


class Dispatcher:
    """Hands the shards of one run to the workers of a connection. Enter it once; `compute` may be called often.

    Parameters
    ----------
    connection
        Entered already.
    work
        The run, as workers need it.
    token
        Names the run on the cluster: the same for every start of it.
    """

    def __init__(self, connection: Connection, work: Work, token: str) -> None:
        self.connection, self.work, self.token = connection, work, token
        self.counters = Counters()
        """What the workers counted, of all executions of all groups that came to our ears."""
        self.seconds_write = 0.0
        """Seconds of writing shards, of all workers."""
        self.peak = 0
        """Highest resident memory of a worker, in bytes."""
        self.workers: set[str] = set()
        """Addresses of the workers that took part."""
        self.repeated = 0
        """Groups that were begun again, because a worker was lost or given up."""
        self._given: set[tuple[int, int]] = set()
        self._margins: dict[tuple[int, int], list[str]] = {}
        self._counted: set[tuple[str, str]] = set()
        self._longest = 0.0
        self._serial = 0
        self._mail: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self._broom = ThreadPoolExecutor(1, thread_name_prefix="tilewright-margins")

    def __enter__(self) -> Self:
        self.work.spool.clear()
        self._introduce()
        return self

    def __exit__(self, *_: object) -> None:
        self._broom.shutdown(wait=True)
        if not self.connection.lost:
            client = self.connection.client
            client.unsubscribe_topic(self._topic)
            client.unregister_worker_plugin(f"tilewright-{self.token}")
        self.work.spool.clear()

    @property
    def _topic(self) -> str:
        return f"tilewright-{self.token}"

    def _introduce(self) -> None:
        """Give the run to every worker that is there or will join, and listen to what they tell."""
        import cloudpickle  # type: ignore[import-untyped]

        client = self.connection.client
        client.register_plugin(WorkPlugin(self.token, cloudpickle.dumps(self.work)))
        client.subscribe_topic(self._topic, self._hear)

    def _hear(self, event: Any) -> None:
        """Take an event from Dask's thread to ours."""
        self._mail.put(("event", event[1], None))

    def compute(
        self,
        shards: Sequence[Shard],
        durable: Callable[[str, dict[str, Any]], None],
        finished: Container[str],
    ) -> None:
        """Compute ``shards``, the next ones in row-major order that are not durable.

        Parameters
        ----------
        shards
            What is to do now.
        durable
            Called with name and facts of every shard once it is durable, in this thread.
        finished
            Names of all shards of the run that are durable.

        Raises
        ------
        ClusterError
            Where the scheduler is lost for good, a worker differs, or workers die or hang again and again.
        TilewrightError
            What went wrong on a worker, as it was raised there.
        """
        while todo := [s for s in shards if s.name not in finished]:
            try:
                _Round(self, todo, durable, finished).run()
            except _LostError:
                self.connection.reconnect()
                self._introduce()

    def notes(self) -> Iterator[str]:
        """Yield what the user should be told of the workers."""
        if self.repeated:
            yield (
                f"{self.repeated} groups of shards were begun again, because their worker was lost or hung; what"
                " an earlier worker had not written down is not among the tiles counted"
            )

    # -- what a round asks and tells -------------------------------------------------------------------

    def submit(self, planned: _Planned, undone: set[tuple[int, int]]) -> _Running:
        """Hand a group to the cluster."""
        own = set(planned.shards)
        known = (self._given | undone) - own
        group = Group(
            planned.name,
            planned.shards,
            frozenset(_around(own) & known),
            {name: target for target in planned.shards for name in self._margins.get(target, ())},
        )
        self._serial += 1
        serial, key = self._serial, f"tilewright-{self.token}-{planned.name}-{uuid.uuid4().hex[:8]}"
        future = self.connection.client.submit(compute_group, self.token, group, key=key, pure=False)
        future.add_done_callback(
            lambda done: self._mail.put(("done", (planned.name, serial), _outcome(done)))
        )
        return _Running(future, serial, monotonic())

    def mail(self, seconds: float) -> tuple[str, Any, Any] | None:
        """Return the next event or outcome, or None where there is none for so long."""
        try:
            return self._mail.get(block=seconds > 0, timeout=seconds or None)
        except Empty:
            return None

    def count_shard(self, attempt: str, name: str, facts: dict[str, Any]) -> bool:
        """Count a shard's work, once for each execution; True where it is news."""
        if (attempt, name) in self._counted:
            return False
        self._counted.add((attempt, name))
        self.counters.tiles += facts["tiles"]
        return True

    def count_group(self, planned: _Planned, done: GroupDone) -> None:
        """Count what a group took, note where its margins lie, and drop those that it has used up."""
        self.counters.tiles += done.recomputed
        self.counters.recomputed += done.recomputed
        self.counters.seconds += done.seconds_forward
        self.seconds_write += done.seconds_write
        self.peak = max(self.peak, done.peak)
        self._given |= set(planned.shards)
        used = [name for target in planned.shards for name in self._margins.pop(target, ())]
        self._broom.submit(self.work.spool.remove, used)
        for target, name in done.margins.items():
            self._margins.setdefault(target, []).append(name)

    def note_pace(self, seconds: float) -> None:
        """Learn how long a shard may take."""
        self._longest = max(self._longest, seconds)

    @property
    def patience(self) -> float:
        """Seconds without a finished shard after which a worker hangs."""
        if self.connection.cluster.patience is not None:
            return self.connection.cluster.patience
        if not self._longest:
            return FIRST_PATIENCE_S
        return max(PATIENCE_S, TIMES_LONGEST * self._longest)


class _Round:
    """One submission of shards, until all are done, something fails, or the scheduler is lost."""

    def __init__(
        self,
        owner: Dispatcher,
        shards: Sequence[Shard],
        durable: Callable[[str, dict[str, Any]], None],
        finished: Container[str],
    ) -> None:
        self.owner, self.durable, self.finished = owner, durable, finished
        job, connection = owner.work.job, owner.connection
        size, workers = connection.cluster.group, len(connection.workers())
        indices = [s.index for s in shards]
        grouped = _lattice(indices, size, workers) if job.blends else _runs(indices, size, workers)
        self.planned = {p.name: p for p in grouped}
        home = {index: p.name for p in grouped for index in p.shards}
        if job.blends:
            for p in grouped:
                before = {home[n] for i, j in p.shards for n in _before(i, j) if n in home}
                p.waits_for = before - {p.name}
        self.undone = {s.index for s in job.tiling.shards(job.grid.shape) if s.name not in finished}
        self.ready = [(p.order, p.name) for p in grouped if not p.waits_for]
        heapq.heapify(self.ready)
        self.running: dict[str, _Running] = {}
        self.workers, self.looked = max(1, workers), monotonic()
        self.deserted: float | None = None

    def run(self) -> None:
        """Carry it out."""
        left = len(self.planned)
        try:
            while left:
                while self.ready and len(self.running) < AHEAD * self.workers:
                    _, name = heapq.heappop(self.ready)
                    self.running[name] = self.owner.submit(self.planned[name], self.undone)
                mail = self.owner.mail(LOOK_S)
                if mail is not None and mail[0] == "event":
                    self._event(mail[1])
                elif mail is not None and self._is_ours(*mail[1]):
                    self._done(mail[1][0], mail[2])
                    left -= 1
                if monotonic() - self.looked > LOOK_S:
                    self._look()
        finally:
            self._cancel()

    def _is_ours(self, name: str, serial: int) -> bool:
        """True where an outcome is that of this round's submission, not of one that was cancelled."""
        return name in self.running and self.running[name].serial == serial

    def _event(self, told: dict[str, Any]) -> None:
        """Note that a group was begun, or that a shard of it is durable."""
        shards = json.loads(told["shards"])
        self.owner.workers.add(told["worker"])
        state, now = self.running.get(told["group"]), monotonic()
        if state is not None:
            if shards and state.attempt == told["attempt"]:
                self.owner.note_pace(now - state.sign)
            if state.attempt not in (None, told["attempt"]):
                self.owner.repeated += 1
            state.sign, state.worker, state.attempt = now, told["worker"], told["attempt"]
            state.ready = told["ready"]
        self._write_down(told["attempt"], shards)

    def _write_down(self, attempt: str, shards: dict[str, Any]) -> None:
        for name, facts in shards.items():
            if self.owner.count_shard(attempt, name, facts) and name not in self.finished:
                self.durable(name, facts)

    def _done(self, name: str, outcome: Any) -> None:
        """Take a group's result, or raise what went wrong."""
        planned = self.planned[name]
        if isinstance(outcome, BaseException):
            raise self._blamed(planned, outcome)
        done: GroupDone = outcome
        self._write_down(done.attempt, dict(done.shards))
        self.owner.count_group(planned, done)
        self.undone -= set(planned.shards)
        del self.running[name]
        for other in self.planned.values():
            if name in other.waits_for:
                other.waits_for.remove(name)
                if not other.waits_for:
                    heapq.heappush(self.ready, (other.order, other.name))

    def _blamed(self, planned: _Planned, error: BaseException) -> BaseException:
        """Return what to raise for a group that failed."""
        from distributed import CancelledError, KilledWorker

        if isinstance(error, CancelledError) or self.owner.connection.lost:
            return _LostError()
        if isinstance(error, KilledWorker):
            told = ClusterError(
                f"four workers died while they computed shards {_span(planned)}",
                place=f"cluster {self.owner.connection.cluster.address}",
                remedy="look at the workers' logs; where memory ran out, use a smaller --shard, --batch or --tile",
            )
            told.__cause__ = error
            return told
        return error

    def _look(self) -> None:
        """Count the workers, and take out those that hang."""
        self.looked = now = monotonic()
        connection = self.owner.connection
        if connection.lost:
            raise _LostError
        here = connection.workers()
        self.workers = max(1, len(here))
        if here:
            self.deserted = None
        elif self.deserted is None:
            self.deserted = now
        elif now - self.deserted > connection.cluster.wait:
            raise connection.no_workers()
        for name, state in self.running.items():
            patience = self.owner.patience if state.ready else max(LOADING_S, self.owner.patience)
            if state.worker in here and now - state.sign > patience:
                self._give_up(self.planned[name], state)

    def _give_up(self, planned: _Planned, state: _Running) -> None:
        planned.hung += 1
        if planned.hung == GIVEN_UP:
            raise ClusterError(
                f"{GIVEN_UP} workers hung in shards {_span(planned)}: none was finished within"
                f" {self.owner.patience:.0f} s",
                place=f"cluster {self.owner.connection.cluster.address}",
                remedy="look at the workers' logs, or give them more time (patience)",
            )
        assert state.worker is not None
        self.owner.connection.give_up(state.worker)
        state.worker, state.sign = None, monotonic()

    def _cancel(self) -> None:
        """Forget what is still in flight; workers stop at their next shard when the run leaves them."""
        if self.running and not self.owner.connection.lost:
            futures = [state.future for state in self.running.values()]
            self.owner.connection.client.cancel(futures, force=True)
        self.running.clear()
        while (mail := self.owner.mail(0)) is not None:
            if mail[0] == "event":  # durable, and not written down yet
                self._write_down(mail[1]["attempt"], json.loads(mail[1]["shards"]))


def _outcome(future: Any) -> Any:
    """Return a finished task's result, or its error; runs in a thread of Dask's client."""
    try:
        return future.result()
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
        return error


def _span(planned: _Planned) -> str:
    (i, j), (k, m) = planned.shards[0], planned.shards[-1]
    return f"{i}.{j} to {k}.{m}"


def _before(i: int, j: int) -> tuple[tuple[int, int], ...]:
    """Return the shards whose margins a shard needs."""
    return (i - 1, j - 1), (i - 1, j), (i, j - 1)


def _around(shards: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the shards that exchange margins with any of ``shards``."""
    steps = ((-1, -1), (-1, 0), (0, -1), (0, 1), (1, 0), (1, 1))
    return {(i + di, j + dj) for i, j in shards for di, dj in steps}


def _planned(shards: Sequence[tuple[int, int]], order: tuple[int, ...]) -> _Planned:
    i, j = shards[0]
    return _Planned(f"{i}.{j}+{len(shards)}", order, tuple(shards))


def _neighbours(indices: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield runs of neighbours in one row."""
    run: list[tuple[int, int]] = []
    for i, j in indices:
        if run and run[-1] != (i, j - 1):
            yield run
            run = []
        run.append((i, j))
    if run:
        yield run


def _runs(indices: Sequence[tuple[int, int]], size: int | None, workers: int) -> list[_Planned]:
    """Cut what is to do into groups that grow smaller, so that all workers end at about the same time."""
    groups: list[_Planned] = []
    left = len(indices)
    for run in _neighbours(indices):
        while run:
            take = size or max(1, min(LARGEST_GROUP, left // (4 * max(1, workers))))
            groups.append(_planned(run[:take], (len(groups),)))
            left -= len(groups[-1].shards)
            run = run[take:]
    return groups


def _lattice(indices: Sequence[tuple[int, int]], size: int | None, workers: int) -> list[_Planned]:
    """Cut rows into groups of equal columns, small enough that neighbouring rows can run side by side."""
    columns = max(j for _, j in indices) + 1
    side = size or max(1, min(LARGEST_GROUP, columns // (2 * max(1, workers))))
    cells: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, j in indices:
        cells.setdefault((i, j // side), []).append((i, j))
    return [_planned(cells[i, g], (i + g, i)) for i, g in sorted(cells)]
