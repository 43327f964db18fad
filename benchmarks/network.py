"""The network of the benchmarks: a U-Net of 0.48 M parameters, radius known, weights from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

__all__ = ["MEAN", "RADIUS", "STD", "STRIDE", "UNet", "make_kernel", "make_network"]

STRIDE = 8
BANDS = 4
MEAN, STD = (3000.0,) * BANDS, (1500.0,) * BANDS
"""Brings the rasters of `benchmarks.sources` to about unit variance."""


def radius(depth: int = 3, convolutions: int = 2) -> int:
    """Return the exact receptive radius of `UNet` over all phases of its stride, in pixels.

    Down through the decoder (a convolution reaches 1 px farther, a 2 x 2 transposed one halves) and up through the
    encoder (pooling doubles), for the first pixel that each phase depends on.
    """
    worst = 0
    for phase in range(2**depth):
        first = phase - convolutions
        for _ in range(depth):
            first = first // 2 - convolutions
        for _ in range(depth):
            first = 2 * first - convolutions
        worst = max(worst, phase - first)
    return worst


RADIUS = radius()


class _Block(nn.Sequential):
    """Twice 3 x 3 convolution, batch normalisation, ReLU."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__(
            *(nn.Conv2d(inside, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)),
            *(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)),
        )


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of three halvings: ``[N, 4, H, W]`` -> scores ``[N, classes, H, W]`` in [0, 1].

    One class gives a sigmoid, several a softmax. H and W are multiples of `STRIDE`.
    """

    def __init__(self, classes: int = 1, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_Block(a, b) for a, b in zip([BANDS, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:3]))
        self.merge = nn.ModuleList(_Block(2 * w, w) for w in reversed(widths[:3]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        x = self.head(x)
        return x.softmax(dim=1) if x.shape[1] > 1 else x.sigmoid()


def make_network(classes: int = 1) -> UNet:
    """Return the network in eval mode, its weights and running statistics the same in every process."""
    generator = torch.Generator().manual_seed(0)
    net = UNet(classes)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                taps = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight.shape[0]
                module.weight.normal_(0, (2 / taps) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
    net.train()
    with torch.no_grad():
        net(torch.randn(2, BANDS, 128, 128, generator=generator))
    return net.eval().requires_grad_(False)


def make_kernel(classes: int = 1) -> Kernel:
    """Return the network as a kernel: a score, or with several classes their labels."""
    from tilewright.kernels.user import kernel

    output: dict[str, Any] = {"score": {"kind": "score"}}
    if classes > 1:
        output = {"label": {"kind": "class", "classes": [f"class {i}" for i in range(classes)]}}
    made: Kernel = kernel(
        name="benchmark-unet",
        inputs={"image": {"bands": BANDS, "mean": list(MEAN), "std": list(STD)}},
        outputs=output,
        radius=RADIUS,
        stride=STRIDE,
        channels_last=True,
    )(make_network(classes))
    return made


def __getattr__(name: str) -> Any:
    """Return ``score`` or ``label``: the kernel by a name that the command line can take (``network.py:score``)."""
    if name in ("score", "label"):
        return make_kernel(1 if name == "score" else 5)
    raise AttributeError(name)
