"""Super-resolution against numbers of the official implementations, and bicubic against torch's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official import filled
from torch.nn import functional

from tilewright.kernels.load import load_kernel

OFFICIAL = Path(__file__).parent / "official_sr"
SCALES = (2, 3, 4)


def picture(values: np.ndarray) -> torch.Tensor:
    """``[rows, cols, bands]`` -> ``[1, bands, rows, cols]`` float32."""
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))[None]).float()


@pytest.mark.parametrize("scale", SCALES)
def test_esrgan_slim_is_that_of_tensorflow_js(scale: int) -> None:
    """A tile of EuroSAT through @tensorflow/tfjs with the npm package's weights, and bytes as the package has them."""
    official = np.load(OFFICIAL / "esrgan_slim.npz")
    with torch.inference_mode():
        raw = load_kernel("esrgan-slim", scale=scale).module(picture(official["input_uint8"]))
    found = raw[0].permute(1, 2, 0).numpy()
    expected, clipped = official[f"out_tfjs_x{scale}"], official[f"clipped_uint8_x{scale}"]
    step = found.shape[0] // expected.shape[0]
    assert found.shape == clipped.shape == (64 * scale, 64 * scale, 3)
    assert np.abs(found[::step, ::step] - expected).max() <= 1e-5 * np.ptp(expected)
    assert (np.clip(found, 0, 255).astype(np.uint8) == clipped).all()


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_is_that_of_torch(scale: int) -> None:
    x = torch.randn(2, 3, 20, 17, generator=torch.Generator().manual_seed(scale), dtype=torch.float64)
    found = load_kernel("bicubic", scale=scale, bands=3)(x, torch.ones(2, 1, 20, 17, dtype=torch.bool))
    expected = functional.interpolate(x, scale_factor=scale, mode="bicubic", align_corners=False)
    assert (found - expected).abs().max() < 1e-12


def test_sen2sr_is_that_of_its_authors() -> None:
    """Names, and the three steps on random weights: 20 m to 10 m, RGB and NIR to 2.5 m, all ten bands to 2.5 m."""
    keys = json.loads((OFFICIAL / "sen2sr_keys.json").read_text())
    official = np.load(OFFICIAL / "sen2sr.npz")
    module = load_kernel("sen2sr-cnn", features=16, blocks=3, mask="butterworth").module
    state = module.state_dict()
    assert [[name, [list(t.shape), "float32"]] for name, t in state.items()] == [
        list(one) for one in keys.items()
    ]
    made = {name: filled(name, shape, None, 1.0) for name, (shape, _) in keys.items()}
    module.load_state_dict({name: torch.from_numpy(values) for name, values in made.items()})
    bands = torch.from_numpy(official["x10_in"])
    with torch.inference_mode():
        found = {
            "nonref_out_sub": module.enlarge(torch.from_numpy(official["rgbn_in"]))[..., ::4, ::4],
            "refx2_out": module.to_10m(bands),
            "refx4_out_sub": module(bands)[..., ::4, ::4],
        }
    for name, values in found.items():
        expected = official[name][:, [3, 4, 5, 7, 8, 9]] if name == "refx2_out" else official[name]
        assert values.shape == expected.shape
        assert np.abs(values.numpy() - expected).max() <= 1e-5 * np.ptp(expected), name
