"""SatMAE++: a vision transformer whose tokens belong to groups of Sentinel-2 bands.

Noman, M. et al. (2024): Rethinking Transformers Pre-training for Multi-Spectral Satellite Imagery,
https://arxiv.org/abs/2403.05419; https://github.com/techmn/satmae_pp. After SatMAE: Cong, Y. et al. (2022),
https://arxiv.org/abs/2207.08051.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

__all__ = ["GROUPS", "PatchEmbedding", "SatMAEpp", "display_values", "grid_waves", "waves"]

GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
"""Channels that share tokens, of B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12: those of 10 m, those of 20 m up to 0.9
micrometres, the two short-wave ones."""

_MEAN = (
    *(1184.3824625, 1120.77120066, 1136.26026392, 1263.73947144, 1645.40315151),
    *(1846.87040806, 1762.59530783, 1972.62420416, 1732.16362238, 1247.91870117),
)
_STD = (
    *(650.2842772, 712.12507725, 965.23119807, 948.9819932, 1108.06650639),
    *(1258.36394548, 1233.1492281, 1364.38688993, 1310.36996126, 1087.6020813),
)
_DN = 10_000.0


def display_values(reflectance: Tensor, side: int | None = None) -> Tensor:
    """Return what the network is shown of reflectance ``[N, 10, H, W]``: values of 0 to 1 in steps of 1/255.

    Each band from two standard deviations below its mean to two above becomes 0 to 255, is cut there, and loses what is
    behind the point, as the authors' pictures of 8 bits do. These are then resized to ``side``, where it is given.
    """
    mean, std = (reflectance.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    low = mean - 2 * std
    shown = ((reflectance * _DN - low) / (4 * std) * 255).clamp(0, 255).trunc() / 255
    if side is None or shown.shape[2:] == (side, side):
        return shown
    return nn.functional.interpolate(
        shown, size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )


def waves(width: int, positions: Tensor) -> Tensor:
    """Sines, then cosines, of positions ``[n]`` at ``width / 2`` frequencies, ``[n, width]`` float64."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid_waves(width: int, side: int) -> Tensor:
    """Waves of the column, then of the row, of each cell of a square, after a row of zeros for the class token."""
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = torch.cat([waves(width // 2, cols.flatten()), waves(width // 2, rows.flatten())], dim=1)
    return torch.cat([cells.new_zeros(1, width), cells]).float()[None]


class PatchEmbedding(nn.Module):
    """Patches of some bands as tokens."""

    def __init__(self, bands: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, patches, width]`` of ``[N, bands, side, side]``."""
        return self.proj(x).flatten(2).transpose(1, 2)


class SatMAEpp(nn.Module):
    """The encoder as it is fine-tuned, with its head of classes; the names are the official ones."""

    def __init__(
        self,
        side: int = 96,
        patch: int = 8,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        channel_width: int = 256,
        classes: int = 62,
        global_pool: bool = True,
        groups: Sequence[Sequence[int]] = GROUPS,
    ) -> None:
        """Build it.

        Parameters
        ----------
        side, patch
            Pixels of the picture's and of a patch's side.
        width, depth, heads
            Of the transformer.
        channel_width
            Part of the width that says of which group a token is; the rest says where it is.
        classes
            Outputs of the head.
        global_pool
            True for the mean of all tokens, False for the class token.
        groups
            Channels of each group.
        """
        super().__init__()
        self.groups = tuple(tuple(group) for group in groups)
        self.side, self.patch, self.global_pool = side, patch, global_pool
        grid = side // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(grid_waves(width - channel_width, grid))
        self.channel_embed = nn.Parameter(waves(channel_width, torch.arange(len(self.groups))).float()[None])
        self.channel_cls_embed = nn.Parameter(torch.zeros(1, 1, channel_width))
        self.patch_embed = nn.ModuleList(PatchEmbedding(len(group), width, patch) for group in self.groups)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        if not global_pool:
            self.norm = norm(width)
        self.head = nn.Linear(width, classes)
        if global_pool:
            self.fc_norm = norm(width)

    def tokens(self, x: Tensor) -> Tensor:
        """Return all tokens after the last block ``[N, 1 + groups * patches, width]``, the class token first."""
        parts = [embed(x[:, list(group)]) for embed, group in zip(self.patch_embed, self.groups, strict=True)]
        patches = torch.stack(parts, dim=1)  # [N, groups, patches, width]
        where = self.pos_embed[:, None, 1:].expand(-1, len(self.groups), -1, -1)
        which = self.channel_embed[:, :, None].expand(-1, -1, where.shape[2], -1)
        patches = (patches + torch.cat([where, which], dim=3)).flatten(1, 2)
        first = self.cls_token + torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=2)
        tokens = torch.cat([first.expand(len(x), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward_features(self, x: Tensor) -> Tensor:
        """Return vectors ``[N, width]`` of display values ``[N, 10, side, side]``."""
        tokens = self.tokens(x)
        if self.global_pool:
            return self.fc_norm(tokens[:, 1:].mean(1))
        return self.norm(tokens)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the classes ``[N, classes]``."""
        return self.head(self.forward_features(x))

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return vectors ``[N, width]`` of reflectance ``[N, 10, H, W]``, whose display values are resized."""
        return self.forward_features(display_values(pixels, self.side))

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return a vector for each patch of reflectance, the mean of its groups, ``[N, width, h, w]``."""
        tokens = (
            self.tokens(display_values(pixels, self.side))[:, 1:].unflatten(1, (len(self.groups), -1)).mean(1)
        )
        normed = self.fc_norm(tokens) if self.global_pool else self.norm(tokens)
        grid = self.side // self.patch
        return normed.transpose(1, 2).unflatten(2, (grid, grid))
