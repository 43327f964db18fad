"""`tilewright eval` from the command line to its files, on datasets whose scores are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from commands import ROOT, command, refused

import tilewright

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
CLOUDS = ROOT.parent / "shared" / "data" / "06_cloudmask_labels"

KERNELS = """
import torch
import tilewright
from tilewright.kernels.contract import InputSpec, OutputSpec

PAIR = {"image": InputSpec(dates=2, bands=("red", "green", "blue"))}
MASK = ("no-change", "change")
LAND = ("unchanged", "water", "ground", "low vegetation", "tree", "building", "playground")


@tilewright.kernel(inputs=PAIR, radius=0, outputs={"score": OutputSpec(kind="score", range=(0, 255), threshold=100)})
def brighter(before, after):
    return (after - before)[:, :1].clamp(0, 255)


@tilewright.kernel(inputs=PAIR, radius=3, outputs={"change": OutputSpec(kind="class", classes=MASK)})
def around(before, after):
    wide = torch.nn.functional.avg_pool2d((after - before)[:, :1], 7, 1, 3, count_include_pad=False)
    return (wide > 50).float()


@tilewright.kernel(
    inputs=PAIR,
    radius=0,
    outputs={
        "first": OutputSpec(kind="class", classes=tuple(reversed(LAND[1:]))),
        "second": OutputSpec(kind="class", classes=tuple(reversed(LAND[1:]))),
        "change": OutputSpec(kind="class", classes=MASK),
    },
)
def transitions(before, after):
    return 5 - before[:, :1], 5 - after[:, :1], (before[:, 1:2] > 0).float()


@tilewright.kernel(
    inputs={"image": InputSpec(bands=("red", "green", "blue"))},
    radius=0, scale=2, outputs={"finer": OutputSpec(kind="value", range=(0, 255), bands=3)},
)
def repeat(x):
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


@tilewright.kernel(
    inputs={"image": InputSpec(bands=("red", "green", "blue"))},
    radius=0, outputs={"land": OutputSpec(kind="class", classes=("dark", "middle", "light"))},
)
def three(x):
    return (x[:, :1] >= 50).float() + (x[:, :1] >= 100).float()


@tilewright.kernel(
    inputs={"image": InputSpec(bands=("blue", "green", "red", "nir", "swir16", "swir22"))},
    radius=0, outputs={"cloud": OutputSpec(kind="score", threshold=0.5)},
)
def bright_and_cold(x):
    return ((x[:, :3].mean(1, keepdim=True) - 0.18) * 4 + 0.5).clamp(0, 1)
"""


def put(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": data.shape[0], "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype}
    with rasterio.open(path, "w", driver="PNG" if path.suffix == ".png" else "GTiff", **size) as dataset:
        dataset.write(data)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("kernels") / "mine.py"
    path.write_text(KERNELS)
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pairs of three sizes in which squares become bright, and a label that is wrong in known places."""
    home, g = tmp_path_factory.mktemp("pairs"), np.random.default_rng(5)
    for i, (rows, columns) in enumerate([(40, 60), (96, 96), (700, 90)]):
        before = g.integers(40, 90, (3, rows, columns)).astype(np.uint8)
        after, label = before.copy(), np.zeros((1, rows, columns), np.uint8)
        after[:, 5:25, 10:30] += 120
        label[:, 5:25, 10:30] = 255
        label[:, -10 * i :] = 255 if i else label[:, -10 * i :]
        for part, data in (("A", before), ("B", after), ("label", label)):
            put(home / "test" / part / f"p{i}.png", data)
    return home


def counts_of(label: np.ndarray, found: np.ndarray) -> list[list[int]]:
    return [[int(((label == a) & (found == b)).sum()) for b in (0, 1)] for a in (0, 1)]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def known_counts(pairs: Path) -> np.ndarray:
    total = np.zeros((2, 2), int)
    for i in range(3):
        before, after, label = (read(pairs / "test" / part / f"p{i}.png")[0] for part in ("A", "B", "label"))
        total += counts_of(label > 0, after.astype(int) - before >= 100)
    return total


