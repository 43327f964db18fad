"""Each published network against the official implementation: names, shapes, outputs."""

from __future__ import annotations

import pytest
import torch
from official import Official, systems

from tilewright.kernels.load import load_kernel

SLOW_SECONDS = 2.0


def marked(system: Official) -> object:
    slow = [pytest.mark.slow, pytest.mark.timeout(900)] if system.seconds > SLOW_SECONDS else []
    return pytest.param(system, id=system.name, marks=slow)


@pytest.mark.parametrize("system", [marked(system) for system in systems()])
def test_equal_to_the_official_network(system: Official) -> None:
    module = load_kernel(system.kernel).module
    state = module.state_dict()
    assert list(state) == list(system.keys)
    for name, tensor in state.items():
        shape, dtype = system.keys[name]
        assert (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) == (shape, dtype), name
    with torch.inference_mode():
        module.load_state_dict({k: torch.from_numpy(v) for k, v in system.weights().items()}, strict=False)
        raw = module(*(torch.from_numpy(x) for x in system.inputs()))
    system.check([one.numpy() for one in (raw if isinstance(raw, tuple | list) else (raw,))])
