"""SatCLIP's harmonics and location encoder against the official numbers, and over rasters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedders import shapes, weights_by_rule

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.contract import Context
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.harmonics import features
from tilewright.kernels.nets.satclip import LocationEncoder

OFFICIAL = Path(__file__).parent / "official" / "satclip"


def numbers(degrees: int) -> dict[str, torch.Tensor]:
    content = np.load(OFFICIAL / f"public_L{degrees}.npz")
    return {name: torch.from_numpy(content[name]) for name in content.files}


def encoder(degrees: int, harmonics: str) -> LocationEncoder:
    network = LocationEncoder(degrees, harmonics).eval()  # type: ignore[arg-type]
    weights_by_rule(network)
    return network


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    return float((found - expected).abs().max())


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare in float64, or to a rounding of float32 where the official numbers were stored so."""
    rounded = 1.2e-7 * float(expected.abs().max()) if expected.dtype == torch.float32 else 0.0
    assert worst(found, expected) <= tolerance + rounded


@pytest.mark.parametrize("degrees", [10, 40])
def test_names_are_official(degrees: int) -> None:
    keys = json.loads((OFFICIAL / f"keys_L{degrees}.json").read_text())
    found = shapes(load_kernel("satclip", degrees=degrees).module)
    assert [(n, s) for n, (s, _) in found.items()] == [(n, s) for n, (s, _) in keys.items()]


@pytest.mark.parametrize("degrees", [10, 40])
def test_closed_form_is_official_everywhere(degrees: int) -> None:
    """The poles and both sides of the antimeridian are among the places."""
    official = numbers(degrees)
    places = official["lonlat"]
    assert {-180.0, 180.0} <= set(places[:, 0].tolist())
    assert {-90.0, 90.0} <= set(places[:, 1].tolist())
    close(features(places, degrees, "closed-form"), official["sh_closed_form"], 1e-13)
    with torch.inference_mode():
        close(encoder(degrees, "closed-form")(places), official["embedding_closed_form"], 1e-10)


@pytest.mark.parametrize("degrees", [10, 40])
def test_the_published_polynomials_are_official_with_their_error(degrees: int) -> None:
    """With 40 degrees their digits cancel towards the poles, and what is wrong in them is wrong here too."""
    official = numbers(degrees)
    places = official["lonlat"]
    found = features(places, degrees, "analytic")
    close(found, official["sh_analytic"], 1e-6)
    wrong = (found - features(places, degrees, "exact")).abs().amax(1)
    assert float(wrong[places[:, 1].abs() == 90].min()) > (0.5 if degrees == 40 else 0)
    assert float(wrong.min()) < 1e-13
    with torch.inference_mode():
        close(encoder(degrees, "analytic")(places), official["embedding_analytic"], 1e-6)
        close(encoder(degrees, "exact")(places), official["embedding_stable_exact"], 1e-9)


def test_the_antimeridian_has_no_seam_and_a_pole_no_longitude() -> None:
    places = torch.tensor([[180.0, 12.3], [-180.0, 12.3], [17.0, 90.0], [-120.0, 90.0]], dtype=torch.float64)
    for kind in ("closed-form", "exact"):
        found = features(places, 40, kind)  # type: ignore[arg-type]
        assert worst(found[0], found[1]) < 1e-12
        assert worst(found[2], found[3]) < 1e-12


def context(lonlat: list[list[float]]) -> Context:
    count = len(lonlat)
    return Context(
        origin=torch.zeros(count, 2, dtype=torch.int64),
        times=torch.zeros(count, 1, dtype=torch.int64),
        lonlat=torch.tensor(lonlat, dtype=torch.float64),
        resolution=10.0,
    )


def test_the_kernel_embeds_where_a_tile_lies_whatever_it_shows(tmp_path: Path) -> None:
    network = encoder(10, "analytic")
    state = {f"model.location.{name}": value.float() for name, value in network.state_dict().items()}
    state["model.visual.conv1.weight"] = torch.zeros(3)
    path = tmp_path / "satclip-l10.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"legendre_polys": 10}}, path)
    places = [[11.5, 47.2], [-70.0, -33.0]]
    tiles = torch.rand(2, 1, 1, 8, 8)
    valid = {"image": torch.ones(2, 1, 1, 8, 8, dtype=torch.bool)}
    kernel = load_kernel("satclip", weights=str(path), degrees=10, raw=True)
    found = kernel.apply({"image": tiles}, valid, context(places))["embedding"]
    with torch.inference_mode():
        expected = encoder(10, "analytic")(torch.tensor(places, dtype=torch.float64))
    assert worst(found, expected) < 1e-6
    unit = load_kernel("satclip", weights=str(path), degrees=10)
    lengths = unit.apply({"image": tiles * 0}, valid, context(places))["embedding"].norm(dim=1)
    assert torch.allclose(lengths, torch.ones_like(lengths))
    with pytest.raises(KernelError, match="no longitude"):
        unit.apply({"image": tiles}, valid, context([[float("nan"), 0.0]] * 2))
    with pytest.raises(WeightsError, match="degrees=10 better"):
        load_kernel("satclip", weights=str(path), degrees=40).module  # noqa: B018
