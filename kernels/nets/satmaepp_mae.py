"""SatMAE++ as it is pretrained: tokens are hidden, and the picture is made from the others at one, two and four times
its resolution.

Noman, M. et al. (2024), https://arxiv.org/abs/2403.05419. The encoder differs from the fine-tuned one in one thing: its
class token knows no place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from .satmaepp import GROUPS, PatchEmbedding, display_values, grid_waves, waves

__all__ = ["Reconstruction", "SatMAEppAutoencoder"]


class Reconstruction(NamedTuple):
    """What the autoencoder makes of a picture."""

    latent: Tensor
    """Encoded tokens ``[N, 1 + kept, width]``, the class token first, the others in the order of their noise."""
    hidden: Tensor
    """1 where a token was hidden, ``[N, groups, patches]``."""
    patches: Tensor
    """Values of the patches ``[N, bands, patches, patch * patch]``."""
    twice: Tensor
    """The picture at twice its resolution ``[N, bands, 2 side, 2 side]``."""
    fourfold: Tensor
    """At four times ``[N, bands, 4 side, 4 side]``."""


class _ChannelNorm(nn.LayerNorm):
    """A norm over the channels of a map ``[N, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.conv2(self.conv1(x).relu())


class _Doubling(nn.Module):
    def __init__(self, width: int, bands: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.up_norm = _ChannelNorm(width, eps=1e-6)
        self.res_block = _Residual(width)
        self.res_norm = _ChannelNorm(width, eps=1e-6)
        self.proj_out = nn.Conv2d(width, bands, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.leaky_relu(self.up_norm(self.up_conv(x)))
        x = self.res_norm(self.res_block(x))
        return x, self.proj_out(x)


class SatMAEppAutoencoder(nn.Module):
    """Encoder and decoder with their official names."""

    def __init__(
        self,
        side: int = 96,
        patch: int = 8,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        channel_width: int = 256,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_channel_width: int = 128,
        groups: Sequence[Sequence[int]] = GROUPS,
        eps: float = 1e-6,
    ) -> None:
        """Build it; arguments as for `SatMAEpp`, for encoder and decoder. ``eps`` is that of the norms."""
        super().__init__()
        self.groups = tuple(tuple(group) for group in groups)
        self.side, self.patch, self.grid = side, patch, side // patch
        self.bands = sum(len(group) for group in self.groups)
        count = len(self.groups)
        norm: Any = partial(nn.LayerNorm, eps=eps)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(grid_waves(width - channel_width, self.grid))
        self.channel_embed = nn.Parameter(waves(channel_width, torch.arange(count)).float()[None])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(grid_waves(decoder_width - decoder_channel_width, self.grid))
        self.decoder_channel_embed = nn.Parameter(
            waves(decoder_channel_width, torch.arange(count + 1)).float()[None]
        )

        middle = 4 * self.bands
        self.proj_up_conv = nn.Conv2d(self.bands, middle, 1)
        self.proj_up_norm = _ChannelNorm(middle, eps=1e-6)
        self.up_block1 = _Doubling(middle, self.bands)
        self.up_block2 = _Doubling(middle, self.bands)

        self.patch_embed = nn.ModuleList(PatchEmbedding(len(group), width, patch) for group in self.groups)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.ModuleList(
            nn.Linear(decoder_width, len(group) * patch * patch) for group in self.groups
        )

    def encoded(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return tokens ``[N, 1 + kept, width]``; ``kept`` says which of groups times patches, in which order."""
        parts = [embed(x[:, list(group)]) for embed, group in zip(self.patch_embed, self.groups, strict=True)]
        tokens = torch.stack(parts, dim=1) + _places(self.pos_embed, self.channel_embed)
        tokens = tokens.flatten(1, 2)
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, x: Tensor, noise: Tensor, share: float = 0.25) -> Reconstruction:
        """Hide tokens and make the picture from the others.

        Parameters
        ----------
        x
            Display values ``[N, bands, side, side]``.
        noise
            A number for each token ``[N, groups * patches]``: those with the smallest are kept.
        share
            How many are kept.
        """
        order = noise.argsort(dim=1)
        kept = order[:, : int(order.shape[1] * share)]
        latent = self.encoded(x, kept)
        hidden = torch.ones_like(noise).scatter(1, kept, 0.0)
        patches = self._decoded(latent, order)
        twice, fourfold = self._enlarged(patches)
        return Reconstruction(latent, hidden.unflatten(1, (len(self.groups), -1)), patches, twice, fourfold)

    def _decoded(self, latent: Tensor, order: Tensor) -> Tensor:
        tokens = self.decoder_embed(latent)
        missing = order.shape[1] + 1 - tokens.shape[1]
        tokens = torch.cat([tokens, self.mask_token.expand(len(tokens), missing, -1)], dim=1)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, tokens.shape[2])
        places = _places(self.decoder_pos_embed, self.decoder_channel_embed[:, :-1]).flatten(1, 2)
        first = torch.cat([self.decoder_pos_embed[:, :1], self.decoder_channel_embed[:, -1:]], dim=2)
        tokens = torch.cat([tokens[:, :1] + first, tokens[:, 1:].gather(1, back) + places], dim=1)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        groups = self.decoder_norm(tokens)[:, 1:].unflatten(1, (len(self.groups), -1)).unbind(1)
        made = [head(group) for head, group in zip(self.decoder_pred, groups, strict=True)]
        return torch.cat([one.unflatten(2, (-1, self.patch**2)).transpose(1, 2) for one in made], dim=1)

    def _enlarged(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        tiles = patches.transpose(1, 2).flatten(2).transpose(1, 2)  # [N, bands * patch * patch, patches]
        x = functional.fold(tiles, (self.side, self.side), self.patch, stride=self.patch)
        x = self.proj_up_norm(functional.gelu(self.proj_up_conv(x)))
        x, twice = self.up_block1(x)
        return twice, self.up_block2(x)[1]

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return vectors ``[N, width]`` of reflectance ``[N, 10, H, W]``: the mean of all tokens, none hidden."""
        return self.encoded(display_values(pixels, self.side))[:, 1:].mean(1)

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return a vector for each patch of reflectance, the mean of its groups, ``[N, width, h, w]``."""
        tokens = (
            self.encoded(display_values(pixels, self.side))[:, 1:]
            .unflatten(1, (len(self.groups), -1))
            .mean(1)
        )
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def _places(where: Tensor, which: Tensor) -> Tensor:
    """Waves of place and group ``[1, groups, patches, width]``, without those of the class token."""
    groups, patches = which.shape[1], where.shape[1] - 1
    return torch.cat(
        [where[:, None, 1:].expand(-1, groups, -1, -1), which[:, :, None].expand(-1, -1, patches, -1)], dim=3
    )
