"""Presto against numbers of the official implementation with the published checkpoint, and over rasters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.presto import ABSENT, Presto
from tilewright.kernels.series.presto_pixels import network_input

OFFICIAL = Path(__file__).parent / "series" / "presto"
DAY = 86_400 * 10**9
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path) -> Path:
    path = shared_data / "ckpt" / "presto" / "default_model.pt"
    if not path.is_file():
        pytest.skip("the published checkpoint is absent")
    return path


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    content = np.load(OFFICIAL / "public.npz")
    return {name: torch.from_numpy(content[name]) for name in content.files}


def test_names_and_shapes_are_official() -> None:
    keys = json.loads((OFFICIAL / "keys.json").read_text())
    state = load_kernel("presto").module.state_dict()
    assert [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()] == [
        (name, shape, dtype) for name, (shape, dtype) in keys.items()
    ]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE
    assert float(expected.max() - expected.min()) > 1


def test_outputs_are_official(checkpoint: Path, official: dict[str, torch.Tensor]) -> None:
    """Embeddings without a mask, with one, and without land cover; tokens; what is made of hidden bands."""
    network = load_kernel("presto", weights=str(checkpoint)).module
    assert isinstance(network, Presto)
    x, land, place, month = (official[name] for name in ("x", "dynamic_world", "latlons", "month"))
    mask, encoder = official["mask"], network.encoder
    with torch.inference_mode():
        close(encoder(x, land, place, month=month), official["enc_nomask"])
        close(encoder(x, land, place, mask, month), official["enc_mask"])
        close(encoder(x, torch.full_like(land, ABSENT), place, mask, 5), official["enc_mask_noDW_month5"])
        tokens, kept, removed = encoder.kept(x, land, place, mask, month)
        close(tokens, official["tokens"])
        assert torch.equal(kept, official["kept_idx"])
        assert torch.equal(removed, official["removed_idx"])
        bands, classes = network(x, land, place, mask, month)
        close(bands, official["recon_x"])
        close(classes, official["recon_dw"])


def test_groups_that_are_not_there_need_no_tokens(official: dict[str, torch.Tensor]) -> None:
    """Leaving groups out is hiding them. Samples may hide different numbers of tokens, but not to be reconstructed."""
    network = load_kernel("presto").module
    x, place = official["x"], official["latlons"]
    land = torch.full_like(official["dynamic_world"], ABSENT)
    mask = torch.ones_like(x)
    mask[..., :5] = 0
    mask[1, :4] = 1
    with torch.inference_mode():
        hidden = network.encoder(x, land, place, mask, 3)
        without = network.encoder(x, land, place, mask, 3, groups=("S1", "S2_RGB"))
        close(without, hidden)
        alone = network.encoder(x[1:2, 4:], land[1:2, 4:], place[1:2], mask[1:2, 4:], 7)
        assert (
            float((alone - hidden[1:2]).abs().max()) > 1e-3
        )  # the number of the date counts, not the month alone
        with pytest.raises(KernelError, match="samples of one batch hide"):
            network(x, land, place, mask, 3)


def cube(rng: np.random.Generator, side: int = 6, dates: int = 3) -> dict[str, torch.Tensor]:
    """Named inputs ``[1, T, C, side, side]`` in their units."""
    shapes = {"s2": (dates, 10), "s1": (dates, 2), "era5": (dates, 2), "srtm": (1, 2)}
    units = {"s2": 0.4, "s1": 0.2, "era5": 280.0, "srtm": 40.0}
    return {
        name: torch.from_numpy(
            (units[name] * rng.uniform(0.5, 1, (1, *shape, side, side))).astype(np.float32)
        )
        for name, shape in shapes.items()
    }


def context(dates: int = 3, lonlat: tuple[float, float] = (11.0, 47.0), first: int = 18_322) -> Context:
    times = torch.arange(dates, dtype=torch.int64)[None] * 31 * DAY + first * DAY
    place = torch.tensor([lonlat], dtype=torch.float64)
    return Context(torch.tensor([[40, 7]]), times, place, 10.0)


def run(
    kernel: Kernel, inputs: dict[str, torch.Tensor], where: Context, valid: dict | None = None
) -> torch.Tensor:
    inputs = {name: inputs[name] for name in kernel.spec.inputs}
    valid = valid or {name: torch.ones_like(one[:, :, :1], dtype=torch.bool) for name, one in inputs.items()}
    with torch.inference_mode():
        found: torch.Tensor = kernel.apply(inputs, valid, where)["embedding"]
    return found


def test_a_raster_is_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units, NDVI, months and place by hand, for one pixel of a cube; chunks change nothing."""
    made, kernel = cube(np.random.default_rng(0)), load_kernel("presto", inputs="s2,s1,era5,srtm")
    whole = run(kernel, made, context())
    pixel = {name: one[0, :, :, 2, 4] for name, one in made.items()}
    x = torch.zeros(1, 3, 17)
    x[0, :, :2] = (10 * torch.log10(pixel["s1"]) + 25) / 25
    x[0, :, 2:12] = pixel["s2"]
    x[0, :, 12] = (pixel["era5"][:, 0] - 272.15) / 35
    x[0, :, 13] = pixel["era5"][:, 1] / 0.03
    x[0, :, 14:16] = pixel["srtm"] / torch.tensor([2000.0, 50.0])
    red, nir = pixel["s2"][:, 2], pixel["s2"][:, 6]
    x[0, :, 16] = (nir - red) / (nir + red)
    land = torch.full((1, 3), ABSENT)
    with torch.inference_mode():
        want = kernel.module.encoder(x, land, torch.tensor([[47.0, 11.0]]), month=torch.tensor([[2, 3, 4]]))
    close(whole[0, :, 2, 4], want[0])  # 2020-03-01 and the two months after
    monkeypatch.setattr("tilewright.kernels.series.presto_pixels.TOKENS_A_CHUNK", 100)
    close(run(kernel, made, context()), whole)


