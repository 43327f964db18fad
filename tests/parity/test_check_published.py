"""Are the published networks what their descriptions say? `check_kernel` on each, with the weights of its fixture."""

from __future__ import annotations

import pytest
import torch
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
