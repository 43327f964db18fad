"""``galileo-nano``: a vector of one date of Sentinel-2 or Sentinel-1, by a transformer of 1.0 M parameters."""

from __future__ import annotations

from ..contract import InputSpec
from .contract import Profile, Tower

__all__ = ["GALILEO_NANO"]

_SIDE = 64
_BANDS = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
_S2 = InputSpec(bands=_BANDS, units="reflectance", resolution=10)
_S1 = InputSpec(bands=("vv", "vh"), units="dB", resolution=10)

GALILEO_NANO = Profile(
    name="galileo-nano",
    description="Galileo nano: a vector of one date of Sentinel-2 or Sentinel-1, by a transformer of 1.0 M parameters",
    network="tilewright.kernels.nets.galileo:Galileo",
    towers={"s2": Tower(_S2, _SIDE), "s1": Tower(_S1, _SIDE)},
    dim=128,
    citation="Tseng et al. 2025, https://arxiv.org/abs/2502.09356",
    licence="Apache-2.0 (this code); official code and weights: MIT",
    text=False,
    dense=True,
    status="reconstruction",
)
