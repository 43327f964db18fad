"""The contract of embedders: ranges of values, fitting, vectors of length 1, texts, maps of likeness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from embedders import colours
from torch.nn import functional

import tilewright
from tilewright.errors import KernelError
from tilewright.kernels.contract import InputSpec
from tilewright.kernels.embed import Tower, load_embedder, profiles, textmap
from tilewright.kernels.embed.contract import profile_of
from tilewright.kernels.load import load_kernel

STATE = {"gain": torch.tensor([2.0])}


def test_vectors_are_of_length_one_and_of_the_towers_side() -> None:
    embedder = colours().embedder(STATE)
    pixels = torch.rand(70, 3, 20, 30) * 255
    found = embedder.embed_images(pixels)
    assert found.shape == (70, 3)
    assert torch.allclose(found.norm(dim=1), torch.ones(70))
    assert embedder.embed_dense(pixels).shape == (70, 3, 2, 2)
    assert embedder.embed_images(pixels[:0]).shape == (0, 3)
    assert embedder.weights_sha256 is not None
    assert not embedder.untrained


def test_pictures_are_found_by_text() -> None:
    embedder = colours().embedder(STATE)
    pixels = torch.zeros(3, 3, 8, 8)
    for band in range(3):
        pixels[band, band] = 200
    found = embedder.embed_images(pixels) @ embedder.embed_texts(["blue", "red"]).T
    assert found.argmax(0).tolist() == [2, 0]


def test_kernel_and_embedder_agree() -> None:
    """Over a raster and by hand; tiles that lie half outside of the valid data are filled."""
    profile = colours()
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    import rioxarray  # noqa: F401
    import xarray as xr

    array = xr.DataArray(
        image,
        dims=("band", "y", "x"),
        coords={"band": ["red", "green", "blue"], "y": -np.arange(16.0), "x": np.arange(16.0)},
    ).rio.write_crs("EPSG:32632")
    table = tilewright.map_tiles(profile(STATE), array, tile=8)
    found = torch.from_numpy(np.stack(table["embedding"].to_list()))
    tiles = torch.from_numpy(image.astype(np.float32)).unfold(1, 8, 8).unfold(2, 8, 8)
    tiles = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
    order = (table["tile_row"] * 2 + table["tile_col"]).to_list()
    expected = profile.embedder(STATE).embed_images(tiles)[order]
    assert torch.allclose(found, expected, atol=1e-6)


def test_another_range_of_values_gives_the_same_vectors() -> None:
    tower = profiles.REMOTECLIP_VIT_B_32.towers["image"]
    picture = torch.rand(2, 3, 20, 24) * 255
    shown = tower.fitted(tower.normalised(picture))
    other = tower.between(0.0, 0.3, "")
    assert other.input.units is None
    assert torch.allclose(other.fitted(other.normalised(picture / 255 * 0.3)), shown, atol=1e-5)
    brighter = other.fitted(other.normalised(torch.full((1, 3, 224, 224), 0.9)))
    assert torch.allclose(
        brighter, tower.fitted(tower.normalised(torch.full((1, 3, 224, 224), 255.0))), atol=1e-5
    )
    assert tower.between(None, None, "") is tower
    with pytest.raises(KernelError, match="low < high"):
        tower.between(1.0, 1.0, "")
    physical = Tower(InputSpec(bands=2, units="dB"), 8)
    with pytest.raises(KernelError, match="takes dB"):
        physical.between(0.0, 1.0, "")


def test_pictures_that_are_not_square_are_cut_or_squashed() -> None:
    image = InputSpec(bands=1)
    ramp = torch.arange(12.0).expand(1, 1, 6, 12)
    cut = Tower(image, 6).fitted(ramp)
    assert torch.equal(cut, ramp[..., 3:9])
    squashed = Tower(image, 6, resize="bilinear", fit="squash").fitted(ramp)
    assert squashed.shape == (1, 1, 6, 6)
    assert float(squashed[..., -1].mean()) > 9
    assert Tower(image, 6, resize="none").fitted(ramp).shape == (1, 1, 6, 12)


def test_what_was_not_measured_has_the_fill_value() -> None:
    tower = profiles.REMOTECLIP_VIT_B_32.towers["image"]
    pixels = torch.full((1, 3, 4, 4), float("nan"))
    assert torch.equal(tower.normalised(pixels), torch.zeros(1, 3, 4, 4))


def test_refusals_name_the_place_and_the_remedy() -> None:
    embedder = colours().embedder(STATE)
    with pytest.raises(KernelError, match=r"expected \[N, 3, H, W\]"):
        embedder.embed_images(torch.zeros(1, 4, 8, 8))
    with pytest.raises(KernelError, match="give a list"):
        embedder.embed_texts("red")
    with pytest.raises(KernelError, match="unknown tower 'radar'"):
        embedder.embed_images(torch.zeros(1, 3, 8, 8), tower="radar")
    mute = replace(colours(), text=False, dense=False).embedder(STATE)
    with pytest.raises(KernelError, match="search by a picture"):
        mute.embed_texts(["red"])
    with pytest.raises(KernelError, match="no map of vectors"):
        mute.embed_dense(torch.zeros(1, 3, 8, 8))
    with pytest.raises(KernelError, match="tokenizer of its own"):
        colours().embedder(STATE, tokenizer="tokenizer.json")
    with pytest.raises(KernelError, match="embeds neither"):
        load_embedder("ir-mad")
    with pytest.raises(KernelError, match="unknown option 'lo'"):
        load_embedder("remoteclip-vit-b-32", lo=1)
    with pytest.raises(KernelError, match="is no number"):
        load_embedder("remoteclip-vit-b-32", low="dark")


def test_every_profile_is_registered_under_its_name() -> None:
    made = [getattr(profiles, name) for name in profiles.__all__ if name.isupper()]
    for profile in made:
        assert profile_of(profile.name) is profile
        spec = load_kernel(profile.name).spec
        assert spec.mapping == "map_tiles"
        assert spec.outputs["embedding"].band_count == profile.dim
        assert spec.licence
        assert spec.citation
        assert load_kernel(profile.name, low=0, high=0.3).spec.inputs["image"].units is None


@pytest.fixture
def coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textmap, "profile_of", lambda name: colours(side=16))


@pytest.mark.usefixtures("coloured")
def test_a_map_of_likeness_finds_what_was_asked_for() -> None:
    """Left half red, right half blue; the map says so but for the seam, where patches are interpolated."""
    kernel = textmap.text_map(STATE, texts="red; green; blue", temperature=20)
    assert kernel.spec.mapping == "map_pixels"
    assert kernel.spec.outputs["likeness"].band_count == 3
    tile = torch.zeros(1, 1, 3, 32, 32)
    tile[..., 0, :, :16] = 1
    tile[..., 2, :, 16:] = 1
    valid = torch.ones(1, 1, 1, 32, 32, dtype=torch.bool)
    found = kernel.apply({"image": tile}, {"image": valid}, None)  # type: ignore[arg-type]
    shares = found["likeness"]
    assert shares.shape == (1, 3, 32, 32)
    assert torch.allclose(shares.sum(1), torch.ones(1, 32, 32))
    assert (found["text"][0, :, :, :12].argmax(0) == 0).all()
    assert (found["text"][0, :, :, 20:].argmax(0) == 2).all()
    cosine = textmap.text_map(STATE, texts="red", mode="cosine")
    alone = cosine.apply({"image": tile}, {"image": valid}, None)  # type: ignore[arg-type]
    assert set(alone) == {"likeness"}
    expected = functional.one_hot(torch.tensor([0] * 12 + [1] * 12), 2)[:, 0].float()
    row = alone["likeness"][0, 0, 5, [*range(12), *range(20, 32)]]
    assert torch.allclose(row, expected, atol=0.02)


@pytest.mark.usefixtures("coloured")
def test_a_map_needs_texts_that_differ_and_a_place_for_them() -> None:
    for texts in ("", "red; red"):
        with pytest.raises(KernelError, match="each text once"):
            textmap.text_map(STATE, texts=texts)
    with pytest.raises(KernelError, match="where the text goes"):
        textmap.text_map(STATE, texts="red", prompt="a photo")
