"""Published networks as kernels: weights by name, what is refused, what is the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from official import Official
from safetensors.torch import save_file

import tilewright
from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.change.binary import BTC_B, BTC_T
from tilewright.kernels.load import list_kernels, load_kernel
from tilewright.kernels.published import build_network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    own = load_kernel("tinycd").module.state_dict()
    return own | {k: torch.from_numpy(v) for k, v in Official("tinycd").weights().items()}


def pictures(folder: Path, size: tuple[int, int] = (203, 301)) -> list[Path]:
    """Write two dates of an 8-bit picture."""
    import rasterio
    from rasterio.transform import from_origin

    random = np.random.default_rng(4)
    paths = []
    for date in range(2):
        paths.append(folder / f"date-{date}.tif")
        profile = {
            "driver": "GTiff", "height": size[0], "width": size[1], "count": 3, "dtype": "uint8",
            "crs": "EPSG:32633", "transform": from_origin(5e5, 5.3e6, 0.5, 0.5),
        }  # fmt: skip
        with rasterio.open(paths[-1], "w", **profile) as data:
            data.write(random.integers(0, 255, (3, *size), dtype=np.uint8))
    return paths


def test_weights_are_the_network(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    by_file = load_kernel("tinycd", weights=tmp_path / "w.safetensors")
    by_state = load_kernel("tinycd", weights=state)
    assert not by_file.untrained
    assert not by_state.untrained
    a, b = torch.randn(2, 1, 3, 64, 96)
    assert torch.equal(by_file.module(a, b), by_state.module(a, b))
    assert (
        by_state.weights_sha256 == load_kernel("tinycd", weights=dict(reversed(state.items()))).weights_sha256
    )


def test_older_names_of_the_second_checkpoint(state: dict[str, torch.Tensor]) -> None:
    new, old = "_mixing_mask.2._convmix.", "_mixing_mask.2._mixing._convmix."
    older = {name.replace(new, old): tensor for name, tensor in state.items()}
    assert set(older) != set(state)
    a, b = torch.randn(2, 1, 3, 64, 64)
    expected = load_kernel("tinycd", weights=state).module(a, b)
    assert torch.equal(load_kernel("tinycd", weights=older).module(a, b), expected)


def test_missing_and_extra_tensors_are_named(state: dict[str, torch.Tensor]) -> None:
    wrong = {f"net.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(WeightsError) as found:
        _ = load_kernel("tinycd", weights=wrong).module
    text = str(found.value)
    assert text.count("net._backbone") == 5
    assert "unexpected" in text
    assert "missing: _backbone.0.0.weight" in text
    assert "and " in text


def test_another_variant_is_named() -> None:
    other = build_network(BTC_B.published, "btc-b").state_dict()
    with pytest.raises(WeightsError, match="they fit the kernel btc-b better"):
        _ = BTC_T(weights=other).module


def test_untrained_is_the_same_each_time_and_disturbs_nobody() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = load_kernel("tinycd")
    one = first.module.state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = load_kernel("tinycd")
    assert all(
        torch.equal(x, y) for x, y in zip(one.values(), second.module.state_dict().values(), strict=True)
    )
    assert first.digest == second.digest


def test_a_map_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no weights.*--untrained"):
        tilewright.apply("tinycd", pictures(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_shard_sizes_one_map(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    kernel = load_kernel("tinycd", weights=state)
    dates = pictures(tmp_path)
    reports = [
        tilewright.apply(kernel, dates, out=tmp_path / f"out-{shard}", tile=128, shard=shard)
        for shard in (64, 160)
    ]
    assert reports[0].digest == reports[1].digest
    assert reports[0].seam is not None


def test_values_that_stand_for_black_and_white() -> None:
    image = load_kernel("tinycd", low=0.0, high=0.3).spec.inputs["image"]
    assert image.mean is not None
    assert image.std is not None
    assert image.mean[0] == pytest.approx(0.485 * 0.3)
    assert image.std[2] == pytest.approx(0.225 * 0.3)
    shifted = load_kernel("tinycd", low=100.0, high=355.0).spec.inputs["image"]
    assert shifted.mean is not None
    assert shifted.mean[1] == pytest.approx(100 + 0.456 * 255)


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"low": 1.0, "high": 1.0}, {"threshhold": 0.5}])
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(KernelError):
        load_kernel("tinycd", **wrong)


def test_a_list_of_kernels_builds_nothing() -> None:
    problems = {entry.name: entry.problem for entry in list_kernels() if entry.problem}
    assert not problems


def test_networks_without_an_exact_radius_can_be_blended() -> None:
    """Where the influence of a pixel never ends, blending is the way: every score and class map has a range."""
    for entry in list_kernels():
        if entry.spec is not None and entry.spec.radius is None and entry.spec.mapping == "map_pixels":
            open_ended = [n for n, o in entry.spec.outputs.items() if o.kind != "value" and o.range is None]
            assert not open_ended, entry.name
