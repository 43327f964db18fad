"""SatCLIP's location encoder: spherical harmonics through a network of sines, in float64.

Klemmer, K. et al. (2023), https://arxiv.org/abs/2311.17179. Names of the parameters are the official ones.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .harmonics import Harmonics, features

__all__ = ["LocationEncoder"]

_FIRST = 30.0
"""Frequency of the first layer's sine; the others have 1."""


class _Sines(nn.Module):
    """Linear layers with a sine after each but the last."""

    def __init__(self, given: int, width: int, layers: int, out: int) -> None:
        super().__init__()
        sides = [given] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sides))
        self.last_layer = nn.Linear(width, out, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.sin((1.0 if i else _FIRST) * layer(x))
        return self.last_layer(x)


class LocationEncoder(nn.Module):
    """Longitude and latitude to a vector."""

    def __init__(
        self,
        degrees: int = 40,
        harmonics: Harmonics = "analytic",
        width: int = 512,
        layers: int = 2,
        out: int = 256,
    ) -> None:
        """Build it.

        Parameters
        ----------
        degrees
            Degrees of the harmonics; their square is the number of features.
        harmonics
            How they are computed.
        width, layers, out
            Units a hidden layer, hidden layers, length of the vector.
        """
        super().__init__()
        self.degrees = degrees
        self.harmonics = harmonics
        self.nnet = _Sines(degrees * degrees, width, layers, out)

    def forward(self, lonlat: Tensor) -> Tensor:
        """Return vectors ``[N, out]`` float64 of places ``[N, 2]`` in degrees."""
        return self.nnet(features(lonlat, self.degrees, self.harmonics))
