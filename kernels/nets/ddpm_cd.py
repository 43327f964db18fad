"""DDPM-CD: change from what a denoiser makes of the two dates, under noise of several strengths.

Bandara, W. G. C., Nair, N. G., Patel, V. M. (2022): DDPM-CD: Denoising Diffusion Probabilistic Models as Feature
Extractors for Change Detection, https://arxiv.org/abs/2206.11892. Written from the paper and from the names and shapes
of the published weights. The noise is an input: the network itself draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .forward import binary
from .sr3 import Diffusion

if TYPE_CHECKING:
    from tilewright.kernels.contract import Context

__all__ = ["DDPMCD", "score_of_ddpm_cd"]

MAPS, FINEST = (14, 11, 8, 5), 2
"""The decoder's maps that are compared, by their number from its end: the first of each size, coarsest first; and the
one that the head has a part for."""
WIDTHS = (1024, 1024, 512, 256, 128)
"""Channels of these maps, and of the finest."""


class _Merge(nn.Module):
    """The maps of all strengths of noise to one."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels * count, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.block(torch.cat(tuple(maps), dim=1))


class _ChannelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // 2)
        self.fc2 = nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(functional.relu(self.fc1(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class _PixelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()


class _Gates(nn.Module):
    """Squeeze and excitation by channel and by pixel, added up: Roy et al. 2018, https://arxiv.org/abs/1803.02579."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cSE = _ChannelGate(channels)
        self.sSE = _PixelGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.cSE(x) + self.sSE(x)


class _Attention(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), _Gates(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Head(nn.Module):
    """From the coarsest maps to finer ones: how far the dates differ, added to what is known so far.

    The official classifier reads what came before the finest maps: their part of the head has no influence, and
    no training reached it.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.decoder = nn.ModuleList()
        for i, width in enumerate(WIDTHS):
            self.decoder.append(_Merge(width, count))
            if i + 1 < len(WIDTHS):
                self.decoder.append(_Attention(width, WIDTHS[i + 1]))
        self.clfr_stg1 = nn.Conv2d(WIDTHS[-1], 64, 3, padding=1)
        self.clfr_stg2 = nn.Conv2d(64, 2, 3, padding=1)

    def forward(self, a: Sequence[dict[int, Tensor]], b: Sequence[dict[int, Tensor]]) -> Tensor:
        x: Tensor | None = None
        for number, merge, attend in zip(MAPS, self.decoder[:-1:2], self.decoder[1::2], strict=True):
            difference = (merge([m[number] for m in a]) - merge([m[number] for m in b])).abs()
            merged = attend(difference if x is None else difference + x)
            x = functional.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)
        assert x is not None
        return self.clfr_stg2(functional.relu(self.clfr_stg1(x)))


class DDPMCD(nn.Module):
    """Two dates ``[N, 3, H, W]`` in -1 to 1 and their noise -> logits ``[N, 2, H, W]``: no change, change.

    Sides are multiples of 16. The noise, standard normal and shaped as a date: first and second date for the first
    strength, both for the second, and so on. After the logits come four maps of the denoiser for the first
    strength: of the first date the decoder's 2 and 14, of the second the decoder's 8, of the first the encoder's 3.
    """

    def __init__(self, steps: Sequence[int] = (50, 100)) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.netG = Diffusion()
        self.netCD = _Head(len(self.steps))

    def forward(self, a: Tensor, b: Tensor, *noise: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and the four maps."""
        encoded, finest = self.netG.features(a, noise[0], self.steps[0], FINEST)
        of_a, of_b = self._maps(a, noise[::2], 1), self._maps(b, noise[1::2])
        of_a.insert(0, finest)
        return self.netCD(of_a, of_b), finest[FINEST], finest[14], of_b[0][8], encoded[3]

    def logits(self, a: Tensor, b: Tensor, *noise: Tensor) -> Tensor:
        """Return the logits alone: without the maps that they do not depend on."""
        return self.netCD(self._maps(a, noise[::2]), self._maps(b, noise[1::2]))

    def _maps(self, x: Tensor, noise: Sequence[Tensor], first: int = 0) -> list[dict[int, Tensor]]:
        pairs = list(zip(self.steps, noise, strict=True))[first:]
        return [self.netG.features(x, one, step, MAPS[-1])[1] for step, one in pairs]


def score_of_ddpm_cd(
    network: DDPMCD, inputs: dict[str, Tensor], context: Context, **_: object
) -> dict[str, Tensor]:
    """Two dates -> probability of change, under noise that belongs to the ground."""
    a, b = inputs["image"].unbind(1)
    rows, cols = a.shape[-2:]
    noise = context.noise(rows, cols, channels=6 * len(network.steps)).to(a)
    return binary(network.logits(a, b, *noise.split(3, dim=1)).softmax(1)[:, 1:2])
