"""SeaFormer-L: mobile convolutions, and on the coarse maps attention along rows and columns that were averaged first.

Wan, Q. et al. (2023): SeaFormer: Squeeze-enhanced Axial Transformer for Mobile Semantic Segmentation,
https://arxiv.org/abs/2301.13156. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SeaFormer"]

HEADS = 8
POSITIONS = 16
"""Learned positions along an axis, resampled to its length."""
STAGES: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((3, 3, 32, 1), (3, 4, 64, 2), (3, 4, 64, 1)),
    ((5, 4, 128, 2), (5, 4, 128, 1)),
    ((3, 4, 192, 2), (3, 4, 192, 1)),
    ((5, 4, 256, 2),),
    ((3, 6, 320, 2),),
)
"""Kernel side, expansion, channels and stride of the convolution blocks."""
ATTENTION = ((192, 16, 2), (256, 20, 4), (320, 24, 6))
"""Channels, width of a head's key and expansion in the last three stages."""
BLOCKS = 3


class _ConvNorm(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class _Inverted(nn.Module):
    """Inverted residual of MobileNetV2."""

    def __init__(self, channels: int, kernel: int, expansion: int, out: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.added = stride == 1 and channels == out
        self.conv = nn.Sequential(
            _ConvNorm(channels, inner),
            nn.ReLU(),
            _ConvNorm(inner, inner, kernel, stride, groups=inner),
            nn.ReLU(),
            _ConvNorm(inner, out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.added else self.conv(x)


class _Convolutions(nn.Module):
    def __init__(self, channels: int, blocks: Sequence[tuple[int, int, int, int]], *, first: bool) -> None:
        super().__init__()
        if first:
            self.stem_block = nn.Sequential(_ConvNorm(3, channels, 3, 2), nn.ReLU())
        for number, (kernel, expansion, out, stride) in enumerate(blocks, 1):
            self.add_module(f"layer{number}", _Inverted(channels, kernel, expansion, out, stride))
            channels = out

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class _Positions(nn.Module):
    """Learned positions added along an axis ``[N, C, length]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, channels, POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.interpolate(self.pos_embed, size=x.shape[-1], mode="linear")


def _heads(x: Tensor) -> Tensor:
    """``[N, C, length]`` -> ``[N, heads, length, C / heads]``."""
    return x.unflatten(1, (HEADS, -1)).transpose(-1, -2)


class _Attention(nn.Module):
    """Attention of the row means among each other and of the column means, under a gate with local detail."""

    def __init__(self, channels: int, key: int) -> None:
        super().__init__()
        keys, values = key * HEADS, 2 * key * HEADS
        self.to_q = _ConvNorm(channels, keys)
        self.to_k = _ConvNorm(channels, keys)
        self.to_v = _ConvNorm(channels, values)
        self.proj = nn.Sequential(nn.ReLU6(), _ConvNorm(values, channels))
        self.proj_encode_row = nn.Sequential(nn.ReLU6(), _ConvNorm(values, values))
        self.pos_emb_rowq = _Positions(keys)
        self.pos_emb_rowk = _Positions(keys)
        self.proj_encode_column = nn.Sequential(nn.ReLU6(), _ConvNorm(values, values))
        self.pos_emb_columnq = _Positions(keys)
        self.pos_emb_columnk = _Positions(keys)
        every = 2 * keys + values
        self.dwconv = _ConvNorm(every, every, 3, groups=every)
        self.pwconv = _ConvNorm(every, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        detail = self.pwconv(functional.relu6(self.dwconv(torch.cat((q, k, v), dim=1))))
        rows = _along(self.pos_emb_rowq(q.mean(3)), self.pos_emb_rowk(k.mean(3)), v.mean(3))
        cols = _along(self.pos_emb_columnq(q.mean(2)), self.pos_emb_columnk(k.mean(2)), v.mean(2))
        context = self.proj_encode_row(rows.unsqueeze(3)) + self.proj_encode_column(cols.unsqueeze(2))
        return functional.hardsigmoid(self.proj(v + context)) * detail


def _along(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention along one axis, all ``[N, C, length]``."""
    out = functional.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v))
    return out.transpose(-1, -2).flatten(1, 2)


class _Perceptron(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = _ConvNorm(channels, inner)
        self.dwconv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = _ConvNorm(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu6(self.dwconv(self.fc1(x))))


class _Block(nn.Module):
    def __init__(self, channels: int, key: int, expansion: int) -> None:
        super().__init__()
        self.attn = _Attention(channels, key)
        self.mlp = _Perceptron(channels, channels * expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class _Blocks(nn.Module):
    def __init__(self, channels: int, key: int, expansion: int) -> None:
        super().__init__()
        self.transformer_blocks = nn.Sequential(*(_Block(channels, key, expansion) for _ in range(BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer_blocks(x)


class SeaFormer(nn.Module):
    """``[N, 3, H, W]`` -> maps of 64, 128, 192 and 256 channels at strides of 4, 8, 16 and 32 px.

    The fifth stage and the classifier of ImageNet are in the checkpoints and not called.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        for number, blocks in enumerate(STAGES, 1):
            self.add_module(f"smb{number}", _Convolutions(channels, blocks, first=number == 1))
            channels = blocks[-1][2]
        for number, (width, key, expansion) in enumerate(ATTENTION, 1):
            self.add_module(f"trans{number}", _Blocks(width, key, expansion))
        self.linear = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""
        first = self.get_submodule("smb1")(x)
        second = self.get_submodule("smb2")(first)
        third = self.get_submodule("trans1")(self.get_submodule("smb3")(second))
        return [first, second, third, self.get_submodule("trans2")(self.get_submodule("smb4")(third))]
