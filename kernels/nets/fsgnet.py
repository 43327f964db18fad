"""FSG-Net rebuilt from its paper: wavelet bands that meet across dates, attention in time and space, gated fusion.

Xie, Z. et al. (2025): FSG-Net: Frequency-Spatial Synergistic Gated Network for High-Resolution Remote Sensing Change
Detection, https://arxiv.org/abs/2509.06482. Neither weights nor the whole network are public. What is known of the
parts is kept: the order of the modules; in the attention shared projections of an eighth of the channels, learned codes
of the dates, gains that start at zero, coordinate attention with a reduction of 32. All else is chosen here.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from .parts import resize
from .resnet import resnet_maps

__all__ = ["FSGNet", "SynergisticAttention", "haar", "haar_back"]

WIDTHS = (64, 128, 256, 512)
_SIGNS = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def haar(x: Tensor) -> Tensor:
    """Return the Haar bands ``[N, 4, C, H / 2, W / 2]`` of ``[N, C, H, W]``: means, and details in three directions."""
    four = torch.stack([x[..., row::2, col::2] for row in (0, 1) for col in (0, 1)], 1)
    return torch.einsum("bk,nkchw->nbchw", _SIGNS.to(four), four)


def haar_back(bands: Tensor) -> Tensor:
    """Undo `haar`."""
    four = torch.einsum("bk,nbchw->nckhw", _SIGNS.to(bands), bands)
    return functional.pixel_shuffle(four.flatten(1, 2), 2)


def _block(channels: int, out: int, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, side, padding=side // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class WaveletInteraction(nn.Module):
    """Each date's wavelet bands are weighed by how far the dates differ in that band (DAWIM in the paper).

    Illumination and season move the means, objects the details: each band has weights of its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(_block(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1))
            for _ in range(4)
        )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps ``[N, C, H, W]`` with even sides -> the same, refined."""
        bands_a, bands_b = haar(a), haar(b)
        apart = (bands_a - bands_b).abs().unbind(1)
        gate = torch.stack([2 * net(x).sigmoid() for net, x in zip(self.gates, apart, strict=True)], 1)
        return haar_back(bands_a * gate), haar_back(bands_b * gate)


class CoordinateAttention(nn.Module):
    """Channels weighed by their means along rows and along columns; Hou et al. 2021, https://arxiv.org/abs/2103.02907."""

    def __init__(self, channels: int, reduction: int = 32) -> None:
        super().__init__()
        inner = max(8, channels // reduction)
        self.shared = _block(channels, inner, 1)
        self.rows = nn.Conv2d(inner, channels, 1)
        self.cols = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` weighed."""
        means = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)), 2)
        rows, cols = self.shared(means).split(x.shape[2:], dim=2)
        return x * self.rows(rows).sigmoid() * self.cols(cols.transpose(2, 3)).sigmoid()


class SynergisticAttention(nn.Module):
    """Attention across dates and, beside it, over rows and columns; both start as nothing (STSAM in the paper)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.dates = nn.Parameter(torch.zeros(2, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.coordinates = CoordinateAttention(channels)
        self.delta = nn.Parameter(torch.zeros(1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps ``[N, C, H, W]`` -> the same; each date is asked by the queries of the other one."""
        coded = [x + code for x, code in zip((a, b), self.dates, strict=True)]
        found = []
        for own, other, x in ((coded[0], coded[1], a), (coded[1], coded[0], b)):
            q, k, v = (
                net(y).flatten(2).transpose(1, 2)
                for net, y in ((self.query, other), (self.key, own), (self.value, own))
            )
            heard = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
            found.append(x + self.gamma * heard + self.delta * self.coordinates(x))
        return found[0], found[1]


class GatedFusion(nn.Module):
    """Of each pixel and channel a share of the coarse map, the rest of the fine one (LGFU in the paper)."""

    def __init__(self, coarse: int, fine: int, out: int) -> None:
        super().__init__()
        self.coarse, self.fine = _block(coarse, out, 1), _block(fine, out, 1)
        self.gate = nn.Conv2d(2 * out, out, 1)
        self.merge = _block(out, out)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the map at the size of ``fine``."""
        fine = self.fine(fine)
        coarse = resize(self.coarse(coarse), fine.shape[-2:])
        share = self.gate(torch.cat((coarse, fine), 1)).sigmoid()
        return self.merge(share * coarse + (1 - share) * fine)


class FSGNet(nn.Module):
    """Two dates ``[N, 3, H, W]``, sides multiples of 64 -> one logit of change a pixel ``[N, 1, H, W]``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.backbone = torchvision.models.resnet18(weights=None)
        del self.backbone.fc
        self.wavelets = nn.ModuleList(WaveletInteraction(channels) for channels in WIDTHS)
        self.attention = nn.ModuleList(SynergisticAttention(channels) for channels in WIDTHS[2:])
        self.fusion = nn.ModuleList(
            GatedFusion(2 * WIDTHS[3] if i == 2 else width, 2 * WIDTHS[i], width) for i in (2, 1, 0)
        )
        self.head = nn.Sequential(_block(width, width), nn.Conv2d(width, 1, 1))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the logits."""
        maps = [resnet_maps(self.backbone, x, 4) for x in (before, after)]
        joined = []
        for i, (a, b) in enumerate(zip(*maps, strict=True)):
            a, b = self.wavelets[i](a, b)
            if i >= 2:
                a, b = self.attention[i - 2](a, b)
            joined.append(torch.cat(((a - b).abs(), torch.maximum(a, b)), 1))
        x = joined.pop()
        for fuse in self.fusion:
            x = fuse(x, joined.pop())
        return resize(self.head(x), before.shape[-2:])
