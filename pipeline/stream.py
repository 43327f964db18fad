"""Stages that work side by side: each in one thread of its own, bounded, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import Any, Self

__all__ = ["Ahead", "ahead", "behind"]

WATCH_SECONDS = 1.0
"""How often a stage that waits looks whether the program is ending: a thread left behind would keep it alive."""


def ahead[T](items: Iterable[T], name: str, depth: int = 1) -> Ahead[T]:
    """Return an iterator over ``items``, made in order by one thread that is at most ``depth`` of them ahead.

    With the default of 1 two items are alive: the consumer's, and the next one. Stages are put together by
    giving one's iterator to the next. An error of ``items`` is raised here, in its place. Use it in a ``with``:
    leaving early tells the thread to stop. It finishes the item under way and closes ``items``.

    Parameters
    ----------
    items
        What is made: a generator runs in the stage's thread.
    name
        What the thread is called in a profile.
    depth
        Items made and not yet taken.
    """
    return Ahead(_Stage(iter(items), depth), name)


def behind[T](
    items: Generator[T, None, None],
    work: Callable[[T], object],
    name: str,
    done: Callable[[], object] = lambda: None,
) -> None:
    """Call ``work(item)`` in one thread while the next item is made, never more; ``done()`` here after each call.

    What ``work`` raises comes out here. However this ends, ``items`` is closed, and a call under way is waited for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=f"tilewright-{name}") as pool, closing(items):
        before: Future[object] | None = None
        for item in items:
            if before is not None:
                before.result()
                done()
            before = pool.submit(work, item)
            del item
        if before is not None:
            before.result()
            done()


class Ahead[T](Iterator[T]):
    """The consumer's end of a stage. `close` may be called at any time, in any thread, and more than once.

    The thread is not waited for: the garbage collector may end this in any thread, the stage's own included.
    """

    def __init__(self, stage: _Stage, name: str) -> None:
        self._stage = stage
        threading.Thread(target=stage.work, name=f"tilewright-{name}").start()

    def __next__(self) -> T:
        given = self._stage.take()
        item: T = given.pop()  # not held here, so that the consumer may drop it before it asks for the next
        return item

    def close(self) -> None:
        """Stop the thread; who waits for an item, now or later, finds the end."""
        self._stage.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Stage:
    """What a stage's thread and its consumer share; the thread holds this alone, so a lost consumer is seen."""

    def __init__(self, items: Iterator[Any], depth: int) -> None:
        self._items = items
        self._room = threading.Semaphore(depth)
        self._made: SimpleQueue[list[Any] | BaseException] = SimpleQueue()
        self._stopped = False

    def work(self) -> None:
        """Make items while there is room and somebody wants them."""
        try:
            while self._is_wanted():
                self._made.put([next(self._items)])
        except BaseException as error:  # noqa: BLE001 - the consumer raises it, StopIteration too
            self._made.put(error)
        finally:
            if (close := getattr(self._items, "close", None)) is not None:
                close()
            del self._items  # the consumer's end may be kept long after, and these hold stages of their own

    def _is_wanted(self) -> bool:
        while not self._room.acquire(timeout=WATCH_SECONDS):
            if not threading.main_thread().is_alive():
                return False
        return not self._stopped

    def take(self) -> list[Any]:
        """Return the next item in a list; raises what making it raised, `StopIteration` at the end."""
        found = self._made.get()
        if isinstance(found, BaseException):
            self._made.put(StopIteration())  # for whoever asks again
            raise found
        self._room.release()
        return found

    def stop(self) -> None:
        """Let the thread end: nobody takes what it would make."""
        self._stopped = True
        self._made.put(StopIteration())
        self._room.release()
