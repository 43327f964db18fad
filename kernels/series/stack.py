"""What kernels over a series of dates share: which observations count, and when they were made."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Context

__all__ = ["MOST", "days_of", "observed_power", "parse_days", "polarisations"]

MOST = 1000
"""Most dates that a kernel over a series of any length declares."""

_DAY = 86_400 * 10**9


def polarisations(names: str, place: str) -> tuple[str, ...]:
    """Return the names of one or more bands of backscatter, separated by commas."""
    found = tuple(name.strip() for name in names.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise KernelError(f"bands={names!r}", place=place, remedy="name each band once, such as vv,vh")
    return found


def observed_power(power: Tensor, valid: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """Return power as float64 with 1 where nothing was observed, and where something was.

    Parameters
    ----------
    power
        ``[N, T, C, H, W]`` linear power.
    valid
        ``[N, T, 1, H, W]`` bool.

    Returns
    -------
    power, observed
        ``[N, T, C, H, W]`` and ``[N, T, H, W]``. A date counts where all its bands are above zero: noise that was
        subtracted leaves pixels at or below it, which have no logarithm.

    Raises
    ------
    KernelError
        Values below -1, which no linear power has: they are decibels.
    """
    import torch

    least = float(torch.where(valid, power, 0.0).nan_to_num().amin())
    if least < -1:
        raise KernelError(
            f"the input holds {least:.3g}, which is no linear power",
            place=place,
            remedy="give linear power (gamma0, sigma0 or beta0), not dB",
        )
    observed = valid[:, :, 0] & ((power > 0) & torch.isfinite(power)).all(dim=2)
    return torch.where(observed[:, :, None], power.double(), 1.0), observed


def parse_days(dates: str | None, place: str) -> tuple[float, ...] | None:
    """Return days since 1970 of dates separated by commas, such as ``2020-01-05,2020-01-17``; None stays."""
    if dates is None:
        return None
    try:
        parsed = np.array([one.strip() for one in str(dates).split(",")], dtype="datetime64[ns]")
    except ValueError as error:
        raise KernelError(
            f"dates={dates!r}: {error}", place=place, remedy="give such as 2020-01-05,2020-01-17"
        ) from error
    days = parsed.astype(np.int64) / _DAY
    if np.isnat(parsed).any() or (np.diff(days) <= 0).any():
        raise KernelError(f"dates={dates!r} do not ascend", place=place, remedy="give the oldest date first")
    return tuple(float(day) for day in days)


def days_of(context: Context, count: int, given: tuple[float, ...] | None, place: str) -> list[float]:
    """Return the days since 1970 of the ``count`` dates of a batch, from the context or from an option.

    Raises
    ------
    KernelError
        The source knows no times and none were given, their number is another, or they do not ascend.
    """
    if given is None:
        times = context.times[0, :count].cpu().numpy()
        if (times == 0).any():
            raise KernelError(
                "the input does not say when its dates were acquired",
                place=place,
                remedy="name them by the option dates, such as dates=2020-01-05,2020-01-17, or map a cube with times",
            )
        days = [float(day) for day in times / _DAY]
    else:
        days = list(given)
    if len(days) != count:
        raise KernelError(
            f"{len(days)} dates are named, the input has {count}",
            place=place,
            remedy="name one date a raster",
        )
    if any(b <= a for a, b in pairwise(days)):
        raise KernelError(
            "the dates do not ascend", place=place, remedy="give the oldest date first, each date once"
        )
    return days
