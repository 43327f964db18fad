"""TinyCD: a siamese EfficientNet-B4 cut after its third stage, mixing blocks, and masks on the way up.

Codegoni, A., Lombardi, G., Ferrari, A. (2022): TINYCD: A (Not So) Deep Learning Model For Change Detection,
https://arxiv.org/abs/2207.13159. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b4

__all__ = ["TinyCD"]


class _Pixelwise(nn.Module):
    """The same small perceptron at every pixel."""

    def __init__(self, widths: Sequence[int], last: nn.Module) -> None:
        super().__init__()
        ends: list[nn.Module] = [*(nn.PReLU() for _ in widths[2:]), last]
        pairs = zip(pairwise(widths), ends, strict=True)
        self._linears = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 1), end) for (a, b), end in pairs))

    def forward(self, x: Tensor) -> Tensor:
        return self._linears(x)


class _Mixing(nn.Module):
    """A channel of one date with the same channel of the other, by a convolution of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._convmix = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1, groups=channels),
            nn.PReLU(),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._convmix(torch.stack((a, b), dim=2).flatten(1, 2))


class _MixingMask(nn.Module):
    """A mask of one channel from both dates."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self._mixing = _Mixing(channels)
        self._linear = _Pixelwise((channels, *widths, 1), nn.PReLU())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._linear(self._mixing(a, b))


class _Up(nn.Module):
    """To twice the side, under a mask."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self._upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self._convolution = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.PReLU(),
            nn.InstanceNorm2d(channels),
            nn.Conv2d(channels, out, 1),
            nn.PReLU(),
            nn.InstanceNorm2d(out),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self._convolution(self._upsample(x) * mask)


class TinyCD(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 8 -> probability of change ``[N, 1, H, W]``."""

    def __init__(self) -> None:
        super().__init__()
        self._backbone = nn.ModuleList(efficientnet_b4(weights=None).features[:4])
        self._first_mix = _MixingMask(3, (10, 5))
        self._mixing_mask = nn.ModuleList([_MixingMask(24, (12, 6)), _MixingMask(32, (16, 8)), _Mixing(56)])
        self._up = nn.ModuleList([_Up(56, 64), _Up(64, 64), _Up(64, 32)])
        self._classify = _Pixelwise((32, 16, 8, 1), nn.Sigmoid())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the probability of change."""
        masks = [self._first_mix(a, b)]
        a, b = self._backbone[0](a), self._backbone[0](b)
        for stage, mix in zip(self._backbone[1:], self._mixing_mask, strict=True):
            a, b = stage(a), stage(b)
            masks.append(mix(a, b))
        x = masks.pop()
        for up, mask in zip(self._up, reversed(masks), strict=True):
            x = up(x, mask)
        return self._classify(x)
