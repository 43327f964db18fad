"""EDSR, SwinIR and MISR-GRU as kernels: geometry, seams, gaps, options, checkpoints. Numbers are in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fakes import ArraySource
from running import job_of, one_pass, run_job, same
from torch import nn

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.contract import RadiusAt
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.edsr import EDSR
from tilewright.kernels.nets.misr_gru import MISRGRU
from tilewright.kernels.nets.swinir import SwinIR
from tilewright.kernels.published import Published, make_kernel
from tilewright.testing import check_kernel

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

NETS = "tilewright.kernels.nets"
SMALL: dict[str, dict[str, Any]] = {
    "edsr": {"blocks": 2, "width": 8},
    "swinir": {"width": 12, "depths": (2,), "heads": (2,)},
}
"""Arguments of networks that are the published ones but for their size."""
FULL = {"edsr": 255.0, "swinir": 1.0}


def small(name: str, scale: int, state: dict[str, torch.Tensor] | None = None, **spec: Any) -> Kernel:
    """The kernel of a small network, with the description of the large one and what ``spec`` says instead."""
    network = {"edsr": f"{NETS}.edsr:EDSR", "swinir": f"{NETS}.swinir:SwinIR"}[name]
    published = Published(
        network,
        f"{NETS}.pictures:picture_of_values",
        {**SMALL[name], "scale": scale},
        {"low": 0.0, "high": 255.0, "full": FULL[name]},
    )
    return make_kernel(
        published, load_kernel(name, scale=scale).spec.model_copy(update=spec), state or drawn(published)
    )


def drawn(published: Published) -> dict[str, torch.Tensor]:
    """Weights that move the picture, so that influence can be seen."""
    state = dict(make_kernel(published, load_kernel("edsr").spec).module.state_dict())
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if tensor.ndim > 1 and tensor.is_floating_point() and "mean" not in name and "mask" not in name:
            size = tensor[0].numel() ** -0.5 / 2
            state[name] = torch.randn(tensor.shape, generator=generator) * size
    return state


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_reaches_as_far_as_it_says(scale: int) -> None:
    """With weights above zero all that can reach a pixel of the output does: the radius is exact, in every phase."""
    for size, blocks in (("baseline", 16), ("large", 32)):
        radius = load_kernel("edsr", size=size, scale=scale).spec.radius
        assert radius is not None
        net = EDSR(blocks, 2, scale, 0.1).double()
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        side = 2 * radius + 5
        x = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
        y, middle, found = net(x), side // 2, []
        for phase in range(scale):
            at = middle * scale + phase
            (felt,) = torch.autograd.grad(y[0, 0, at, at], x, retain_graph=True)
            rows = felt[0, 0].any(1).nonzero().ravel()
            found += [middle - int(rows[0]), int(rows[-1]) - middle]
        assert max(found) == radius


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_what_they_say(name: str) -> None:
    spec: dict[str, Any] = {"radius": 8} if name == "edsr" else {"radius_at": RadiusAt(eps=0.001, px=16)}
    check_kernel(small(name, 2, **spec)).raise_for_findings()


def test_edsr_leaves_no_trace_of_tiles_and_shards() -> None:
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 3, 70, 90)).astype(np.float32)
    kernel = small("edsr", 3, radius=8)
    source = ArraySource(pixels)
    found = [
        run_job(job_of(kernel, source, tile=40, shard=shard, batch=2, stitch="cut"))[0]
        for shard in (48, 1000)
    ]
    assert same(*found)
    whole = one_pass(kernel, pixels, pad=8, boundary=kernel.spec.boundary)
    assert np.abs(found[0]["image"] - whole).max() <= 1e-6 * 255


def copies(name: str, scale: int) -> nn.Module:
    """A network whose weights repeat each pixel: the first three channels carry the picture, all else is nothing."""
    net: Any = EDSR(2, 8, scale) if name == "edsr" else SwinIR(12, (2,), (2,), scale)
    direct = name == "swinir"
    if direct:
        net = SwinIR(12, (2,), (2,), scale, direct=True)
    for key, parameter in net.named_parameters():
        if "mean" not in key:
            nn.init.zeros_(parameter)
    first, last = (net.conv_first, net.upsample[0]) if direct else (net.head[0], net.tail[1])
    for band in range(3):
        first.weight.data[band, band, 1, 1] = 1
        for phase in range(scale**2 if direct else 1):
            last.weight.data[band * scale**2 + phase if direct else band, band, 1, 1] = 1
    if not direct:
        for layer in net.tail[0][::2]:
            step = (layer.out_channels // layer.in_channels) ** 0.5
            for channel in range(layer.out_channels):
                layer.weight.data[channel, channel // int(step) ** 2, 1, 1] = 1
    return net.eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SMALL)
def test_pixels_of_the_output_lie_in_theirs(name: str, scale: int) -> None:
    """A network that copies gives each pixel ``scale`` squared times, where it was: corners agree."""
    x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * FULL[name]
    with torch.inference_mode():
        found = copies(name, scale)(x)
    expected = x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    assert (found - expected).abs().max() < 1e-5 * FULL[name]


@pytest.mark.parametrize("name", SMALL)
def test_values_come_back_in_their_units_and_are_clipped(name: str) -> None:
    context: Any = None
    x = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * FULL[name]
    valid = {"image": torch.ones(1, 1, 1, 16, 16, dtype=torch.bool)}
    found = []
    for low, high in ((0.0, 255.0), (0.0, 0.3)):
        kernel = load_kernel(name, low=low, high=high)
        image = kernel.spec.inputs["image"]
        assert image.std == pytest.approx([(high - low) / FULL[name]] * 3)
        with torch.inference_mode():
            out = kernel.apply({"image": x}, valid, context)["image"]
        assert low <= float(out.min()) <= float(out.max()) <= high + 1e-6
        found.append((out - low) / (high - low))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_the_size_of_a_picture_is_free() -> None:
    """SwinIR mirrors to whole windows and cuts; batches and double precision too."""
    net = SwinIR(12, (2, 2), (2, 2), 2).eval().double()
    x = torch.rand(2, 3, 19, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = net(x)
        assert found.shape == (2, 3, 38, 66)
        wide = nn.functional.pad(x, (0, 7, 0, 5), mode="reflect")
        assert torch.equal(net(wide)[..., :38, :66], found)


@pytest.mark.parametrize("entry", ["params", "params_ema"])
def test_swinir_reads_the_entries_of_its_checkpoints(entry: str, tmp_path: Path) -> None:
    kernel = load_kernel("swinir", scale=3)
    state = dict(kernel.module.state_dict())
    state["conv_first.bias"] = state["conv_first.bias"] + 1
    path = tmp_path / "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x3.pth"
    torch.save({entry: state}, path)
    found = load_kernel("swinir", path, scale=3).module.state_dict()
    assert torch.equal(found["conv_first.bias"], state["conv_first.bias"])
    with pytest.raises(
        WeightsError, match="fit the kernel swinir with size=lightweight, scale=3, patch=64 better"
    ):
        _ = load_kernel("swinir", path, scale=2).module
    with pytest.raises(WeightsError, match="patch=64 better"):
        _ = load_kernel("swinir", path, scale=3, patch=48).module


def test_edsr_names_the_variant_that_fits(tmp_path: Path) -> None:
    path = tmp_path / "edsr_baseline_x4.pt"
    torch.save(load_kernel("edsr", scale=4).module.state_dict(), path)
    with pytest.raises(WeightsError, match="fit the kernel edsr with size=baseline, scale=4 better"):
        _ = load_kernel("edsr", path, scale=2).module


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("edsr", {"scale": 8}, "scale"),
        ("edsr", {"size": "huge"}, "size"),
        ("edsr", {"low": 3, "high": 3}, "empty range"),
        ("swinir", {"scale": 8}, "scale=8 with size=lightweight"),
        ("swinir", {"patch": 32}, "patch"),
        ("swinir", {"bands": "red,green"}, "takes three"),
        ("misr-gru", {"low": 1, "high": 0}, "empty range"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        load_kernel(name, **options)


def merged(views: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    context: Any = None
    with torch.inference_mode():
        found: torch.Tensor = load_kernel("misr-gru", low=0, high=1).apply(
            {"image": views}, {"image": valid}, context
        )["image"]
    return found


def test_misr_gru_over_gaps() -> None:
    """Without gaps the kernel is the forward; what stands in a gap has no say; a date of gaps has next to none."""
    views = torch.rand(2, 5, 1, 12, 14, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(views, dtype=torch.bool)
    with torch.inference_mode():
        expected = load_kernel("misr-gru").module(*views.unbind(1))
    whole = merged(views, valid)
    assert whole.shape == (2, 1, 36, 42)
    torch.testing.assert_close(whole, expected)
    valid[0, 1, :, 3:6] = False
    valid[:, 4] = False
    other = torch.where(valid, views, 7.0)
    assert torch.equal(merged(views, valid), merged(other, valid))
    torch.testing.assert_close(merged(views, valid)[1], merged(views[:, :4], valid[:, :4])[1])


def test_misr_gru_takes_the_lower_median_of_nine() -> None:
    """Of an even number the lower one of the two in the middle; the tenth picture is not asked."""
    net = MISRGRU().eval()
    seen: list[torch.Tensor] = []
    net.unit1.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    views = torch.rand(1, 10, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        net(*views[:, :4].unbind(1))
        net(*views.unbind(1))
    assert torch.equal(seen[1], views[:, :4].sort(1).values[:, 1])
    assert torch.equal(seen[3], views[:, :9].sort(1).values[:, 4])


@pytest.mark.slow
def test_misr_gru_is_what_it_says() -> None:
    kernel = load_kernel("misr-gru", dict(load_kernel("misr-gru").module.state_dict()))
    assert kernel.spec.scale == 3
    check_kernel(kernel, skip=["concurrent"]).raise_for_findings()


def test_misr_gru_over_a_raster() -> None:
    """Tiles of three dates with a gap that no date fills: three times as fine, and as one pass to what is declared."""
    pixels = np.random.default_rng(0).uniform(0, 65535, (3, 1, 40, 50)).astype(np.float32)
    pixels[:, :, 4:6, 7:9] = np.nan
    pixels[1, :, 20:30, 5:15] = np.nan
    kernel = load_kernel("misr-gru", dict(load_kernel("misr-gru").module.state_dict()))
    found = run_job(job_of(kernel, ArraySource(pixels), tile=40, shard=48, stitch="cut"))[0]["image"]
    assert found.shape == (1, 120, 150)
    holes = np.isnan(pixels[:, 0]).all(0).repeat(3, 0).repeat(3, 1)
    assert (np.isnan(found[0]) == holes).all()
    whole = run_job(job_of(kernel, ArraySource(pixels), tile=96, shard=96, stitch="cut"))[0]["image"]
    assert np.abs(found - whole)[:, ~holes].max() <= 1e-3 * np.nanmax(np.abs(whole))
