"""What the published bitemporal networks add to their official forward: statistics, scores, what is called change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from tilewright.errors import KernelError
from tilewright.kernels.contract import Context, InputSpec, Kernel, OutputSpec
from tilewright.kernels.load import load_kernel

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = Context(
    origin=torch.zeros(1, 2, dtype=torch.int64),
    times=torch.zeros(1, 2, dtype=torch.int64),
    lonlat=torch.zeros(1, 2, dtype=torch.float64),
    resolution=1.0,
)


def applied(kernel: Kernel, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    valid = torch.ones(1, 2, 1, *a.shape[-2:], dtype=torch.bool)
    with torch.inference_mode():
        return kernel.apply({"image": torch.stack((a, b), dim=1)}, {"image": valid}, CONTEXT)


def image_of(kernel: Kernel) -> InputSpec:
    return kernel.spec.inputs["image"]


def score_of(kernel: Kernel) -> OutputSpec:
    return kernel.spec.outputs["score"]


def test_cfnet_takes_each_date_by_its_own_statistics() -> None:
    levir, sysu, clcd = (load_kernel("cfnet", statistics=name) for name in ("levir-cd", "sysu-cd", "clcd"))
    assert image_of(load_kernel("cfnet")).mean == image_of(levir).mean == image_of(clcd).mean
    assert image_of(levir).bands == ("blue", "green", "red")
    first, second = image_of(sysu).mean or ((), ())
    assert first == pytest.approx([101.13191, 134.75779, 118.67707], rel=1e-6)
    assert second == pytest.approx([102.51602, 124.35362, 101.73400], rel=1e-6)
    assert levir.digest != sysu.digest


def test_cfnet_names_the_statistics_that_there_are() -> None:
    with pytest.raises(KernelError, match=r"statistics=levir: .*levir-cd"):
        load_kernel("cfnet", statistics="levir")


def test_cfnet_scores_from_minus_one() -> None:
    kernel = load_kernel("cfnet", threshold=-0.5)
    assert score_of(kernel).range == (-1.0, 1.0)
    assert score_of(load_kernel("cfnet")).threshold == 0.5
    with pytest.raises(KernelError, match="use -1 to 1"):
        load_kernel("cfnet", threshold=-2)


def test_cdmask_calls_nothing_change_where_no_query_does() -> None:
    state = dict(load_kernel("cdmask").module.state_dict())
    name = "decoderhead.sem_seg_head.predictor.class_embed"
    state[f"{name}.weight"] = torch.zeros_like(state[f"{name}.weight"])
    state[f"{name}.bias"] = torch.tensor([6.0, -6.0])
    kernel = load_kernel("cdmask", weights=state)
    a = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = applied(kernel, a, a)
    cut = kernel.spec.outputs["change"].threshold
    assert cut == 0.5
    assert found["change"].max() < cut / 10
    with torch.inference_mode():
        stretched = kernel.module(a, a)[0]
    assert stretched.max() == 1  # as the official code gives it: some change in every picture


def test_cdmask_scores_are_the_official_ones_before_they_are_stretched() -> None:
    kernel = load_kernel("cdmask")
    a, b = torch.randn(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    score = applied(kernel, a, b)["score"]
    assert score.shape == (1, 1, 64, 96)
    with torch.inference_mode():
        stretched = kernel.module(a, b)[0]
    torch.testing.assert_close((score - score.min()) / (score.max() - score.min()), stretched)
    assert score_of(kernel).range == (0.0, 5.0)
    assert 0 <= score.min() <= score.max() <= 5


@pytest.mark.parametrize("name", ["changevit-t", "changevit-s"])
def test_changevit_sees_the_later_date_first(name: str) -> None:
    kernel = load_kernel(name)
    before, after = torch.randn(2, 1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    score = applied(kernel, before, after)["score"]
    with torch.inference_mode():
        assert torch.equal(score, kernel.module(after, before))
        assert not torch.allclose(score, kernel.module(before, after), atol=1e-4)
    assert kernel.spec.tile.fixed == 256


def test_changeformer_scores_by_its_last_output() -> None:
    kernel = load_kernel("changeformer-v6")
    assert kernel.spec.name == load_kernel("changeformer").spec.name == "changeformer"
    a, b = torch.randn(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    score = applied(kernel, a, b)["score"]
    with torch.inference_mode():
        raw = kernel.module(a, b)
    assert [tuple(one.shape[-2:]) for one in raw] == [(2, 3), (4, 6), (8, 12), (16, 24), (64, 96)]
    assert torch.equal(score >= 0.5, raw[-1].argmax(1, keepdim=True) == 1)


def test_a_training_checkpoint_of_changeformer_loads(tmp_path: Path) -> None:
    kernel = load_kernel("changeformer")
    path = tmp_path / "best_ckpt.pt"
    torch.save({"epoch_id": 3, "model_G_state_dict": kernel.module.state_dict(), "best_epoch_id": 3}, path)
    a, b = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    loaded = load_kernel("changeformer", weights=path)
    with torch.inference_mode():
        assert torch.equal(loaded.module(a, b)[-1], kernel.module(a, b)[-1])


def test_snunet_takes_values_of_zero_to_one() -> None:
    image = image_of(load_kernel("snunet"))
    assert image.mean == (0.0, 0.0, 0.0)
    assert image.std == (255.0, 255.0, 255.0)


def test_snunet_shows_only_the_second_date_to_its_deepest_level() -> None:
    module = load_kernel("snunet").module
    seen = []
    module.get_submodule("conv4_0").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    a, b, other = torch.randn(3, 1, 3, 64, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        for dates in ((a, b), (other, b), (a, other)):
            module(*dates)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
