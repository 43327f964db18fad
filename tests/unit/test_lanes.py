"""Batches side by side on a CPU: the same bits, a module for each, and no more of them than cores and memory hold."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fakes import ArraySource
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, small_unet
from running import image, job_of, make_kernel, run_job, same

from tilewright.errors import KernelError
from tilewright.pipeline.intraop import torch_threads, usable_cores
from tilewright.pipeline.memory import projected_memory
from tilewright.pipeline.plan import make_plan

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel


def unet(**keys: object) -> Kernel:
    outputs = {"out": {"kind": "score"}}
    return make_kernel(
        small_unet(2, 1, scores=True),
        bands=2,
        radius=SMALL_UNET_RADIUS,
        stride=SMALL_UNET_STRIDE,
        outputs=outputs,
        **keys,
    )


def test_batches_side_by_side_have_the_bits_of_one_after_another() -> None:
    source = ArraySource(image(139, 113, bands=2))
    wishes = {"tile": 72, "shard": 96, "batch": 1}
    alone, _ = run_job(job_of(unet(), source, cores=1, **wishes))
    for cores in (2, 4):
        job = job_of(unet(), source, cores=cores, **wishes)
        assert job.lanes == cores
        found, (engine,) = run_job(job)
        assert same(found, alone)
        assert engine.counters.tiles == engine.counters.batches


def test_two_forwards_are_really_under_way_at_a_time() -> None:
    if usable_cores() < 2:
        pytest.skip("one core")
    meeting = threading.Barrier(2, timeout=20)

    def meet(x: torch.Tensor) -> torch.Tensor:
        meeting.wait()  # breaks after 20 s where nobody else comes
        return x

    run_job(job_of(make_kernel(meet), ArraySource(image(64, 64)), tile=32, shard=64, batch=1, cores=2))


class Remembers(torch.nn.Module):
    """Keeps what it computes on itself, as research code does, and takes its time between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.conv(x)
        torch.nn.functional.conv2d(torch.rand(1, 8, 64, 64), torch.rand(8, 8, 9, 9))
        return self.kept


def test_what_a_module_keeps_on_itself_is_not_another_batch_s() -> None:
    module = Remembers()
    source = ArraySource(image(160, 160))
    wishes = {"tile": 32, "shard": 160, "batch": 1}
    alone, _ = run_job(job_of(make_kernel(module), source, cores=1, **wishes))
    for _ in range(3):
        found, _ = run_job(job_of(make_kernel(module), source, cores=4, **wishes))
        assert same(found, alone)


def test_twins_share_their_weights() -> None:
    kernel = unet()
    twin = kernel.twin()
    assert twin.module is not kernel.module
    ours, theirs = list(kernel.module.parameters()), list(twin.module.parameters())
    assert len(ours) == len(theirs) > 0
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_a_module_that_cannot_be_copied_says_what_to_declare() -> None:
    module = Remembers()
    module.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(KernelError, match=r"cannot be copied.*concurrent: false"):
        run_job(job_of(make_kernel(module), ArraySource(image(64, 64)), tile=32, cores=2))
    run_job(job_of(make_kernel(module, concurrent=False), ArraySource(image(64, 64)), tile=32, cores=2))


def test_a_kernel_that_is_not_concurrent_is_called_by_one_thread_with_all_cores() -> None:
    inside, most, threads = 0, 0, set()

    def forward(x: torch.Tensor) -> torch.Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threads.add(torch.get_num_threads())
        inside -= 1
        return x

    kernel = make_kernel(forward, concurrent=False)
    job = job_of(kernel, ArraySource(image(100, 100)), tile=32, shard=64, batch=1, threads=None)
    assert job.lanes == 1
    run_job(job)
    assert most == 1
    assert threads == {usable_cores()}


def test_the_threads_asked_for_are_those_used_and_given_back() -> None:
    before = torch.get_num_threads()
    for cores in (1, 2):
        seen = []
        kernel = make_kernel(lambda x, seen=seen: (seen.append(torch.get_num_threads()), x)[1])
        run_job(job_of(kernel, ArraySource(image(100, 100)), tile=32, batch=1, threads=1, cores=cores))
        assert set(seen) == {1}
        assert torch.get_num_threads() == before
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == before


def test_another_number_of_threads_waits_its_turn() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def first() -> None:
        with torch_threads(1):
            entered.set()
            leave.wait(20)
            seen.append("first")

    def second() -> None:
        with torch_threads(3):
            seen.append(f"second with {torch.get_num_threads()}")

    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(first)
        assert entered.wait(20)
        b = pool.submit(second)
        b_waits = not b.done()
        leave.set()
        a.result(20), b.result(20)
    assert b_waits
    assert seen == ["first", "second with 3"]


def test_an_error_in_one_lane_ends_the_run_with_its_place() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if float(x[0, 0, 0, 0]) > 0.5:
            raise ValueError("too bright")
        return x

    ground = np.zeros((1, 1, 200, 200), dtype=np.float32)
    ground[..., 130:, 130:] = 1
    with pytest.raises(KernelError, match="too bright"):
        run_job(job_of(make_kernel(forward), ArraySource(ground), tile=32, shard=64, batch=1, cores=3))


def test_the_plan_takes_as_many_side_by_side_as_fit() -> None:
    job = job_of(unet(), ArraySource(image(600, 600, bands=2)), tile=104, batch=4, cores=6)
    free = make_plan(job)
    assert free.lanes == 6
    terms = [projected_memory(job.with_lanes(n), 64 << 20, 0).total for n in (1, 2, 6)]
    assert terms[1] - terms[0] == pytest.approx((terms[2] - terms[1]) / 4, rel=0.2)
    assert make_plan(job, free.memory.total - 1).lanes < 6
    tight = make_plan(replace(job, settings=replace(job.settings, memory=1)))
    assert tight.lanes == 1
    assert tight.memory.total > tight.memory_allowed
