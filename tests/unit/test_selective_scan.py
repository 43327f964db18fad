"""The selective scan against the loop that defines it, and the call of compiled scans."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tilewright.kernels.nets import selective_scan as module
from tilewright.kernels.nets.selective_scan import recurrence, selective_scan

LENGTHS = st.sampled_from([1, 2, 3, 4, 5, 16, 17, 31, 97, 127, 128, 251, 256])


def slow(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """One step after the other, as the recurrence is written, in float64."""
    u, delta, a, b, c, d = (x.double() for x in (u, delta, a, b, c, d))
    state, out = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        step = functional.softplus(delta[:, t])
        state = torch.exp(step * a) * state + step * b[:, t] * u[:, t]
        out.append(c[:, t] * state + d * u[:, t])
    return torch.stack(out, 1)


def drawn(
    length: int, seed: int, scale: float = 1.0, shift: float = 0.0, count: int = 2
) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    wide, thin = (count, length, 3), (count, length, 1)
    u, delta = torch.randn(wide, generator=draw), shift + scale * torch.randn(wide, generator=draw)
    b, c = torch.randn(thin, generator=draw), torch.randn(thin, generator=draw)
    return u, delta, -torch.randn(3, generator=draw).exp(), b, c, torch.randn(3, generator=draw)


@given(LENGTHS, st.integers(0, 999), st.floats(0, 20), st.floats(-20, 200), st.integers(1, 4000))
@settings(deadline=None, max_examples=60)
def test_equals_the_loop(length: int, seed: int, scale: float, shift: float, cached: int) -> None:
    """All decays from 1 to a true zero, in one piece and in many."""
    given_ = drawn(length, seed, scale, shift)
    before = module._CACHED
    module._CACHED = cached
    try:
        got = selective_scan(*given_)
    finally:
        module._CACHED = before
    expected = slow(*given_)
    assert got.isfinite().all()
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(LENGTHS, st.integers(0, 99), st.integers(1, 4000), st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_a_state_of_several_numbers_is_the_sum_of_single_ones(
    length: int, seed: int, cached: int, numbers: int
) -> None:
    u, delta, _, _, _, d = drawn(length, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    a = -torch.randn(3, numbers, generator=draw).exp()
    b, c = torch.randn(2, 2, length, numbers, generator=draw)
    singles = [slow(u, delta, a[:, s], b[..., s : s + 1], c[..., s : s + 1], d * 0) for s in range(numbers)]
    expected = torch.stack(singles).sum(0) + d * u
    before = module._CACHED
    module._CACHED = cached
    try:
        got = selective_scan(u, delta, a, b, c, d)
        module._stepwise, stepwise = recurrence, module._stepwise  # as on a GPU
        also = selective_scan(u, delta, a, b, c, d)
        module._stepwise = stepwise
    finally:
        module._CACHED = before
    for one in (got, also):
        assert (one - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(LENGTHS, st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_goes_on_from_a_state(length: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    decay = torch.rand(2, length, 3, generator=draw, dtype=torch.float64)
    x, start = torch.randn(2, length, 3, generator=draw).double(), torch.randn(2, 3, generator=draw).double()
    got, h = recurrence(decay, x, start), start
    for t in range(length):
        h = decay[:, t] * h + x[:, t]
        torch.testing.assert_close(got[:, t], h)


def test_has_the_gradients_of_the_loop() -> None:
    made = [x.double().requires_grad_() for x in drawn(37, 1)]
    expected = torch.autograd.grad(slow(*made).square().sum(), made)
    torch.testing.assert_close(torch.autograd.grad(selective_scan(*made).square().sum(), made), expected)


def fused(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The loop by the conventions of the compiled scans: ``[N, D, L]``, ``[D, 1]``, ``[N, 1, 1, L]``."""
    count, channels, length = u.shape
    assert a.shape == (channels, 1)
    assert b.shape == c.shape == (count, 1, 1, length)
    sequence = [x.transpose(1, 2) for x in (u, delta)], [x[:, 0].transpose(1, 2) for x in (b, c)]
    return slow(*sequence[0], a[:, 0], *sequence[1], d).transpose(1, 2).to(u.dtype)


def oflex() -> types.ModuleType:
    def fwd(*args: Any) -> list[Tensor]:
        assert args[6:] == (None, True, 1, True)  # bias, softplus, rows, float32 out
        return [fused(*args[:6])]

    made: Any = types.ModuleType("selective_scan_cuda_oflex")
    made.fwd = fwd
    return made


def mamba_ssm() -> types.ModuleType:
    def selective_scan_fn(*args: Tensor, delta_softplus: bool) -> Tensor:
        assert delta_softplus
        return fused(*args)

    made: Any = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    made.selective_scan_fn = selective_scan_fn
    return made


@pytest.mark.parametrize("build", [oflex, mamba_ssm])
def test_hands_compiled_scans_what_they_take(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: what is checked is the order and the shape of what they would be given."""
    made = build()
    parts = made.__name__.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    module._compiled.cache_clear()
    scan = module._compiled(False)
    module._compiled.cache_clear()
    given_ = drawn(29, 5)
    assert scan is not None
    torch.testing.assert_close(scan(*given_), slow(*given_).float())


def test_no_compiled_scan_is_needed() -> None:
    module._compiled.cache_clear()
    if "mamba_ssm" not in sys.modules and "selective_scan_cuda_oflex" not in sys.modules:
        assert module._compiled(True) is None
