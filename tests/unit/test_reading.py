"""Threads that read: order, bounds, errors in their place, reads made of reads; and handles that are lent."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scenes import write_scene

from tilewright.pipeline import reading
from tilewright.pipeline.handles import Handles
from tilewright.pipeline.reading import concurrently

if TYPE_CHECKING:
    import rasterio

REMOTE = ["https://example.com/a.tif"]


@pytest.mark.parametrize("ahead", [None, 0, 1, 3])
@pytest.mark.parametrize("hrefs", [["/data/a.tif"], REMOTE])
def test_results_come_in_order(hrefs: list[str], ahead: int | None) -> None:
    calls = [partial(pow, n, 2) for n in range(40)]
    assert list(concurrently(hrefs, calls, ahead)) == [n * n for n in range(40)]


def test_remote_reads_wait_beside_each_other_and_never_in_more_threads_than_said() -> None:
    together = threading.Barrier(reading.REMOTE_READS, timeout=10)
    lock, now, most = threading.Lock(), 0, 0

    def call() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # breaks unless so many run at once
        with lock:
            now -= 1

    list(concurrently(REMOTE, [call] * (2 * reading.REMOTE_READS)))
    assert reading.REMOTE_READS <= most <= reading.REMOTE_READS + 1


def test_no_more_results_wait_than_asked_for() -> None:
    done: list[int] = []
    results = concurrently(REMOTE, [partial(done.append, n) for n in range(20)], ahead=2)
    next(results)
    assert len(done) <= 4
    list(results)
    assert sorted(done) == list(range(20))


def test_the_first_error_is_raised_in_its_place_and_the_rest_is_left() -> None:
    def call(n: int) -> int:
        if n in (3, 5):
            raise ValueError(n)
        return n

    results = concurrently(REMOTE, [partial(call, n) for n in range(200)])
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)


def test_reads_may_be_made_of_reads_deeper_than_there_are_threads() -> None:
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(concurrently(["/data/a.tif"], [partial(tree, depth - 1)] * 3))

    assert tree(5) == 3**5


def test_a_handle_goes_from_thread_to_thread_and_is_never_used_by_two(tmp_path: Path) -> None:
    values = np.arange(200 * 200, dtype="uint16").reshape(1, 200, 200)
    path = str(write_scene(tmp_path / "a.tif", values))
    handles, lock = Handles(), threading.Lock()
    in_use: set[int] = set()
    seen: set[int] = set()

    def read(_: int) -> bool:
        with handles.lend(path) as data:
            with lock:
                assert id(data) not in in_use
                in_use.add(id(data))
                seen.add(id(data))
            same = np.array_equal(data.read(), values)
            with lock:
                in_use.remove(id(data))
            return same

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(100)))
    assert len(seen) <= 4
    with handles.lend(path) as first:
        pass
    with handles.lend(path) as again:
        assert again is first, "one that is idle is taken before another is opened"
    assert again is not None
    handles.drop(path)
    assert first.closed
    with pytest.raises(ValueError, match="broken"), handles.lend(path) as data:
        raise ValueError("broken")
    assert data.closed, "after an error nobody gets it again"


def test_the_longest_unused_handles_are_closed(tmp_path: Path) -> None:
    paths = [str(write_scene(tmp_path / f"{n}.tif", np.ones((1, 8, 8), "uint8"))) for n in range(5)]
    handles = Handles(idle=2)
    used: list[rasterio.DatasetReader] = []
    for path in paths:
        with handles.lend(path) as data:
            used.append(data)
    assert [data.closed for data in used] == [True, True, True, False, False]
    pickle.loads(pickle.dumps(handles)).close()
    handles.close()
    assert used[-1].closed