def test_gaps_are_hidden() -> None:
    """A date of one sensor that is missing is hidden, whatever stands in its place; no date at all is no result."""
    made, kernel = cube(np.random.default_rng(1), side=2), load_kernel("presto", inputs="s2,s1")
    valid = {name: torch.ones_like(made[name][:, :, :1], dtype=torch.bool) for name in kernel.spec.inputs}
    valid["s2"][0, 1, 0, 0, 0] = False
    valid["s2"][0, :, 0, 1, 1] = False
    valid["s1"][0, :, 0, 1, 1] = False
    found = run(kernel, made, context(), valid)
    changed = {name: one.clone() for name, one in made.items()}
    changed["s2"][0, 1, :, 0, 0] = 99.0
    assert torch.equal(run(kernel, changed, context(), valid)[..., 0, 0], found[..., 0, 0])
    full = run(kernel, made, context())
    assert float((full - found)[..., 0, 0].abs().max()) > 1e-3
    assert torch.equal(full[..., 0, 1], found[..., 0, 1])
    assert found[..., 1, 1].isnan().all()


def test_months_and_places() -> None:
    made = cube(np.random.default_rng(2), side=2)
    seen = run(load_kernel("presto"), made, context())
    nowhere, undated = context(lonlat=(np.nan, np.nan)), context(first=-62)
    told = load_kernel("presto", month=3, place="11,47")
    close(run(told, made, nowhere), seen)
    with pytest.raises(KernelError, match="no coordinates"):
        run(load_kernel("presto", month=3), made, nowhere)
    undated.times.zero_()
    with pytest.raises(KernelError, match="does not say when"):
        run(load_kernel("presto"), made, undated)
    close(run(told, made, undated), seen)
    short = {**made, "s1": made["s1"][:, :2]}
    with pytest.raises(KernelError, match="s2 3, s1 2"):
        run(load_kernel("presto", inputs="s2,s1"), short, context())


def test_each_pixel_has_its_own_place() -> None:
    """Through the engine: tiles of another size give the same embedding, and the place is that of the pixel."""
    import rioxarray  # noqa: F401 - registers the accessor
    import xarray as xr
    from pyproj import Transformer

    import tilewright

    side, step = 24, 20_000.0  # so far apart that the place counts
    rng = np.random.default_rng(3)
    stack = rng.uniform(0.1, 0.4, (2, 10, 1, 1)).astype(np.float32) * np.ones((1, 1, side, side), np.float32)
    kernel = load_kernel("presto")
    cube = xr.DataArray(
        stack,
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(["2020-03-05", "2020-04-05"], "datetime64[ns]"),
            "band": list(kernel.spec.inputs["s2"].bands),
            "y": 5_400_000 - step * (np.arange(side) + 0.5),
            "x": 300_000 + step * (np.arange(side) + 0.5),
        },
    ).rio.write_crs(32632)
    found = {
        tile: tilewright.map_pixels(load_kernel("presto"), cube, tile=tile, untrained=True)
        for tile in (16, 24)
    }
    values = {tile: one["embedding"].transpose("band", "y", "x").values for tile, one in found.items()}
    np.testing.assert_allclose(values[16], values[24], atol=1e-5)
    assert np.abs(values[24][:, 0, 0] - values[24][:, 20, 20]).max() > 1e-3
    lon, lat = Transformer.from_crs(32632, 4326, always_xy=True).transform(float(cube.x[5]), float(cube.y[9]))
    x, hidden = network_input(
        {"s2": torch.from_numpy(stack[None, :, :, 9, 5])}, {"s2": torch.ones(1, 2, dtype=torch.bool)}, 2
    )
    with torch.inference_mode():
        want = kernel.module.encoder(
            x, torch.full((1, 2), ABSENT), torch.tensor([[lat, lon]], dtype=torch.float32), hidden, 2
        )
    np.testing.assert_allclose(values[24][:, 9, 5], want[0].numpy(), atol=1e-5)


def test_other_weights_are_refused_unless_wanted(tmp_path: Path) -> None:
    state = load_kernel("presto").module.state_dict()
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="sha256"):
        load_kernel("presto", weights=str(tmp_path / "other.pt"))
    kernel = load_kernel("presto", weights=str(tmp_path / "other.pt"), published=False)
    assert torch.equal(kernel.module.state_dict()["encoder.norm.weight"], state["encoder.norm.weight"])
