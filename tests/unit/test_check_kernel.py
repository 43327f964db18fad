"""`check_kernel` on kernels that are right, and on kernels of which each is broken in one known way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import (
    GAUSSIAN33_RADIUS,
    SMALL_UNET_RADIUS,
    SMALL_UNET_STRIDE,
    gaussian33,
    receptive_radius_of_unet,
    small_unet,
)
from torch import nn

from tilewright.errors import KernelError
from tilewright.kernels.user import kernel
from tilewright.testing import Report, check_kernel, receptive_radius

if TYPE_CHECKING:
    from tilewright.kernels.contract import Kernel

F = nn.functional
VALUE = {"y": {"kind": "value"}}


def make(forward: Any, bands: int = 1, radius: int | None = 0, outputs: Any = None, **keys: Any) -> Kernel:
    """A kernel of one date; ``y`` has as many bands as the input unless ``outputs`` are given."""
    inputs = keys.pop("inputs", {"image": {"bands": bands}})
    outputs = outputs or {"y": {"kind": "value", "bands": bands}}
    return kernel(name="k", inputs=inputs, outputs=outputs, radius=radius, **keys)(forward)


def box(x: torch.Tensor) -> torch.Tensor:
    """3 x 3 mean: radius 1."""
    return F.avg_pool2d(x, 3, 1, 1)


def errors(report: Report) -> set[str]:
    return {f.check for f in report.errors}


def unet_kernel(radius: int = SMALL_UNET_RADIUS, stride: int = SMALL_UNET_STRIDE, **keys: Any) -> Kernel:
    outputs = {"y": {"kind": "score", "bands": 2}}
    net = keys.pop("net", None) or small_unet(3, 2, scores=True)
    return make(net, 3, radius, outputs, stride=stride, **keys)


# --- kernels that are right ---------------------------------------------------------------------------------


def test_gaussian33_is_right_and_measured() -> None:
    report = check_kernel(make(gaussian33, 2, GAUSSIAN33_RADIUS))
    assert report.findings == ()
    assert report.radius == GAUSSIAN33_RADIUS
    assert {"forward", "range", "random", "batch", "valid", "radius", "alignment", "stride"} <= set(
        report.checks
    )
    assert report.seconds < 20


def test_unet_is_right_and_its_radius_is_the_one_worked_out() -> None:
    assert receptive_radius_of_unet() == SMALL_UNET_RADIUS
    report = check_kernel(unet_kernel())
    assert report.ok, str(report)
    assert report.radius == SMALL_UNET_RADIUS
    assert not list(report.of("radius"))


def test_pixelwise_is_right() -> None:
    report = check_kernel(make(lambda x: x.sum(1, keepdim=True), 4, 0, VALUE))
    assert report.findings == ()
    assert report.radius == 0


def test_pixel_shuffle_is_right() -> None:
    conv = nn.Conv2d(2, 8, 3, padding=1).eval().requires_grad_(False)
    report = check_kernel(make(lambda x: F.pixel_shuffle(conv(x), 2), 2, 1, scale=2))
    assert report.ok, str(report)
    assert report.radius == 1


def test_noise_of_the_ground_is_right() -> None:
    def noisy(x: torch.Tensor, context: Any) -> torch.Tensor:
        return x + context.noise(*x.shape[-2:], x.shape[1])

    assert check_kernel(make(noisy, 2, 0, seed=7)).ok


def test_dates_and_several_inputs_are_right() -> None:
    inputs = {"before": {"dates": "2-5", "bands": 2}, "dem": {"bands": 1}}

    def both(before: torch.Tensor, dem: torch.Tensor, valid: dict[str, torch.Tensor]) -> torch.Tensor:
        count = valid["before"].sum(1).clamp(min=1)
        return (before * valid["before"]).sum(1)[:, :1] / count + box(dem[:, 0])

    outputs = {"y": {"kind": "value", "valid_rule": "any"}}
    report = check_kernel(make(both, radius=1, inputs=inputs, outputs=outputs))
    assert report.ok, str(report)


def test_one_parameter_a_date_is_right() -> None:
    inputs = {"image": {"dates": 2, "bands": 2}}
    report = check_kernel(make(lambda a, b: (a - b).abs().amax(1, True), 2, 0, VALUE, inputs=inputs))
    assert report.ok, str(report)


def test_global_context_with_null_radius_is_right() -> None:
    report = check_kernel(make(lambda x: x - x.mean((2, 3), keepdim=True), 2, None))
    assert report.ok, str(report)
    assert report.radius is None
    assert "stride" not in report.checks


def test_records_are_checked_for_what_applies() -> None:
    outputs = {"v": {"kind": "vector", "bands": 2}}
    good = make(lambda x: x.mean((2, 3)), 2, None, outputs)
    assert check_kernel(good).ok
    bad = make(lambda x: x.mean((2, 3)) - x.mean(), 2, None, outputs)
    assert errors(check_kernel(bad)) == {"batch"}


# --- kernels that are broken in one way ---------------------------------------------------------------------


def test_radius_one_too_small() -> None:
    report = check_kernel(make(gaussian33, 2, GAUSSIAN33_RADIUS - 1))
    assert errors(report) == {"radius"}
    (finding,) = report.errors
    assert finding.measured == GAUSSIAN33_RADIUS
    assert finding.remedy == "declare radius: 16"


def test_unet_radius_one_too_small() -> None:
    report = check_kernel(unet_kernel(SMALL_UNET_RADIUS - 1))
    assert "radius" in errors(report)
    assert report.radius == SMALL_UNET_RADIUS


def test_a_buffer_that_calls_share() -> None:
    buffer: dict[str, torch.Tensor] = {}

    def forward(x: torch.Tensor) -> torch.Tensor:
        buffer["kept"] = x
        time.sleep(0.01)  # lets the other thread in
        return buffer["kept"].sum(1, keepdim=True)

    assert errors(check_kernel(make(forward, 1, 0))) == {"concurrent"}
    assert check_kernel(make(forward, 1, 0, concurrent=False)).ok


def test_radius_larger_than_needed_is_a_note() -> None:
    report = check_kernel(make(box, 1, 4))
    assert report.ok
    (finding,) = report.findings
    assert (finding.check, finding.measured) == ("radius", 1)


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda x: torch.nan_to_num(box(x), 0.0), id="nan_to_num"),
        pytest.param(lambda x: F.max_pool2d(torch.where(x > 0.1, x, 0.0), 3, 1, 1), id="comparison"),
        pytest.param(lambda x: torch.fmax(torch.roll(box(x), 0), x), id="fmax"),
    ],
)
def test_radius_is_found_where_nan_is_swallowed(forward: Any) -> None:
    report = check_kernel(make(forward, 1, 0))
    assert "radius" in errors(report)
    assert report.radius == 1


def test_deep_network_with_faint_rim() -> None:
    """Twelve 3 x 3 means in a row: the rim of radius 12 carries 3^-12 of the row's weight."""

    def deep(x: torch.Tensor) -> torch.Tensor:
        for _ in range(12):
            x = box(x)
        return x

    report = check_kernel(make(deep, 1, 11))
    assert report.radius == 12
    assert list(report.of("radius"))