def test_scores_files_and_plots(pairs: Path, kernels: str, tmp_path: Path) -> None:
    done = command("eval", f"{kernels}:brighter", pairs, "--out", tmp_path)
    assert done.status == 0, done
    (tn, fp), (fn, tp) = known_counts(pairs).tolist()
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["confusion"] == [[tn, fp], [fn, tp]]
    assert found["scores"]["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["scores"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert (found["layout"], found["split"], found["images"], found["threshold"]) == ("pairs", "test", 3, 100)
    assert found["outputs"] == ["score"]
    assert [one["name"] for one in found["per_image"]] == ["p0", "p1", "p2"]
    assert sum(one["errors"] for one in found["per_image"]) == fp + fn
    rows = list(csv.reader((tmp_path / "confusion.csv").open()))
    assert rows[1:] == [["no-change", str(tn), str(fp)], ["change", str(fn), str(tp)]]
    assert f"{found['scores']['f1']:.4f}" in done.out
    for name in ("confusion.png", "worst-tiles.png"):
        assert read(tmp_path / name).std() > 5
    assert not list(tmp_path.glob(".*"))


def test_pictures_go_the_way_of_apply(pairs: Path, kernels: str) -> None:
    """Tiles are cut with a halo: each map is that of `map_pixels`, and no tile size changes the scores."""
    import rioxarray  # noqa: F401 - registers .rio
    import xarray as xr

    kernel = tilewright.load_kernel(f"{kernels}:around")
    total = np.zeros((2, 2), int)
    for i in range(3):
        dates = [read(pairs / "test" / part / f"p{i}.png") for part in ("A", "B")]
        y, x = np.arange(dates[0].shape[1], 0, -1.0), np.arange(dates[0].shape[2]) + 0.5
        cube = xr.DataArray(
            np.stack(dates),
            dims=("time", "band", "y", "x"),
            coords={"y": y, "x": x, "band": ["red", "green", "blue"]},
        ).rio.write_crs("EPSG:32633")
        whole = tilewright.map_pixels(kernel, cube)["change"].values
        total += counts_of(read(pairs / "test" / "label" / f"p{i}.png")[0] > 0, whole)
    for wishes in ({}, {"tile": 64}, {"cores": 1}):
        found = tilewright.evaluate(kernel, pairs, **wishes)
        assert np.array_equal(found.confusion, total), wishes


def test_change_vector_on_made_pairs(pairs: Path, tmp_path: Path) -> None:
    done = command(
        "eval", "change-vector", pairs, "--set", "threshold=100", "--set", "normalise=false", "--json"
    )
    assert done.status == 0, done
    found = json.loads(done.out)
    assert found["confusion"] == known_counts(pairs).tolist()
    assert found["options"]["bands"] == ["red", "green", "blue"]


def test_limit_and_threshold(pairs: Path, kernels: str) -> None:
    found = tilewright.evaluate(f"{kernels}:brighter", pairs, limit=1, threshold=200)
    assert (found.images, found.threshold) == (1, 200)
    assert found.scores["recall"] == 0
    assert found.as_dict()["scores"]["precision"] is None
    assert "limit is 0" in refused("eval", f"{kernels}:brighter", pairs, "--limit", "0")


def test_an_evaluation_without_errors_draws_no_worst_pictures(
    pairs: Path, kernels: str, tmp_path: Path
) -> None:
    (tmp_path / "worst-tiles.png").write_text("of an earlier one")
    found = tilewright.evaluate(f"{kernels}:brighter", pairs, limit=1, out=tmp_path)
    assert found.scores["f1"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "metrics.json",
    ]


def test_a_network_without_weights_is_refused(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refused("eval", "tinycd", pairs, "--limit", "1", out=out)
    assert line.startswith("kernel tinycd: it has no weights")
    assert "--untrained" in line
    done = command("eval", "tinycd", pairs, "--limit", "1", "--untrained", "--out", out)
    assert done.status == 0, done
    assert "these numbers mean nothing" in done.out
    assert json.loads((out / "metrics.json").read_text())["untrained"] is True


def semantic(home: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Write a SECOND whose pictures hold class - 1 in red, and the mask of change in green."""
    g = np.random.default_rng(3)
    changed = np.zeros((48, 48), np.uint8)
    changed[10:30, 10:40] = 1
    labels, maps = [], []
    masked = np.roll(changed, 3, axis=0)
    for date in (1, 2):
        classes = g.integers(1, 7, changed.shape).astype(np.uint8)
        wrong = np.where(g.random(changed.shape) < 0.2, classes % 6 + 1, classes).astype(np.uint8)
        labels.append(classes * changed)
        maps.append(wrong * masked)
        put(home / "test" / f"im{date}" / "x.png", np.stack([wrong - 1, masked, masked]))
        put(home / "test" / f"label{date}" / "x.png", labels[-1][None])
    return labels, maps


def test_semantic_change(kernels: str, tmp_path: Path) -> None:
    from tilewright.evaluation.confusion import confusion
    from tilewright.evaluation.semantic import semantic_scores

    labels, maps = semantic(tmp_path / "set")
    out = tmp_path / "out"
    done = command("eval", f"{kernels}:transitions", tmp_path / "set", "--out", out)
    assert done.status == 0, done
    found = json.loads((out / "metrics.json").read_text())
    expected = confusion(labels[0], maps[0], 7) + confusion(labels[1], maps[1], 7)
    assert found["confusion"] == expected.tolist()
    assert found["outputs"] == ["first", "second", "change"]
    for name, value in semantic_scores(expected).items():
        assert found["scores"][name] == pytest.approx(value)
    assert found["scores"]["sek37"] != found["scores"]["sek7"]
    assert (out / "worst-tiles.png").exists()


def test_a_kernel_of_change_on_semantic_labels(kernels: str, tmp_path: Path) -> None:
    labels, maps = semantic(tmp_path)
    found = tilewright.evaluate(f"{kernels}:transitions", tmp_path, output="change")
    assert found.task == "change"
    assert np.array_equal(found.confusion, counts_of(labels[0] > 0, maps[0] > 0))


def test_super_resolution(kernels: str, tmp_path: Path) -> None:
    from tilewright.evaluation.fidelity import luma, psnr, ssim

    g = np.random.default_rng(2)
    low = g.integers(0, 255, (3, 20, 30)).astype(np.uint8)
    high = low.repeat(2, 1).repeat(2, 2) ^ g.integers(0, 8, (3, 40, 60)).astype(np.uint8)
    put(tmp_path / "low" / "x.png", low)
    put(tmp_path / "high" / "x.png", high)
    found = tilewright.evaluate(f"{kernels}:repeat", tmp_path, out=tmp_path / "out")
    made, truth = luma(low.repeat(2, 1).repeat(2, 2) / 255), luma(high / 255)
    assert found.scores["psnr_y"] == pytest.approx(psnr(made, truth), abs=1e-4)
    assert found.scores["ssim_y"] == pytest.approx(ssim(made, truth), abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.json", "worst-tiles.png"]


def test_classes_and_pixels_that_do_not_count(kernels: str, tmp_path: Path) -> None:
    values = np.zeros((3, 30, 30), np.uint8)
    values[:, :, 10:20], values[:, :, 20:] = 60, 120
    label = (values[:1] // 60).copy()
    label[:, :5] = 255
    label[:, 5:8, :10] = 1
    put(tmp_path / "image" / "x.png", values)
    put(tmp_path / "label" / "x.png", label)
    found = tilewright.evaluate(f"{kernels}:three", tmp_path)
    assert found.classes == ("dark", "middle", "light")
    assert (found.pixels, found.pixels_ignored) == (750, 150)
    assert found.confusion == ((220, 0, 0), (30, 250, 0), (0, 0, 250))
    done = command("eval", f"{kernels}:three", tmp_path)
    assert "150 pixels do not count" in done.out


def test_nodata_is_in_no_score(kernels: str, tmp_path: Path) -> None:
    values = np.full((3, 20, 20), 120, np.float32)
    values[0, :4] = np.nan
    put(tmp_path / "image" / "x.tif", values)
    put(tmp_path / "label" / "x.png", np.full((1, 20, 20), 2, np.uint8))
    found = tilewright.evaluate(f"{kernels}:three", tmp_path, bands=["red", "green", "blue"])
    assert (found.pixels, found.pixels_without_result) == (320, 80)
    assert found.scores["oa"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{k}:three",), "it tells 3 classes apart, the dataset 2 (no-change, change)"),
        (("{k}:bright_and_cold",), "kernel bright_and_cold: input 'image' needs 1 date, 2 given"),
        (("{k}:repeat",), "kernel repeat: it gives pictures 2 times finer, the dataset has class maps"),
        (
            ("{k}:transitions", "--output", "first"),
            "it tells 6 classes apart, the dataset 2 (no-change, change)",
        ),
        (("{k}:brighter", "--output", "scroe"), "has no output 'scroe'; did you mean 'score'?"),
        (("{k}:around", "--threshold", "0.5"), "kernel around has no score that could be cut"),
        (("{k}:brighter", "--split", "val"), "unknown split 'val'"),
        (("{k}:brighter", "--layout", "oscd"), "does not lie as oscd does"),
        (("{k}:brighter", "--bands", "red,nri,blue"), "--bands: there is no band 'nri'"),
        (("{k}:brighter", "--set", "x"), "--set: 'x' is no option; write key=value"),
        (("index",), "it gives values"),
    ],
)
def test_one_line_for_what_does_not_fit(
    pairs: Path, kernels: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [argument.format(k=kernels) for argument in arguments]
    assert message in refused("eval", given[0], pairs, *given[1:], out=tmp_path / "out")


def test_labels_of_no_class_and_missing_files(kernels: str, tmp_path: Path) -> None:
    for part in ("A", "B"):
        put(tmp_path / part / "x.png", np.zeros((3, 20, 20), np.uint8))
    assert "its layout is none of those known" in refused("eval", f"{kernels}:brighter", tmp_path)
    put(tmp_path / "label" / "x.png", np.full((1, 20, 20), 7, np.uint8))
    line = refused("eval", f"{kernels}:brighter", tmp_path)
    assert "label/x.png: the label holds 7, which is of no class; known: 0, 1, 255" in line
    (tmp_path / "file").write_text("")
    assert "a file lies there" in refused("eval", f"{kernels}:brighter", tmp_path, "--out", tmp_path / "file")


def test_an_interrupted_evaluation_says_that_nothing_is_kept(pairs: Path, kernels: str) -> None:
    from tilewright.interrupts import Stop

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        tilewright.evaluate(f"{kernels}:brighter", pairs, progress=stop)
    asked = Stop()
    asked.raised = caught.value
    assert asked.message == "interrupted: an evaluation keeps nothing; the same command begins again"


@pytest.mark.skipif(not CLOUDS.is_dir(), reason="the labelled cloud chips are not here")
def test_real_cloud_labels(kernels: str, tmp_path: Path) -> None:
    """Brightness finds most of the clouds of two real chips: what a kernel for clouds must beat."""
    for name in ("sentinel2", "landsat7"):
        content = np.load(CLOUDS / f"{name}.npz")
        put(tmp_path / "image" / f"{name}.tif", np.moveaxis(content["img"], -1, 0))
        put(tmp_path / "label" / f"{name}.tif", np.moveaxis(content["msk"], -1, 0))
    description: dict[str, Any] = {
        "dates": [[{"path": "image/{name}.*", "bands": ["blue", "green", "red", "nir", "swir16", "swir22"]}]],
        "labels": [{"path": "label/{name}.*", "values": {0: 0, 1: 0, 2: 0, 3: 0, 4: 1}}],
        "classes": ["clear", "cloud"],
    }
    (tmp_path / "dataset.yaml").write_text(json.dumps(description))
    out = tmp_path / "out"
    done = command("eval", f"{kernels}:bright_and_cold", tmp_path, "--out", out)
    assert done.status == 0, done
    found = json.loads((out / "metrics.json").read_text())
    assert found["pixels"] == 2 * 512 * 512
    assert found["scores"]["f1"] > 0.7
