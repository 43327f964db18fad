"""Changen2's detectors: ChangeStar (1x256), trained on synthetic pairs and applied without further training."""

from __future__ import annotations

from collections.abc import Mapping

from ..contract import OutputSpec, RadiusAt, TileRule
from ..published import Published
from .binary import IMAGENET, NETS, Binary

__all__ = ["S1C1_VITB", "S1C5_VITB", "S9C1_VITB"]

LAND = (
    "background",
    "bareland",
    "rangeland",
    "developed",
    "road",
    "tree",
    "water",
    "agriculture",
    "building",
)
"""Labels of OpenEarthMap, of which the synthetic pairs of s9 are made."""
DAMAGE = ("background", "no-damage", "minor-damage", "major-damage", "destroyed")
"""Labels of xView2."""

_SIZES = {
    "changen2-s1c1-vitb": {"changes": 1, "classes": 1},
    "changen2-s9c1-vitb": {"changes": 1, "classes": 9},
    "changen2-s1c5-vitb": {"changes": 5, "classes": 1},
}


def _changestar(
    name: str, about: str, read: str, further: Mapping[str, OutputSpec], eps: float = 0.1
) -> Binary:
    return Binary(
        name=name,
        about=f"ChangeStar of Changen2: {about}",
        published=Published(
            f"{NETS}.changestar:ChangeStar", f"{NETS}.changestar:{read}", _SIZES[name], variants=_SIZES
        ),
        norm=IMAGENET,
        tile=TileRule(multiple=32, default=256),
        stride=32,
        reach=RadiusAt(eps=eps, px=64),
        citation="Zheng, Ermon, Kim, Zhang, Zhong 2024, https://arxiv.org/abs/2406.17998",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
        further=further,
    )


def _buildings(when: str) -> OutputSpec:
    return OutputSpec(kind="score", threshold=0.5, description=f"Certainty of a building {when}")


def _land(when: str) -> OutputSpec:
    return OutputSpec(kind="class", classes=LAND, range=(0.0, 1.0), description=f"Land cover {when}")


S1C1_VITB = _changestar(
    "changen2-s1c1-vitb",
    "change of buildings without training pairs, and the buildings of both dates",
    "score_and_classes",
    {"before": _buildings("at the first date"), "after": _buildings("at the second date")},
)
S9C1_VITB = _changestar(
    "changen2-s9c1-vitb",
    "change of land cover without training pairs, and the land cover of both dates",
    "score_and_classes",
    {"before": _land("at the first date"), "after": _land("at the second date")},
)
S1C5_VITB = _changestar(
    "changen2-s1c5-vitb",
    "damage of buildings in four grades",
    "score_and_damage",
    {
        "damage": OutputSpec(
            kind="class", classes=DAMAGE, range=(0.0, 1.0), description="Grade of damage, 0 off buildings"
        ),
        "buildings": _buildings("at the first date"),
    },
    eps=0.15,
)
