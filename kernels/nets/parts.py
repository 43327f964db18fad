"""Parts that several of the published networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ChannelNorm", "ConvNormAct", "UPerNet", "attend", "map_of", "resize", "tokens_of"]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``x`` at another size, bilinear by the centres of its pixels (``align_corners`` False)."""
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def tokens_of(x: Tensor) -> Tensor:
    """Return the pixels of maps ``[N, C, H, W]`` as tokens ``[N, H * W, C]``."""
    return x.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Return the tokens ``[N, H * W, C]`` as maps ``[N, C, H, W]`` of that size."""
    return tokens.transpose(1, 2).unflatten(-1, tuple(size))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return what the queries ``[N, tokens, C]`` take from the values ``[N, others, C]``, head by head.

    Scaled dot-product attention of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of the channels of each pixel of ``[N, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, H, W]``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; the size is kept."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, out, H, W]``."""
        return functional.relu(self.batch_norm(self.conv(x)))


class UPerNet(nn.Module):
    """Pyramid pooling on the deepest level and a feature pyramid over all, after Xiao et al. 2018.

    https://arxiv.org/abs/1807.10221, with the names of transformers' UperNet. Takes maps ``[N, C, H, W]``, finest
    first, and returns ``[N, classes, H, W]`` at the size of the finest.
    """

    def __init__(
        self, channels: Sequence[int], width: int, classes: int, scales: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        last = channels[-1]
        self.classifier = nn.Conv2d(width, classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(last, width, 1)) for scale in scales
        )
        self.bottleneck = ConvNormAct(last + len(scales) * width, width, 3)
        self.lateral_convs = nn.ModuleList(ConvNormAct(c, width, 1) for c in channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvNormAct(width, width, 3) for _ in channels[:-1])
        self.fpn_bottleneck = ConvNormAct(len(channels) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the scores of the classes."""
        top = maps[-1]
        pooled = [resize(pool(top), top.shape[-2:]) for pool in self.psp_modules]
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self.bottleneck(torch.cat((top, *pooled), dim=1)))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + resize(levels[i + 1], levels[i].shape[-2:])
        size = levels[0].shape[-2:]
        out = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)] + levels[-1:]
        merged = torch.cat([out[0], *(resize(x, size) for x in out[1:])], dim=1)
        return self.classifier(self.fpn_bottleneck(merged))
