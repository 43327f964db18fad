"""CLOSP against the official numbers: names of three sizes, vectors of radar, optical pictures and texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import shapes, weights_by_rule
from official import stream

from tilewright.kernels.embed import closp
from tilewright.kernels.nets.closp import CLOSP

OFFICIAL = Path(__file__).parent / "official" / "closp"


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    content = np.load(OFFICIAL / "public.npz")
    return {n: torch.from_numpy(content[n]) for n in content.files}


@pytest.mark.parametrize(("name", "size"), [("CLOSP_RN", "resnet50"), ("CLOSP_VS", "vit-s")])
def test_names_and_shapes_are_official(name: str, size: str) -> None:
    keys = json.loads((OFFICIAL / f"keys_{size}.json").read_text())
    with torch.device("meta"):
        network = CLOSP(**getattr(closp, name).arguments)
    assert list(shapes(network).items()) == list(keys.items())


def test_names_of_the_large_towers_are_official() -> None:
    keys = json.loads((OFFICIAL / "keys_vit-l_vision_only.json").read_text())
    with torch.device("meta"):
        found = shapes(CLOSP(**closp.CLOSP_VL.arguments))
    assert [(n, s) for n, s in found.items() if not n.startswith("text_model.")] == list(keys.items())


def test_texts_are_official(official: dict[str, torch.Tensor]) -> None:
    network = CLOSP(architecture="resnet10t", s1_classes=0, s2_classes=0).eval()
    weights_by_rule(network)
    with torch.inference_mode():
        found = network.token_vectors(official["input_ids"], official["attention_mask"])
    expected = official["resnet50_text_emb"]
    assert float((found - expected).abs().max()) < 1e-4
    assert float(expected.std()) > 0.1


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Reflectance of thirteen bands and decibels of two, as the official numbers were made."""
    draw = stream(7)
    reflectance = draw.random((2, 13, 120, 120)) * 0.4
    decibels = draw.standard_normal((2, 2, 120, 120)) * 4 - 14
    return torch.from_numpy(reflectance).float(), torch.from_numpy(decibels).float()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mark"), [("CLOSP_RN", "resnet50"), ("CLOSP_VS", "vit-s")])
def test_radar_and_optical_vectors_are_official(
    official: dict[str, torch.Tensor], name: str, mark: str
) -> None:
    """As the towers see pictures of 120 px: ResNet-50 as they are, the ViTs at 224 px."""
    profile = getattr(closp, name)
    network = CLOSP(**profile.arguments).eval()
    weights_by_rule(network)
    with torch.inference_mode():
        for tower, pixels in zip(("s2", "s1"), pictures(), strict=True):
            found = network.image_vectors(profile.towers[tower].fitted(pixels), tower)
            expected = official[f"{mark}_{tower}_emb"]
            worst = float((found - expected).abs().max())
            assert worst < 1e-5 * float(expected.max() - expected.min()), (tower, worst)
