"""`dist-s1`: seams, batches, options and what it refuses. Parity with the package is in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.change import dist_s1
from tilewright.kernels.change import dist_s1_network as network
from tilewright.kernels.change.dist_s1 import MODELS, TV_REACH
from tilewright.kernels.contract import Context, Kernel
from tilewright.testing import check_kernel

pytest.importorskip("distmetrics", reason="the weights are in the package distmetrics")


def scene(side: int, dates: int = 4, seed: int = 0) -> Tensor:
    """Speckled power ``[T, 2, side, side]`` of four looks over a smooth field."""
    rng = np.random.default_rng(seed)
    row, col = np.mgrid[:side, :side]
    smooth = 0.1 * (1.2 + np.sin(row / 9) * np.cos(col / 13))
    speckle = rng.gamma(4, 0.25, size=(dates, 2, side, side))
    return torch.from_numpy((smooth * speckle * np.array([1, 0.25])[:, None, None]).astype(np.float32))


def call(kernel: Kernel, x: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """``x [N, T, 2, H, W]`` through the kernel as the engine calls it."""
    ok = torch.ones_like(x[:, :, :1], dtype=torch.bool) if valid is None else valid
    n, t = x.shape[:2]
    context = Context(
        origin=torch.zeros(n, 2, dtype=torch.int64),
        times=torch.zeros(n, t, dtype=torch.int64),
        lonlat=torch.zeros(n, 2, dtype=torch.float64),
        resolution=30.0,
    )
    with torch.inference_mode():
        return kernel.apply({"rtc": x}, {"rtc": ok}, context)


@pytest.mark.parametrize(
    ("model", "stride"), [("transformer_optimized", 1), ("transformer_optimized", 4), ("transformer_optimized", 7),
                     ("transformer_optimized", 16), ("transformer_v0_32", 8)]
)  # fmt: skip
def test_tiles_equal_one_big_pass(model: str, stride: int) -> None:
    kernel = dist_s1(model=model, stride=stride)
    radius = kernel.spec.radius
    assert radius == MODELS[model].side - 1
    halo = -(-radius // stride) * stride
    x = scene(2 * halo + 6 * stride + 20)
    whole = call(kernel, x[None])["metric"][0, 0]
    core = 2 * stride
    for top, left in ((0, 0), (stride, 3 * stride)):
        side = core + 2 * halo
        tile = call(kernel, x[None, ..., top : top + side, left : left + side])["metric"][0, 0]
        a = tile[halo : halo + core, halo : halo + core]
        b = whole[top + halo : top + halo + core, left + halo : left + halo + core]
        assert torch.isfinite(b).all()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(whole.nan_to_num().max()))


def test_a_halo_short_by_one_step_shows() -> None:
    """The tile of the test above with a halo 4 px too small differs: the radius is not larger than needed."""
    kernel, x = dist_s1(stride=4), scene(64)
    whole = call(kernel, x[None])["metric"][0, 0]
    tile = call(kernel, x[None, ..., 12 - 4 : 56, 12 - 4 : 56])["metric"][0, 0]
    assert float((tile[8:12, 8:12] - whole[16:20, 16:20]).abs().max()) > 1e-3


def test_bits_do_not_depend_on_the_batch() -> None:
    kernel = dist_s1(stride=8, parameters=True)
    tiles = torch.stack([scene(56, seed=s) for s in range(3)])
    together = call(kernel, tiles)
    for i in (0, 2):
        alone = call(kernel, tiles[i : i + 1])
        assert all(torch.equal(together[name][i], alone[name][0]) for name in together)


def test_check_kernel_finds_nothing() -> None:
    """Two dates of real-looking pixels: with eleven it takes two minutes, and finds nothing either."""
    check_kernel(dist_s1(stride=8), tile=48, inputs={"rtc": scene(48, dates=2)}).raise_for_findings()


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network never sees more than so many tokens, and one shape a tile; chunks change no number."""
    kernel, x = dist_s1(stride=4), scene(96)
    whole = call(kernel, x[None])["metric"]
    seen: list[torch.Size] = []
    module = kernel.module.network
    assert isinstance(module, network.DistS1Network)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    monkeypatch.setattr(network, "TOKENS_A_CHUNK", 333)
    pieces = call(kernel, x[None])["metric"]
    handle.remove()
    assert len(seen) > 10
    assert len(set(seen)) == 1
    assert seen[0][0] * 3 * 4 <= 333
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


