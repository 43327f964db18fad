"""`receptive_radius` against networks whose radius is known by arithmetic, drawn at random."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tilewright.kernels.user import kernel
from tilewright.testing import check_kernel, receptive_radius

LAYERS = st.lists(st.tuples(st.sampled_from([1, 3, 5, 7]), st.integers(1, 3)), min_size=1, max_size=3)


def network(layers: list[tuple[int, int]], factor: int, seed: int) -> nn.Module:
    """Convolutions (side, dilation) with SiLU between them, between a halving and a doubling where factor is 2."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = [nn.AvgPool2d(2)] if factor == 2 else []
    for side, dilation in layers:
        parts += [nn.Conv2d(1, 1, side, padding=side // 2 * dilation, dilation=dilation), nn.SiLU()]
    if factor == 2:
        parts.append(nn.Upsample(scale_factor=2))
    return nn.Sequential(*parts).eval().requires_grad_(False)


@settings(max_examples=8, deadline=None)
@given(layers=LAYERS, factor=st.sampled_from([1, 2]), seed=st.integers(0, 100))
def test_radius_of_stacked_convolutions(layers: list[tuple[int, int]], factor: int, seed: int) -> None:
    inner = sum(side // 2 * dilation for side, dilation in layers)
    expected = inner if factor == 1 else 2 * inner + 1
    net = network(layers, factor, seed)
    made = kernel(
        name="net", inputs={"image": {}}, outputs={"y": {"kind": "value"}}, radius=expected, stride=factor
    )(net)
    assert receptive_radius(made) == expected
    report = check_kernel(made, skip=["valid", "range"])
    assert report.ok, str(report)
    assert report.radius == expected
