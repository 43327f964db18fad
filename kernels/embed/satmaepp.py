"""``satmaepp``: a vector of ten bands of Sentinel-2, by a transformer that learned to fill in hidden parts of them."""

from __future__ import annotations

from ..contract import InputSpec
from .contract import Profile, Tower

__all__ = ["SATMAEPP", "SATMAEPP_MAE"]

_BANDS = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
_SIDE = 96


def _profile(name: str, about: str, network: str) -> Profile:
    sentinel2 = InputSpec(bands=_BANDS, units="reflectance", resolution=10)
    return Profile(
        name=name,
        description=f"SatMAE++: a vector of ten bands of Sentinel-2, by {about}",
        network=f"tilewright.kernels.nets.{network}",
        towers={"image": Tower(sentinel2, _SIDE, resize="none")},
        dim=1024,
        citation="Noman et al. 2024, https://arxiv.org/abs/2403.05419",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
        text=False,
        dense=True,
        extra="models",
    )


SATMAEPP = _profile("satmaepp", "the encoder as it was fine-tuned on 62 classes", "satmaepp:SatMAEpp")
SATMAEPP_MAE = _profile(
    "satmaepp-mae", "the encoder of the masked autoencoder", "satmaepp_mae:SatMAEppAutoencoder"
)
