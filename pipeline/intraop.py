"""Torch's intra-op threads, which belong to the process: who computes with how many, and how many at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["torch_threads", "usable_cores"]


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_free = threading.Condition()
_under_way = 0
_count = 0
_before = 0
_here = threading.local()
"""``kept``: True in a thread that left while others computed, and so has kept their number."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` intra-op threads; when nobody computes any more, the process has those of before.

    The number of threads changes bits (promise 3), so whoever wants another number waits until nobody computes
    with this one. As many compute side by side as the cores hold, and always one: a threaded Dask scheduler may
    bring more.
    """
    import torch

    global _under_way, _count, _before
    with _free:
        _free.wait_for(
            lambda: not _under_way or (_count == count and (_under_way + 1) * count <= usable_cores())
        )
        if not _under_way:
            _before, _count = _before if getattr(_here, "kept", False) else torch.get_num_threads(), count
        _under_way += 1
    # OpenMP's number belongs to the calling thread, MKL's to the process: so nobody may set another one before the
    # last of those who compute has left.
    torch.set_num_threads(count)
    try:
        yield
    finally:
        with _free:
            _under_way -= 1
            _here.kept = _under_way > 0
            if not _under_way:
                torch.set_num_threads(_before)
            _free.notify_all()
