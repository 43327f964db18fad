"""DynamicVis: a pyramid of Mamba blocks, each of which reads only the tokens that a gate finds worth it.

Chen, K. et al. (2025): DynamicVis: An Efficient and General Visual Foundation Model for Remote Sensing Image
Understanding, https://arxiv.org/abs/2503.16426; https://github.com/KyanChen/DynamicVis. Mamba: Gu, A., Dao, T. (2023),
https://arxiv.org/abs/2312.00752. Names of the parameters are those of the published backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import map_of, tokens_of
from .selective_scan import selective_scan

__all__ = ["BidirectionalBlock", "DynamicVis", "SparseMixer", "Stage"]

_KERNELS, _STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)
_STATE, _CONVOLVED = 16, 4


class Stage(NamedTuple):
    """What one of the four stages makes of a picture."""

    map: Tensor
    """Its normalised tokens, ``[N, C, h, w]``."""
    kept: Tensor
    """True where a token was among those that a block read, ``[N, blocks, h, w]``."""


class _Mixer(nn.Module):
    """Mamba's selective scan of a sequence ``[N, L, C]``, with a causal convolution before and a gate behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, rank = 2 * width, math.ceil(width / 16)
        self.A_log = nn.Parameter(torch.arange(1.0, _STATE + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d = nn.Conv1d(inner, inner, _CONVOLVED, padding=_CONVOLVED - 1, groups=inner)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.x_proj = nn.Linear(inner, rank + 2 * _STATE, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        step = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp()
        with torch.no_grad():  # softplus of the bias is the step
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.in_proj(x).chunk(2, -1)
        u = functional.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        low, b, c = self.x_proj(u).split((self.dt_proj.in_features, _STATE, _STATE), -1)
        scanned = selective_scan(u, self.dt_proj(low), -self.A_log.exp(), b, c, self.D)
        return self.out_proj(scanned * functional.silu(gate))


class BidirectionalBlock(nn.Module):
    """A sequence ``[N, L, C]`` plus the mean of its scans from the front and from the back, by the same weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_norm = nn.RMSNorm(width, eps=1e-5)
        self.mamba_layer = _Mixer(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a sequence of the same shape."""
        normal = self.pre_norm(x)
        return x + (self.mamba_layer(normal) + self.mamba_layer(normal.flip(1)).flip(1)) / 2


class SparseMixer(nn.Module):
    """A block that reads a share of the tokens, those of the largest weight, and lets all others pass by.

    The weights are a softmax of a gate over all tokens of the picture. The tokens that are kept stand in the order of
    their weights, the largest first; of two that are equal the one that comes first in the picture. What becomes of
    them counts by their weight; each of the others is added to itself by its own.
    """

    def __init__(self, width: int, keep: int, noise: float) -> None:
        """Build it.

        Parameters
        ----------
        width
            Channels of a token.
        keep
            One token of so many is kept.
        noise
            Scale of the Gumbel noise that disturbs the choice in training, and only there.
        """
        super().__init__()
        self.spatial_gate = nn.Linear(width, 1, bias=False)
        self.spatial_mamba_mixer = BidirectionalBlock(width)
        self.keep, self.noise = keep, noise

    def forward(self, x: Tensor, overall: int) -> tuple[Tensor, Tensor]:
        """Return the tokens, and which were kept in the order of the scan.

        Parameters
        ----------
        x
            Tokens ``[N, L, C]``.
        overall
            Number of means, over as many parts of all tokens, that the block reads before those that are kept.

        Returns
        -------
        tuple
            ``[N, L, C]``, and ``[N, L // keep]`` int64.
        """
        logits = self.spatial_gate(x).squeeze(-1)
        weight = logits.softmax(1)
        rank = weight.detach()
        if self.training and self.noise > 0:
            gumbel = -torch.empty_like(rank).exponential_().log()
            rank = logits.detach() + self.noise * gumbel
        kept = rank.argsort(dim=1, descending=True, stable=True)[:, : x.shape[1] // self.keep]
        index = kept[..., None].expand(-1, -1, x.shape[2])
        read = x.gather(1, index)
        if overall:
            read = torch.cat(
                (functional.adaptive_avg_pool1d(x.transpose(1, 2), overall).transpose(1, 2), read), 1
            )
        mixed = self.spatial_mamba_mixer(read)[:, overall:] * weight.gather(1, kept)[..., None]
        return x + (x * weight[..., None]).scatter(1, index, mixed.to(x.dtype)), kept


class _Patches(nn.Module):
    """Patches that overlap as tokens: ``[N, C, H, W]`` -> a map ``[N, width, h, w]``, normalised."""

    def __init__(self, channels: int, width: int, side: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, side, stride, side // 2)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DynamicVis(nn.Module):
    """The backbone, for pictures of any size."""

    def __init__(
        self,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 4, 16, 4),
        *,
        side: int = 512,
        keep: Sequence[int] = (8, 4, 2, 1),
        overall: bool = True,
        noise: float = 0.1,
    ) -> None:
        """Build it.

        Parameters
        ----------
        widths, depths
            Channels and blocks of the four stages.
        side
            Pixels of the pictures whose places were learned; for others the table of places is enlarged or reduced.
        keep
            Stage by stage, one token of how many a block reads.
        overall
            True where a block reads means over all tokens first, as many as the stage's map has rows.
        noise
            See `SparseMixer`.
        """
        super().__init__()
        self.grid = (side - 1) // _STRIDES[0] + 1
        self.overall = overall
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, widths[0]))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    _Patches(channels, width, _KERNELS[i], _STRIDES[i]),
                    nn.ModuleList(SparseMixer(width, keep[i], noise) for _ in range(depths[i])),
                    nn.LayerNorm(width, eps=1e-6),
                )
            )
            for i, (channels, width) in enumerate(zip((3, *widths), widths, strict=False))
        )

    def stages(self, pixels: Tensor) -> Iterator[Stage]:
        """Yield the four stages of normalised pictures ``[N, 3, H, W]``, finest first, at strides of 4 to 32 px."""
        x = pixels
        for i, layer in enumerate(self.layers):
            patches, blocks, norm = cast("tuple[_Patches, nn.ModuleList, nn.LayerNorm]", layer)
            x = patches(x)
            size, tokens = x.shape[2:], tokens_of(x)
            if i == 0:
                tokens = tokens + self._places(size)
            chosen = []
            for block in blocks:
                tokens, kept = block(tokens, size[0] if self.overall else 0)
                unread = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=kept.device)
                chosen.append(unread.scatter(1, kept, True))
            x = map_of(norm(tokens), size)
            yield Stage(x, torch.stack(chosen, 1).unflatten(2, size))

    def _places(self, size: Sequence[int]) -> Tensor:
        """Codes of the places of a map of that size, ``[1, rows * columns, C]``."""
        if tuple(size) == (self.grid, self.grid):
            return self.pos_embed
        learned = map_of(self.pos_embed, (self.grid, self.grid))
        return tokens_of(functional.interpolate(learned, tuple(size), mode="bicubic", align_corners=False))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps of the four stages ``[N, C, h, w]``."""
        return [stage.map for stage in self.stages(pixels)]

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return the mean of the last stage's map, ``[N, C]``, of normalised pictures ``[N, 3, H, W]``."""
        return self.dense_vectors(pixels, tower).mean((2, 3))

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return the map of the last stage, a vector for each 32 px, ``[N, C, h, w]``."""
        *_, last = self.stages(pixels)
        return last.map

    def selection(self, pixels: Tensor, tower: str = "image") -> list[Tensor]:
        """Return which tokens the blocks read: for each stage ``[N, blocks, h, w]``, True where a token was kept."""
        return [stage.kept for stage in self.stages(pixels)]
