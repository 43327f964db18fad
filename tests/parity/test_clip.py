"""CLIP against numbers of open_clip and of FarSLIP's fork: names, vectors with both activations, maps, pictures."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import shapes, weights_by_rule
from official import stream

from tilewright.kernels.embed import Tower, profiles
from tilewright.kernels.nets.clip import OpenCLIP

OFFICIAL = Path(__file__).parent / "official"
SCALE = {"logit_scale": torch.tensor(math.log(100.0))}
LISTS = ("RN50", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")


def numbers(folder: str) -> dict[str, torch.Tensor]:
    content = np.load(OFFICIAL / folder / "public.npz")
    return {n: torch.from_numpy(content[n]) for n in content.files if content[n].dtype.kind in "fi"}


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    worst = float((found - expected).abs().max())
    assert worst <= tolerance, worst
    assert float(expected.max() - expected.min()) > 100 * tolerance


@pytest.mark.parametrize("size", LISTS)
def test_names_and_shapes_are_official(size: str) -> None:
    keys = json.loads((OFFICIAL / "openclip" / f"keys_{size}.json").read_text())
    with torch.device("meta"):
        network = OpenCLIP(**profiles.ARCHITECTURES[size.lower()])
    assert list(shapes(network).items()) == list(keys.items())


def test_which_profile_has_which_activation() -> None:
    """The two activations leave no trace in a checkpoint, so the profile alone decides."""
    quick = {
        name
        for name in profiles.__all__
        if name.isupper() and getattr(profiles, name).arguments.get("quick_gelu")
    }
    assert quick == {
        "CLIP_RS",
        "FARSLIP1_VIT_B_16",
        "FARSLIP1_VIT_B_32",
        "FARSLIP2_VIT_B_16",
        "FARSLIP2_VIT_B_32",
        "GEORSCLIP_VIT_B_32",
        "GEORSCLIP_VIT_L_14",
        "GEORSCLIP_VIT_L_14_336",
        "SKYCLIP_VIT_L_14",
    }


@cache
def _vit_b_32_state() -> dict[str, torch.Tensor]:
    network = OpenCLIP(**profiles.ARCHITECTURES["vit-b-32"])
    weights_by_rule(network, SCALE)
    return network.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("mark", "quick"), [("gelu", False), ("qg", True)])
def test_vectors_of_vit_b_32_are_official(mark: str, quick: bool) -> None:
    """To 1e-5: the two activations differ by 3e-4 to 1e-3."""
    expected = numbers("openclip")
    network = OpenCLIP(**profiles.ARCHITECTURES["vit-b-32"], quick_gelu=quick).eval()
    network.load_state_dict(_vit_b_32_state())
    pixels = torch.from_numpy(stream(7).standard_normal((2, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        images = torch.nn.functional.normalize(network.image_vectors(pixels), dim=1)
        texts = network.encode_text(expected["ids"], normalize=True)
        close(images, expected[f"img_{mark}"], 1e-5)
        close(texts, expected[f"txt_{mark}"], 1e-5)
        close((100 * images @ texts.T).softmax(1), expected[f"probs_{mark}"], 1e-4)
        close(network.dense_tokens(pixels, "last")[:, ::7], expected[f"tokens_proj_{mark}"], 1e-4)
        dense = network.dense_vectors(pixels)
        assert dense.shape == (2, 512, 7, 7)
        close(dense.flatten(2).transpose(1, 2)[:, ::7], expected[f"tokens_proj_{mark}"], 1e-4)


def small() -> OpenCLIP:
    network = OpenCLIP(
        64,
        {"image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 24},
        {"context_length": 77, "vocab_size": 500, "width": 64, "heads": 4, "layers": 2},
        quick_gelu=True,
        dense="segearth",
    ).eval()
    weights_by_rule(network, SCALE)
    return network


def test_maps_are_those_of_farslip() -> None:
    expected, network = numbers("farslip"), small()
    keys = json.loads((OFFICIAL / "farslip" / "keys_small.json").read_text())
    assert list(shapes(network).items()) == list(keys.items())
    pixels = torch.from_numpy(stream(7).standard_normal((2, 3, 64, 64)).astype(np.float32))
    with torch.inference_mode():
        close(network.image_vectors(pixels), expected["pooled_SegEarth"], 4e-5)
        close(network.encode_text(expected["ids"], normalize=True), expected["encode_text_norm"], 1e-5)
        for kind, name in (("segearth", "SegEarth"), ("maskclip", "MaskCLIP"), ("input", "vanilla_other")):
            close(network.dense_tokens(pixels, kind), expected[f"tokens_{name}"], 5e-5)
        dense = torch.nn.functional.normalize(network.dense_vectors(pixels), dim=1)
        texts = torch.nn.functional.normalize(expected["text_feats"], dim=1)
        likeness = torch.einsum("ndhw,td->nhwt", dense, texts)
        close(likeness.flatten(1, 2), expected["dense_sim_SegEarth"], 1e-5)
        assert torch.equal(likeness.argmax(3), expected["argmax_map"])


def test_pictures_are_fitted_as_pil_does_it() -> None:
    """A picture of 410 x 300: the shorter side fitted by cubic convolution, the middle cut out.

    PIL rounds to 8 bits after each of its two passes, tiles do not: a step and a half of 1/255 is allowed.
    """
    cells = stream(7).integers(0, 256, (30, 41, 3), np.uint8)
    picture = torch.from_numpy(cells.repeat(10, 0).repeat(10, 1)).permute(2, 0, 1)[None].float()
    tower: Tower = profiles.REMOTECLIP_VIT_B_32.towers["image"]
    found = tower.fitted(tower.normalised(picture))[0, :, ::8, ::8]
    close(found, numbers("openclip")["preprocess_out_sub"], 1.5 / 255 / 0.2613)
