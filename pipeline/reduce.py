"""From what a forward gives to what is stored: argmax, threshold, quantise, mask, as soon as pixels are final."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from .source import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from tilewright.kernels.contract import OutputSpec

__all__ = ["combine_reasons", "quantisation", "reduce_output"]


def quantisation(spec: OutputSpec) -> tuple[float, float]:
    """Return ``(scale, offset)`` with value = stored * scale + offset; (1, 0) where values are stored as such.

    A range is spread over all stored integers but the nodata mark.
    """
    if spec.kind == "class" or spec.stored_dtype == "float32" or spec.range is None:
        return 1.0, 0.0
    low, high = spec.range
    info = np.iinfo(spec.stored_dtype)
    first, last = int(info.min), int(info.max)
    if spec.stored_nodata == first:
        first += 1
    elif spec.stored_nodata == last:
        last -= 1
    scale = (high - low) / (last - first)
    return scale, low - first * scale


def reduce_output(
    name: str, spec: OutputSpec, values: NDArray[np.float32], valid: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return ``(stored [C, rows, columns], valid [rows, columns])`` of final values ``[C, rows, columns]``.

    A pixel with a NaN among its values is invalid whatever the rule said. Classes take the argmax over
    several channels (lowest label wins a tie), the threshold over one, or the label itself.
    """
    channels = values.shape[0]
    if channels not in spec.forward_channels:
        allowed = " or ".join(str(n) for n in spec.forward_channels)
        raise KernelError(f"the forward gave {channels} channels, expected {allowed}", place=f"output {name}")
    valid = valid & ~np.isnan(values).any(axis=0)
    if spec.kind == "class":
        if channels > 1:
            stored = np.argmax(values, axis=0)[None].astype(spec.stored_dtype)
        elif spec.threshold is not None:
            stored = (values >= spec.threshold).astype(spec.stored_dtype)
        else:
            stored = np.where(valid, values, 0).astype(spec.stored_dtype)
    elif spec.stored_dtype == "float32":
        stored = values.astype(np.float32, copy=True)
    else:
        scale, offset = quantisation(spec)
        low, high = spec.range or (0.0, 1.0)
        steps = (np.clip(values.astype(np.float64), low, high) - offset) / scale
        stored = np.rint(np.where(valid, steps, 0)).astype(spec.stored_dtype)
    stored[:, ~valid] = np.array(spec.stored_nodata).astype(stored.dtype)
    return stored, valid


def combine_reasons(
    layers: Iterable[NDArray[np.uint8]], inside: NDArray[np.bool_], rule: str
) -> NDArray[np.uint8]:
    """Return ``[rows, columns]`` of `Reason` codes for an output of valid rule ``rule``.

    ``layers`` are the reasons of all inputs, each ``[T, 1, rows, columns]``. With ``all`` the highest code
    over dates and inputs stands; with ``any`` and ``own`` it stands only where no date of any input is valid.
    """
    stack = np.concatenate([layer[:, 0] for layer in layers])
    worst: NDArray[np.uint8] = stack.max(axis=0)
    if rule in ("any", "own"):
        worst = np.where((stack == Reason.VALID).any(axis=0), np.uint8(Reason.VALID), worst)
    return np.where(inside, worst, np.uint8(Reason.OUTSIDE))
