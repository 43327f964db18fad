"""The selective scan of Mamba: a recurrence whose decay depends on the input.

Gu, A., Dao, T. (2023): Mamba, https://arxiv.org/abs/2312.00752. With a state of one number, as VMamba has it, a
channel does ``h[t] = exp(delta[t] a) h[t-1] + delta[t] b[t] u[t]`` and gives ``y[t] = c[t] h[t] + d u[t]``. With a
state of several numbers each of them does so with its own ``a``, ``b`` and ``c``, and the channel gives their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["recurrence", "selective_scan"]

_CACHED = 2**18
"""Numbers of one piece on a CPU: a piece and what is made of it then stay in its cache."""
_TOGETHER = 4
"""Sequences that are scanned together on a CPU. The length of a piece, by which sums are rounded, follows from this and
not from how many there are: a tile's bits do not depend on its batch."""
_HELD = 2**23
"""Numbers of one piece on a GPU, where the state has several numbers: 32 MiB, and what is made of it."""

Fused = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def recurrence(decay: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """Return all ``h[t] = decay[t] h[t-1] + x[t]``, with ``start`` before the first.

    The sequence is folded into about as many rows as a row is long. All rows are run through together, each from
    zero; then each row gets what the rows before it leave, times the decay since its beginning. That takes two loops
    of the root of the length, and only ever multiplies decays: one that falls to zero in float32 is a true zero, where
    sums of logarithms or quotients of products would overflow.

    Parameters
    ----------
    decay, x
        ``[N, L, D]``, decays of 0 to 1.
    start
        ``[N, D]``.

    Returns
    -------
    Tensor
        ``[N, L, D]``.
    """
    count, length, channels = x.shape
    width = math.isqrt(length - 1) + 1
    rows = -(-length // width)
    if over := rows * width - length:
        decay, x = (functional.pad(one, (0, 0, 0, over)) for one in (decay, x))
    decay, x = (one.reshape(count, rows, width, channels) for one in (decay, x))
    h, since = [x[:, :, 0]], [decay[:, :, 0]]
    for t in range(1, width):
        h.append(torch.addcmul(x[:, :, t], decay[:, :, t], h[-1]))
        since.append(since[-1] * decay[:, :, t])
    before = [start]
    for row in range(rows - 1):
        before.append(torch.addcmul(h[-1][:, row], since[-1][:, row], before[-1]))
    whole = torch.addcmul(torch.stack(h, 2), torch.stack(since, 2), torch.stack(before, 1)[:, :, None])
    return whole.flatten(1, 2)[:, :length]


def _stepwise(decay: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """`recurrence` by one loop over the length: half the work, faster on a CPU where a step is of many numbers."""
    states, h = [], start
    for now, entering in zip(decay.unbind(1), x.unbind(1), strict=True):
        h = torch.addcmul(entering, now, h)
        states.append(h)
    return torch.stack(states, 1)


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Scan sequences, in pieces of a size that suits the device.

    On a GPU the compiled scan is called where one is installed: VMamba's ``selective_scan_cuda_oflex`` (not where
    gradients are asked for, nor for a state of several numbers), or that of ``mamba_ssm``.

    Parameters
    ----------
    u
        ``[N, L, D]``: the values.
    delta
        ``[N, L, D]``: the steps, before softplus.
    a
        ``[D]``, or ``[D, S]`` for a state of S numbers: rates, below zero.
    b, c
        ``[N, L, S]``: how values enter the state, and how the state is read.
    d
        ``[D]``: weights of the values themselves.

    Returns
    -------
    Tensor
        ``[N, L, D]``, in the type of ``u``.
    """
    fused = _compiled(torch.is_grad_enabled() or a.ndim > 1) if u.is_cuda else None
    if fused is not None:
        return fused(u, delta, a, b, c, d)
    if a.ndim > 1:
        return _wide_scan(u, delta, a, b, c, d)
    if len(u) > _TOGETHER and not u.is_cuda:
        parts = zip(*(one.split(_TOGETHER) for one in (u, delta, b, c)), strict=True)
        return torch.cat([selective_scan(u, delta, a, b, c, d) for u, delta, b, c in parts])
    length, channels = u.shape[1:]
    step = length if u.is_cuda else max(1, _CACHED // (_TOGETHER * channels))
    h, pieces = torch.zeros_like(u[:, 0], dtype=a.dtype), []
    for at in range(0, length, step):
        now = slice(at, at + step)
        value, dt = u[:, now].to(a.dtype), functional.softplus(delta[:, now].to(a.dtype))
        states = recurrence((dt * a).exp(), dt * value * b[:, now], h)
        h = states[:, -1]
        pieces.append(torch.addcmul(d * value, c[:, now].to(a.dtype), states).to(u.dtype))
    return torch.cat(pieces, 1)


def _wide_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """`selective_scan` with a state of several numbers, all of which are scanned beside each other."""
    count, length, channels = u.shape
    step = max(1, (_HELD if u.is_cuda else _CACHED) // (count * a.numel()))
    h, pieces = a.new_zeros(count, a.numel()), []
    for at in range(0, length, step):
        now = slice(at, at + step)
        value, dt = u[:, now].to(a.dtype), functional.softplus(delta[:, now].to(a.dtype))
        decay = (dt[..., None] * a).exp().flatten(2)
        entering = (dt * value)[..., None] * b[:, now, None].to(a.dtype)
        states = (recurrence if u.is_cuda else _stepwise)(decay, entering.flatten(2), h)
        h = states[:, -1]
        read = (states.unflatten(2, (channels, -1)) @ c[:, now, :, None].to(a.dtype)).squeeze(-1)
        pieces.append(torch.addcmul(read, d, value).to(u.dtype))
    return torch.cat(pieces, 1)


def _as_compiled(u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Values and steps as ``[N, D, L]``, ``b`` and ``c`` as ``[N, 1, S, L]``: one group."""
    u, delta = u.transpose(1, 2).contiguous(), delta.transpose(1, 2).contiguous().to(u.dtype)
    b, c = (one.transpose(1, 2)[:, None].contiguous().to(u.dtype) for one in (b, c))
    return u, delta, b, c


@cache
def _compiled(gradients: bool) -> Fused | None:
    oflex: Any = None
    if not gradients:
        try:
            import selective_scan_cuda_oflex as oflex  # type: ignore[import-not-found, no-redef]
        except ImportError:
            oflex = None
    if oflex is not None:

        def scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            x, dt, b, c = _as_compiled(u, delta, b, c)
            out: Tensor = oflex.fwd(x, dt, a[:, None].contiguous(), b, c, d, None, True, 1, True)[0]
            return out.transpose(1, 2).to(u.dtype)

        return scan
    try:
        from mamba_ssm.ops.selective_scan_interface import (  # type: ignore[import-not-found]
            selective_scan_fn,
        )
    except ImportError:
        return None

    def scan_fn(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        x, dt, b, c = _as_compiled(u, delta, b, c)
        out: Tensor = selective_scan_fn(
            x, dt, a.reshape(len(a), -1).contiguous(), b, c, d, delta_softplus=True
        )
        return out.transpose(1, 2).to(u.dtype)

    return scan_fn
