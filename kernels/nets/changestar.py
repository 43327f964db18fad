"""ChangeStar (1x256) as Changen2 trains it: SAM's encoder, FarSeg, and a head that does not know which date is which.

Zheng, Z. et al. (2025): Changen2: Multi-Temporal Remote Sensing Generative Change Foundation Model,
https://arxiv.org/abs/2406.17998; Zheng, Z. et al. (2021): Change is Everywhere, https://arxiv.org/abs/2108.07002;
FarSeg after Zheng, Z. et al. (2020): Foreground-Aware Relation Network, https://arxiv.org/abs/2011.09766. Written from
the papers and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import ChannelNorm
from .sam import SamViT

__all__ = ["ChangeStar", "score_and_classes", "score_and_damage"]

WIDTH = 256


def _conv(channels: int, kernel: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(channels, WIDTH, kernel, padding=kernel // 2, bias=bias)


def _normed(channels: int, kernel: int = 1, *, bias: bool = False) -> list[nn.Module]:
    return [_conv(channels, kernel, bias=bias), ChannelNorm(WIDTH), nn.GELU()]


def _up(factor: int) -> nn.Module:
    """By the corners of the map, so that what it gives depends a little on where the tile ends."""
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)


class _SimplePyramid(nn.Module):
    """Maps at strides of 4, 8, 16 and 32 px from one at 16 px, after ViTDet."""

    def __init__(self) -> None:
        super().__init__()

        def last(channels: int) -> list[nn.Module]:
            return [nn.Sequential(*_normed(c)[:2]) for c in (channels, WIDTH)]

        def twice(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)

        self.simfp_2 = nn.Sequential(twice(WIDTH), ChannelNorm(128), nn.GELU(), twice(128), *last(64))
        self.simfp_3 = nn.Sequential(twice(WIDTH), *last(128))
        self.simfp_4 = nn.Sequential(*last(WIDTH))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2), *last(WIDTH))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.children()]


class _FPN(nn.Module):
    """Feature pyramid without biases: nearest neighbours on the way down."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = range(1, levels + 1)
        for i in self.levels:
            self.add_module(f"fpn_inner{i}", nn.Sequential(_conv(WIDTH)))
            self.add_module(f"fpn_layer{i}", nn.Sequential(_conv(WIDTH, 3)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        inner = [self.get_submodule(f"fpn_inner{i}")(x) for i, x in zip(self.levels, maps, strict=True)]
        for i in reversed(range(len(inner) - 1)):
            inner[i] = inner[i] + functional.interpolate(inner[i + 1], size=inner[i].shape[-2:])
        return [self.get_submodule(f"fpn_layer{i}")(x) for i, x in zip(self.levels, inner, strict=True)]


class _SceneRelation(nn.Module):
    """Weighs every pixel by how it relates to the scene: the mean of the deepest map."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.scene_encoder = nn.ModuleList(
            nn.Sequential(*_normed(WIDTH, bias=True), *_normed(WIDTH, bias=True)) for _ in range(levels)
        )
        self.project = nn.ModuleList(nn.Sequential(*_normed(2 * WIDTH)) for _ in range(levels))
        self.content_encoders = nn.ModuleList(
            nn.Sequential(*_normed(WIDTH, bias=True)) for _ in range(levels)
        )
        self.feature_reencoders = nn.ModuleList(
            nn.Sequential(*_normed(WIDTH, bias=True)) for _ in range(levels)
        )

    def forward(self, scene: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        out = []
        parts = zip(
            self.scene_encoder,
            self.content_encoders,
            self.feature_reencoders,
            self.project,
            maps,
            strict=True,
        )
        for of_scene, content, again, project, x in parts:
            relation = (of_scene(scene) * content(x)).sum(1, keepdim=True).sigmoid()
            out.append(project(torch.cat((relation * again(x), x), dim=1)))
        return out


class _Decoder(nn.Module):
    """All maps to the size of the finest, step by step, and their mean."""

    def __init__(self, levels: int) -> None:
        super().__init__()

        def step(*, up: bool) -> nn.Module:
            return nn.Sequential(*_normed(WIDTH, 3), *([_up(2)] if up else []))

        self.blocks = nn.ModuleList(
            nn.Sequential(*(step(up=i > 0) for _ in range(max(1, i)))) for i in range(levels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([block(x) for block, x in zip(self.blocks, maps, strict=True)]).mean(0)


class _FarSeg(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.fpn = _FPN(levels)
        self.fsr = _SceneRelation(levels)
        self.dec = _Decoder(levels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        scene = maps[-1].mean((2, 3), keepdim=True)
        return self.dec(self.fsr(scene, self.fpn(maps)))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = SamViT(out=WIDTH)
        self.sfp = _SimplePyramid()
        self.farseg = _FarSeg(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.farseg(self.sfp(self.vit(x)))


class _Head(nn.Module):
    """Change from both orders of the dates, classes from each date; logits at the size of the input."""

    def __init__(self, changes: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_normed(2 * WIDTH, 3))
        self.change_conv = nn.Sequential(nn.Conv2d(WIDTH, changes, 1), _up(4))
        self.semantic_conv = nn.Sequential(nn.Conv2d(WIDTH, classes, 1), _up(4))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = self.conv(torch.cat((a, b), dim=1)) + self.conv(torch.cat((b, a), dim=1))
        return self.change_conv(both), self.semantic_conv(a), self.semantic_conv(b)


def _probability(logits: Tensor) -> Tensor:
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


class ChangeStar(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 32 -> probabilities, at the size of the input.

    Three of them: of change ``[N, changes, H, W]``, of the classes at the first and at the second date
    ``[N, classes, H, W]``; sigmoid of one channel, softmax of several. Exchanging the dates leaves the first as it
    is and exchanges the others.
    """

    def __init__(self, changes: int = 1, classes: int = 1) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.head = _Head(changes, classes)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the probabilities."""
        change, before, after = self.head(*self.encoder(torch.cat((a, b))).chunk(2))
        return _probability(change), _probability(before), _probability(after)


def score_and_classes(network: ChangeStar, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change, and the classes of each date (one channel: their probability)."""
    change, before, after = network(*inputs["image"].unbind(1))
    return {"score": change, "change": change, "before": before, "after": after}


def score_and_damage(network: ChangeStar, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> probability of any damage, the grades of damage, and of a building before."""
    grades, before, _after = network(*inputs["image"].unbind(1))
    damaged = grades[:, 2:].sum(1, keepdim=True)
    return {"score": damaged, "change": damaged, "damage": grades, "buildings": before}
