"""``log-ratio``: by how many decibels the backscatter at the end of a series differs from that at its beginning.

Rignot, E. J. M., van Zyl, J. J. (1993): Change detection techniques for ERS-1 SAR data, IEEE TGRS 31(4), who show
that a ratio of powers, unlike a difference, has errors that do not grow with the power.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from ..classic.common import no_weights, ordered_sum
from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec
from .stack import MOST, observed_power, polarisations

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decibels", "log_ratio"]

_PLACE = "log-ratio"


def decibels(power: Tensor, observed: Tensor, ends: int) -> Tensor:
    """Return 10 log10(mean of the last ``ends`` dates / mean of the first), in dB.

    Parameters
    ----------
    power
        ``[N, T, C, H, W]`` linear power.
    observed
        ``[N, T, H, W]`` bool; dates that were not observed take no part.
    ends
        Dates at each end.

    Returns
    -------
    Tensor
        ``[N, C, H, W]``, NaN where an end has no observation.
    """
    import torch

    def mean(dates: range) -> Tensor:
        total = ordered_sum([torch.where(observed[:, t, None], power[:, t], 0.0) for t in dates])
        count = ordered_sum([observed[:, t, None].to(power.dtype) for t in dates])
        return torch.where(count > 0, total / count.clamp(min=1), torch.nan)

    last = power.shape[1]
    before, after = mean(range(ends)), mean(range(last - ends, last))
    return 10 * torch.log10(after / before)


def _build(ends: int, threshold: float, signed: bool) -> Callable[..., Any]:
    import torch

    def forward(sar: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``sar`` ``[N, T, C, H, W]`` -> ratio ``[N, C, H, W]``, change ``[N, 1, H, W]``."""
        if sar.shape[1] < 2 * ends:
            raise KernelError(
                f"{sar.shape[1]} dates do not hold {ends} at each end",
                place=_PLACE,
                remedy="give fewer with ends",
            )
        ratio = decibels(*observed_power(sar, valid, _PLACE), ends)
        largest = ratio.abs().amax(dim=1, keepdim=True)
        change = torch.where(largest.isnan(), torch.nan, (largest >= threshold).double())
        return {"ratio": (ratio if signed else ratio.abs()).to(sar.dtype), "change": change.to(sar.dtype)}

    return forward


def log_ratio(
    weights: str | None = None,
    *,
    threshold: float = 3.0,
    ends: int = 1,
    signed: bool = False,
    bands: str = "vv,vh",
) -> Kernel:
    """Return the kernel of the log-ratio between the end and the beginning of a series of linear power.

    Parameters
    ----------
    weights
        None: the kernel has none.
    threshold
        Decibels from which a pixel counts as changed, in the band that changed most.
    ends
        Number of dates whose mean stands for the beginning, and for the end.
    signed
        True keeps the sign: above 0 where the backscatter rose.
    bands
        Names of the polarisations, separated by commas: one or more.

    Raises
    ------
    KernelError
        An option is out of its range; when called: too few dates, or values that are no linear power.
    """
    options = {"threshold": threshold, "ends": ends, "signed": signed, "bands": bands}
    no_weights(weights, _PLACE)
    if not threshold > 0:
        raise KernelError(f"threshold={threshold:g} is not above zero", place=_PLACE, remedy="give decibels")
    if ends < 1:
        raise KernelError(f"ends={ends}", place=_PLACE, remedy="give 1 or more")
    names = polarisations(bands, _PLACE)
    spec = KernelSpec(
        name=_PLACE,
        description=f"Ratio of the last {ends} to the first {ends} dates of backscatter, in decibels",
        inputs={"sar": InputSpec(dates=f"{2 * ends}-{MOST}", bands=names, units="gamma0 power", fill=1.0)},
        outputs={
            "ratio": OutputSpec(
                kind="value",
                bands=names,
                units="dB",
                valid_rule="own",
                description="10 log10 of the ratio, above 0 where the backscatter rose"
                if signed
                else "Absolute value of 10 log10 of the ratio",
            ),
            "change": OutputSpec(
                kind="class",
                classes=("no-change", "change"),
                valid_rule="own",
                description=f"1 where any band changed by at least {threshold:g} dB",
            ),
        },
        radius=0,
        autocast=False,
        licence="Apache-2.0",
        citation="Rignot and van Zyl 1993",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, ends, threshold, signed), options=options)
