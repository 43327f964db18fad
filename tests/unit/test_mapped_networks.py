"""MCI, MapFormer and HySCDG as kernels: what goes into them, what comes out, and files in the authors' layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rioxarray  # noqa: F401 -- writes the CRS
import torch
import xarray as xr
from official import Official
from torch import Tensor

import tilewright
from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.change.semantic import FLAIR, HYSCDG, MAPFORMER, MAPFORMER_SCD, MCI
from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.mci import PROBE
from tilewright.kernels.published import build_network

if TYPE_CHECKING:
    from pathlib import Path


def applied(kernel: Kernel, **inputs: Tensor) -> dict[str, Tensor]:
    """Call a kernel as the engine does, all pixels valid."""
    count = next(iter(inputs.values())).shape[0]
    nowhere = torch.zeros(count, 2, dtype=torch.int64)
    context = Context(nowhere, nowhere, nowhere.double(), 1.0)
    valid = {name: torch.ones_like(x[:, :, :1], dtype=torch.bool) for name, x in inputs.items()}
    with torch.inference_mode():
        return kernel.apply(inputs, valid, context)


def pair(count: int = 1, height: int = 64, width: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def squares(height: int = 64, width: int = 64) -> Tensor:
    """A map with squares of the classes 0 to 5."""
    rows, cols = torch.meshgrid(torch.arange(height) // 16, torch.arange(width) // 16, indexing="ij")
    return ((rows + 2 * cols) % 6).float().view(1, 1, 1, height, width)


@pytest.fixture(scope="module")
def mci() -> Kernel:
    return load_kernel("mci")


@pytest.fixture(scope="module")
def mapformer() -> Kernel:
    """With the weights of the comparison: random ones hardly look at the map."""
    kernel = load_kernel("mapformer-scd")
    weights = Official("mapformer_scd").weights()
    kernel.module.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    return kernel


def test_mask_and_scores_of_mci_are_those_of_its_three_classes(mci: Kernel) -> None:
    image = pair(2, 64, 96)
    found = applied(mci, image=image)
    with torch.inference_mode():
        logits, *_ = mci.module(*image.unbind(1))
    expected = logits.softmax(1)
    assert torch.allclose(found["mask"], expected, atol=1e-6)
    assert torch.allclose(found["kinds"], expected[:, 1:], atol=1e-6)
    assert torch.allclose(found["score"], expected[:, 1:].sum(1, keepdim=True), atol=1e-6)
    assert mci.spec.outputs["mask"].forward_channels == (1, 3)
    assert mci.spec.outputs["kinds"].bands == ("road", "building")


def test_words_of_mci_depend_on_the_words_before_them_alone(mci: Kernel) -> None:
    a, b = pair(height=32, width=32).unbind(1)
    words = torch.tensor([PROBE])
    other = words.clone()
    other[:, 6] = 5
    with torch.inference_mode():
        first, second, without = (mci.module(a, b, *given)[3] for given in ((words,), (other,), ()))
    assert torch.allclose(first[:, :6], second[:, :6], atol=1e-5)
    assert (first[:, 6:] - second[:, 6:]).abs().amax() > 1e-3
    assert torch.equal(first, without)


def test_a_pair_of_mci_does_not_depend_on_the_other_pairs_of_a_batch(mci: Kernel) -> None:
    same = pair(seed=3)
    same[:, 1] = same[:, 0]
    alone = applied(mci, image=same)["mask"]
    beside = applied(mci, image=torch.cat((same, pair(seed=4))))["mask"][:1]
    assert torch.allclose(alone, beside, atol=1e-6)


def test_identical_features_look_at_themselves() -> None:
    attention = build_network(MCI.published, "mci").encoder_trans.Transformer_aug_CD[0][0].att
    x = torch.randn(1, 512, 4, 4, generator=torch.Generator().manual_seed(2))
    close = x.clone()
    close[0, 0, 0, 0] += 1e-6
    with torch.inference_mode():
        assert (attention(x, x) - attention(x, close)).abs().amax() > 1e-3


@pytest.mark.slow
def test_the_authors_file_of_mci_is_put_together(mci: Kernel, tmp_path: Path) -> None:
    state = mci.module.state_dict()
    parts = {
        f"{part}_dict": {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        for part in ("encoder", "encoder_trans", "decoder")
    }
    torch.save({**parts, "epoch": 3}, tmp_path / "MCI_model.pth")
    torch.save({k: v for k, v in parts.items() if k != "decoder_dict"}, tmp_path / "part.pth")
    a, b = pair(height=32, width=32).unbind(1)
    with torch.inference_mode():
        expected = mci.module(a, b)
        found = load_kernel("mci", weights=tmp_path / "MCI_model.pth").module(a, b)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    with pytest.raises(WeightsError, match="decoder_dict"):
        _ = load_kernel("mci", weights=tmp_path / "part.pth").module


def test_the_map_of_the_first_date_matters(mapformer: Kernel) -> None:
    image, known = pair(), squares()
    found = applied(mapformer, image=image, map=known)
    other = applied(mapformer, image=image, map=(known + 1) % 6)
    assert list(found) == ["score", "change", "after"]
    assert found["after"].shape == (1, 6, 64, 64)
    assert (found["score"] - other["score"]).abs().amax() > 1e-4


def test_labels_that_are_none_are_unknown(mapformer: Kernel) -> None:
    image, known = pair(), squares()
    unknown, wrong = known.clone(), known.clone()
    unknown[..., :16, :16] = 6
    wrong[..., :16, :16] = torch.tensor([255.0, -3.0]).repeat(8)
    scores = [applied(mapformer, image=image, map=x)["score"] for x in (known, unknown, wrong)]
    assert torch.equal(scores[1], scores[2])
    assert not torch.equal(scores[0], scores[1])


def test_pictures_are_clipped_as_eight_bits_are(mapformer: Kernel) -> None:
    image = pair()
    image[..., 10, 10], image[..., 20, 20] = 9.0, -9.0
    more = image.clone()
    more[..., 10, 10], more[..., 20, 20] = 90.0, -90.0
    known = squares()
    first, second = (applied(mapformer, image=x, map=known)["score"] for x in (image, more))
    assert torch.equal(first, second)
    assert not torch.equal(first, applied(mapformer, image=image.clamp(-1, 1), map=known)["score"])


def test_planets_numbers_become_what_the_loader_makes_of_them() -> None:
    image = load_kernel("mapformer").spec.inputs["image"]
    assert image.bands == ("red", "green", "blue")
    planet = {
        "blue": (649.9822, 654.9196, 0),
        "green": (862.5364, 727.9036, 1),
        "red": (939.1118, 872.8431, 2),
    }
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    for i, band in enumerate(image.bands):
        centre, spread, place = planet[band]
        for value in (0.0, 1000.0, 2500.0):
            loaded = (value - centre) / spread * std[place] + mean[place]
            expected = (loaded - mean[i]) / std[i]
            assert image.mean is not None
            assert image.std is not None
            assert (value - float(image.mean[i])) / float(image.std[i]) == pytest.approx(expected, abs=1e-6)
    reflectance = load_kernel("mapformer", high=1.0).spec.inputs["image"].mean
    assert reflectance is not None
    assert image.mean is not None
    assert reflectance[1] == pytest.approx(float(image.mean[1]) / 1e4)


def test_mapformer_asks_for_a_map() -> None:
    for kernel in (MAPFORMER, MAPFORMER_SCD):
        spec = kernel().spec
        assert list(spec.inputs) == ["image", "map"]
        assert (spec.inputs["map"].resampling, spec.inputs["map"].fill) == ("nearest", 6.0)
        assert spec.inputs["map"].mean is None


def test_a_map_lies_beside_the_pictures(mapformer: Kernel) -> None:
    ys, xs = 5.3e6 - 3 * (np.arange(32) + 0.5), 5e5 + 3 * (np.arange(32) + 0.5)
    place = {"y": ys, "x": xs}
    values = np.random.default_rng(1).uniform(0, 3000, (2, 3, 32, 32)).astype(np.float32)
    dates = {
        "time": np.array(["2018-01-01", "2018-06-01"], "datetime64[ns]"),
        "band": ["red", "green", "blue"],
    }
    image = xr.DataArray(values, dims=("time", "band", "y", "x"), coords=dates | place).rio.write_crs(32633)
    found = []
    for label in (0, 3):
        known = xr.DataArray(np.full((32, 32), label, np.uint8), dims=("y", "x"), coords=place).rio.write_crs(
            32633
        )
        result = tilewright.map_pixels(mapformer, {"image": image, "map": known}, untrained=True, tile=160)
        found.append(result.compute())
    assert set(found[0].data_vars) >= {"score", "change", "after"}
    assert bool(np.isfinite(found[0]["score"]).all())
    assert float(abs(found[0]["score"] - found[1]["score"]).max()) > 1e-4


def test_hyscdg_has_statistics_of_each_date_and_data_set() -> None:
    image = load_kernel("hyscdg", statistics="second").spec.inputs["image"]
    assert image.mean is not None
    assert image.mean[0] == pytest.approx((113.40, 114.08, 116.45))
    assert image.mean[1] == pytest.approx((111.07, 114.04, 118.18))
    plain = load_kernel("hyscdg", statistics="none").spec.inputs["image"]
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    assert load_kernel("hyscdg").options["statistics"] == "flair"
    with pytest.raises(KernelError, match="second"):
        load_kernel("hyscdg", statistics="secnd")


def test_hyscdg_maps_both_dates_everywhere() -> None:
    kernel = HYSCDG()
    image = pair(1, 64, 96)
    found = applied(kernel, image=image)
    with torch.inference_mode():
        change, before, after = kernel.module(*image.unbind(1))
    assert torch.allclose(found["score"], change.softmax(1)[:, 1:], atol=1e-6)
    assert torch.equal(found["before"].argmax(1), before.argmax(1))
    assert torch.equal(found["after"].argmax(1), after.argmax(1))
    assert kernel.spec.outputs["after"].classes == FLAIR
    assert len(FLAIR) == 20


@pytest.mark.parametrize("name", ["hyscdg", "mapformer", "mapformer-scd", "mci"])
def test_other_sizes_batches_and_types(name: str) -> None:
    kernel = load_kernel(name)
    network = kernel.module.double()
    sides = (96, 64)
    a, b = pair(2, *sides).double().unbind(1)
    further = [squares(*sides)[0, 0].expand(2, -1, -1).long()] if name.startswith("mapformer") else []
    with torch.inference_mode():
        both = network(a, b, *further)
        second = network(a[1:], b[1:], *(x[1:] for x in further))
    for x, y in zip(both, second, strict=True):
        assert x.dtype == torch.float64
        assert torch.allclose(x[1:], y, atol=1e-9)
    assert tuple(both[0].shape[-2:]) == sides
