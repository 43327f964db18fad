"""Stages: order, bounds, errors in their place, and an end whatever happens."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest

from tilewright.pipeline.stream import ahead, behind


def _stages() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tilewright-test")]


def _wait_for_no_stage() -> None:
    for _ in range(200):
        if not _stages():
            return
        time.sleep(0.01)
    raise AssertionError(_stages())


def test_items_come_in_order_and_at_most_so_many_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    for depth in (1, 3):
        made.clear()
        for i, item in enumerate(ahead(items(), "test", depth)):
            assert item == i
            time.sleep(0.002)
            assert len(made) <= i + 1 + depth
        assert made == list(range(20))
    _wait_for_no_stage()


def test_an_error_is_raised_in_its_place_through_all_stages() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    found: list[int] = []
    with pytest.raises(ValueError, match="third"):
        found.extend(ahead((2 * i for i in ahead(items(), "test-a")), "test-b"))
    assert found == [2, 4]
    _wait_for_no_stage()


def test_leaving_early_ends_every_stage_and_closes_what_it_was_given() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    outer = ahead(map(str, ahead(items(), "test-a")), "test-b")
    assert next(outer) == "0"
    outer.close()
    gc.collect()
    _wait_for_no_stage()
    assert closed == ["tilewright-test-a"]


def test_a_stage_lost_in_a_cycle_is_collected_in_any_thread() -> None:
    """Found by a hang: an executor in the same cycle had lost its worker when the generator was finalised."""

    def lose() -> None:
        cycle: list[object] = []
        stages = ahead(ahead(range(1000), "test-a"), "test-b")
        next(stages)
        cycle += [cycle, stages]

    for i, _ in enumerate(ahead(range(20), "test-c")):
        lose()
        if i % 5 == 0:
            gc.collect()
    worker = threading.Thread(target=gc.collect)
    worker.start()
    worker.join(5)
    assert not worker.is_alive()
    _wait_for_no_stage()


def test_closing_ends_every_stage_though_an_error_holds_the_frames_of_all() -> None:
    """Found by a run that never ended after Ctrl-C: the error that was kept held the stages' iterators."""
    kept: list[BaseException] = []

    def run() -> Iterator[int]:
        with ahead(iter(range(1000)), "test-a") as inner, ahead(map(abs, inner), "test-b") as outer:
            yield from outer

    try:
        with closing(run()) as items:
            for _ in items:
                raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        kept.append(error)
    _wait_for_no_stage()
    assert kept


def test_a_program_ends_though_a_stage_was_left_open() -> None:
    code = "from tilewright.pipeline.stream import ahead; kept = ahead(range(9), 'left'); next(kept); kept.more = kept"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_one_call_is_behind_and_an_error_of_it_closes_the_items() -> None:
    """Each item is worked on while the next is made; what the work raises comes out, and nothing more is made."""
    events: list[str] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(10)
        finally:
            events.append("closed")

    behind(items(), lambda i: events.append(f"work {i}"), "test", lambda: events.append("done"))
    assert [e for e in events if e.startswith("work")] == [f"work {i}" for i in range(10)]
    assert events.count("done") == 10
    assert all(events[: events.index(f"work {i}")].count("done") >= i - 1 for i in range(10)), "one is behind"
    events.clear()

    def fail(i: int) -> None:
        if i == 3:
            raise ValueError("third")
        events.append(f"work {i}")

    with pytest.raises(ValueError, match="third"):
        behind(items(), fail, "test")
    assert events == ["work 0", "work 1", "work 2", "closed"]
