"""Are the published networks what their descriptions say? `check_kernel` on each, with the weights of its fixture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from embedders import weights_by_rule
from official import Official, systems

from tilewright import load_kernel
from tilewright.testing import check_kernel

# Forty forwards each, of which one takes up to two seconds.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("system", systems(), ids=lambda system: system.name)
def test_a_published_network_is_what_it_says(system: Official) -> None:
    own = load_kernel(system.kernel).module.state_dict()
    given = {name: torch.from_numpy(values) for name, values in system.weights().items()}
    report = check_kernel(load_kernel(system.kernel, weights=dict(own) | given))
    assert report.errors == ()
    assert {"range", "batch", "valid", "radius"} <= set(report.checks)


OTHERS = (
    "smp:unet/resnet18", "landcover-ai", "edsr", "swinir", "fsgnet", "closp-rn", "closp-vs", "remoteclip-vit-b-32",
    "remoteclip-rn50", "farslip2-vit-b-16", "satmaepp", "galileo-nano",
)  # fmt: skip
"""Networks without a fixture of an output of the whole, in sizes that take less than a minute."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_filled_by_the_rule_is_what_it_says(name: str) -> None:
    options: dict[str, Any] = {"classes": ["land", "water"]} if name.startswith("smp:") else {}
    module = load_kernel(name, **options).module
    with torch.no_grad():
        weights_by_rule(module)
    report = check_kernel(load_kernel(name, weights=module.state_dict(), **options))
    assert report.errors == ()


@pytest.mark.parametrize("name", ["csmask", "csmask-rgbnir"])
def test_the_cloud_networks_are_what_they_say(name: str) -> None:
    pytest.importorskip("ukis_csmask")
    report = check_kernel(load_kernel(name))
    assert report.errors == ()