@pytest.mark.parametrize("dim", [2, 3])
def test_output_rolled_by_a_pixel(dim: int) -> None:
    report = check_kernel(make(lambda x: torch.roll(box(x), 1, dim), 1, 2))
    assert errors(report) == {"alignment"}
    (finding,) = report.errors
    assert finding.measured == 1.0


def test_half_a_pixel_off() -> None:
    report = check_kernel(make(lambda x: F.pad(F.avg_pool2d(x, 2, 1), (0, 1, 0, 1)), 1, 1))
    assert errors(report) == {"alignment"}
    assert report.errors[0].measured == -0.5


def test_half_a_pixel_off_when_finer() -> None:
    report = check_kernel(make(lambda x: torch.roll(F.interpolate(x, scale_factor=2), 1, 3), 1, 1, scale=2))
    assert "alignment" in errors(report)


def test_undeclared_stride() -> None:
    report = check_kernel(make(lambda x: F.interpolate(F.avg_pool2d(x, 4), scale_factor=4), 1, 3))
    assert errors(report) == {"stride"}
    assert report.errors[0].measured == 4
    assert report.errors[0].remedy == "declare stride: 4"


def test_unet_with_undeclared_stride() -> None:
    report = check_kernel(unet_kernel(stride=1))
    assert errors(report) == {"stride"}
    assert report.errors[0].measured == SMALL_UNET_STRIDE


def test_stride_larger_than_needed_is_a_note() -> None:
    report = check_kernel(make(box, 1, 1, stride=8))
    assert report.ok
    assert [(f.check, f.measured) for f in report.findings] == [("stride", 1)]


def test_coordinates_of_the_tile() -> None:
    def ramp(x: torch.Tensor) -> torch.Tensor:
        return x + torch.linspace(0, 1, x.shape[-1])

    assert errors(check_kernel(make(ramp))) == {"stride"}


def test_batch_norm_in_training_mode() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
    report = check_kernel(make(net, 2, 1))
    assert "batch" in errors(report)
    assert any("training mode" in f.message for f in report.errors)


def test_statistics_of_the_batch() -> None:
    assert "batch" in errors(check_kernel(make(lambda x: x - x.mean())))


@pytest.mark.parametrize("layer", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)])
def test_norms_over_the_tile_are_global_context(layer: nn.Module) -> None:
    report = check_kernel(make(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), layer).eval(), 4, 1))
    assert "radius" in errors(report)
    (finding,) = [f for f in report.errors if f.check == "radius"]
    assert "null" in str(finding.remedy)
    assert type(layer).__name__ in finding.message


