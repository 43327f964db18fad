"""CFNet: two decoders tell the contents of the dates, and where these point apart is where change is looked for.

Wu, F., Dong, S., Meng, X. (2025): CFNet: Optimizing Remote Sensing Change Detection through Content-Aware Enhancement,
https://arxiv.org/abs/2503.08505. Written in our own words from the paper, the names and shapes of the weights, and the
order of steps in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import efficientnet_b5
from torchvision.models.resnet import BasicBlock

from .forward import binary

__all__ = ["CFNet", "score_of_cfnet"]

WIDTHS = (128, 64, 40, 24)
"""Channels of the features, at strides of 16, 8, 4 and 2 px."""


def _twice(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1, bias=False)


class _Encoder(nn.Module):
    """The first stages of EfficientNet-B5."""

    def __init__(self) -> None:
        super().__init__()
        self._backbone = nn.ModuleList(efficientnet_b5(weights=None).features[:5])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four maps, deepest first."""
        x = self._backbone[0](x)
        maps: list[Tensor] = []
        for stage in self._backbone[1:]:
            x = stage(x)
            maps.insert(0, x)
        return maps


class _Pointwise(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Aggregation(nn.Module):
    """What was decoded so far, at twice the side, with the next finer map."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.upsample = _twice(channels, channels)
        self.conv1 = _Pointwise(channels + out, out)
        self.residual1 = BasicBlock(out, out)
        self.residual2 = BasicBlock(out, out)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        x = self.conv1(torch.cat((self.upsample(coarse), fine), dim=1))
        return self.residual2(self.residual1(x))


def _aggregations() -> nn.ModuleList:
    return nn.ModuleList(_Aggregation(a, b) for a, b in pairwise(WIDTHS))


class _ChannelWeights(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)


class _PlaceWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)


class _Unread(nn.Module):
    """Attention (CBAM) whose result the official decoder throws away: it is in the checkpoints, and that is all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_attention = _ChannelWeights(channels)
        self.spatial_attention = _PlaceWeights()


class _ContentDecoder(nn.Module):
    """The contents of one date; each date has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.aggregations = _aggregations()
        self.cbam = nn.ModuleList(_Unread(width) for width in WIDTHS)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``, deepest first -> as many, of the same shapes."""
        contents = [maps[0]]
        for aggregation, finer in zip(self.aggregations, maps[1:], strict=True):
            contents.append(aggregation(contents[-1], finer))
        return contents


class _Fusion(nn.Module):
    """One map of both dates, which the convolution sees as two slices."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv3d(channels, channels, (2, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(channels), nn.ReLU()
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.conv(torch.stack((a, b), dim=2)).squeeze(2)


class _ChangeDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuseconv3ds = nn.ModuleList(_Fusion(width) for width in (*WIDTHS, 3))  # nothing calls the last
        self.aggregations = _aggregations()
        self.upconv = nn.Sequential(_twice(WIDTHS[-1], 1))

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor], focus: Sequence[Tensor]) -> Tensor:
        """Return ``[N, H, W]``, -1 to 1."""
        fused = [
            weight * fuse(x, y) for fuse, x, y, weight in zip(self.fuseconv3ds[:-1], a, b, focus, strict=True)
        ]
        out = fused[0]
        for aggregation, finer in zip(self.aggregations, fused[1:], strict=True):
            out = aggregation(out, finer)
        return self.upconv(out).squeeze(1).tanh()


class CFNet(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised each by its own statistics, sides multiples of 16.

    Returns the change ``[N, H, W]`` from -1 to 1, the four weights of the focus ``[N, 1, h, w]`` from coarse to fine,
    and the finest contents of both dates ``[N, 24, H/2, W/2]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.content_decoder_1 = _ContentDecoder()
        self.content_decoder_2 = _ContentDecoder()
        self.change_decoder = _ChangeDecoder()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """Return change, focus and contents."""
        of_a = self.content_decoder_1(self.encoder(a))
        of_b = self.content_decoder_2(self.encoder(b))
        pairs = zip(of_a, of_b, strict=True)
        focus = [(1 - functional.cosine_similarity(x, y)).tanh().unsqueeze(1) for x, y in pairs]
        return self.change_decoder(of_a, of_b, focus), *focus, of_a[-1], of_b[-1]


def score_of_cfnet(network: CFNet, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> tanh of change, from -1 to 1, which the authors compare with 0.5."""
    return binary(network(*inputs["image"].unbind(1))[0].unsqueeze(1))
