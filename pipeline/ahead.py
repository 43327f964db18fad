"""Work in threads with a bound on how much of it waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["map_ahead"]


def map_ahead[T, R](
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield ``work(item)`` in the order of ``items``, with at most ``ahead`` of them submitted.

    ``Executor.map`` submits all at once: of a large raster there are 10,000, and their results would wait in
    memory. What ``work`` raises comes out here, and what had not begun by then is not begun. What ``items`` raises
    comes out in its place: after the results of the items before it.
    """
    waiting: deque[Future[R]] = deque()
    source, failed = iter(items), None
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - raised below
                failed = error
                break
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if failed is not None:
            raise failed
    finally:
        for future in waiting:
            future.cancel()
