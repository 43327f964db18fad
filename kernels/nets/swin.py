"""Swin transformer with the names of transformers' checkpoints: attention in windows that shift from block to block.

Liu, Z. et al. (2021): Swin Transformer, https://arxiv.org/abs/2103.14030. Windows keep their side at every size: maps
are padded to whole windows, as transformers' ``SwinBackbone`` does (its own names changed with version 5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SwinBackbone", "merge_windows", "relative_index", "shift_mask", "split_windows"]

_FAR = -100.0
"""Added to the score of two tokens of one window that are no neighbours on the map."""


def relative_index(window: int) -> Tensor:
    """Return ``[window**2, window**2]``: where in the table the offset of each pair of tokens is."""
    rows, cols = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    points = torch.stack((rows.flatten(), cols.flatten()))
    offsets = points[:, :, None] - points[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


def split_windows(x: Tensor, window: int) -> Tensor:
    """``[N, H, W, C]`` -> ``[N, windows, window**2, C]``."""
    n, rows, cols, channels = x.shape
    x = x.view(n, rows // window, window, cols // window, window, channels)
    return x.transpose(2, 3).reshape(n, -1, window * window, channels)


def merge_windows(x: Tensor, window: int, rows: int, cols: int) -> Tensor:
    """Undo `split_windows`."""
    n, _, _, channels = x.shape
    x = x.view(n, rows // window, cols // window, window, window, channels)
    return x.transpose(2, 3).reshape(n, rows, cols, channels)


def shift_mask(rows: int, cols: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Return ``[windows, window**2, window**2]``: 0 for neighbours, `_FAR` for what a shift brought together."""
    regions = torch.zeros(1, rows, cols, 1, device=like.device, dtype=like.dtype)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, row in enumerate(cuts):
        for j, col in enumerate(cuts):
            regions[:, row, col] = 3 * i + j
    numbers = split_windows(regions, window)[0, :, :, 0]
    return torch.where(numbers[:, None] == numbers[:, :, None], 0.0, _FAR).to(like.dtype)


class _SelfAttention(nn.Module):
    """Attention inside windows, with a learned bias for each offset."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index(window))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` ``[N, windows, tokens, C]``."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in (self.query, self.key, self.value)
        )
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(*q.shape[:-1], -1))
        return out.transpose(-3, -2).flatten(-2)


class _Dense(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width, heads, window)
        self.output = _Dense(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, mask))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.layernorm_before = nn.LayerNorm(width)
        self.attention = _Attention(width, heads, window)
        self.layernorm_after = nn.LayerNorm(width)
        self.intermediate = _Dense(width, 4 * width)
        self.output = _Dense(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[N, H, W, C]``."""
        x = x + self._attended(self.layernorm_before(x))
        inner = functional.gelu(self.intermediate(self.layernorm_after(x)))
        return x + self.output(inner)

    def _attended(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, -cols % self.window, 0, -rows % self.window))
        high, wide, mask = *x.shape[1:3], None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(high, wide, self.window, self.shift, x)
        x = merge_windows(self.attention(split_windows(x, self.window), mask), self.window, high, wide)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :rows, :cols]


class _Merging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        four = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, dim=-1)))


class _Stage(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, heads, window, window // 2 if i % 2 else 0) for i in range(depth)
        )
        if not last:
            self.downsample = _Merging(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return self.projection(x).permute(0, 2, 3, 1)


class _Embeddings(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_embeddings = _Patches(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.patch_embeddings(x))


class _Stages(nn.Module):
    def __init__(self, stages: Sequence[_Stage]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(stages)


class SwinBackbone(nn.Module):
    """``[N, 3, H, W]`` -> normalised maps of the four stages ``[N, C, h, w]``, at strides of 4, 8, 16 and 32 px."""

    def __init__(self, width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(len(depths))]
        last = len(depths) - 1
        self.embeddings = _Embeddings(width)
        self.encoder = _Stages(
            [_Stage(widths[i], depths[i], heads[i], window, last=i == last) for i in range(len(depths))]
        )
        self.hidden_states_norms = nn.ModuleDict(
            {f"stage{i + 1}": nn.LayerNorm(widths[i]) for i in range(len(depths))}
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        x = self.embeddings(x)
        maps = []
        for stage, norm in zip(self.encoder.layers, self.hidden_states_norms.values(), strict=True):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)  # type: ignore[operator]
        return maps
