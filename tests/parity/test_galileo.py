"""Galileo nano with the published weights: their names, the waves in them, and what its vectors tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tilewright.errors import KernelError
from tilewright.kernels.embed import ImageTextEmbedder, load_embedder
from tilewright.kernels.load import load_kernel
from tilewright.kernels.weights import load_state_dict, resolve_weights


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path) -> str:
    path = shared_data / "ckpt" / "galileo_nano" / "encoder.pt"
    if not path.is_file():
        pytest.skip("the published checkpoint is absent")
    return str(path)


@pytest.fixture(scope="module")
def embedder(checkpoint: str) -> ImageTextEmbedder:
    return load_embedder("galileo-nano", weights=checkpoint)


def test_names_order_and_fixed_waves_are_those_of_the_checkpoint(checkpoint: str) -> None:
    """Tables of positions and months were not learned, so that they must come out of our own formulas."""
    published = load_state_dict(resolve_weights(checkpoint))
    own = load_kernel("galileo-nano").module.state_dict()
    assert [(n, t.shape) for n, t in own.items()] == [(n, t.shape) for n, t in published.items()]
    for name in ("pos_embed", "month_embed.weight"):
        assert float((own[name] - published[name]).abs().max()) < 1e-6
        assert float(own[name].std()) > 0.1


def ground(brightness: float, seed: int, bands: int = 10) -> torch.Tensor:
    """A smooth made-up field, not a flat one: the same for the same seed, brighter or darker."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, bands, 8, 8, generator=draw) * 0.1 + brightness
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")


def test_vectors_tell_grounds_apart(embedder: ImageTextEmbedder) -> None:
    """Dark, middling and bright ground; each is nearer to its own turned copy than to any other."""
    fields = torch.cat([ground(level, seed) for seed, level in enumerate((0.02, 0.15, 0.4))])
    vectors = embedder.embed_images(fields, "s2")
    turned = embedder.embed_images(fields.rot90(1, (2, 3)), "s2")
    likeness = vectors @ turned.T
    assert float(likeness.diagonal().min()) > 0.995
    assert float((likeness - torch.eye(3)).max()) < 0.99


def test_radar_and_the_map_of_vectors(embedder: ImageTextEmbedder) -> None:
    decibels = ground(0.0, 7, bands=2) * 50 - 15
    assert embedder.embed_images(decibels, "s1").shape == (1, 128)
    dense = embedder.embed_dense(decibels, "s1")
    assert dense.shape == (1, 128, 8, 8)
    assert torch.allclose(dense.norm(dim=1), torch.ones(1, 8, 8), atol=1e-5)
    with pytest.raises(KernelError, match="search by a picture"):
        embedder.embed_texts(["a field"])
