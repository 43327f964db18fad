"""Noise that belongs to the ground: a function of the global pixel, not of tile, batch or run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["global_noise"]

_GOLDEN, _MIX1, _MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Splitmix64's finaliser (Steele, Lea and Flood 2014), in wrapping int64 arithmetic."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def global_noise(origin: Tensor, height: int, width: int, channels: int, seed: int) -> Tensor:
    """Return standard normal noise ``[N, channels, height, width]`` float32 for tiles that start at ``origin``.

    ``origin`` is ``[N, 2]`` int64, global (row, column). The chain seed -> row -> column -> channel is hashed
    by splitmix64; two 24-bit uniforms feed the Box-Muller transform in float64.
    """
    import torch

    device = origin.device
    rows = origin[:, 0, None] + torch.arange(height, device=device)
    cols = origin[:, 1, None] + torch.arange(width, device=device)
    state = _mix(torch.tensor(seed, dtype=torch.int64, device=device) + _GOLDEN)
    state = _mix(state + rows * _GOLDEN)[:, :, None]
    state = _mix(state + cols[:, None, :] * _GOLDEN)[:, None]
    channel = torch.arange(1, channels + 1, device=device)[None, :, None, None]
    bits = _mix(state + channel * _GOLDEN)
    first = (_shift(bits, 40) + 1).double() / (1 << 24)
    second = (bits & ((1 << 24) - 1)).double() / (1 << 24)
    return (torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)).float()
