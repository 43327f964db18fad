"""`csmask` and `s2cloudless` against the packages whose models they run, and `eval` on labelled chips in archives."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tilewright.errors import InputError, KernelError, WeightsError
from tilewright.evaluation.archives import opened_array
from tilewright.evaluation.evaluate import evaluate
from tilewright.kernels.load import load_kernel
from tilewright.kernels.segment.csmask import CLASSES, CSMASK, CSMASK_RGBNIR, MODELS
from tilewright.testing import check_kernel

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

CLOUDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "06_cloudmask_labels"
csmask_installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ukis_csmask", "onnxruntime"))), reason="needs the extra csmask"
)
trees_installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("s2cloudless", "lightgbm"))), reason="needs the extra s2cloudless"
)


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def scene(rows: int, columns: int, bands: int, seed: int = 3) -> np.ndarray:
    """Reflectance ``[rows, columns, bands]``: smooth land, a bright blob, a dark one beside it, noise."""
    g = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns] / 60
    land = 0.12 + 0.05 * np.sin(2 * y) * np.cos(3 * x)
    cloud = np.exp(-((y - 1.8) ** 2 + (x - 1.5) ** 2) * 2)
    shadow = np.exp(-((y - 2.6) ** 2 + (x - 2.3) ** 2) * 2)
    level = np.linspace(0.8, 1.9, bands)
    image = land[..., None] * level * (1 - 0.7 * shadow[..., None]) + 0.5 * cloud[..., None]
    return (image + g.normal(0, 0.01, image.shape)).clip(0.001, 1).astype(np.float32)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(image, -1, 0).copy())[None]


@csmask_installed
@pytest.mark.parametrize(("bands", "level"), sorted(MODELS))
def test_csmask_has_the_numbers_of_the_package(bands: int, level: str) -> None:
    model = MODELS[bands, level]
    folder = folder_of("ukis_csmask")
    given = json.loads((folder / model.file).with_suffix(".json").read_text())["data"]
    mean, std = given["dataset_statistics"]["img"]
    assert list(model.mean) == mean
    assert list(model.std) == std
    kernel = {4: CSMASK_RGBNIR, 6: CSMASK}[bands]
    assert list(kernel.bands) == given["dataset_statistics"]["band_names"]
    assert given["target_size"] == [256, 256] == [kernel().spec.tile.fixed] * 2
    assert given["classes"] == len(CLASSES)
    assert hashlib.sha256((folder / model.file).read_bytes()).hexdigest() == model.sha256


@csmask_installed
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "bands", "level"), [("csmask", 6, "l1c"), ("csmask-rgbnir", 4, "l2a")])
def test_one_tile_of_csmask_is_that_of_the_package(name: str, bands: int, level: str) -> None:
    from ukis_csmask.mask import CSmask

    image = scene(256, 256, bands)
    kernel = load_kernel(name, level=level, probabilities=True)
    official = CSmask(
        image.copy(),
        list(kernel.spec.inputs["image"].bands),
        level,
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        providers=["CPUExecutionProvider"],
    )
    wanted = official.softmax(
        official.session.run(None, {official.input_names: np.moveaxis(official.img, -1, 0)[None]})[0]
    )
    with torch.inference_mode():
        found = kernel.function(tensor(image))["probability"].numpy()
    assert np.abs(found - wanted).max() < 1e-5
    assert set(np.unique(found.argmax(1))) >= {0, 1}  # something was found, so that equality means something


@csmask_installed
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(not CLOUDS.is_dir(), reason="the labelled cloud chips are not here")
def test_tiles_of_csmask_agree_with_those_of_the_package(tmp_path: Path) -> None:
    """Both blend tiles, on other lattices and over other widths: the maps differ mostly along edges."""
    from ukis_csmask.mask import CSmask

    image = np.load(CLOUDS / "sentinel2.npz")["img"]
    official = CSmask(
        image.copy(), list(CSMASK.bands), intra_op_num_threads=1, providers=["CPUExecutionProvider"]
    )
    np.savez(tmp_path / "one.npz", img=image, msk=np.array([3, 4, 0], np.uint8)[official.csm])
    found = evaluate("csmask", tmp_path, cores=1)
    assert found.pixels == official.csm.size
    print(f"csmask: {found.scores['oa']:.4f} of the pixels as the package has them")
    assert found.scores["oa"] > 0.97


@csmask_installed
def test_csmask_gives_the_same_bits_in_any_batch_and_copy() -> None:
    kernel = load_kernel("csmask", probabilities=True)
    x = torch.cat([tensor(scene(256, 256, 6, seed)) for seed in (1, 2)])
    with torch.inference_mode():
        both, twin = kernel.function(x)["mask"], kernel.twin().function(x)["mask"]
        alone = kernel.function(x[1:])["mask"]
    assert torch.equal(both, twin)
    assert torch.equal(both[1:], alone)
    assert kernel.digest == load_kernel("csmask", probabilities=True).digest
    assert kernel.digest != load_kernel("csmask", probabilities=True, level="l2a").digest


@csmask_installed
def test_networks_are_found_without_importing_the_package() -> None:
    code = (
        "import sys; from tilewright.kernels.segment.csmask import CSMASK; k = CSMASK(); "
        "assert not {'torch', 'onnxruntime'} & set(sys.modules), sorted(sys.modules); k.function; "
        "assert 'ukis_csmask' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("name", "extra"), [("csmask", "csmask"), ("s2cloudless", "s2cloudless")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(WeightsError, match=rf"{name}: .* is not installed; install 'tilewright\[{extra}\]'"):
        _ = load_kernel(name).function


@pytest.mark.parametrize("name", ["csmask", "s2cloudless"])
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"something")
    with pytest.raises(WeightsError, match="wrong checksum"):
        load_kernel(name, weights=str(other))


def test_a_file_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ukis_csmask"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ukis_csmask", raising=False)
    with pytest.raises(WeightsError, match=r"the installed ukis_csmask holds no model_6b_l1c\.onnx"):
        _ = load_kernel("csmask").function
    (package / "model_6b_l1c.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="wrong checksum"):
        _ = load_kernel("csmask").function


@csmask_installed
def test_a_file_that_is_no_network_is_one_line(tmp_path: Path) -> None:
    from tilewright.kernels.segment.onnx_forward import Session
    from tilewright.kernels.weights import resolve_weights

    path = tmp_path / "network.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(WeightsError, match="not a network that onnxruntime takes"):
        Session(resolve_weights(path))


@csmask_installed
@pytest.mark.skipif(not CLOUDS.is_dir(), reason="the labelled cloud chips are not here")
def test_csmask_on_real_labels() -> None:
    """What docs/kernels/csmask.md says of the six bands."""
    found = evaluate("csmask", CLOUDS, cores=1)
    assert found.pixels == 2 * 512 * 512
    f1 = dict(zip(found.classes, (row["f1"] for row in found.per_class), strict=True))
    assert found.scores["oa"] == pytest.approx(0.881, abs=0.005)
    assert f1["cloud"] == pytest.approx(0.881, abs=0.005)
    assert f1["shadow"] == pytest.approx(0.797, abs=0.005)


def speckled(rows: int, columns: int) -> np.ndarray:
    """Ten bands of random reflectance, dark on the left: the trees find clouds in some of it."""
    image = np.random.default_rng(0).uniform(0.02, 0.6, (rows, columns, 10)).astype(np.float32)
    image[:, : columns // 2] *= 0.2
    return image


def trees(**options: object) -> Kernel:
    return load_kernel("s2cloudless", **options)


@trees_installed
@pytest.mark.parametrize(("threshold", "average", "dilation"), [(0.4, 1, 1), (0.5, 4, 2), (0.3, 3, 0)])
def test_s2cloudless_is_the_package(threshold: float, average: int, dilation: int) -> None:
    from s2cloudless import S2PixelCloudDetector

    image = speckled(40, 48)
    detector = S2PixelCloudDetector(threshold=threshold, average_over=average, dilation_size=dilation)
    with torch.inference_mode():
        probability, mask = trees(threshold=threshold, average=average, dilation=dilation).function(
            tensor(image)
        )
    wanted = detector.get_cloud_probability_maps(image[None])
    assert np.abs(probability[0, 0].numpy() - wanted[0]).max() < 1e-6
    assert 0.02 < detector.get_cloud_masks(image[None]).mean() < 0.995
    inner = (slice(average + dilation, -average - dilation),) * 2
    assert (mask[0, 0].numpy() == detector.get_cloud_masks(image[None])[0])[inner].all()


@trees_installed
@pytest.mark.parametrize("radius", [1, 2, 3, 4, 7, 16, 31])
def test_disks_are_those_of_opencv(radius: int) -> None:
    import cv2

    from tilewright.kernels.segment.s2cloudless_forward import disk

    side = 2 * radius + 1
    drawn = cv2.circle(np.zeros((side, side), np.uint8), (radius, radius), radius, color=1, thickness=-1)
    assert (disk(radius).numpy() == drawn).all()


@trees_installed
def test_s2cloudless_is_what_it_says() -> None:
    image = tensor(speckled(48, 48))
    check_kernel(trees(average=2), tile=24, inputs={"image": image}, skip=["alignment"]).raise_for_findings()


@pytest.mark.parametrize("options", [{"threshold": 1.2}, {"average": -1}, {"dilation": 65}])
def test_s2cloudless_refuses_what_is_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(KernelError, match="s2cloudless: "):
        trees(**options)


KERNEL = """
import tilewright
from tilewright.kernels.contract import InputSpec, OutputSpec


