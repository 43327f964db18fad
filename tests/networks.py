"""Reference networks for tests: small, seeded, and of an exactly known receptive radius.

Their radii follow from the chain of kernel sizes and strides (worked out in `receptive_radius_of_unet`, and
proved by the probes of `tilewright.testing` in tests/unit/test_check_kernel.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "GAUSSIAN33_RADIUS",
    "SMALL_UNET_RADIUS",
    "SMALL_UNET_STRIDE",
    "SmallUNet",
    "gaussian33",
    "receptive_radius_of_unet",
    "small_unet",
]

GAUSSIAN33_RADIUS = 16
"""A 33-tap filter sees 16 pixels on each side."""

SMALL_UNET_STRIDE = 8
"""Three halvings: shift-equivariant by multiples of 8 pixels."""

SMALL_UNET_RADIUS = 29
"""Farthest input pixel (Chebyshev) that an output pixel of `SmallUNet` depends on, over all 8 phases."""


def gaussian33(x: Tensor) -> Tensor:
    """Blur each channel of ``x [N, C, H, W]`` with a separable 33-tap Gaussian, zeros beyond the edge.

    The standard deviation of 8 px leaves the outermost tap at 13 % of the central one, so that a halo that is
    too small by one pixel shows.
    """
    taps = torch.exp(-0.5 * (torch.arange(-16.0, 17.0, device=x.device, dtype=torch.float64) / 8.0) ** 2)
    taps = (taps / taps.sum()).to(x.dtype)
    channels = x.shape[1]
    rows = taps.reshape(1, 1, 33, 1).repeat(channels, 1, 1, 1)
    cols = taps.reshape(1, 1, 1, 33).repeat(channels, 1, 1, 1)
    x = nn.functional.conv2d(x, rows, padding=(16, 0), groups=channels)
    return nn.functional.conv2d(x, cols, padding=(0, 16), groups=channels)


class _Block(nn.Sequential):
    """3 x 3 convolution, batch normalisation, ReLU: radius 1 at its resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class SmallUNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of three halvings with one 3 x 3 block a level.

    Stride `SMALL_UNET_STRIDE`, radius `SMALL_UNET_RADIUS`; max pooling down, 2 x 2 transposed convolutions up.
    Takes ``[N, in_channels, H, W]`` with H and W multiples of 8, gives ``[N, classes, H, W]``: logits, or with
    ``scores`` the softmax over the classes (the sigmoid where there is one class), in [0, 1].
    """

    def __init__(self, in_channels: int, classes: int, width: int = 8, scores: bool = False) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:3]))
        self.merge = nn.ModuleList(_Block(2 * w, w) for w in reversed(widths[:3]))
        self.head = nn.Conv2d(width, classes, 1)
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        x = self.head(x)
        if not self.scores:
            return x
        return x.softmax(dim=1) if x.shape[1] > 1 else x.sigmoid()


def small_unet(
    in_channels: int, classes: int, width: int = 8, *, scores: bool = False, seed: int = 0
) -> SmallUNet:
    """Return a `SmallUNet` in eval mode whose weights depend on ``seed`` alone, not on the global generator.

    Inputs are best of about unit variance. Its running statistics are those of such inputs, so activations
    neither die nor explode, and the influence of the pixels at the rim stays measurable.
    """
    generator = torch.Generator().manual_seed(seed)
    net = SmallUNet(in_channels, classes, width, scores)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                taps = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight.shape[0]
                module.weight.normal_(0, math.sqrt(2 / taps), generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.3, generator=generator)
                module.momentum = None  # cumulative: one pass sets the running statistics to that batch's
        net.train()
        net(torch.randn(2, in_channels, 64, 64, generator=generator))
    return net.eval().requires_grad_(False)


def receptive_radius_of_unet(depth: int = 3, blocks: int = 1) -> int:
    """Return the exact radius of a U-Net with ``depth`` halvings and ``blocks`` 3 x 3 convolutions a level.

    Follows the first input pixel that an output pixel at each phase depends on down through the decoder
    (convolution: minus ``blocks``; 2 x 2 transposed convolution: floor of the half), and back up through the
    encoder (pooling: twice, convolution: minus ``blocks``). The last pixel is the mirror image.
    """
    worst = 0
    for phase in range(2**depth):
        first = phase - blocks
        for _ in range(depth):
            first = first // 2 - blocks
        for _ in range(depth):
            first = 2 * first - blocks
        worst = max(worst, phase - first)
    return worst
