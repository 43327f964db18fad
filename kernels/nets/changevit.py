"""ChangeViT: a plain ViT sees what changes at large, a ResNet-18 the details, and cross attention joins them.

Zhu, D. et al. (2024): ChangeViT: Unleashing Plain Vision Transformers for Change Detection,
https://arxiv.org/abs/2406.12847. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from .forward import binary
from .parts import attend, map_of, tokens_of
from .resnet import resnet_maps

__all__ = ["ChangeViT"]

SIDE, GRID = 256, 16
SIDES = (GRID, GRID)
DETAIL = (64, 128, 256)
"""Channels of the detail branch, at strides of 2, 4 and 8 px."""


class _PlainViT(VisionTransformer):
    """ViT without a class token: ``[N, 3, 256, 256]`` -> tokens ``[N, 256, C]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(
            img_size=SIDE,
            patch_size=SIDE // GRID,
            embed_dim=width,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            class_token=False,
            norm_layer="layernorm",
        )
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of the pretraining; nothing reads it

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add the positions, resampled by 16.1 / 16: the official code does so at every size, also at its own.

        It takes the first of the tokens for a class token, so the table never seems to fit.
        """
        assert self.pos_embed is not None
        table = map_of(self.pos_embed, SIDES)
        step = (GRID + 0.1) / GRID
        table = functional.interpolate(table, scale_factor=(step, step), mode="bicubic")
        return x + tokens_of(table)


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.vit = _PlainViT(width, heads)
        self.resnet = resnet18(weights=None)  # with layer4 and fc, which nothing reads

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the three maps of the ResNet, finest first, and that of the ViT."""
        return [*resnet_maps(self.resnet, x, 3, pool=False), map_of(self.vit(x), SIDES)]


class _CrossAttention(nn.Module):
    heads = 8

    def __init__(self, width: int, detail: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(detail, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        k, v = self.kv(detail).chunk(2, dim=-1)
        return self.proj(attend(self.q(x), k, v, self.heads))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x)))


class _Injector(nn.Module):
    """The tokens ``[N, tokens, C]`` look at one map of the detail branch ``[N, pixels, c]``."""

    def __init__(self, width: int, detail: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(detail)
        self.attn = _CrossAttention(width, detail)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = _FeedForward(width)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.norm2(detail))
        return x + self.mlp(self.norm3(x))


class _Enhance(nn.Module):
    """The map of the ViT, informed by each of the detailed maps, and these three merged."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c2_c5, self.c3_c5, self.c4_c5 = (_Injector(width, detail) for detail in DETAIL)
        self.fuse = nn.Conv2d(3 * width, width, 1, bias=False)

    def forward(self, x: Tensor, details: list[Tensor]) -> Tensor:
        injectors = (self.c2_c5, self.c3_c5, self.c4_c5)
        seen = [
            inject(tokens_of(x), tokens_of(detail)) for inject, detail in zip(injectors, details, strict=True)
        ]
        return self.fuse(map_of(torch.cat(seen, dim=-1), SIDES))


def _up(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.ConvTranspose2d(out, out, 4, 2, 1))


def _difference(channels: int) -> nn.Sequential:
    """Both dates and the size of their difference, reduced by convolutions."""
    narrow = channels // 4
    return nn.Sequential(
        nn.Conv2d(3 * channels, narrow, 1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(narrow, channels, 3, padding=1, bias=False),
    )


class _Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.structure_enhance = _Enhance(width)
        self.up_c5 = _up(width, DETAIL[2])
        self.up_c4 = _up(DETAIL[2], DETAIL[1])
        self.up_c3 = _up(DETAIL[1], DETAIL[0])
        self.classfier = nn.Sequential(
            nn.ConvTranspose2d(DETAIL[0], DETAIL[0], 4, 2, 1),
            nn.Conv2d(DETAIL[0], 1, 3, padding=1, bias=False),
        )
        self.mlp = nn.ModuleList(_difference(channels) for channels in (*DETAIL, width))

    def forward(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Maps of both dates, finest first -> logit of change."""
        a, b = ([*maps[:3], self.structure_enhance(maps[3], maps[:3])] for maps in (a, b))
        c2, c3, c4, c5 = (
            reduce(torch.cat((x, y, (x - y).abs()), dim=1))
            for reduce, x, y in zip(self.mlp, a, b, strict=True)
        )
        c4 = c4 + self.up_c5(c5)
        c3 = c3 + self.up_c4(c4)
        return self.classfier(c2 + self.up_c3(c3))


class ChangeViT(nn.Module):
    """Two dates ``[N, 3, 256, 256]``, normalised -> probability of change ``[N, 1, 256, 256]``.

    The official loader reverses the six channels of a pair, so its first image is the later one.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.encoder = _Encoder(width, heads)
        self.decoder = _Decoder(width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the probability of change."""
        return self.decoder(self.encoder(a), self.encoder(b)).sigmoid()


def score_of_changevit(network: nn.Module, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates, oldest first -> score of change; the network sees the later one first, as it was trained."""
    before, after = inputs["image"].unbind(1)
    return binary(network(after, before))