@tilewright.kernel(
    inputs={"image": InputSpec(bands=("nir", "blue"))}, radius=0,
    outputs={"mask": OutputSpec(kind="class", classes=("shadow", "clear", "cloud"))},
)
def simple(x):
    return (x[:, :1] > 0.1).float() + (x[:, 1:] > 0.3).float()
"""


def test_labels_in_archives_are_counted(tmp_path: Path) -> None:
    """Bands are taken by name, and classes are matched by name."""
    (tmp_path / "mine.py").write_text(KERNEL)
    data = tmp_path / "data"
    data.mkdir()
    image = np.full((20, 30, 6), 0.2, np.float32)
    labels = np.array([0, 1, 2, 3, 4, 4], np.uint8)[:, None].repeat(5, 1).reshape(1, 30).repeat(20, 0)
    image[:, labels[0] == 4, 0] = 0.5
    image[:, labels[0] == 0, 3] = 0.05
    labels[:2, labels[0] == 4] = 3  # clouds that the label does not have
    for name in ("a", "b"):
        np.savez(data / f"{name}.npz", img=image, msk=labels[..., None])
    found = evaluate(f"{tmp_path}/mine.py:simple", data)
    assert (found.layout, found.classes) == ("cloud-chips", ("clear", "cloud", "shadow"))
    assert np.array(found.confusion).tolist() == [
        [2 * 15 * 20, 2 * 2 * 10, 0],
        [0, 2 * 18 * 10, 0],
        [0, 0, 200],
    ]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros((4, 4))}, "the archive has no array 'img'"),
        ({"img": np.zeros(4)}, r"its array 'img' has the shape \(4,\)"),
        ({"img": np.zeros((4, 4), complex)}, "holds complex128, no numbers"),
        ({"img": np.array([["a"]])}, "no numbers"),
        ({"img": np.array([[{}]], object)}, "not a readable archive"),
    ],
)
def test_archives_that_hold_no_picture(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message), opened_array(tmp_path / "x.npz", "img"):
        pass


def test_a_broken_archive_is_one_line(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04nothing", b"nothing at all"):
        (tmp_path / "x.npz").write_bytes(content)
        with (
            pytest.raises(InputError, match="not a readable archive"),
            opened_array(tmp_path / "x.npz", "img"),
        ):
            pass
