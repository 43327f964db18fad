"""Readers of datasets: tiny folders in the layouts in which they are published, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from tilewright.errors import InputError
from tilewright.evaluation.dataset import Dataset, open_dataset
from tilewright.evaluation.layout import IGNORED, LabelFile
from tilewright.evaluation.pixels import chosen_bands, read_label, read_pictures, sample_bands

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHAPE = (12, 16)
DRIVERS = {".png": "PNG", ".tif": "GTiff", ".jpg": "JPEG"}


def put(path: Path, data: np.ndarray, **profile: object) -> Path:
    """Write ``[bands, rows, columns]`` or ``[rows, columns]``."""
    data = data if data.ndim == 3 else data[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": data.shape[0], "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype}
    with rasterio.open(path, "w", driver=DRIVERS[path.suffix], **size, **profile) as dataset:
        dataset.write(data)
    return path


def rgb(value: int = 100) -> np.ndarray:
    return np.full((3, *SHAPE), value, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None]


def mask(value: int = 255, dtype: str = "uint8") -> np.ndarray:
    """A label whose upper left quarter is ``value``."""
    label = np.zeros(SHAPE, dtype)
    label[:6, :8] = value
    return label


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def first(data: Dataset) -> tuple[np.ndarray, list[np.ndarray], tuple[str, ...]]:
    """Return the pictures ``[T, C, rows, columns]``, the labels and the bands of the first sample."""
    sample = next(data.samples())
    bands = sample_bands(sample, data.layout)
    pictures = read_pictures(sample, data.layout, bands, bands)
    classes = len(data.layout.classes or ("0", "1"))
    labels = [
        read_label(path, label, classes, pictures.data.shape[-2:])
        for path, label in zip(sample.labels, data.layout.labels, strict=True)
    ]
    return pictures.data, labels, bands


def is_the_mask(label: np.ndarray) -> bool:
    return np.array_equal(label, mask(1))


@pytest.mark.parametrize("asked", [None, "levir-cd"])
def test_levir_cd(tmp_path: Path, asked: str | None) -> None:
    for split, name in (("train", "train_1"), ("val", "val_1"), ("test", "test_2"), ("test", "test_1")):
        put(tmp_path / split / "A" / f"{name}.png", rgb(10))
        put(tmp_path / split / "B" / f"{name}.png", rgb(20))
        put(tmp_path / split / "label" / f"{name}.png", mask())
    data = open_dataset(tmp_path, asked)
    assert (data.layout.name, data.split, data.names) == (asked or "pairs", "test", ["test_1", "test_2"])
    pictures, (label,), bands = first(data)
    assert pictures.shape == (2, 3, *SHAPE)
    assert pictures[:, 0, 0, 0].tolist() == [10, 20]
    assert bands == ("red", "green", "blue")
    assert is_the_mask(label)
    assert open_dataset(tmp_path, asked, "val").names == ["val_1"]


def test_whu_cd_as_published(tmp_path: Path) -> None:
    home = tmp_path / "1. The two-period image data"
    for split in ("train", "test"):
        for year in (2012, 2016):
            put(home / f"{year}/whole_image/{split}/image/{year}_{split}.tif", rgb(year - 2000))
        put(home / f"change_label/{split}/change_label.tif", mask(1))
    for asked in (None, "whu-cd"):
        data = open_dataset(tmp_path, asked)
        assert (data.layout.name, data.split, data.names) == ("whu-cd", "test", ["test"])
        pictures, (label,), _ = first(data)
        assert pictures[:, 0, 0, 0].tolist() == [12, 16]
        assert is_the_mask(label)


@pytest.mark.parametrize("asked", [None, "whu-cd", "levir-cd"])
def test_tiles_with_lists(tmp_path: Path, asked: str | None) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "A" / f"{name}.png", rgb(10))
        put(tmp_path / "B" / f"{name}.png", rgb(20))
        put(tmp_path / "label" / f"{name}.png", mask())
    text(tmp_path / "list" / "train.txt", "b.png\n")
    text(tmp_path / "list" / "test.txt", "c.png\na.png\n\n")
    data = open_dataset(tmp_path, asked)
    assert (data.layout.name, data.names) == (asked or "pairs", ["c", "a"])
    assert is_the_mask(first(data)[1][0])
    assert open_dataset(tmp_path, asked, "train").names == ["b"]


def test_clcd(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path / split / "time1" / "00001.png", rgb(10))
        put(tmp_path / split / "time2" / "00001.png", rgb(20))
        put(tmp_path / split / "label" / "00001.png", mask())
    data = open_dataset(tmp_path)
    assert (data.layout.name, data.split) == ("clcd", "test")
    pictures, (label,), _ = first(data)
    assert pictures[:, 0, 0, 0].tolist() == [10, 20]
    assert is_the_mask(label)


def second(home: Path, label: np.ndarray) -> Dataset:
    for split in ("train", "test"):
        for date in (1, 2):
            put(home / split / f"im{date}" / "00003.png", rgb(date))
            put(home / split / f"label{date}" / "00003.png", label)
    return open_dataset(home)


def test_second_in_colours(tmp_path: Path) -> None:
    coloured = np.full((3, *SHAPE), 255, np.uint8)
    coloured[:, :6, :8] = np.array([128, 0, 0])[:, None, None]
    coloured[:, 6:, 8:] = np.array([0, 0, 255])[:, None, None]
    data = second(tmp_path, coloured)
    assert (data.layout.name, data.layout.task) == ("second", "semantic-change")
    _, labels, _ = first(data)
    assert len(labels) == 2
    assert data.layout.classes is not None
    assert [data.layout.classes[labels[1][at]] for at in ((0, 0), (11, 15), (0, 15))] == [
        "building", "water", "unchanged",
    ]  # fmt: skip


def test_second_in_numbers(tmp_path: Path) -> None:
    _, labels, _ = first(second(tmp_path, mask(5)))
    assert np.array_equal(labels[0], mask(5))


def test_second_with_a_palette(tmp_path: Path) -> None:
    """A coloured label that some tool saved with a palette: its numbers are places in the palette."""
    data = second(tmp_path, mask(1))
    for date in (1, 2):
        label = tmp_path / "test" / f"label{date}" / "00003.png"
        label.unlink()
        size = {"count": 1, "height": SHAPE[0], "width": SHAPE[1], "dtype": "uint8", "photometric": "palette"}
        with rasterio.open(label.with_suffix(".tif"), "w", driver="GTiff", **size) as dataset:
            dataset.write(mask(1)[None])
            dataset.write_colormap(1, {0: (255, 255, 255, 255), 1: (0, 255, 0, 255)})
    _, labels, _ = first(open_dataset(tmp_path))
    assert data.layout.classes is not None
    assert data.layout.classes[4] == "tree"
    assert np.array_equal(labels[0], mask(4))


def test_a_colour_of_no_class(tmp_path: Path) -> None:
    coloured = np.full((3, *SHAPE), 255, np.uint8)
    coloured[:, 0, 0] = 1, 2, 3
    with pytest.raises(
        InputError, match=r"label1/00003.png: the label holds the colour 1,2,3.* known: 255,255,255"
    ):
        first(second(tmp_path, coloured))


def test_oscd(tmp_path: Path) -> None:
    name = "Onera Satellite Change Detection dataset - "
    natives = [*(f"B{i:02}" for i in range(1, 13)), "B8A"]
    for city, split in (("nantes", "Train"), ("chongqing", "Test")):
        for date in (1, 2):
            for i, native in enumerate(natives):
                band = np.full(SHAPE, 1000 * date + i, np.uint16)
                put(tmp_path / f"{name}Images" / city / f"imgs_{date}_rect" / f"{native}.tif", band)
        label = np.stack([mask()] * 3)  # the masks are colour pictures in some cities
        put(tmp_path / f"{name}{split} Labels" / city / "cm" / "cm.png", label)
    text(tmp_path / f"{name}Images" / "train.txt", "nantes")
    text(tmp_path / f"{name}Images" / "test.txt", "chongqing\n")
    data = open_dataset(tmp_path)
    assert (data.layout.name, data.split, data.names) == ("oscd", "test", ["chongqing"])
    pictures, (label,), bands = first(data)
    assert bands[:4] == ("coastal", "blue", "green", "red")
    assert bands[8] == "nir08"
    assert pictures[0, 3, 0, 0] == pytest.approx(0.1003)
    assert pictures[1, 8, 0, 0] == pytest.approx(0.2012)
    assert is_the_mask(label)
    assert open_dataset(tmp_path, split="train").names == ["nantes"]


def test_landcover_ai(tmp_path: Path) -> None:
    for name in ("M-33_0", "M-33_1"):
        put(tmp_path / "output" / f"{name}.jpg", rgb(50))
        put(tmp_path / "output" / f"{name}_m.png", np.stack([mask(3)] * 3))
    for split, content in (("train", "M-33_0\n"), ("val", ""), ("test", "M-33_1\n")):
        text(tmp_path / f"{split}.txt", content)
    data = open_dataset(tmp_path)
    assert (data.layout.name, data.names) == ("landcover-ai", ["M-33_1"])
    _, (label,), _ = first(data)
    assert np.array_equal(label, mask(3))
    with pytest.raises(InputError, match="holds no pictures"):
        open_dataset(tmp_path, split="val").names  # noqa: B018


def test_sen1floods11(tmp_path: Path) -> None:
    home = tmp_path / "v1.1" / "data" / "flood_events" / "HandLabeled"
    label = mask(1, "int16")
    label[-1] = -1
    radar = np.full((2, *SHAPE), -12.5, np.float32)
    radar[:, 0, 0] = np.nan
    for name in ("Ghana_1", "Spain_2"):
        put(home / "S1Hand" / f"{name}_S1Hand.tif", radar)
        put(home / "S2Hand" / f"{name}_S2Hand.tif", np.full((13, *SHAPE), 2000, np.int16))
        put(home / "LabelHand" / f"{name}_LabelHand.tif", label)
    splits = tmp_path / "v1.1" / "splits" / "flood_handlabeled"
    text(splits / "flood_test_data.csv", "Spain_2_S1Hand.tif,Spain_2_LabelHand.tif\n")
    text(splits / "flood_valid_data.csv", "Ghana_1_S1Hand.tif,Ghana_1_LabelHand.tif\n")
    data = open_dataset(tmp_path)
    assert (data.layout.name, data.names) == ("sen1floods11", ["Spain_2"])
    assert open_dataset(tmp_path, split="val").names == ["Ghana_1"]
    _, (read,), bands = first(data)
    assert bands[:3] == ("vv", "vh", "coastal")
    assert read[-1].tolist() == [IGNORED] * 16
    assert np.array_equal(read[:-1], mask(1)[:-1])
    sample = next(data.samples())
    radar_only = read_pictures(sample, data.layout, ("vh", "vv"), ("vh", "vv"))
    assert radar_only.data.shape == (1, 2, *SHAPE)
    assert radar_only.units == "dB"
    assert radar_only.invalid.sum() == 1
    optical = read_pictures(sample, data.layout, ("red",), ("red",))
    assert (optical.units, optical.data[0, 0, 0, 0]) == ("reflectance", pytest.approx(0.2))


def plain(home: Path, **labels: np.ndarray) -> Path:
    for name, label in labels.items():
        put(home / "image" / f"{name}.tif", np.ones((4, *SHAPE), np.float32))
        put(home / "label" / f"{name}.png", label)
    return home


def test_plain_folders_of_one_date(tmp_path: Path) -> None:
    data = open_dataset(plain(tmp_path, b=mask(2), a=mask(1)))
    assert (data.layout.name, data.split, data.names) == ("images", None, ["a", "b"])
    assert first(data)[2] == ("band_1", "band_2", "band_3", "band_4")
    with pytest.raises(InputError, match="it has no splits, and so no 'test'"):
        open_dataset(tmp_path, split="test")


def test_a_description_of_ones_own(tmp_path: Path) -> None:
    put(tmp_path / "scenes" / "s_one_x.tif", rgb(7))
    put(tmp_path / "truth" / "one.tif", np.where(mask() > 0, 30, 10).astype(np.uint8))
    description = {
        "dates": [[{"path": "scenes/s_{name}_x.tif"}]],
        "labels": [{"path": "truth/{name}.*", "values": {10: 0, 30: 2}, "ignore": [0]}],
        "classes": ["land", "water", "cloud"],
    }
    text(tmp_path / "dataset.yaml", yaml.safe_dump(description))
    data = open_dataset(tmp_path)
    assert data.names == ["one"]
    assert np.array_equal(first(data)[1][0], mask(2))
    other = tmp_path / "other.yaml"
    text(other, yaml.safe_dump(description))
    assert open_dataset(tmp_path, str(other)).names == ["one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "change"}, "task change takes two dates"),
        ({"classes": ["one"]}, "1 classes: give 2 to 255"),
        ({"clases": ["a", "b"]}, "unknown key 'clases'; did you mean 'classes'?"),
        ({"labels": [{"path": "../{name}.png"}]}, "leads out of the dataset's folder"),
        ({"labels": [{"path": "{date}/{name}.png"}]}, "only {split}, {Split}, {name} may be left open"),
        ({"labels": [{"path": "l/{name}.png", "values": {3: 7}}]}, "maps to class 7, which has no name"),
        ({"labels": [{"path": "l/{name}.png", "colours": {"1,2": 0}}]}, "'1,2' is no colour"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, change: dict[str, object], message: str) -> None:
    right = {
        "dates": [[{"path": "image/{name}.*"}]],
        "labels": [{"path": "label/{name}.*"}],
        "classes": ["a", "b"],
    }
    text(tmp_path / "dataset.yaml", yaml.safe_dump({**right, **change}))
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"its layout is none of those known; known: whu-cd, oscd.*dataset.yaml"
    ):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="unknown layout 'secnd'; did you mean 'second'"):
        open_dataset(tmp_path, "secnd")
    with pytest.raises(InputError, match=r"does not lie as landcover-ai does.*run the dataset's split.py"):
        open_dataset(tmp_path, "landcover-ai")
    with pytest.raises(InputError, match=r"mine.yaml: no such file"):
        open_dataset(tmp_path, "mine.yaml")


def test_wrong_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for part in ("A", "B", "label"):
            put(tmp_path / split / part / "x.png", rgb() if part != "label" else mask())
    with pytest.raises(InputError, match="there is no split 'test'; choose by --split: train, val"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="unknown split 'vall'; did you mean 'val'"):
        open_dataset(tmp_path, split="vall")


def test_missing_and_doubled_files(tmp_path: Path) -> None:
    plain(tmp_path, a=mask(1), b=mask(1))
    (tmp_path / "label" / "b.png").unlink()
    samples = open_dataset(tmp_path).samples()
    next(samples)
    with pytest.raises(InputError, match=r"label: there is no picture 'b'; each name needs one file"):
        next(samples)
    put(tmp_path / "image" / "a.png", rgb())
    with pytest.raises(InputError, match=r"image: 'a' lies there in 2 formats"):
        next(open_dataset(tmp_path).samples())


def test_lists_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    for part in ("A", "B", "label"):
        put(tmp_path / "set" / part / "x.png", rgb() if part != "label" else mask())
    for name in ("../../x.png", "/etc/x.png", "..\\x.png"):
        text(tmp_path / "set" / "list" / "test.txt", f"{name}\n")
        with pytest.raises(InputError, match="leads out of the dataset's folder"):
            open_dataset(tmp_path / "set").names  # noqa: B018


def test_labels_outside_of_the_classes(tmp_path: Path) -> None:
    path = put(tmp_path / "l.png", mask(9))
    with pytest.raises(
        InputError, match=r"l.png: the label holds 9, which is of no class; known: 0, 1, 2, 255"
    ):
        read_label(path, LabelFile(path="l.png"), 3, SHAPE)
    with pytest.raises(InputError, match=r"the label holds 9, .* known: 0, 1; map others"):
        read_label(path, LabelFile(path="l.png"), 2, SHAPE)
    with pytest.raises(InputError, match="the label is 12 x 16 px, its picture 16 x 16 px"):
        read_label(path, LabelFile(path="l.png"), 10, (16, 16))
    with pytest.raises(InputError, match="the label has 3 bands that differ"):
        read_label(put(tmp_path / "c.png", rgb()), LabelFile(path="c.png"), 2, SHAPE)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(InputError, match=r"broken.png: not a readable picture"):
        read_label(broken, LabelFile(path="broken.png"), 2, SHAPE)


def test_255_counts_for_nothing_beside_more_than_two_classes(tmp_path: Path) -> None:
    path = put(tmp_path / "l.png", mask(255))
    assert (read_label(path, LabelFile(path="l.png"), 3, SHAPE) == mask(IGNORED)).all()
    with pytest.raises(InputError, match="the label holds 255, which is of no class"):
        read_label(path, LabelFile(path="l.png"), 2, SHAPE)


def test_dates_of_another_size(tmp_path: Path) -> None:
    put(tmp_path / "A" / "x.png", rgb())
    put(tmp_path / "B" / "x.png", rgb()[:, :5])
    put(tmp_path / "label" / "x.png", mask())
    with pytest.raises(InputError, match="it is 5 x 16 px, other bands or dates are 12 x 16 px"):
        first(open_dataset(tmp_path))


def test_bands_are_chosen_as_apply_does() -> None:
    there = ("red", "green", "blue", "nir")
    assert chosen_bands(there, ["nir", "red"], "x") == (("nir", "red"), ("nir", "red"))
    assert chosen_bands(there, ["4", 1], "x") == (("nir", "red"), ("nir", "red"))
    unnamed = ("band_1", "band_2")
    assert chosen_bands(unnamed, ["vv", "vh"], "x") == (unnamed, ("vv", "vh"))
    with pytest.raises(InputError, match="there is no band 'nri'; did you mean 'nir'"):
        chosen_bands(there, ["nri"], "x")
    with pytest.raises(InputError, match="there is no band 5; give 1 to 4"):
        chosen_bands(there, ["5"], "x")
