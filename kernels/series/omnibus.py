"""``omnibus``: has the backscatter of a pixel changed anywhere in a series of dates, how often, and when first?

Conradsen, K., Nielsen, A. A., Skriver, H. (2016): Determining the points of change in time series of polarimetric
SAR data, IEEE TGRS 54(5), https://doi.org/10.1109/TGRS.2015.2510160. Here the covariance matrix is diagonal:
intensities without phase. Each polarisation is a Wishart test with p = 1 (a gamma test) and they are taken for
independent, so that -2 rho ln Q, its degrees of freedom and omega2 of the polarisations, all those of p = 1, add up.
docs/kernels/omnibus.md has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from ..classic.common import no_weights, ordered_sum
from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from .stack import MOST, observed_power, polarisations

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["omnibus", "p_value_of_pair", "p_value_of_series", "upper_tail"]

_PLACE = "omnibus"


def upper_tail(z: Tensor, freedom: Tensor, omega2: Tensor) -> Tensor:
    """Return P(Z >= ``z``) of the paper's expansion: chi-square with ``freedom`` f, corrected by f + 4.

    ``(1 - omega2) Q(f) + omega2 Q(f + 4)``; the second tail follows from the first by the recurrence of the incomplete
    gamma function, so that it costs no second series. All ``[...]`` float64.
    """
    import torch

    a, x = freedom / 2, (z / 2).clamp(min=0)
    tail = torch.special.gammaincc(a, x)
    step = torch.exp(torch.xlogy(a, x) - x - torch.lgamma(a + 1)) * (1 + x / (a + 1))
    corrected: Tensor = (tail + omega2 * step).clamp(0, 1)
    return corrected


def p_value_of_series(count: Tensor, total: Tensor, logs: Tensor, looks: Sequence[float]) -> Tensor:
    """Return the p-value of ln Q: are ``count`` dates equal?

    Parameters
    ----------
    count
        Dates k ``[...]`` float64; the p-value is 1 where there are fewer than two.
    total
        Sum of the power over the dates, ``[C, ...]``.
    logs
        Sum of the logarithm of the power over the dates, ``[C, ...]``.
    looks
        Equivalent number of looks of each band.
    """
    import torch

    k = count.clamp(min=1)
    steps = (k - 1).clamp(min=1)
    statistics, corrections = [], []
    for n, one, log in zip(looks, total.unbind(0), logs.unbind(0), strict=True):
        rho = 1 - (k - 1 / k) / (6 * steps * n)
        statistics.append(-2 * rho * n * (log - k * torch.log(one / k)))  # k ln k + sum ln x - k ln sum x
        corrections.append(-steps / 4 * (1 - 1 / rho) ** 2)
    p = upper_tail(ordered_sum(statistics), len(looks) * steps, ordered_sum(corrections))
    return torch.where(count >= 2, p, 1.0)


def p_value_of_pair(before: Tensor, total: Tensor, power: Tensor, looks: Sequence[float]) -> Tensor:
    """Return the p-value of ln R_j: is a date equal to the ``before`` = j - 1 equal dates before it?

    Parameters
    ----------
    before
        Number of the dates before, at least 1, ``[...]`` float64.
    total
        Their sum, ``[C, ...]``.
    power
        The date itself, ``[C, ...]``.
    looks
        Equivalent number of looks of each band.
    """
    import torch

    j = before + 1
    statistics, corrections = [], []
    for n, a, x in zip(looks, total.unbind(0), power.unbind(0), strict=True):
        rho = 1 - (1 + 1 / (j * before)) / (6 * n)
        ln_r = before * torch.log(a / before) + torch.log(x) - j * torch.log((a + x) / j)
        statistics.append(-2 * rho * n * ln_r)
        corrections.append(-((1 - 1 / rho) ** 2) / 4)
    return upper_tail(ordered_sum(statistics), torch.full_like(j, len(looks)), ordered_sum(corrections))


class _Forward:
    """The forward of one set of options."""

    def __init__(self, looks: Sequence[float], alpha: float) -> None:
        self.looks = looks
        self.alpha = alpha

    def __call__(self, sar: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``sar`` ``[N, T, C, H, W]`` power, ``valid`` ``[N, T, 1, H, W]`` -> outputs ``[N, 1, H, W]``."""
        import torch

        power, observed = observed_power(sar, valid, _PLACE)
        # [T, C, N, H, W] and [T, N, H, W]; a date that was not observed has power 1 and adds nothing
        x, seen = power.permute(1, 2, 0, 3, 4).contiguous(), observed.transpose(0, 1).contiguous()
        weight = seen.double()
        counts, totals, logs = self._from_each_date_on(x, weight)
        p = p_value_of_series(counts[0], totals[0], logs[0], self.looks)
        known = counts[0] >= 2
        first, changes = self._walk(x, seen, p, (counts, totals, logs))
        found = {"score": 1 - p, "pvalue": p, "change": (p < self.alpha).double()}
        found |= {"first": first, "changes": changes}
        return {
            name: torch.where(known, values, torch.nan)[:, None].to(sar.dtype)
            for name, values in found.items()
        }

    def _from_each_date_on(
        self, x: Tensor, weight: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return for each date the number of observations from it to the last one, their sum, and that of their
        logarithms."""
        import torch

        counts, totals, logs = [], [], []
        count, total, log = torch.zeros_like(weight[0]), torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for t in range(len(x) - 1, -1, -1):
            count = count + weight[t]
            total = total + x[t] * weight[t]
            log = log + torch.log(x[t])
            counts.append(count)
            totals.append(total)
            logs.append(log)
        return counts[::-1], totals[::-1], logs[::-1]

    def _walk(
        self, x: Tensor, seen: Tensor, p: Tensor, onwards: tuple[list[Tensor], list[Tensor], list[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return the number of the first changed date (from 1; 0 for none), and how many changes there are.

        While the omnibus test from the current start on rejects, dates are compared with the mean since that
        start; the first that differs is a change, and the new start.
        """
        import torch

        first, changes = torch.zeros_like(p), torch.zeros_like(p)
        count, total = torch.zeros_like(p), torch.zeros_like(x[0])
        searching = p < self.alpha
        for t in range(len(x)):
            changed = torch.zeros_like(searching)
            at = searching & seen[t] & (count >= 1)
            changed[at] = p_value_of_pair(count[at], total[:, at], x[t][:, at], self.looks) < self.alpha
            first = torch.where(changed & (changes == 0), float(t + 1), first)
            changes = changes + changed
            count = torch.where(changed, 1.0, count + seen[t])
            total = torch.where(changed, x[t], torch.where(seen[t], total + x[t], total))
            rest = p_value_of_series(
                onwards[0][t][changed], onwards[1][t][:, changed], onwards[2][t][:, changed], self.looks
            )
            searching[changed] = rest < self.alpha
        return first, changes


def _build(looks: Sequence[float], alpha: float) -> Callable[..., Any]:
    forward = _Forward(looks, alpha)

    def call(sar: Tensor, valid: Tensor) -> dict[str, Tensor]:
        return forward(sar, valid)

    return call


def _outputs(alpha: float) -> dict[str, OutputSpec]:
    return {
        "score": OutputSpec(
            kind="score",
            valid_rule="own",
            threshold=1 - alpha,
            description="1 - pvalue: certainty of a change",
        ),
        "pvalue": OutputSpec(
            kind="value",
            range=(0.0, 1.0),
            valid_rule="own",
            description="Probability that an unchanged pixel has at least this test statistic over all dates",
        ),
        "change": OutputSpec(
            kind="class",
            classes=("no-change", "change"),
            valid_rule="own",
            description="1 where pvalue is below alpha",
        ),
        "first": OutputSpec(
            kind="value",
            valid_rule="own",
            description="Number, from 1, of the date that is the first to differ from those before; 0 for none",
        ),
        "changes": OutputSpec(
            kind="value",
            valid_rule="own",
            description="Number of dates that differ from those since the last change",
        ),
    }


def _looks(looks: float | str, bands: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(one) for one in str(looks).split(","))
    except ValueError as error:
        raise KernelError(f"looks={looks!r}", place=_PLACE, remedy="give a number, or one a band") from error
    if not all(math.isfinite(n) and n >= 1 for n in numbers):
        raise KernelError(f"looks={looks}", place=_PLACE, remedy="give 1 or more")
    if len(numbers) not in (1, bands):
        raise KernelError(
            f"looks={looks}: {len(numbers)} numbers for {bands} bands",
            place=_PLACE,
            remedy="give one, or one a band",
        )
    return numbers * bands if len(numbers) == 1 else numbers


def omnibus(
    weights: str | None = None, *, looks: float | str = 4.4, alpha: float = 0.01, bands: str = "vv,vh"
) -> Kernel:
    """Return the kernel of the omnibus test over a series of backscatter in linear power.

    Parameters
    ----------
    weights
        None: the kernel has none.
    looks
        Equivalent number of looks: mean^2 / variance of the power over an even area. 4.4 is that of Sentinel-1 IW
        GRD. Too large a number makes changes of speckle. One number, or one a band such as ``15,4.3``: a band that
        lies near the noise has fewer.
    alpha
        Significance level of every test; the share of unchanged pixels in the map of change.
    bands
        Names of the polarisations, separated by commas: one or more.

    Raises
    ------
    KernelError
        An option is out of its range; when called: values that are no linear power.
    """
    options = {"looks": looks, "alpha": alpha, "bands": bands}
    no_weights(weights, _PLACE)
    if not 0 < alpha < 1:
        raise KernelError(
            f"alpha={alpha:g}", place=_PLACE, remedy="give a level between 0 and 1, such as 0.01"
        )
    names = polarisations(bands, _PLACE)
    numbers = _looks(looks, len(names))
    spec = KernelSpec(
        name=_PLACE,
        description="Omnibus test for change over a series of backscatter, with the first change and their number",
        inputs={"sar": InputSpec(dates=f"2-{MOST}", bands=names, units="gamma0 power", fill=1.0)},
        outputs=_outputs(alpha),
        radius=0,
        tile=TileRule(default=256),
        autocast=False,
        licence="Apache-2.0",
        citation="Conradsen, Nielsen and Skriver 2016, https://doi.org/10.1109/TGRS.2015.2510160",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, numbers, alpha), options=options)
