"""FSG-Net, rebuilt from its paper: its parts, and that it learns what a comparison of pixels cannot see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

from tilewright.kernels.contract import Context
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.fsgnet import FSGNet, SynergisticAttention, haar, haar_back

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64
STEPS = 160


def test_the_wavelet_is_haars_and_gives_everything_back() -> None:
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    bands = haar(x)
    assert bands.shape == (2, 4, 3, 4, 6)
    torch.testing.assert_close(bands[:, 0] / 2, functional.avg_pool2d(x, 2))
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    torch.testing.assert_close(haar_back(bands), x)
    flat = haar(torch.ones(1, 1, 4, 4))
    assert (flat[:, 0] == 2).all()
    assert (flat[:, 1:] == 0).all()


def test_attention_is_nothing_at_first_and_treats_the_dates_alike() -> None:
    torch.manual_seed(0)
    net = SynergisticAttention(64).eval()
    a, b = torch.randn(2, 1, 64, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for got, given in zip(net(a, b), (a, b), strict=True):
            assert torch.equal(got, given)
        net.gamma.fill_(0.5)
        first, second = net(a, b)
        assert (first - a).abs().max() > 0.01
        for got, expected in zip(net(b, a), (second, first), strict=True):
            torch.testing.assert_close(got, expected)  # the codes of the dates are equal at first
        net.dates[1] = 1
        assert (net(b, a)[0] - second).abs().max() > 1e-3


def boxes(count: int, generator: torch.Generator) -> Tensor:
    """Two rectangles of 16 to 31 px in each picture ``[N, H, W]``; some reach over its edge."""
    mask = torch.zeros(count, SIDE, SIDE)
    for one in mask:
        for _ in range(2):
            rows, cols = (16 + torch.rand(2, generator=generator) * 16).int().tolist()
            top, left = (torch.rand(2, generator=generator) * (SIDE - 24)).int().tolist()
            one[top : top + rows, left : left + cols] = 1
    return mask


def field(count: int, bands: int, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth values of 0 to 1."""
    coarse = torch.rand(count, bands, cells, cells, generator=generator)
    return functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two dates ``[N, 3, H, W]`` and what changed ``[N, H, W]``.

    Rectangles of a fine pattern, whose mean is that of the ground, stay, vanish and appear; between the dates gain and
    light change over the whole picture, by more than the pattern is strong.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = torch.arange(SIDE) // 2
    pattern = ((cells[:, None] + cells) % 2 * 2 - 1).float()
    ground = 0.35 + 0.3 * field(count, 3, 5, generator)
    stay, gone, new = (boxes(count, generator) for _ in range(3))
    there = [(stay + only).clamp(max=1) for only in (gone, new)]
    dates = []
    for mask in there:
        gain = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
        light = 0.5 * (field(count, 1, 4, generator) - 0.5)
        noise = 0.02 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
        dates.append((gain * (ground + 0.12 * pattern * mask[:, None] + light) + noise - 0.5) / 0.25)
    return dates[0], dates[1], (there[0] - there[1]).abs()


def f1(found: Tensor, truth: Tensor) -> float:
    return float(2 * (found * truth).sum() / (found.sum() + truth.sum()))


def trained() -> FSGNet:
    torch.manual_seed(0)
    net = FSGNet()
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        before, after, truth = scenes(8, step)
        logit = net(before, after)[:, 0]
        score = logit.sigmoid()
        overlap = 2 * (score * truth).sum() / (score.sum() + truth.sum() + 1)
        loss = functional.binary_cross_entropy_with_logits(logit, truth) + 1 - overlap
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def change_vector(images: Tensor) -> Tensor:
    kernel = load_kernel("change-vector", bands=3)
    assert kernel.fit is not None
    count = len(images)
    context = Context(
        origin=torch.zeros(count, 2, dtype=torch.int64),
        times=torch.zeros(count, 2, dtype=torch.int64),
        lonlat=torch.zeros(count, 2, dtype=torch.float64),
        resolution=1.0,
        statistics=kernel.fit({"image": images.permute(0, 3, 4, 1, 2).reshape(-1, 2, 3).double().numpy()}),
    )
    valid = torch.ones_like(images[:, :, :1], dtype=torch.bool)
    found: Tensor = kernel.apply({"image": images}, {"image": valid}, context)["change"][:, 0]
    return found


def test_a_comparison_of_pixels_does_not_see_it() -> None:
    before, after, truth = scenes(32, 9_999)
    images = torch.stack((before, after), 1)
    assert 0.1 < float(truth.mean()) < 0.4
    assert f1(change_vector(images), truth) < 0.6
    moved = (after - before).square().sum(1).sqrt()
    assert max(f1((moved > cut).float(), truth) for cut in np.linspace(0, 3, 60)) < 0.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_what_change_vector_does_not_see() -> None:
    """Trained for 160 steps of eight pictures, F1 over the pixels of 32 others; three minutes of one core."""
    net = trained()
    before, after, truth = scenes(32, 9_999)
    with torch.inference_mode():
        found = (net(before, after)[:, 0] > 0).float()
    assert f1(found, truth) > 0.9
