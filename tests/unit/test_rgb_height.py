"""`rgb-height`: what it makes of a height, with and without gaps, and that it learns what only height tells."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tilewright
from tilewright.errors import KernelError
from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.rgb_height import RgbHeight
from tilewright.testing import check_kernel

SEEN = (1, 2, 3, 6)
"""Ground and low vegetation, building and tree: two colours, two heights."""
_COLOURS = torch.tensor([[0.5, 0.5, 0.5], [0.2, 0.5, 0.2]])
_MEAN, _STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def scene(count: int, side: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return 8-bit pictures, heights in metres with gaps, labels: grey or green blocks of 16 px, low or high."""
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 4, (count, 1, side // 16, side // 16), generator=g).float()
    kind = functional.interpolate(blocks, scale_factor=16)[:, 0].long()
    noise = 0.1 * torch.randn(count, 3, side, side, generator=g)
    image = ((_COLOURS[kind % 2].permute(0, 3, 1, 2) + noise).clamp(0, 1) * 255).round()
    draw = torch.randn(count, side, side, generator=g)
    height = torch.where(kind >= 2, 8 + 2 * draw, 0.5 * draw.abs())[:, None]
    gaps = torch.rand(count, 1, side // 8, side // 8, generator=g) < 0.05
    height[functional.interpolate(gaps.float(), scale_factor=8) > 0] = torch.nan
    return image, height, torch.tensor(SEEN)[kind]


def mean_f1(found: np.ndarray, label: np.ndarray) -> float:
    return float(
        np.mean(
            [
                2 * ((found == c) & (label == c)).sum() / ((found == c).sum() + (label == c).sum())
                for c in SEEN
            ]
        )
    )


def trained() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RgbHeight(7, width=16, tokens=8)
        optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
        for step in range(110):
            image, height, label = scene(4, 64, 100 + step)
            x = (image / 255 - _MEAN[:, None, None]) / _STD[:, None, None]
            loss = functional.cross_entropy(network(x, height / 10, height.isfinite()), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.state_dict()


def best_by_colour(image: np.ndarray, label: np.ndarray) -> float:
    """The best score that any rule from the two colours to two of the classes has on these pixels."""
    green = image[1] > image[0] + 38
    return max(mean_f1(np.where(green, a, b), label) for a, b in product(SEEN, SEEN))


@pytest.mark.slow
def test_it_learns_what_only_height_tells() -> None:
    """Over a scene of several blended tiles, with gaps in the height and in the picture."""
    import xarray as xr

    kernel = load_kernel("rgb-height", weights=trained(), width=16, tokens=8)
    image, height, label = (part[0].numpy() for part in scene(1, 320, 7))
    height[:, :64, :64] = np.nan
    colour = image.copy()
    image[:, -20:, :40] = np.nan
    coordinates = {"y": 100 - np.arange(320) * 0.5, "x": np.arange(320) * 0.5}

    def array(data: np.ndarray, names: list[str]) -> xr.DataArray:
        return xr.DataArray(
            data, dims=("band", "y", "x"), coords={"band": names, **coordinates}
        ).rio.write_crs(32633)

    import rioxarray  # noqa: F401 - registers .rio

    given = {"image": array(image, ["red", "green", "blue"]), "height": array(height, ["height"])}
    found = tilewright.map_pixels(kernel, given, tile=128)["classes"].values.squeeze()
    missing = np.isnan(image).any(0)
    assert (found[missing] == 255).all()
    assert (found[~missing] != 255).all()  # also where there is no height
    known = ~missing & np.isfinite(height[0])
    assert mean_f1(found[known], label[known]) > 0.9
    assert best_by_colour(colour, label) < 0.6
    blind = ~missing & np.isnan(height[0])
    assert (np.isin(found, (1, 3)) == np.isin(label, (1, 3)))[blind].mean() > 0.8  # the colour is still read


def apply(kernel: Kernel, image: Tensor, height: Tensor, known: Tensor) -> Tensor:
    context = Context(
        origin=torch.zeros(1, 2, dtype=torch.int64),
        times=torch.zeros(1, 1, dtype=torch.int64),
        lonlat=torch.zeros(1, 2, dtype=torch.float64),
        resolution=1.0,
    )
    valid = {"image": torch.ones_like(known)[:, None], "height": known[:, None]}
    with torch.inference_mode():
        found = kernel.apply({"image": image[:, None], "height": height[:, None]}, valid, context)
    return found["classes"]


def test_what_is_stored_in_a_gap_does_not_matter() -> None:
    kernel = load_kernel("rgb-height", width=8, tokens=4)
    g = torch.Generator().manual_seed(0)
    image, height = torch.randn(1, 3, 32, 32, generator=g), torch.rand(1, 1, 32, 32, generator=g) * 20
    known = torch.rand(1, 1, 32, 32, generator=g) < 0.7
    filled = [torch.where(known, height, value) for value in (0.0, torch.nan, -9999.0)]
    a, b, c = (apply(kernel, image, x, known) for x in filled)
    assert torch.equal(a, b)
    assert torch.equal(a, c)
    assert not torch.equal(
        a, apply(kernel, image, filled[0], torch.ones_like(known))
    )  # a gap is no height of 0


def test_heights_are_in_metres() -> None:
    g = torch.Generator().manual_seed(0)
    image, height = torch.randn(1, 3, 32, 32, generator=g), torch.rand(1, 1, 32, 32, generator=g) * 20
    known = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    ten, twenty = (load_kernel("rgb-height", width=8, tokens=4, metres=metres) for metres in (10, 20))
    assert torch.equal(apply(ten, image, height, known), apply(twenty, image, height * 2, known))


def test_it_is_what_it_says() -> None:
    check_kernel(
        load_kernel("rgb-height", width=8, tokens=4, probabilities=True), tile=48
    ).raise_for_findings()


@pytest.mark.parametrize("options", [{"width": 6}, {"tokens": 0}, {"low": 1, "high": 1}, {"metres": 0}])
def test_sizes_and_ranges_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(KernelError, match="rgb-height: "):
        load_kernel("rgb-height", **options)
