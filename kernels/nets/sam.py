"""SAM's image encoder: a plain vision transformer that attends in windows, and over the whole image now and then.

Kirillov, A. et al. (2023): Segment Anything, https://arxiv.org/abs/2304.02643; windows and decomposed relative
positions after Li, Y. et al. (2022): Exploring Plain Vision Transformer Backbones for Object Detection,
https://arxiv.org/abs/2203.16527. The names are those of the published checkpoint, which transformers'
`SamVisionEncoder` does not keep. Maps inside are ``[N, H, W, C]``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import ChannelNorm

__all__ = ["SamViT"]

PATCH, TRAINED_SIDE = 16, 1024


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


def _offsets(table: Tensor, side: int) -> Tensor:
    """Return ``[side, side, C]``: the entry of ``table`` for each pair of query and key along one axis.

    A table that was made for another side is stretched to the offsets of this one.
    """
    needed = 2 * side - 1
    if table.shape[0] != needed:
        table = functional.interpolate(table.T[None], size=needed, mode="linear", align_corners=False)[0].T
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None, :] + side - 1]


class _Attention(nn.Module):
    """Attention of all tokens of a map, with a bias for the offset in rows and one for the offset in columns."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        n, rows, cols, _ = x.shape
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        where = q.unflatten(2, (rows, cols))
        by_row = torch.einsum("nhrcd,rkd->nhrck", where, _offsets(self.rel_pos_h, rows))
        by_col = torch.einsum("nhrcd,ckd->nhrck", where, _offsets(self.rel_pos_w, cols))
        bias = (by_row[..., :, None] + by_col[..., None, :]).reshape(n, self.heads, rows * cols, rows * cols)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(n, rows, cols, -1))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(functional.gelu(self.lin1(x)))


class _Block(nn.Module):
    """Attention and perceptron; ``window`` tokens a side at a time, 0 for the whole map."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, window or TRAINED_SIDE // PATCH)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)

    def _in_windows(self, x: Tensor) -> Tensor:
        """Attend in windows; those at the lower and right edge are filled up with zeros, which are attended to."""
        n, rows, cols, width = x.shape
        side = self.window
        x = functional.pad(x, (0, 0, 0, -cols % side, 0, -rows % side))
        down, across = x.shape[1] // side, x.shape[2] // side
        x = x.view(n, down, side, across, side, width).transpose(2, 3).reshape(-1, side, side, width)
        x = self.attn(x).view(n, down, across, side, side, width).transpose(2, 3)
        return x.reshape(n, down * side, across * side, width)[:, :rows, :cols]

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self._in_windows(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))


class SamViT(nn.Module):
    """``[N, 3, H, W]``, sides multiples of 16 -> features ``[N, out, H / 16, W / 16]``.

    The position table was made for 1024 px; for other sides it is resampled (bicubic, antialiased), the relative
    positions of the blocks that see the whole image likewise (linear).
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        window: int = 14,
        everywhere: Collection[int] = (2, 5, 8, 11),
        out: int = 256,
    ) -> None:
        super().__init__()
        side = TRAINED_SIDE // PATCH
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))
        self.patch_embed = _PatchEmbed(width)
        self.blocks = nn.ModuleList(
            _Block(width, heads, 0 if i in everywhere else window) for i in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, out, 1, bias=False),
            ChannelNorm(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            ChannelNorm(out),
        )

    def _positions(self, rows: int, cols: int) -> Tensor:
        table = self.pos_embed
        if table.shape[1:3] == (rows, cols):
            return table
        resampled = functional.interpolate(
            table.permute(0, 3, 1, 2), size=(rows, cols), mode="bicubic", align_corners=False, antialias=True
        )
        return resampled.permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        x = self.patch_embed(x)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))
