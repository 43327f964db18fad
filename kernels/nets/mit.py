"""Mix Transformer: overlapping patches, attention to a shrunken map, and a convolution inside the feed-forward.

Xie, E. et al. (2021): SegFormer, https://arxiv.org/abs/2105.15203, with the names of the authors' checkpoints. Written
from the paper; maps are ``[N, C, H, W]`` and tokens ``[N, H * W, C]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .parts import attend, map_of, tokens_of

__all__ = ["MixTransformer"]

EPS = 1e-6
"""Of the normalisations beside the blocks; those inside patches and attention have torch's own."""


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, side: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, stride, padding=side // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """Return the tokens and the sides of their map."""
        x = self.proj(x)
        return self.norm(tokens_of(x)), x.shape[-2:]


class _Attention(nn.Module):
    """All tokens look at a map whose sides are ``reduction`` times shorter."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        few = self.norm(tokens_of(self.sr(map_of(x, size)))) if self.reduction > 1 else x
        k, v = self.kv(few).chunk(2, dim=-1)
        return self.proj(attend(self.q(x), k, v, self.heads))


class _Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return tokens_of(self.dwconv(map_of(x, size)))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = _Depthwise(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.fc2(functional.gelu(self.dwconv(self.fc1(x), size)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = _Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = _FeedForward(width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.mlp(self.norm2(x), size)


class MixTransformer(nn.Module):
    """``[N, 3, H, W]``, sides multiples of 32 -> maps of four stages, at strides of 4, 8, 16 and 32 px.

    ``sides`` are those of the patches in each stage: 7, 3, 3, 3 in the paper.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        sides: Sequence[int] = (7, 3, 3, 3),
        heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
    ) -> None:
        super().__init__()
        self.stages = range(1, len(widths) + 1)
        channels = (3, *widths)
        for i, side in zip(self.stages, sides, strict=True):
            step = 4 if i == 1 else 2
            setattr(self, f"patch_embed{i}", _Patches(channels[i - 1], channels[i], side, step))
        for i, depth, head, reduction in zip(self.stages, depths, heads, reductions, strict=True):
            blocks = nn.ModuleList(_Block(channels[i], head, reduction) for _ in range(depth))
            setattr(self, f"block{i}", blocks)
            setattr(self, f"norm{i}", nn.LayerNorm(channels[i], EPS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        maps = []
        for i in self.stages:
            tokens, size = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                tokens = block(tokens, size)
            x = map_of(self.get_submodule(f"norm{i}")(tokens), size)
            maps.append(x)
        return maps
