"""Every index of spyndex's catalogue through the kernel equals spyndex on numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tilewright.kernels.classic import spectral_index
from tilewright.kernels.classic.index import LETTERS
from tilewright.kernels.contract import Context

spyndex = pytest.importorskip("spyndex")

WAVELENGTHS = {
    "lambdaG": 560, "lambdaN": 842, "lambdaN2": 865, "lambdaR": 665, "lambdaS1": 1610, "lambdaS2": 2190,
    "PAR": 1200,
}  # fmt: skip
RADAR = ("HH", "HV", "VV", "VH")


def options_for(name: str) -> dict[str, float]:
    return {k: float(v) for k, v in WAVELENGTHS.items() if k in spyndex.indices[name].bands}


def reference(name: str, bands: dict[str, np.ndarray]) -> np.ndarray:
    params: dict[str, Any] = dict(bands) | options_for(name)
    for symbol in spyndex.indices[name].bands:
        if symbol.startswith("k") and len(symbol) == 3:
            one, two = (bands[c] if c in bands else spyndex.constants[c].default for c in symbol[1:])
            params[symbol] = spyndex.computeKernel("RBF", params={"a": one, "b": two, "sigma": 0.5})
        elif symbol not in params:
            params[symbol] = spyndex.constants[symbol].default
    with np.errstate(all="ignore"):
        return np.asarray(spyndex.computeIndex(name, params=params))


def compute(name: str, bands: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[np.ndarray, Any]:
    kernel = spectral_index(name=name, **options_for(name))
    letters = {house: letter for letter, house in LETTERS.items()}
    wanted = [letters[b] for b in kernel.spec.inputs["image"].bands]
    image = torch.from_numpy(np.stack([bands[w] for w in wanted])[None, None]).to(dtype)
    valid = torch.ones(1, 1, 1, *image.shape[-2:], dtype=torch.bool)
    zero = torch.zeros(1, 2, dtype=torch.int64)
    output = kernel.apply({"image": image}, {"image": valid}, Context(zero, zero[:, :1], zero.double(), 10.0))
    return next(iter(output.values()))[0, 0].numpy(), kernel


@pytest.mark.parametrize("name", list(spyndex.indices))
def test_equals_spyndex(name: str) -> None:
    rng = np.random.default_rng(7)
    bands = {letter: rng.uniform(0.02, 0.6, (24, 31)) for letter in LETTERS}
    bands |= {letter: rng.uniform(270, 320, (24, 31)) for letter in ("T", "T1", "T2")}
    want = reference(name, bands)
    want = np.where(np.isfinite(want), want, np.nan)
    got, kernel = compute(name, bands, torch.float64)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    single, _ = compute(name, bands, torch.float32)
    both = np.isfinite(want) & np.isfinite(single)
    assert both.mean() > 0.99 * np.isfinite(want).mean()
    scale = np.abs(want[both]) + np.median(np.abs(want[both]))
    # Differences of near-equal numbers under a division lose digits in float32: 99 % of the pixels count.
    assert np.quantile(np.abs(single[both] - want[both]) / scale, 0.99) < 1e-3
    limits = next(iter(kernel.spec.outputs.values())).range
    if limits is not None:
        assert np.nanmin(want) >= limits[0]
        assert np.nanmax(want) <= limits[1]


def test_the_whole_catalogue_was_built() -> None:
    optical = [n for n in spyndex.indices if not set(spyndex.indices[n].bands) & {*RADAR, "T", "T1", "T2"}]
    assert len(optical) >= 230
    known = {*LETTERS, *spyndex.constants}
    odd = {b for n in spyndex.indices for b in spyndex.indices[n].bands} - known
    assert all(len(b) == 3 and b[0] == "k" for b in odd), odd
