"""SwinIR: groups of Swin blocks at the full size of the picture, which is enlarged at their end.

Liang, J. et al. (2021): SwinIR: Image Restoration Using Swin Transformer, https://arxiv.org/abs/2108.10257. Names are
those of the authors' checkpoints for classical and for lightweight super-resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .pictures import DIV2K_MEAN, enlarger
from .swin import merge_windows, relative_index, shift_mask, split_windows

__all__ = ["SwinIR"]

INNER = 64
"""Channels of the maps that are enlarged, in the classical network."""


class _Attention(nn.Module):
    """Attention inside windows ``[N, windows, tokens, C]``, with a learned bias for each offset."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(-3, -2) for part in split.unbind(-3))
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(*q.shape[:-1], -1))
        return self.proj(out.transpose(-3, -2).flatten(-2))


class _Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    """``[N, H, W, C]`` -> the same; ``shift`` moves the windows by that many pixels, up and to the left."""

    def __init__(self, width: int, heads: int, window: int, shift: int, patch: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        if shift:  # for its name: the mask of the pictures of the training, made again for the size at hand
            self.register_buffer("attn_mask", shift_mask(patch, patch, window, shift, torch.zeros(())))
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Feed(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attended(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attended(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[1:3]
        mask = shift_mask(rows, cols, self.window, self.shift, x) if self.shift else None
        x = x.roll((-self.shift, -self.shift), (1, 2))
        x = merge_windows(self.attn(split_windows(x, self.window), mask), self.window, rows, cols)
        return x.roll((self.shift, self.shift), (1, 2))


class _Blocks(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, patch: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, heads, window, window // 2 if i % 2 else 0, patch) for i in range(depth)
        )


class _Group(nn.Module):
    """Swin blocks, a convolution, and what went in."""

    def __init__(self, width: int, depth: int, heads: int, window: int, patch: int) -> None:
        super().__init__()
        self.residual_group = _Blocks(width, depth, heads, window, patch)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found = x
        for block in self.residual_group.blocks:
            found = block(found)
        return x + self.conv(found.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)


class SwinIR(nn.Module):
    """Red, green and blue of 0 to 1 ``[N, 3, H, W]`` -> the same ``[N, 3, H * scale, W * scale]``, not clipped.

    Sides that are no multiples of the window are mirrored at the right and at the bottom, and cut off again.
    ``patch`` is the side of the pictures that the network was trained on: only shapes of buffers depend on it.
    """

    mean: Tensor

    def __init__(
        self,
        width: int = 180,
        depths: Sequence[int] = (6,) * 6,
        heads: Sequence[int] = (6,) * 6,
        scale: int = 2,
        patch: int = 48,
        *,
        direct: bool = False,
        window: int = 8,
    ) -> None:
        super().__init__()
        self.window, self.scale, self.direct = window, scale, direct
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.patch_embed = _Normed(width)
        self.layers = nn.ModuleList(
            _Group(width, depth, count, window, patch) for depth, count in zip(depths, heads, strict=True)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        if direct:
            self.upsample = nn.Sequential(
                nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
            )
        else:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(width, INNER, 3, padding=1), nn.LeakyReLU())
            self.upsample = enlarger(INNER, scale)
            self.conv_last = nn.Conv2d(INNER, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture."""
        rows, cols = x.shape[-2:]
        x = functional.pad(x, (0, -cols % self.window, 0, -rows % self.window), mode="reflect")
        shallow = self.conv_first(x - self.mean)
        fine = self._enlarged(self.conv_after_body(self._deep(shallow)) + shallow) + self.mean
        return fine[..., : rows * self.scale, : cols * self.scale]

    def _deep(self, x: Tensor) -> Tensor:
        x = self.patch_embed.norm(x.permute(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def _enlarged(self, x: Tensor) -> Tensor:
        if self.direct:
            return self.upsample(x)
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))