def test_random() -> None:
    assert errors(check_kernel(make(lambda x: x + torch.rand_like(x)))) == {"random"}


def test_noise_of_the_tile() -> None:
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return x + torch.rand(x.shape)

    assert {"random", "stride"} <= errors(check_kernel(make(seeded)))


def test_out_of_range() -> None:
    report = check_kernel(make(lambda x: 3 * x, outputs={"y": {"kind": "score"}}))
    assert errors(report) == {"range"}


def test_labels_that_are_none() -> None:
    outputs = {"y": {"kind": "class", "classes": ["a", "b"]}}
    assert errors(check_kernel(make(lambda x: x * 5, outputs=outputs))) == {"range"}


@pytest.mark.parametrize(
    ("forward", "remedy"),
    [
        (lambda x: x[:, 0], "keep the channel axis"),
        (lambda x: torch.cat([x, x], 1), "declare bands: 2"),
        (lambda x: F.interpolate(x, scale_factor=2), "declare scale: 2"),
        (lambda x: x[:, :, 2:-2, 2:-2], "lacks 2 px"),
    ],
)
def test_wrong_shape(forward: Any, remedy: str) -> None:
    report = check_kernel(make(forward))
    assert errors(report) == {"output"}
    assert remedy in str(report.errors[0].remedy)


def test_wrong_dtype() -> None:
    assert errors(check_kernel(make(lambda x: x.int()))) == {"output"}


def test_an_exception_is_a_finding() -> None:
    report = check_kernel(make(lambda x: x.nonsense()))
    assert errors(report) == {"forward"}
    assert "AttributeError" in report.errors[0].message


def test_input_changed_in_place() -> None:
    assert "input" in errors(check_kernel(make(lambda x: x.sub_(1.0))))


def test_nan_leaks() -> None:
    def ratio(x: torch.Tensor) -> torch.Tensor:
        return x / box((x != 0).float()).eq(1)  # infinite beside every filled pixel

    assert "valid" in errors(check_kernel(make(ratio, 1, 1)))


def test_count_of_valid_pixels() -> None:
    def counted(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return x * valid.float().mean((2, 3), keepdim=True)

    report = check_kernel(make(counted))
    assert errors(report) == {"valid"}
    assert "away" in report.errors[0].message


def test_own_rule_that_invents() -> None:
    outputs = {"y": {"kind": "value", "valid_rule": "own"}}
    assert errors(check_kernel(make(lambda x: x, outputs=outputs))) == {"valid"}


def test_radius_at() -> None:
    def decaying(x: torch.Tensor) -> torch.Tensor:
        return gaussian33(x)

    report = check_kernel(make(decaying, 1, None, radius_at={"eps": 1e-3, "px": 4}))
    assert errors(report) == {"radius"}
    assert check_kernel(make(decaying, 1, None, radius_at={"eps": 1e-3, "px": 16})).ok


# --- the report -----------------------------------------------------------------------------------------------


def test_report_prints_and_raises() -> None:
    from rich.console import Console

    report = check_kernel(make(box, 1, 0))
    assert not report
    assert "radius: declared 0, measured 1" in str(report)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(report)
    assert "measured 1" in console.export_text()
    with pytest.raises(KernelError, match="declare radius: 1"):
        report.raise_for_findings()
    check_kernel(make(box, 1, 1)).raise_for_findings()


def test_skip_and_its_names() -> None:
    report = check_kernel(make(lambda x: torch.roll(x, 1, 3), 1, 1), skip=["alignment"])
    assert report.ok
    assert "alignment" not in report.checks
    with pytest.raises(KernelError, match="did you mean 'radius'"):
        check_kernel(make(box), skip=["radiuss"])


def test_tile_must_fit_the_stride() -> None:
    with pytest.raises(KernelError, match="multiple of 8"):
        check_kernel(unet_kernel(), tile=100)


def test_real_pixels_can_be_given() -> None:
    pixels = {"image": torch.rand(1, 1, 37, 53, generator=torch.Generator().manual_seed(0))}
    assert check_kernel(make(box, 1, 1), inputs=pixels).findings == ()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (make(gaussian33, 2, 0), 16),
        (make(lambda x: x, 1, 99), 0),
        (make(lambda x: F.avg_pool2d(x, 101, 1, 50), 1, 0), 50),
        (make(lambda x: x - x.mean((2, 3), keepdim=True), 1, 0), None),
    ],
)
def test_receptive_radius(made: Kernel, expected: int | None) -> None:
    assert receptive_radius(made, largest_tile=256) == expected


def test_receptive_radius_of_the_unet() -> None:
    assert receptive_radius(unet_kernel(0)) == SMALL_UNET_RADIUS


def test_a_fixed_tile_too_small_to_see_the_radius_is_said() -> None:
    report = check_kernel(make(gaussian33, 1, 16, tile=24))
    assert report.ok
    assert report.radius is None
    assert "too small" in next(report.of("radius")).message
