"""On a GPU: parity with the CPU, the same bits, and batches that do not fit. ``make cuda`` where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from fakes import ArraySource
from networks import SMALL_UNET_RADIUS, SMALL_UNET_STRIDE, gaussian33, small_unet
from running import assemble, image, make_kernel, one_pass, same, shards_of, with_holes

from tilewright.errors import KernelError
from tilewright.pipeline.engine import Engine
from tilewright.pipeline.job import prepare
from tilewright.pipeline.settings import Settings

if TYPE_CHECKING:
    from running import Arrays

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

BETWEEN_DEVICES = 1e-4
"""Of the range: what a GPU may differ from a CPU by (docs/promises/same-answer.md)."""


def unet(classes: int = 3, **keys: object) -> Kernel:
    """The stride-8 U-Net as a kernel of scores."""
    keys = {"outputs": {"out": {"kind": "score", "bands": classes}}, **keys}
    net = small_unet(2, classes, scores=True)
    return make_kernel(net, bands=2, radius=SMALL_UNET_RADIUS, stride=SMALL_UNET_STRIDE, **keys)


def gpu_job(kernel: Kernel, array: np.ndarray, **wishes: object) -> Job:
    return prepare(kernel, ArraySource(array), Settings(**{"device": "cuda", "tile": 128, **wishes}))  # type: ignore[arg-type]


def run(job: Job) -> tuple[Arrays, Engine]:
    engine = Engine(job, shards_of(job))
    return assemble(job, engine.run(shards_of(job))), engine


@pytest.mark.parametrize("channels_last", [False, True])
def test_cut_equals_one_big_pass_on_the_cpu(channels_last: bool) -> None:
    array = image(397, 331, bands=2)
    kernel = unet(channels_last=channels_last)
    found, _ = run(gpu_job(kernel, array, batch=4))
    kernel.module.cpu()
    expected = one_pass(kernel, array, pad=32, multiple=8)
    assert np.abs(found["out"] - expected).max() <= BETWEEN_DEVICES


def test_mixed_precision_is_close_and_said() -> None:
    array = image(397, 331, bands=2)
    job = gpu_job(unet(channels_last=True), array, batch=4, precision="bf16")
    found, _ = run(job)
    exact, _ = run(gpu_job(unet(), array, batch=4))
    assert job.fingerprint["arithmetic"]["precision"] == "bf16"
    assert 0 < np.abs(found["out"] - exact["out"]).max() <= 0.05


@pytest.mark.parametrize("stitch", ["cut", "blend"])
def test_shards_order_and_engines_change_no_bit(stitch: str) -> None:
    array = with_holes(image(397, 331, bands=2))
    first, _ = run(gpu_job(unet(), array, batch=4, shard=1000, stitch=stitch))
    for shard in (1, 150):
        job = gpu_job(unet(), array, batch=4, shard=shard, stitch=stitch)
        found, _ = run(job)
        assert same(found, first)
        shards = shards_of(job)
        parts = [Engine(job, part).run(part) for part in (shards[:3], shards[3:])]
        assert same(assemble(job, [r for part in parts for r in part]), first)


def test_batches_sent_ahead_and_fetched_behind_keep_their_place() -> None:
    """Copies run on a stream of their own: what is asked for must be there when it is used."""
    array = np.arange(700 * 700, dtype=np.float32).reshape(1, 1, 700, 700)
    heavy = torch.randn(1500, 1500, device="cuda")

    def slow(x: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            heavy @ heavy
        return x * 2

    for batch in (1, 3, 7):
        found, engine = run(gpu_job(make_kernel(slow), array, batch=batch, tile=64, shard=128))
        assert (found["out"] == array[0] * 2).all()
        assert engine.counters.tiles == 11 * 11


def test_a_batch_that_does_not_fit_on_the_gpu_is_halved() -> None:
    """The real allocator refuses: so much a tile, and room for three of them."""
    room = torch.cuda.get_device_properties(0).total_memory
    share = int(room * 0.8) // 4

    def hungry(x: torch.Tensor) -> torch.Tensor:
        taken = [torch.empty(share, dtype=torch.uint8, device=x.device) for _ in range(len(x))]
        del taken
        return gaussian33(x)

    array = with_holes(image(331, 297))
    torch.cuda.empty_cache()
    expected, _ = run(gpu_job(make_kernel(gaussian33, radius=16), array, batch=2))
    found, engine = run(gpu_job(make_kernel(hungry, radius=16), array, batch=8))
    assert engine.forward.size in (1, 2, 4)
    assert np.nanmax(np.abs(found["out"] - expected["out"])) <= 8e-4
    with pytest.raises(KernelError, match="single tile"):
        run(
            gpu_job(
                make_kernel(lambda x: torch.empty(2 * room, dtype=torch.uint8, device=x.device)),
                array,
                batch=2,
            )
        )


def test_what_the_gpu_finds_amiss_is_one_clear_error() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1)[: x.numel() + 1].reshape(3, -1, 7)

    with pytest.raises(KernelError, match=r"its forward raises .*test_cuda\.py, line"):
        run(gpu_job(make_kernel(wrong), image(64, 64), batch=1, tile=64))
