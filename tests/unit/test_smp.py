"""Networks of segmentation-models-pytorch: names, checkpoints, descriptions; the profile of LandCover.ai."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.contract import Context, Kernel
from tilewright.kernels.load import kernel_entry, list_kernels, load_kernel
from tilewright.kernels.segment.landcover import CLASSES

smp = pytest.importorskip("segmentation_models_pytorch")

CONTEXT = Context(
    origin=torch.zeros(1, 2, dtype=torch.int64),
    times=torch.zeros(1, 1, dtype=torch.int64),
    lonlat=torch.zeros(1, 2, dtype=torch.float64),
    resolution=1.0,
)


def applied(kernel: Kernel, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
    valid = torch.ones(len(x), 1, 1, *x.shape[-2:], dtype=torch.bool)
    with torch.inference_mode():
        return kernel.apply({"image": x[:, None]}, {"image": valid}, CONTEXT)


def unet(seed: int = 0, **more: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    given = {"in_channels": 4, "classes": 3, "decoder_channels": (32, 16, 16, 8, 8), **more}
    network: torch.nn.Module = smp.Unet("resnet18", encoder_weights=None, **given).eval()
    return network


def picture(bands: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randn(2, bands, side, side, generator=torch.Generator().manual_seed(1))


BANDS = ["red", "green", "blue", "nir"]


def test_a_state_dict_is_loaded_key_by_key(tmp_path: Path) -> None:
    network = unet()
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    kernel = load_kernel(
        "smp:unet/resnet18",
        weights=tmp_path / "a.ckpt",
        bands=BANDS,
        classes=["land", "water", "snow"],
        arguments={"decoder_channels": [32, 16, 16, 8, 8]},
        prefix="model.",
        probabilities=True,
    )
    x = picture()
    with torch.inference_mode():
        wanted = network(x)
    found = applied(kernel, x)
    assert torch.equal(kernel.module(x), wanted)
    assert torch.equal(found["probability"], wanted.softmax(1))
    assert torch.equal(found["classes"].argmax(1), wanted.argmax(1))
    assert list(kernel.module.state_dict()) == list(network.state_dict())
    assert not kernel.untrained
    other = load_kernel("smp:unet/resnet18", weights=tmp_path / "a.ckpt", bands=BANDS, classes=3)
    with pytest.raises(WeightsError, match="do not fit Unet"):
        _ = other.function


def test_a_folder_of_save_pretrained_says_how_it_was_built(tmp_path: Path) -> None:
    network = unet(activation="softmax2d", encoder_depth=4, decoder_channels=(32, 16, 16, 8))
    network.save_pretrained(tmp_path / "saved")
    kernel = load_kernel("smp:unet/resnet18", weights=tmp_path / "saved", probabilities=True)
    assert kernel.spec.inputs["image"].band_count == 4
    assert kernel.spec.outputs["classes"].classes == ("0", "1", "2")
    assert kernel.spec.stride == 16
    x = picture()
    with torch.inference_mode():
        wanted = network(x)  # its head has the softmax that the kernel adds by itself
    assert torch.allclose(applied(kernel, x)["probability"], wanted, atol=1e-6)
    with pytest.raises(KernelError, match="load smp:unet/resnet18"):
        load_kernel("smp:unet/resnet34", weights=tmp_path / "saved")
    with pytest.raises(KernelError, match="the weights take 4"):
        load_kernel("smp:unet/resnet18", weights=tmp_path / "saved", bands=["red"])
    with pytest.raises(KernelError, match="the weights have 3"):
        load_kernel("smp:unet/resnet18", weights=tmp_path / "saved", classes=["a"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "holds no config.json"), ("model.safetensors", "holds no model.safetensors")],
)
def test_a_folder_that_lacks_a_file(tmp_path: Path, missing: str, message: str) -> None:
    unet().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / missing).unlink()
    with pytest.raises(WeightsError, match=message):
        load_kernel("smp:unet/resnet18", weights=tmp_path / "saved")


def test_a_config_that_is_none(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "saved")
    for content in ("no JSON", "[]", '{"encoder_name": "resnet18"}'):
        (tmp_path / "saved" / "config.json").write_text(content)
        with pytest.raises(WeightsError, match="not a description"):
            load_kernel("smp:unet/resnet18", weights=tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smp:unt/resnet18", {}, "unknown architecture 'unt'; did you mean 'unet'"),
        ("smp:unet/resnet1", {}, "unknown encoder 'resnet1'; did you mean"),
        ("smp:unet/tu-nothing", {}, "segmentation-models-pytorch refuses it"),
        ("smp:unet", {}, "not of the form smp:ARCHITECTURE/ENCODER"),
        ("smp:unet/resnet18", {"arguments": {"depth": 9}}, "segmentation-models-pytorch refuses it"),
        ("smp:unet/resnet18", {"mean": [0.1], "std": [0.1]}, "mean has 1 numbers, there are 3 bands"),
        ("smp:unet/resnet18", {"mean": [0.1, 0.1, 0.1]}, "mean and std go together"),
        ("smp:unet/resnet18", {"low": 3, "high": 3}, "an empty range"),
        ("smp:unet/resnet18", {"classes": ["a", "a"]}, "a name of its own"),
        ("smp:unet/resnet18", {"clases": 3}, "unknown option 'clases'; did you mean 'classes'"),
        ("smp:unet/resnet18", {"task": "boxes"}, "option task"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message) as caught:
        load_kernel(name, **({} if "clases" in options else {"classes": 2}) | options)
    assert "\n" not in str(caught.value)


def test_classes_must_be_known() -> None:
    with pytest.raises(KernelError, match="nothing says which classes there are"):
        load_kernel("smp:unet/resnet18")


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("unet/resnet18", 32),
        ("deeplabv3plus/resnet18", 16),
        ("deeplabv3/resnet18", 8),
        ("pspnet/resnet18", 8),
    ],
)
def test_the_stride_is_that_of_the_encoder(name: str, stride: int) -> None:
    spec = load_kernel(f"smp:{name}", classes=2).spec
    assert (spec.stride, spec.tile.multiple, spec.radius) == (stride, stride, None)


def test_a_unet_repeats_by_its_stride_and_by_no_less() -> None:
    network = load_kernel("smp:unet/resnet18", classes=2).module
    wide = torch.randn(1, 3, 416, 416, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = network(wide[..., :384, :384])

    def difference(shift: int) -> float:
        """How far the middle is from what it was, after a shift of the input."""
        with torch.inference_mode():
            moved = network(wide[..., shift : shift + 384, shift : shift + 384])
        a, b = whole[..., 208:224, 208:224], moved[..., 208 - shift : 224 - shift, 208 - shift : 224 - shift]
        return float((a - b).abs().mean() / a.std())

    # Not 0 at its stride: the zeros beyond the edge of the tile are felt in the middle.
    print(f"U-Net: {difference(16):.3f} by 16 px, {difference(32):.3f} by 32")
    assert difference(16) > 4 * difference(32)


def test_statistics_are_those_of_the_encoder() -> None:
    def mean(name: str, **options: Any) -> tuple[float, ...]:
        found = load_kernel(name, classes=2, **options).spec.inputs["image"].mean
        return tuple(float(value) for value in found or ())  # type: ignore[arg-type]

    assert mean("smp:unet/resnet18") == pytest.approx((123.675, 116.28, 103.53))
    assert mean("smp:unet/xception") == pytest.approx((127.5,) * 3)
    assert mean("smp:unet/resnet18", low=0, high=0.3) == pytest.approx((0.1455, 0.1368, 0.1218))
    assert mean("smp:unet/resnet18", bands=2, low=1, high=3) == (1, 1)
    assert mean("smp:unet/resnet18", bands=1, mean=[0.5], std=[0.1], high=1.0) == (0.5,)


def test_one_class_is_a_score_and_several_may_overlap() -> None:
    one = load_kernel("smp:unet/resnet18", classes=["water"], threshold=0.4)
    assert one.spec.outputs["classes"].classes == ("other", "water")
    assert (one.spec.outputs["score"].threshold, one.spec.outputs["classes"].threshold) == (0.4, 0.4)
    x = picture(3)
    with torch.inference_mode():
        logit = one.module(x)
    assert torch.equal(applied(one, x)["score"], logit.sigmoid())
    several = load_kernel("smp:unet/resnet18", classes=["water", "snow"], task="multilabel")
    assert list(several.spec.outputs) == ["score"]
    with torch.inference_mode():
        assert torch.equal(applied(several, x)["score"], several.module(x).sigmoid())


def test_a_given_reach_cuts_and_none_blends() -> None:
    from tilewright.pipeline.settings import Settings, choose_tiling

    blended, cut = (load_kernel("smp:unet/resnet18", classes=2, reach=reach).spec for reach in (None, 64))
    assert choose_tiling(blended, Settings(), (2000, 2000), 12).taper > 0
    tiling = choose_tiling(cut, Settings(), (2000, 2000), 12)
    assert (tiling.taper, tiling.halo) == (0, 64)


def test_the_reach_is_measured() -> None:
    from tilewright.kernels.segment.reach import measure_reach
    from tilewright.kernels.user import kernel as described

    @described(
        inputs={"image": {"bands": 1}},
        outputs={"score": {"kind": "score"}},
        radius=None,
        stride=4,
        tile={"default": 96},
    )
    def mean_of_17(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 17, 1, 8, count_include_pad=False).sigmoid()

    assert measure_reach(mean_of_17) == 8

    @described(
        inputs={"image": {"bands": 1}},
        outputs={"score": {"kind": "score"}},
        radius=None,
        tile={"default": 96},
    )
    def whole(x: torch.Tensor) -> torch.Tensor:
        return (x + 20 * x.mean((-2, -1), keepdim=True)).sigmoid()

    assert measure_reach(whole) is None
    with pytest.raises(KernelError, match="no multiple of 4"):
        measure_reach(mean_of_17, tile=50)


def test_the_family_is_one_row_and_loads_nothing() -> None:
    found = {entry.name: entry for entry in list_kernels()}
    family = found["smp:NAME"]
    assert family.about is not None
    assert "ARCHITECTURE/ENCODER" in family.about
    assert family.options is not None
    assert "classes" in family.options
    assert "model" not in family.options
    member = kernel_entry("smp:unet/resnet18")
    assert member.problem is not None
    assert "nothing says which classes" in member.problem
    code = (
        "import sys; from tilewright.kernels.load import list_kernels; list_kernels(); "
        "assert not {'torch', 'segmentation_models_pytorch', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_landcover_ai_names_its_classes() -> None:
    kernel = load_kernel("landcover-ai")
    assert kernel.spec.outputs["classes"].classes == CLASSES
    assert kernel.untrained
    assert type(kernel.module).__name__ == "DeepLabV3Plus"
    assert kernel.spec.stride == 16
    x = picture(3)
    with torch.inference_mode():
        assert kernel.module(x).shape == (2, 5, 64, 64)
    small = load_kernel("landcover-ai", architecture="unet", encoder="resnet18")
    assert type(small.module).__name__ == "Unet"


def test_landcover_ai_takes_a_saved_network_and_is_evaluated(tmp_path: Path) -> None:
    """A network that says woodland everywhere scores what the labels have of it."""
    import rasterio

    import tilewright

    network = unet(in_channels=3, classes=5)
    with torch.no_grad():
        network.segmentation_head[0].weight.zero_()  # type: ignore[index,operator,union-attr]
        network.segmentation_head[0].bias.copy_(torch.tensor([0.0, 0, 1, 0, 0]))  # type: ignore[index,operator,union-attr]
    network.save_pretrained(tmp_path / "saved")
    labels = np.zeros((1, 64, 96), np.uint8)
    labels[:, :24] = 2
    (tmp_path / "data" / "output").mkdir(parents=True)
    (tmp_path / "data" / "test.txt").write_text("a\n")
    for name, data in (("a.jpg", np.full((3, 64, 96), 90, np.uint8)), ("a_m.png", labels)):
        size = {"count": len(data), "height": 64, "width": 96, "dtype": "uint8"}
        driver = "JPEG" if name.endswith("jpg") else "PNG"
        with rasterio.open(tmp_path / "data" / "output" / name, "w", driver=driver, **size) as dataset:
            dataset.write(data)
    found = tilewright.evaluate(
        "landcover-ai",
        tmp_path / "data",
        weights=tmp_path / "saved",
        options={"architecture": "unet", "encoder": "resnet18"},
    )
    assert found.layout == "landcover-ai"
    assert found.scores["oa"] == pytest.approx(24 / 64)
    assert found.per_class[2]["recall"] == 1
