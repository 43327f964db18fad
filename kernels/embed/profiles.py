"""The published models of the CLIP kind as profiles: architecture, activation, size, statistics, tokenizer, licence.

What of each was checked stands on the page ``docs/kernels/embedders.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..contract import InputSpec
from .contract import Profile, Tower

__all__ = [
    "CLIP_RS",
    "FARSLIP1_VIT_B_16",
    "FARSLIP1_VIT_B_32",
    "FARSLIP2_VIT_B_16",
    "FARSLIP2_VIT_B_32",
    "GEORSCLIP_VIT_B_32",
    "GEORSCLIP_VIT_H_14",
    "GEORSCLIP_VIT_L_14",
    "GEORSCLIP_VIT_L_14_336",
    "GIT_RSCLIP",
    "GIT_RSCLIP_BASE",
    "PRIORCLIP",
    "REMOTECLIP_RN50",
    "REMOTECLIP_VIT_B_32",
    "REMOTECLIP_VIT_L_14",
    "RS_M_CLIP",
    "SKYCLIP_VIT_B_32",
    "SKYCLIP_VIT_L_14",
    "picture",
]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_FULL = 255.0


def picture(
    side: int,
    mean: tuple[float, ...] = _CLIP_MEAN,
    std: tuple[float, ...] = _CLIP_STD,
    fit: Literal["crop", "squash"] = "crop",
) -> Tower:
    """Return the tower of a model of 8-bit pictures; ``mean`` and ``std`` are of values of 0 to 1."""
    image = InputSpec(
        bands=("red", "green", "blue"),
        units="8-bit",
        mean=tuple(round(value * _FULL, 10) for value in mean),
        std=tuple(round(value * _FULL, 10) for value in std),
    )
    return Tower(image, side, (0.0, _FULL), fit=fit)


def _text(width: int, heads: int, layers: int = 12, length: int = 77) -> dict[str, Any]:
    return {
        "context_length": length,
        "vocab_size": 49408,
        "width": width,
        "heads": heads,
        "layers": layers,
    }


def _vision(side: int, width: int, layers: Any, patch: int | None, **more: int) -> dict[str, Any]:
    return {"image_size": side, "width": width, "layers": layers, "patch_size": patch, **more}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "rn50": {
        "embed_dim": 1024,
        "vision_cfg": _vision(224, 64, [3, 4, 6, 3], None),
        "text_cfg": _text(512, 8),
    },
    "vit-b-32": {
        "embed_dim": 512,
        "vision_cfg": _vision(224, 768, 12, 32),
        "text_cfg": _text(512, 8),
    },
    "vit-b-16": {
        "embed_dim": 512,
        "vision_cfg": _vision(224, 768, 12, 16),
        "text_cfg": _text(512, 8),
    },
    "vit-l-14": {
        "embed_dim": 768,
        "vision_cfg": _vision(224, 1024, 24, 14),
        "text_cfg": _text(768, 12),
    },
    "vit-l-14-336": {
        "embed_dim": 768,
        "vision_cfg": _vision(336, 1024, 24, 14),
        "text_cfg": _text(768, 12),
    },
    "vit-h-14": {
        "embed_dim": 1024,
        "vision_cfg": _vision(224, 1280, 32, 14, head_width=80),
        "text_cfg": _text(1024, 16, 24),
    },
}
"""The sizes of CLIP, by open_clip's names in lower case: arguments of `OpenCLIP`."""

Status = Literal["parity", "trained-here", "reconstruction"]


def _clip(
    brand: str,
    size: str,
    title: str,
    citation: str,
    licence: str,
    *,
    name: str | None = None,
    network: str = "OpenCLIP",
    arguments: Mapping[str, Any] | None = None,
    status: Status = "parity",
) -> Profile:
    """Return the profile ``brand-size`` of a network of open_clip."""
    built = {**ARCHITECTURES[size], **(arguments or {})}
    return Profile(
        name=name or f"{brand}-{size}",
        description=f"{title}: pictures and texts in one space of vectors, by CLIP {size}",
        network=f"tilewright.kernels.nets.clip:{network}",
        towers={"image": picture(built["vision_cfg"]["image_size"])},
        dim=built["embed_dim"],
        citation=citation,
        licence=f"Apache-2.0 (this code); {licence}",
        arguments=built,
        prompt="a satellite photo of {}.",
        dense=size != "rn50",
        status=status,
    )


_QUICK = {"quick_gelu": True}


def _remoteclip(size: str) -> Profile:
    return _clip(
        "remoteclip",
        size,
        "RemoteCLIP",
        "Liu et al. 2023, https://arxiv.org/abs/2306.11029",
        "official code and weights: Apache-2.0",
    )


