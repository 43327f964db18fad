"""Networks that enlarge pictures: the values of a raster in and out, and the layers that several of them end with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["DIV2K_MEAN", "enlarger", "picture_of_values"]

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of red, green and blue in DIV2K, for values of 0 to 1; EDSR and SwinIR subtract it."""


def picture_of_values(
    network: nn.Module, inputs: Mapping[str, Tensor], *, low: float, high: float, full: float, **_: object
) -> dict[str, Tensor]:
    """One date in; back to the values of the input, clipped as the authors do before they write bytes.

    ``low`` and ``high`` are the values of the input that stand for 0 and ``full`` of what the network sees.
    """
    values = network(inputs["image"][:, 0]) * ((high - low) / full) + low
    return {"image": values.clamp(low, high)}


def enlarger(width: int, scale: int) -> nn.Sequential:
    """Return what enlarges maps of ``width`` channels: one step for 3, else steps of 2, convolution and shuffle.

    Shi, W. et al. (2016): Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network, https://arxiv.org/abs/1609.05158.
    """
    steps = [scale] if scale == 3 else [2] * (scale.bit_length() - 1)
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(width, width * step**2, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)
