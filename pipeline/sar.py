"""Backscatter between linear power and decibel: two conversions with names, used nowhere by themselves.

Inside tilewright radar is linear power, because means, medians over neighbours and speckle statistics are
defined there: the mean of decibels is the logarithm of a geometric mean, and lies below the mean power by
2.5 dB for single-look speckle (Ulaby and Dobson, Handbook of Radar Scattering Statistics, 1989).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["from_db", "to_db"]

POWER_UNITS = ("gamma0 power", "sigma0 power", "beta0 power")
"""Units that `to_db` accepts."""


def to_db[Pixels: (NDArray[Any], xr.DataArray)](power: Pixels) -> Pixels:
    """Return ``10 log10(power)`` in decibel, NaN where the power is not above 0.

    A DataArray must say its ``units`` (`POWER_UNITS`), and says ``"gamma0 dB"`` and the like afterwards; a
    bare array is taken at its word. Raises `InputError` for other units.
    """
    _check(power, POWER_UNITS, "from_db")
    with np.errstate(divide="ignore", invalid="ignore"):
        decibel: Any = 10 * np.log10(power)
    decibel = decibel.where(power > 0) if _is_array(power) else np.where(power > 0, decibel, np.nan)
    result: Pixels = _labelled(decibel.astype(power.dtype), power, " power", " dB")
    return result


def from_db[Pixels: (NDArray[Any], xr.DataArray)](decibel: Pixels) -> Pixels:
    """Return ``10 ** (decibel / 10)``, the linear power; the inverse of `to_db`, with the same checks."""
    _check(decibel, tuple(unit.replace("power", "dB") for unit in POWER_UNITS), "to_db")
    result: Pixels = _labelled(10 ** (decibel / 10), decibel, " dB", " power")
    return result


def _is_array(values: object) -> bool:
    return hasattr(values, "attrs")


def _check(values: object, allowed: tuple[str, ...], other: str) -> None:
    if not _is_array(values):
        return
    units = values.attrs.get("units")  # type: ignore[attr-defined]
    if units not in allowed:
        raise InputError(
            f"the array's units are {units!r}",
            place="sar",
            remedy=f"{other} is the other way round; else set attrs['units'] to one of {', '.join(allowed)}",
        )


def _labelled(result: Any, before: Any, old: str, new: str) -> Any:
    if _is_array(before):
        result.attrs = dict(before.attrs) | {"units": before.attrs["units"].replace(old, new)}
    return result