REMOTECLIP_RN50 = _remoteclip("rn50")
REMOTECLIP_VIT_B_32 = _remoteclip("vit-b-32")
REMOTECLIP_VIT_L_14 = _remoteclip("vit-l-14")


def _georsclip(size: str) -> Profile:
    return _clip(
        "georsclip",
        size,
        "GeoRSCLIP",
        "Zhang et al. 2023, https://arxiv.org/abs/2306.11300",
        "official code: MIT; weights: a Creative Commons licence that the authors do not name further",
        arguments={} if size == "vit-h-14" else _QUICK,
    )


GEORSCLIP_VIT_B_32 = _georsclip("vit-b-32")
GEORSCLIP_VIT_L_14 = _georsclip("vit-l-14")
GEORSCLIP_VIT_L_14_336 = _georsclip("vit-l-14-336")
GEORSCLIP_VIT_H_14 = _georsclip("vit-h-14")


def _skyclip(size: str) -> Profile:
    return _clip(
        "skyclip",
        size,
        "SkyCLIP",
        "Wang et al. 2023, https://arxiv.org/abs/2312.12856",
        "official code: MIT; weights: no licence named",
        arguments=_QUICK if size == "vit-l-14" else {},
    )


SKYCLIP_VIT_B_32 = _skyclip("vit-b-32")
SKYCLIP_VIT_L_14 = _skyclip("vit-l-14")


def _farslip(stage: int, size: str) -> Profile:
    long = stage == 2 and size == "vit-b-16"
    arguments: dict[str, Any] = {**_QUICK, "dense": "segearth"}
    if long:
        arguments["text_cfg"] = _text(512, 8, length=248)
    return _clip(
        f"farslip{stage}",
        size,
        f"FarSLIP, stage {stage}",
        "FarSLIP 2025, https://github.com/NJU-LHRS/FarSLIP",
        "official code: MIT; weights: no licence named",
        network="LongTextCLIP" if long else "OpenCLIP",
        arguments=arguments,
        status="reconstruction" if long else "parity",
    )


FARSLIP1_VIT_B_32 = _farslip(1, "vit-b-32")
FARSLIP1_VIT_B_16 = _farslip(1, "vit-b-16")
FARSLIP2_VIT_B_32 = _farslip(2, "vit-b-32")
FARSLIP2_VIT_B_16 = _farslip(2, "vit-b-16")

PRIORCLIP = _clip(
    "priorclip",
    "vit-b-32",
    "PriorCLIP",
    "Pan et al. 2024, https://arxiv.org/abs/2405.10160",
    "official code: MIT; weights: no licence named",
    name="priorclip",
    status="reconstruction",
)

CLIP_RS = _clip(
    "clip-rs",
    "vit-l-14",
    "CLIP-RS",
    "RS-SQA 2025, https://arxiv.org/abs/2502.13990",
    "weights: no licence named",
    name="clip-rs",
    arguments=_QUICK,
    status="reconstruction",
)

RS_M_CLIP = Profile(
    name="rs-m-clip",
    description="RS-M-CLIP: pictures and texts in ten languages in one space, by CLIP vit-b-32 and XLM-RoBERTa",
    network="tilewright.kernels.nets.clip_multilingual:MultilingualCLIP",
    towers={"image": picture(224)},
    dim=512,
    citation="Silva et al. 2024, https://arxiv.org/abs/2410.23370",
    licence="Apache-2.0 (this code); official weights: MIT",
    arguments={
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12, "heads": 12},
    },
    prompt="a satellite photo of {}.",
    status="reconstruction",
)


def _git_rsclip(name: str, side: int, width: int, layers: int, middle: int, heads: int) -> Profile:
    both = {
        "hidden_size": width,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return Profile(
        name=name,
        description=f"Git-RSCLIP: pictures and texts in one space of vectors, by a SigLIP of {layers} layers",
        network="tilewright.kernels.nets.siglip:SigLIP",
        towers={"image": picture(side, _HALF, _HALF, "squash")},
        dim=width,
        citation="Liu et al. 2025, https://arxiv.org/abs/2501.00895",
        licence="Apache-2.0 (this code); official weights: Apache-2.0",
        arguments={"vision": {**both, "image_size": side, "patch_size": 16}, "text": both},
        temperature=117.3,
        prompt="a remote sensing image of {}",
        status="reconstruction",
    )


GIT_RSCLIP = _git_rsclip("git-rsclip", 256, 1024, 24, 4096, 16)
GIT_RSCLIP_BASE = _git_rsclip("git-rsclip-base", 256, 768, 12, 3072, 12)
