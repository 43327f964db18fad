"""Which threads read: a few for files of this machine, many for those that answer late; results in order.

The reads of one window run beside each other. A thread that waits for them does those itself that nobody has begun,
so nothing is slower than without threads when many windows are read at once, and reads may be made of reads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache

from .handles import is_local
from .intraop import usable_cores

__all__ = [
    "AHEAD_BYTES",
    "LOCAL_READS",
    "REMOTE_READS",
    "STRIP_BYTES",
    "concurrently",
    "planes_ahead",
    "strip_rows",
    "strips_bytes",
]

LOCAL_READS = 4
"""Most threads that decode and warp files of this machine, and never more than cores: warping is bound by the
memory bus and gains little from a fifth."""
REMOTE_READS = 16
"""Threads that read by network. They mostly wait."""
STRIP_BYTES = 4 << 20
"""Decoded bytes of one band that a thread holds at once, so that all threads together hold a bounded amount."""

AHEAD_BYTES = 64 << 20
"""Bytes of finished dates that wait until those before them are done."""


def _threads(local: bool) -> int:
    return min(LOCAL_READS, usable_cores()) if local else REMOTE_READS


@lru_cache(maxsize=4)
def _pool(local: bool, process: int) -> ThreadPoolExecutor:  # a fork has no threads: one pool a process id
    return ThreadPoolExecutor(_threads(local), "tilewright-decode" if local else "tilewright-fetch")


_creation = threading.Lock()


def concurrently[R](
    hrefs: Iterable[str], calls: Iterable[Callable[[], R]], ahead: int | None = None
) -> Iterator[R]:
    """Yield the results of ``calls`` in their order; several of them run at once.

    ``hrefs`` is what they read: where one of them is remote the threads for the network are used. At most
    ``ahead`` calls are begun beyond the one whose result is awaited (None: all of them; where results are large
    it bounds the memory). The first error is raised in its place, and what has not begun by then never does.
    """
    calls = list(calls)
    if ahead == 0 or len(calls) < 2:
        for call in calls:
            yield call()
        return
    with _creation:
        pool = _pool(all(is_local(href) for href in hrefs), os.getpid())
    coming = deque(calls)
    begun: deque[tuple[Callable[[], R], Future[R] | None]] = deque()
    try:
        while coming or begun:
            while coming and (ahead is None or len(begun) <= ahead):
                call = coming.popleft()
                begun.append((call, pool.submit(copy_context().run, call) if begun else None))
            call, future = begun.popleft()
            yield call() if future is None or future.cancel() else future.result()
    finally:
        for _, future in begun:
            if future is not None:
                future.cancel()


def strip_rows(width: int, itemsize: int, block_rows: int) -> int:
    """Return how many rows of a window of ``width`` px are read at once: whole rows of blocks, at least one."""
    rows = STRIP_BYTES // max(1, width * itemsize)
    return max(block_rows, rows // block_rows * block_rows)


def planes_ahead(size: int) -> int:
    """Return how many dates of ``size`` bytes may be read beyond the one that is awaited."""
    return AHEAD_BYTES // max(1, size)


def strips_bytes(hrefs: Iterable[str]) -> int:
    """Return what the strips of all threads take: each as it is stored, as floats, and its masks."""
    return (_threads(all(is_local(href) for href in hrefs)) + 1) * 2 * STRIP_BYTES
