"""What the kernels that enlarge pictures of three bands share: their options, and their inputs and outputs."""

from __future__ import annotations

from typing import Any

from tilewright.errors import KernelError

from ..contract import InputSpec, OutputSpec

__all__ = ["BYTE", "checked_names", "picture_rasters"]

BYTE = 255.0
"""White in a picture of 8 bits."""


def checked_names(bands: str, low: float, high: float, place: str) -> tuple[str, ...]:
    """Return the names of the three bands; raises `KernelError` for others, and for an empty range."""
    if not low < high:
        raise KernelError(
            f"low={low:g}, high={high:g} is an empty range", place=place, remedy="use low < high"
        )
    names = tuple(name.strip() for name in bands.split(","))
    if len(set(names)) != 3 or not all(names):
        raise KernelError(
            f"bands={bands!r}: the network takes three", place=place, remedy="give such as red,green,blue"
        )
    return names


def picture_rasters(names: tuple[str, ...], low: float, high: float, full: float) -> dict[str, Any]:
    """Return the keys ``inputs`` and ``outputs`` of a `KernelSpec`.

    ``low`` and ``high`` are the values of the raster that stand for 0 and ``full`` of what the network sees.
    """
    units = "8-bit" if (low, high) == (0.0, BYTE) else None
    taken = InputSpec(bands=names, units=units, mean=(low,) * 3, std=((high - low) / full,) * 3)
    given = OutputSpec(
        kind="value",
        bands=names,
        range=(low, high),
        units=units,
        description="The picture on the finer grid; its detail is invented, not measured",
    )
    return {"inputs": {"image": taken}, "outputs": {"image": given}}
