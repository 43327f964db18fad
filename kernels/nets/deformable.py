"""Deformable attention over several maps: each token reads a few places that it chooses itself.

Zhu, X. et al. (2020): Deformable DETR, https://arxiv.org/abs/2010.04159, in plain torch: the places are read by
``grid_sample``, bilinear, zero outside. Names as in the published checkpoints of Mask2Former's pixel decoders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DeformableEncoder"]

Sizes = Sequence[tuple[int, int]]


def _centres(sizes: Sizes, like: Tensor) -> Tensor:
    """Return ``[tokens, 2]``: x and y of every pixel's centre, 0 to 1, of all maps one after the other."""
    found = []
    for rows, cols in sizes:
        y = (torch.arange(rows, device=like.device, dtype=like.dtype) + 0.5) / rows
        x = (torch.arange(cols, device=like.device, dtype=like.dtype) + 0.5) / cols
        found.append(torch.stack((x.repeat(rows), y.repeat_interleave(cols)), dim=-1))
    return torch.cat(found)


class _Attention(nn.Module):
    def __init__(self, width: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor, sizes: Sizes) -> Tensor:
        """``query`` and ``tokens`` ``[N, tokens, C]`` -> the same shape."""
        shape = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, shape[1:]).movedim(2, 1).flatten(0, 1)
        values = self.value_proj(tokens).unflatten(-1, (self.heads, -1)).movedim(2, 1).flatten(0, 1)
        centres = _centres(sizes, query)[:, None]
        out = torch.zeros_like(values)
        for level, (part, (rows, cols)) in enumerate(
            zip(values.split([rows * cols for rows, cols in sizes], dim=1), sizes, strict=True)
        ):
            here = offsets[:, :, :, level].movedim(2, 1).flatten(0, 1)
            places = centres + here / here.new_tensor([cols, rows])
            image = part.transpose(1, 2).unflatten(-1, (rows, cols))
            read = functional.grid_sample(image, 2 * places - 1, align_corners=False)
            out = out + torch.einsum("nctp,ntp->ntc", read, weights[:, :, level])
        merged = out.unflatten(0, (-1, self.heads)).movedim(1, 2).flatten(2)
        return self.output_proj(merged)


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, levels, heads, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
        x = self.norm1(x + self.self_attn(x + positions, x, sizes))
        return self.norm2(x + self.linear2(functional.relu(self.linear1(x))))


class _Layers(nn.Module):
    def __init__(self, layers: Sequence[_Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableEncoder(nn.Module):
    """Maps ``[N, C, h, w]`` and as many maps of positions -> maps that have read each other, of the same shapes."""

    def __init__(
        self, width: int, inner: int, depth: int, levels: int, heads: int = 8, points: int = 4
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.encoder = _Layers([_Layer(width, inner, levels, heads, points) for _ in range(depth)])

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        where = torch.cat(
            [
                x.flatten(2).transpose(1, 2) + level
                for x, level in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        for layer in self.encoder.layers:
            tokens = layer(tokens, where, sizes)
        parts = tokens.split([rows * cols for rows, cols in sizes], dim=1)
        return [part.transpose(1, 2).unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)]
