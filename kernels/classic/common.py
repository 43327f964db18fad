"""What the classic kernels share: reading their options, and sums whose order never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Context

__all__ = [
    "BandsOption",
    "band_count",
    "band_label",
    "band_names",
    "choose",
    "no_weights",
    "ordered_sum",
    "statistic",
]

BandsOption = int | str | tuple[str, ...]
"""Bands of an input: their number (``6`` or ``"6"``) or their names (``"red,nir,swir16"``)."""


def no_weights(weights: str | None, place: str) -> None:
    """Raise `KernelError` where weights were given to a kernel that has none."""
    if weights is not None:
        raise KernelError(
            f"this kernel has no weights, got {weights!r}", place=place, remedy="leave them out"
        )


def band_names(bands: BandsOption, place: str) -> int | tuple[str, ...]:
    """Return the ``bands`` option as the contract takes it: a positive number, or a tuple of names."""
    if isinstance(bands, int):
        value: int | tuple[str, ...] = int(bands)
    elif not isinstance(bands, str):
        value = tuple(bands)
    elif bands.strip().isdecimal():
        value = int(bands)
    else:
        value = tuple(name.strip() for name in bands.split(","))
    names = value if isinstance(value, tuple) else ()
    if value in (0, ()) or (isinstance(value, int) and value < 0) or not all(names):
        raise KernelError(
            f"bands={bands!r} names no band",
            place=place,
            remedy="give a number such as 4, or names such as red,nir",
        )
    if len(set(names)) < len(names):
        raise KernelError(f"bands={bands!r} names a band twice", place=place, remedy="name each band once")
    return value


def band_count(bands: int | tuple[str, ...]) -> int:
    """Return how many bands a parsed ``bands`` option stands for."""
    return bands if isinstance(bands, int) else len(bands)


def band_label(bands: int | tuple[str, ...], index: int) -> str:
    """Return what an error calls band ``index`` (from 0): ``band 3``, or ``band 3 (nir)``."""
    return f"band {index + 1}" if isinstance(bands, int) else f"band {index + 1} ({bands[index]})"


def choose(name: str, value: str, known: Sequence[str], place: str) -> str:
    """Return ``value`` if it is one of ``known``; raises `KernelError` with the nearest one otherwise."""
    if value not in known:
        raise KernelError(
            f"{name}={value!r} is not a choice; {nearest_name(value, known)}",
            place=place,
            remedy=f"choices: {', '.join(known)}",
        )
    return value


def statistic(context: Context, name: str, place: str) -> Any:
    """Return one number of the statistics pass; raises `KernelError` where the pass was not made."""
    found: Mapping[str, Any] = context.statistics
    if name not in found:
        raise KernelError(
            f"the context holds no statistic {name!r}",
            place=place,
            remedy="call the kernel's fit on a sample first, as the statistics pass does",
        )
    return found[name]


def ordered_sum(terms: Sequence[Tensor]) -> Tensor:
    """Add tensors one after another.

    A reduction or a matrix product may group its additions by the shape of the tile or by the device, and on
    some GPUs rounds to TF32; element-wise additions in a fixed order give a pixel the same bits everywhere.
    """
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
