"""ESRGAN-slim: a residual dense network of two short blocks, and the picture enlarged at its end.

Zhang, Y. et al. (2018): Residual Dense Network for Image Super-Resolution, https://arxiv.org/abs/1802.08797, with the
sizes of the npm package ``@upscalerjs/esrgan-slim`` 1.0.0: one convolution a block, two blocks, growth 4, width 64.
Written from the layers that its ``model.json`` lists; names are those of the layers, kernels ``[out, in, rows, cols]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ESRGANSlim"]

WIDTH, GROWTH = 64, 4


def _conv(channels: int, out: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, side, padding=side // 2)


class ESRGANSlim(nn.Module):
    """Red, green and blue of 0 to 255 ``[N, 3, H, W]`` -> the same ``[N, 3, H * scale, W * scale]``, not clipped."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.F_m1 = _conv(3, WIDTH, 3)
        self.F_0 = _conv(WIDTH, WIDTH, 3)
        self.F_1_1 = _conv(WIDTH, GROWTH, 3)
        self.LFF_1 = _conv(WIDTH + GROWTH, WIDTH, 1)
        self.F_2_1 = _conv(WIDTH, GROWTH, 3)
        self.LFF_2 = _conv(WIDTH + GROWTH, WIDTH, 1)
        self.GFF_1 = _conv(2 * WIDTH, WIDTH, 1)
        self.GFF_2 = _conv(WIDTH, WIDTH, 3)
        self.UPN1 = _conv(WIDTH, WIDTH, 5)
        self.UPN2 = _conv(WIDTH, WIDTH // 2, 3)
        self.UPN3 = _conv(WIDTH // 2, 3 * scale**2, 3)
        self.SR = _conv(3 * scale**2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture.

        Pixels are repeated before the last convolution; the ``3 scale^2`` channels are not shuffled into the plane,
        as the paper has it, although their number is made for that.
        """
        shallow = self.F_m1(x)
        first = _dense(self.F_0(shallow), self.F_1_1, self.LFF_1)
        second = _dense(first, self.F_2_1, self.LFF_2)
        deep = self.GFF_2(self.GFF_1(torch.cat((first, second), 1))) + shallow
        deep = functional.relu(self.UPN1(deep))
        deep = functional.relu(self.UPN2(deep))
        deep = self.UPN3(deep)
        return self.SR(functional.interpolate(deep, scale_factor=self.scale, mode="nearest"))


def _dense(x: Tensor, grow: nn.Conv2d, fuse: nn.Conv2d) -> Tensor:
    return fuse(torch.cat((x, functional.relu(grow(x))), 1)) + x