def test_the_map_has_the_codes_of_the_product() -> None:
    kernel = dist_s1(stride=8, low=1.0, high=2.0)
    found = call(kernel, scene(48)[None])
    metric, status = found["metric"], found["disturbance"]
    assert set(status.flatten().tolist()) == {0.0, 1.0, 4.0}
    assert torch.equal(status == 4, metric >= 2)
    assert torch.equal(status == 1, (metric >= 1) & (metric < 2))
    assert kernel.spec.outputs["disturbance"].classes is not None
    assert kernel.spec.outputs["disturbance"].classes[4].startswith("first high")


def test_a_doubled_return_is_a_disturbance() -> None:
    x = scene(48, dates=10)
    smooth = x[:9].mean(dim=0, keepdim=True).expand(10, -1, -1, -1).clone()
    quiet = call(dist_s1(), smooth[None])["disturbance"]
    smooth[-1, :, 20:28, 20:28] *= 4
    loud = call(dist_s1(), smooth[None])["disturbance"][0, 0]
    assert (loud[20:28, 20:28] == 4).all()
    assert torch.equal(loud[:16], quiet[0, 0, :16])


def test_missing_dates() -> None:
    x = scene(48)[None]
    valid = torch.ones(1, 4, 1, 48, 48, dtype=torch.bool)
    valid[0, 1, 0, 10:14] = False
    valid[0, 3, 0, 30:33] = False
    x = torch.where(valid, x, 1e-7)
    masked = call(dist_s1(), x, valid)["metric"][0, 0]
    filled = call(dist_s1(missing="fill"), x, valid)["metric"][0, 0]
    assert masked[10:14].isnan().all()
    assert masked[30:33].isnan().all()
    assert filled[10:14].isfinite().all()
    assert filled[30:33].isnan().all()


def test_extreme_power_stays_finite() -> None:
    x = scene(32)
    x[:, :, 4:8] = 0.0
    x[:, :, 8:12] = 46.0
    x[:, :, 12] = -0.01
    assert call(dist_s1(), x[None])["metric"].isfinite().all()


def test_decibels_are_refused() -> None:
    with pytest.raises(KernelError, match="no linear power"):
        call(dist_s1(), 10 * scene(32)[None].log10())


def test_despeckling_reaches_no_further_than_said() -> None:
    pytest.importorskip("skimage")
    kernel = dist_s1(despeckle="tv", stride=16)
    bound = kernel.spec.radius_at
    assert kernel.spec.radius is None
    assert bound is not None
    assert bound.px == 15 + TV_REACH
    x = scene(176, dates=2)
    whole = call(kernel, x[None])["metric"][0, 0]
    part = call(kernel, x[None, ..., 16:144, 16:144])["metric"][0, 0]
    inner = slice(bound.px, 128 - bound.px)
    gap = (part - whole[16:144, 16:144])[inner, inner].abs().max()
    assert float(gap) < bound.eps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "transformer_optimised"}, "did you mean 'transformer_optimized'"),
        ({"stride": 17}, "use 1 to 16"),
        ({"stride": 0}, "use 1 to 16"),
        ({"low": 5.0}, "0 < low <= high"),
        ({"fill": 0.0}, "no logit"),
        ({"max_nodata": 10.0}, "no share"),
        ({"polarisations": "vv"}, "the model takes two"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelError, match=words):
        dist_s1(**options)


def test_weights_of_another_model_are_refused() -> None:
    file = str(_file("transformer_original"))
    with pytest.raises(WeightsError, match="do not fit DistS1Network"):
        dist_s1(weights=file).function  # noqa: B018
    assert dist_s1(weights=file, model="transformer_original").weights_sha256 == (
        MODELS["transformer_original"].sha256
    )


def test_a_changed_weights_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    wrong = replace(MODELS["transformer_optimized"], sha256="0" * 64)
    monkeypatch.setitem(MODELS, "transformer_optimized", wrong)
    with pytest.raises(WeightsError, match="wrong checksum"):
        dist_s1().function  # noqa: B018


def test_describing_it_imports_neither_torch_nor_the_package() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tilewright.kernels.change import dist_s1; k = dist_s1(); "
        "assert k.spec.inputs['rtc'].date_range == (2, 11); "
        "assert not {'torch', 'distmetrics', 'skimage'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_are_found_without_importing_the_package() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from tilewright.kernels.change import dist_s1; dist_s1().function; "
        "assert 'distmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _file(model: str) -> Path:
    import importlib.util

    found = importlib.util.find_spec("distmetrics")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model_data" / model / "weights.pth"
