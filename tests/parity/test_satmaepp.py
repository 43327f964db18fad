"""SatMAE++ against the official numbers: the encoder with both poolings, the autoencoder, the rule of its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import shapes, weights_by_rule
from official import stream

from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.satmaepp import SatMAEpp, display_values
from tilewright.kernels.nets.satmaepp_mae import SatMAEppAutoencoder

OFFICIAL = Path(__file__).parent / "official" / "satmaepp"
BUILT = ("pos_embed", "channel_embed", "channel_cls_embed")
KEPT_BANDS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12]
SMALL = {"width": 64, "channel_width": 16, "heads": 4}


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    content = np.load(OFFICIAL / "public.npz")
    return {n: torch.from_numpy(content[n]) for n in content.files}


def keys(name: str) -> list[tuple[str, object]]:
    return list(json.loads((OFFICIAL / f"keys_{name}.json").read_text()).items())


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert float((found.detach() - expected).abs().max()) <= tolerance


def test_names_of_the_large_one_are_official() -> None:
    with torch.device("meta"):
        network = SatMAEpp()
    assert list(shapes(network).items()) == keys("vit_large")
    assert load_kernel("satmaepp").spec.outputs["embedding"].band_count == 1024


def test_places_are_told_by_the_official_waves(official: dict[str, torch.Tensor]) -> None:
    large = SatMAEpp(depth=0)
    close(large.pos_embed[0, [0, 1, 13, 144]], official["vitL_pos_embed_rows_0_1_13_144"], 1e-6)
    close(large.channel_embed, official["vitL_channel_embed_as_built"], 1e-6)
    small = SatMAEpp(depth=0, **SMALL)
    close(small.channel_embed, official["channel_embed_as_built"], 1e-6)


@pytest.mark.parametrize("pooled", [True, False])
def test_vectors_and_classes_are_official(official: dict[str, torch.Tensor], pooled: bool) -> None:
    network = SatMAEpp(depth=3, global_pool=pooled, **SMALL).eval()
    assert list(shapes(network).items()) == keys(f"vit_small_globalpool{int(pooled)}")
    weights_by_rule(network, keep=BUILT)
    x = torch.from_numpy(stream(7).standard_normal((2, 10, 96, 96)).astype(np.float32))
    with torch.inference_mode():
        features = network.forward_features(x)
        close(features, official[f"feat_gp{int(pooled)}"])
        close(network(x), official[f"logits_gp{int(pooled)}"])


def test_the_autoencoder_is_official(official: dict[str, torch.Tensor]) -> None:
    network = SatMAEppAutoencoder(
        **SMALL, depth=2, decoder_width=32, decoder_depth=1, decoder_heads=4, decoder_channel_width=8
    ).eval()
    assert list(shapes(network).items()) == keys("mae_small")
    weights_by_rule(network, keep=BUILT)
    x = torch.from_numpy(stream(7).standard_normal((1, 10, 96, 96)).astype(np.float32))
    noise = torch.from_numpy(stream(8).random((1, 432)).astype(np.float32))
    with torch.inference_mode():
        made = network(x, noise)
    assert torch.equal(made.hidden, official["mae_mask"])
    close(made.latent[:, :4], official["mae_latent_first4"])
    close(made.patches[:, :, :6], official["mae_pred_patch0_5"])
    close(made.twice[:, :, ::8, ::8], official["mae_pred2x_sub"])
    close(made.fourfold[:, :, ::16, ::16], official["mae_pred4x_sub"])


def test_reflectance_becomes_what_the_authors_show(official: dict[str, torch.Tensor]) -> None:
    """Their rule cuts off what is behind the point, so values are the same and not only close."""
    numbers = official["norm_in"].permute(2, 0, 1)[KEPT_BANDS][None]
    found = display_values(numbers.double() / 10_000)[0]
    assert torch.equal((found * 255).round(), (official["norm_tensor_10band"] * 255).round().double())
    close(found.float(), official["norm_tensor_10band"], 1e-6)
