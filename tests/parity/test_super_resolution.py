"""Super-resolution against numbers of official and of independent implementations, and bicubic against torch's."""

from __future__ import annotations

import hashlib
import json
import os
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


def names_digest(state: dict[str, torch.Tensor]) -> str:
    rows = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in state.items()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


PICTURES = {
    f"{kernel} {' '.join(map(str, options.values()))}": (kernel, options)
    for kernel, options in (
        *(
            ("swinir", {"size": size, "scale": scale, "patch": patch})
            for size, scales in (("classical", (2, 3, 4, 8)), ("lightweight", SCALES))
            for scale in scales
            for patch in (48, 64)
        ),
        *(("edsr", {"size": size, "scale": scale}) for size in ("baseline", "large") for scale in SCALES),
    )
}
"""Every published variant of the two, by the name under which its names are kept."""


@pytest.mark.parametrize("variant", PICTURES)
def test_names_of_pictures_are_those_of_other_libraries(variant: str) -> None:
    """Names, order, shapes and types: of spandrel 0.4.2 for SwinIR, of super-image 0.2.0 for EDSR."""
    kernel, options = PICTURES[variant]
    expected = json.loads((OFFICIAL / "picture_names.json").read_text())
    assert set(expected) == set(PICTURES)
    assert names_digest(load_kernel(kernel, **options).module.state_dict()) == expected[variant]


def fixed(name: str) -> bool:
    """Whether the numbers of a tensor belong to the network: masks, and the mean of the training pictures."""
    return name.endswith("attn_mask") or name.startswith(("sub_mean", "add_mean"))


@pytest.mark.parametrize(
    ("variant", "rows", "cols", "full"),
    [
        ("swinir lightweight 3 64", 19, 26, 1),
        ("swinir classical 4 48", 19, 26, 1),
        ("edsr baseline 2", 12, 15, 255),
        ("edsr large 3", 12, 15, 255),
    ],
)
def test_pictures_are_those_of_other_libraries(variant: str, rows: int, cols: int, full: int) -> None:
    """Outputs of the same two libraries for the filled weights; sides are no multiples of SwinIR's window."""
    kernel, options = PICTURES[variant]
    module = load_kernel(kernel, **options).module
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not fixed(name):
            tensor.copy_(torch.from_numpy(filled(name, tuple(tensor.shape), None, 1.0)))
    x = np.random.Generator(np.random.PCG64(7)).random((1, 3, rows, cols), dtype=np.float32)
    with torch.inference_mode():
        found = module(torch.from_numpy(x) * full).numpy()
    expected = np.load(OFFICIAL / "pictures.npz")[variant]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def conv(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A convolution of 1 x 1 or 3 x 3 with zeros around, pixel offset by pixel offset, in float64: ``[C, H, W]``."""
    kernel = state[f"{name}.weight"].astype(np.float64)
    side, (rows, cols) = kernel.shape[-1], x.shape[1:]
    wide = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    out = np.zeros((len(kernel), rows, cols)) + state[f"{name}.bias"][:, None, None]
    for i in range(side):
        for j in range(side):
            out += np.tensordot(kernel[:, :, i, j], wide[:, i : i + rows, j : j + cols], 1)
    return out


def prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * slope)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    x = prelu(conv(x, state, f"{name}.init_layer.0"), state[f"{name}.init_layer.1.weight"])
    for i in range(2):
        block = f"{name}.res_layers.{i}.block"
        inner = prelu(conv(x, state, f"{block}.0"), state[f"{block}.1.weight"])
        x = x + prelu(conv(inner, state, f"{block}.2"), state[f"{block}.3.weight"])
    return conv(x, state, f"{name}.final.0")


def slow_misr_gru(lrs: np.ndarray, alphas: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """MISR-GRU for one place, ``[T, H, W]`` -> ``[3 H, 3 W]``, picture by picture."""
    first = np.sort(lrs[:9], axis=0)
    reference = unit(first[(len(first) - 1) // 2][None], state, "unit1")
    layer = [
        unit(np.concatenate((unit(x[None], state, "unit1"), reference)), state, "unit2")
        for x in lrs.astype(np.float64)
    ]
    for i in range(2):
        gates, h, states = f"fuse.gru_units.{i}", np.zeros_like(layer[0]), []
        for x in layer:
            both = np.concatenate((x, h))
            z, r = (sigmoid(conv(both, state, f"{gates}.{gate}_gate")) for gate in ("update", "reset"))
            h = (1 - z) * h + z * np.tanh(conv(np.concatenate((x, r * h)), state, f"{gates}.out_gate"))
            states.append(h)
        layer = states
    merged = sum(a * h for a, h in zip(alphas, layer, strict=True)) / alphas.sum()
    out = np.zeros((64, 3 * lrs.shape[1], 3 * lrs.shape[2])) + state["decode.deconv.0.bias"][:, None, None]
    for i in range(3):
        for j in range(3):
            out[:, i::3, j::3] += np.tensordot(state["decode.deconv.0.weight"][:, :, i, j].T, merged, 1)
    return conv(prelu(out, state["decode.deconv.1.weight"]), state, "decode.final")[0]


def test_misr_gru_has_the_released_names_and_is_its_slow_twin() -> None:
    keys = json.loads((OFFICIAL / "misr_gru_keys.json").read_text())
    module = load_kernel("misr-gru").module
    assert [[name, [list(t.shape), "float32"]] for name, t in module.state_dict().items()] == [
        list(one) for one in keys.items()
    ]
    state = {name: filled(name, tuple(shape), None, 1.0) for name, (shape, _) in keys.items()}
    given = {f"encode.{n}" if n.startswith("unit") else n: torch.from_numpy(v) for n, v in state.items()}
    official = np.load(OFFICIAL / "misr_gru.npz")
    lrs, alphas = official["lrs"][:, :, :16, :20], official["alphas"]
    assert (alphas == 0).any(), "some pictures only fill up"
    with torch.inference_mode():
        found = load_kernel("misr-gru", given).module(
            *torch.from_numpy(lrs)[:, :, None].unbind(1), alphas=torch.from_numpy(alphas)
        )
    expected = slow_misr_gru(lrs[0], alphas[0], state)
    assert found.shape == (1, 1, 48, 60)
    assert np.abs(found[0, 0].numpy() - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.skipif(
    "TILEWRIGHT_MISR_GRU" not in os.environ, reason="needs the released checkpoint, which is not free"
)
def test_misr_gru_is_that_of_its_authors() -> None:
    """The released checkpoint at the path TILEWRIGHT_MISR_GRU, and what the released code gave with it."""
    official = np.load(OFFICIAL / "misr_gru.npz")
    kernel = load_kernel("misr-gru", weights=os.environ["TILEWRIGHT_MISR_GRU"])
    with torch.inference_mode():
        found = kernel.module(
            *torch.from_numpy(official["lrs"])[:, :, None].unbind(1),
            alphas=torch.from_numpy(official["alphas"]),
        )
    assert np.abs(found.numpy() - official["sr"]).max() <= 1e-4 * np.ptp(official["sr"])
