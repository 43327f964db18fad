"""DynamicVis against the official numbers: names, maps and kept tokens; its block against the mixer of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import shapes
from official import filled, stream

from tilewright.kernels.embed import load_embedder
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.dynamicvis import BidirectionalBlock, DynamicVis

OFFICIAL = Path(__file__).parent / "official" / "dynamicvis"
RULES = {"pos_embed": ["normal", 0, 0.5], "spatial_gate.weight": ["gain", 4.0]}
"""What deviates from the usual rule: places that are felt, and gates that choose clearly."""
SMALL = {"widths": (16, 24, 32, 48), "depths": (2, 2, 3, 2), "side": 64}
ALL = {"keep": (1, 1, 1, 1), "overall": False}


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    content = np.load(OFFICIAL / "public.npz")
    return {name: content[name] for name in content.files}


def by_rule(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    rules = {n: next((r for end, r in RULES.items() if n.endswith(end)), None) for n in network.state_dict()}
    return {
        name: torch.from_numpy(filled(name, tuple(tensor.shape), rules[name], 1.0))
        for name, tensor in network.state_dict().items()
    }


def pictures(seed: int, count: int, side: int) -> torch.Tensor:
    return torch.from_numpy(stream(seed).standard_normal((count, 3, side, side)).astype(np.float32))


@pytest.mark.parametrize("size", ["b", "l"])
def test_names_order_and_shapes_are_official(size: str) -> None:
    keys = json.loads((OFFICIAL / f"keys_{size}.json").read_text())
    for name in (f"dynamicvis-{size}", f"dynamicvis-{size}-all"):
        assert list(shapes(load_kernel(name).module).items()) == list(keys.items())
    assert (
        load_kernel(f"dynamicvis-{size}").spec.outputs["embedding"].band_count == {"b": 768, "l": 1024}[size]
    )


CASES = {
    "small": (DynamicVis(**SMALL), 11, 2, 64),
    "enlarged": (DynamicVis(**SMALL), 12, 1, 96),
    "whole": (DynamicVis(**SMALL, **ALL), 13, 1, 64),
}


@pytest.mark.parametrize("case", CASES)
def test_maps_vectors_and_kept_tokens_are_official(official: dict[str, np.ndarray], case: str) -> None:
    """The pictures of the learned side, larger ones, and a network without a selection."""
    network, seed, count, side = CASES[case]
    network.eval().load_state_dict(by_rule(network))
    check(official, case, network, pictures(seed, count, side), 2)


def test_the_base_size_is_official(official: dict[str, np.ndarray]) -> None:
    """Of 128 px, with the places that were learned for 512 px."""
    module = load_kernel("dynamicvis-b").module
    network = load_embedder("dynamicvis-b", weights=by_rule(module)).network
    check(official, "base", network, pictures(14, 1, 128), 8)


def check(
    official: dict[str, np.ndarray], case: str, network: DynamicVis, x: torch.Tensor, stride: int
) -> None:
    with torch.inference_mode():
        stages = list(network.stages(x))
        vectors = network.image_vectors(x)
    for i, stage in enumerate(stages):
        expected = official[f"{case}_map{i}"]
        assert float(np.abs(stage.map[:, ::stride].numpy() - expected).max()) <= 1e-5
        if f"{case}_kept{i}" in official:
            bits = stage.kept.flatten(2).transpose(0, 1).numpy()  # [blocks, N, tokens], as it was packed
            assert (np.packbits(bits, axis=-1) == official[f"{case}_kept{i}"]).all()
            assert stage.kept.float().mean() == 1 / (8, 4, 2, 1)[i]
    assert float(np.abs(vectors.numpy() - official[f"{case}_vector"]).max()) <= 1e-5


def test_the_block_is_the_mixer_of_transformers_both_ways() -> None:
    """The slow path of that library with the same weights: names, and values for lengths odd and even."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    width = 20
    config = mamba.MambaConfig(
        hidden_size=width, state_size=16, conv_kernel=4, expand=2, num_hidden_layers=1, use_mambapy=False
    )
    mixer = mamba.MambaMixer(config, 0).eval()
    block = BidirectionalBlock(width).eval()
    assert set(mixer.state_dict()) == set(block.mamba_layer.state_dict())
    torch.manual_seed(3)
    weights = {n: torch.randn_like(t) / 4 for n, t in block.mamba_layer.state_dict().items()}
    mixer.load_state_dict(weights)
    block.mamba_layer.load_state_dict(weights)
    for length in (1, 2, 37, 64):
        x = torch.randn(2, length, width)
        with torch.inference_mode():
            normal = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            expected = x + (mixer(normal) + mixer(normal.flip(1)).flip(1)) / 2
            torch.testing.assert_close(block(x), expected, atol=2e-6, rtol=1e-5)
            assert (expected - x).abs().max() > 0.01
