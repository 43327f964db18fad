"""VMamba: blocks that scan a map in four orders, row by row and column by column, forwards and backwards.

Liu, Y. et al. (2024): VMamba, https://arxiv.org/abs/2401.10166, in the form without a gate (``v3noz``), channels last
and with a state of one number. Written from the paper and from the names and shapes of published weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .selective_scan import selective_scan

__all__ = ["ToFirst", "ToLast", "VMamba", "VSSBlock"]

ORDERS = 4


class ToLast(nn.Module):
    """``[N, C, H, W]`` -> ``[N, H, W, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its channels last."""
        return x.permute(0, 2, 3, 1)


class ToFirst(nn.Module):
    """``[N, H, W, C]`` -> ``[N, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its channels first."""
        return x.permute(0, 3, 1, 2)


class _Scan2d(nn.Module):
    """Every pixel hears all others, by scans of the map in four orders, each with steps of its own.

    The orders are row by row, column by column, and these two backwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, rank = 2 * channels, math.ceil(channels / 16)
        bound, step = rank**-0.5, torch.empty(ORDERS, inner).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.x_proj_weight = nn.Parameter(
            torch.empty(ORDERS, rank + 2, inner).uniform_(-(inner**-0.5), inner**-0.5)
        )
        self.dt_projs_weight = nn.Parameter(torch.empty(ORDERS, inner, rank).uniform_(-bound, bound))
        self.dt_projs_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        self.A_logs = nn.Parameter(torch.zeros(ORDERS * inner, 1))
        self.Ds = nn.Parameter(torch.ones(ORDERS * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.in_proj = nn.Linear(channels, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def _scanned(self, u: Tensor, order: int) -> Tensor:
        """Scan a sequence ``[N, L, D]`` with the steps of one order."""
        inner = u.shape[-1]
        mine = slice(order * inner, (order + 1) * inner)
        low, b, c = functional.linear(u, self.x_proj_weight[order]).split(
            (self.dt_projs_weight.shape[-1], 1, 1), dim=-1
        )
        delta = functional.linear(low, self.dt_projs_weight[order], self.dt_projs_bias[order])
        return selective_scan(u, delta, -self.A_logs[mine, 0].exp(), b, c, self.Ds[mine])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d(self.in_proj(x).permute(0, 3, 1, 2))
        x = functional.silu(x).permute(0, 2, 3, 1)
        rows, columns = x.shape[1:3]
        by_row, by_column = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
        down = self._scanned(by_row, 0) + self._scanned(by_row.flip(1), 2).flip(1)
        across = self._scanned(by_column, 1) + self._scanned(by_column.flip(1), 3).flip(1)
        merged = down.unflatten(1, (rows, columns)) + across.unflatten(1, (columns, rows)).transpose(1, 2)
        return self.out_proj(self.out_norm(merged))


class _Perceptron(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class VSSBlock(nn.Module):
    """A scan in four orders and a perceptron, each normalised before and added; ``[N, H, W, C]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.op = _Scan2d(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Perceptron(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


def _halved(channels: int, out: int) -> tuple[nn.Module, ...]:
    """From channels first to channels last, at half the side."""
    return nn.Conv2d(channels, out, 3, stride=2, padding=1), ToLast(), nn.LayerNorm(out)


class _Stage(nn.Module):
    def __init__(self, channels: int, depth: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(VSSBlock(channels) for _ in range(depth)))
        self.downsample = (
            nn.Identity() if last else nn.Sequential(ToFirst(), *_halved(channels, 2 * channels))
        )


class VMamba(nn.Module):
    """``[N, 3, H, W]`` -> four normalised maps ``[N, width * 2**i, H / 4 / 2**i, W / 4 / 2**i]``, finest first."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            *_halved(3, width // 2), ToFirst(), nn.GELU(), *_halved(width // 2, width)
        )
        stages = [_Stage(width * 2**i, d, last=i == len(depths) - 1) for i, d in enumerate(depths)]
        self.layers = nn.ModuleList(stages)
        for i in range(len(depths)):
            self.add_module(f"outnorm{i}", nn.LayerNorm(width * 2**i))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the stages."""
        x, maps = self.patch_embed(x), []
        for i, stage in enumerate(self.layers):
            found = stage.get_submodule("blocks")(x)
            maps.append(self.get_submodule(f"outnorm{i}")(found).permute(0, 3, 1, 2))
            x = stage.get_submodule("downsample")(found)
        return maps
