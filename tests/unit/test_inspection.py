"""Values that cannot be in the units of the kernel are refused; how far others lie from its training is said."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ArraySource
from running import job_of, make_kernel

from tilewright.errors import KernelError
from tilewright.pipeline.inspection import inspect_inputs


def look(values: np.ndarray, **image: object) -> tuple[str, ...]:
    kernel = make_kernel(
        lambda x: x, inputs={"image": {"bands": values.shape[1], "dates": values.shape[0], **image}}
    )
    return inspect_inputs(job_of(kernel, ArraySource(values.astype(np.float32)))).notes


def around(low: float, high: float, bands: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (1, bands, 300, 300))


@pytest.mark.parametrize(
    ("units", "low", "high", "hint"),
    [
        ("reflectance", 200, 4000, "digital numbers"),
        ("8-bit", 0, 0.4, "--set low"),
        ("8-bit", 100, 4000, "--set low"),
        ("linear power", -25, -5, "decibels"),
        ("gamma0 power", -25, -5, "decibels"),
        ("dB", 0.001, 0.6, "linear power"),
    ],
)
def test_values_that_cannot_be_are_refused(units: str, low: float, high: float, hint: str) -> None:
    with pytest.raises(KernelError, match=f"input 'image' is to be .*{hint}"):
        look(around(low, high), units=units)


@pytest.mark.parametrize(
    ("units", "low", "high"),
    [
        ("reflectance", -0.05, 1.8),
        ("8-bit", 0, 255),
        ("8-bit", 0, 0.0),
        ("linear power", 0.0, 3.0),
        ("dB", -25, 3),
        ("standard deviations", -1e6, 1e6),
    ],
)
def test_values_that_can_be_pass(units: str, low: float, high: float) -> None:
    assert not look(around(low, high), units=units)


def test_the_distance_from_the_training_data_is_said() -> None:
    near = look(around(90, 110, 3), mean=[100, 100, 100], std=[10, 10, 10])
    assert near[0].startswith("input 'image' lies at most 0.0 standard deviations")
    values = around(90, 110, 3)
    values[:, 1] += 55
    (far,) = look(values, mean=[100, 100, 100], std=[10, 10, 10])
    assert "5.5 standard deviations" in far
    assert "(band 2)" in far
    assert "may mean little" in far


def test_a_scaling_is_no_statistic_and_invalid_pixels_do_not_count() -> None:
    assert not look(around(0, 255, 3), mean=[0, 0, 0], std=[255, 255, 255])
    values = around(0.1, 0.3)
    values[..., :200] = np.nan
    assert not look(values, units="reflectance")
    assert not look(np.full((1, 1, 300, 300), np.nan), units="reflectance")
