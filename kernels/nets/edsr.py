"""EDSR: residual blocks without normalisation, and the picture enlarged at their end.

Lim, B. et al. (2017): Enhanced Deep Residual Networks for Single Image Super-Resolution,
https://arxiv.org/abs/1707.02921. Names are those of the authors' PyTorch checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .pictures import DIV2K_MEAN, enlarger

__all__ = ["EDSR"]

FULL = 255.0


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class _Shift(nn.Conv2d):
    """Adds a value to each band, by a convolution of 1 x 1 that is not trained."""

    def __init__(self, by: Sequence[float]) -> None:
        super().__init__(3, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[..., None, None])
            assert self.bias is not None
            self.bias.copy_(torch.tensor(by))


class _Block(nn.Module):
    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * self.share


class EDSR(nn.Module):
    """Red, green and blue of 0 to 255 ``[N, 3, H, W]`` -> the same ``[N, 3, H * scale, W * scale]``, not clipped.

    ``share`` is how much of its result each block adds: 1 in the baseline, 0.1 where blocks are wide.
    """

    def __init__(self, blocks: int = 16, width: int = 64, scale: int = 2, share: float = 1.0) -> None:
        super().__init__()
        mean = [FULL * one for one in DIV2K_MEAN]
        self.sub_mean = _Shift([-one for one in mean])
        self.add_mean = _Shift(mean)
        self.head = nn.Sequential(_conv(3, width))
        self.body = nn.Sequential(*(_Block(width, share) for _ in range(blocks)), _conv(width, width))
        self.tail = nn.Sequential(enlarger(width, scale), _conv(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture."""
        shallow = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(shallow) + shallow))
