"""Stages that work side by side: each in one thread of its own, bounded, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

__all__ = ["ahead"]


def ahead[T](items: Iterable[T], name: str, depth: int = 1) -> Iterator[T]:
    """Yield ``items`` in order, made by one thread that is at most ``depth`` of them ahead of the consumer.

    With the default of 1 two items are alive: the consumer's, and the next one. Stages are put together by
    giving one's iterator to the next. An error of ``items`` is raised here, in its place. Leaving the loop
    early tells the thread to stop: it finishes the item under way and closes ``items``, stage by stage. It is
    not waited for: a generator may be finalised by the garbage collector in any thread, its own included.

    Parameters
    ----------
    items
        What is made: a generator runs in the stage's thread.
    name
        What the thread is called in a profile.
    depth
        Items made and not yet taken.
    """
    stage = _Stage(iter(items), depth)
    threading.Thread(target=stage.work, name=f"tilewright-{name}").start()
    try:
        while (given := stage.take()) is not None:
            yield given.pop()  # not held here, so that the consumer may drop it before it asks for the next
    finally:
        stage.stop()


class _Stage:
    """What a stage's thread and its consumer share."""

    def __init__(self, items: Iterator[Any], depth: int) -> None:
        self._items = items
        self._room = threading.Semaphore(depth)
        self._made: SimpleQueue[list[Any] | BaseException | None] = SimpleQueue()
        self._stopped = False

    def work(self) -> None:
        """Make items while there is room and somebody wants them."""
        try:
            while self._room.acquire() and not self._stopped:
                self._made.put([next(self._items)])
        except StopIteration:
            self._made.put(None)
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            self._made.put(error)
        finally:
            if (close := getattr(self._items, "close", None)) is not None:
                close()

    def take(self) -> list[Any] | None:
        """Return the next item in a list, or None after the last; raises what making it raised."""
        found = self._made.get()
        if isinstance(found, BaseException):
            raise found
        self._room.release()
        return found

    def stop(self) -> None:
        """Let the thread end: nobody takes what it would make."""
        self._stopped = True
        self._room.release()
