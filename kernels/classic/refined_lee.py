"""The refined Lee filter: speckle is averaged along edges, not across them.

Lee, J.-S. (1981): Refined filtering of image noise using local statistics, Computer Graphics and Image
Processing 15(4). Lee, J.-S., Grunes, M. R. and de Grandi, G. (1999): Polarimetric SAR speckle filtering and
its implication for classification, IEEE Trans. Geosci. Remote Sens. 37(5) (the eight edge-aligned windows).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec
from .common import BandsOption, band_names, no_weights, ordered_sum

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["refined_lee"]

_PLACE = "refined-lee"

SUBWINDOWS = {5: (3, 1), 7: (3, 2), 9: (5, 2), 11: (5, 3)}
"""Side of the window -> side of its nine sub-windows, and the step between their centres."""

SIDES = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""(row, column) towards which each of the eight half-windows lies; the second four mirror the first four."""


def _shift(x: Tensor, rows: int, cols: int, reach: int) -> Tensor:
    """Return the neighbours at (``rows``, ``cols``) of the pixels that lie ``reach`` inside the edge."""
    height, width = x.shape[-2] - 2 * reach, x.shape[-1] - 2 * reach
    return x[..., reach + rows : reach + rows + height, reach + cols : reach + cols + width]


def _box(x: Tensor, half: int) -> Tensor:
    """Return sums over squares of side ``2 half + 1``, added row by row; the result loses ``half`` a side."""
    height, width = x.shape[-2] - 2 * half, x.shape[-1] - 2 * half
    across = ordered_sum([x[..., i : i + width] for i in range(2 * half + 1)])
    return ordered_sum([across[..., i : i + height, :] for i in range(2 * half + 1)])


def _window_sums(x: Tensor, half: int) -> list[Tensor]:
    """Return the sums over the whole window and over its eight half-windows, in the order of `SIDES`.

    Each half-window has the edge through the centre as its border, which belongs to it. Rows of all nine are
    runs that end at the left or the right of the window, so running sums along the row are shared.
    """
    reach = range(-half, half + 1)
    width = x.shape[-1] - 2 * half
    columns = [x[..., half + k : half + k + width] for k in reach]
    to_left, to_right = [columns[0]], [columns[-1]]
    for k in range(1, 2 * half + 1):
        to_left.append(to_left[-1] + columns[k])
        to_right.append(to_right[-1] + columns[-1 - k])
    height = x.shape[-2] - 2 * half

    def rows(pick: Callable[[int], Tensor], of: range = reach) -> Tensor:
        return ordered_sum([pick(r)[..., half + r : half + r + height, :] for r in of])

    def left(last: int) -> Tensor:  # columns -half .. last
        return to_left[last + half]

    def right(first: int) -> Tensor:  # columns first .. half
        return to_right[half - first]

    everything = right(-half)
    return [
        rows(lambda r: everything),
        rows(lambda r: right(0)),
        rows(right),
        rows(lambda r: everything, range(-half, 1)),
        rows(lambda r: left(-r)),
        rows(lambda r: left(0)),
        rows(left),
        rows(lambda r: everything, range(half + 1)),
        rows(lambda r: right(-r)),
    ]


def _side(x: Tensor, valid: Tensor, half: int) -> Tensor:
    """Return for every pixel its window as `_window_sums` orders them: 1 + index into `SIDES`, or 0, int64.

    The nine sub-window means give four gradients; the steepest sets the direction of the edge, and of its
    two sides the one whose mean is nearer to the centre's is taken. Where both are equally near, as around a
    single bright pixel, no side is favoured and the whole window stays. A sub-window without a valid pixel counts
    as equal to the centre's.
    """
    import torch

    side, step = SUBWINDOWS[2 * half + 1]
    total, count = _box(x, side // 2), _box(valid.to(x.dtype), side // 2)
    reach = half - side // 2
    centre = _shift(total, 0, 0, reach) / _shift(count, 0, 0, reach).clamp(min=1)

    def mean(row: int, col: int) -> Tensor:
        n = _shift(count, row * step, col * step, reach)
        return torch.where(n > 0, _shift(total, row * step, col * step, reach) / n.clamp(min=1), centre)

    around = [mean(*side) for side in SIDES]
    gradients = [
        (
            (around[i - 1] + around[i] + around[i + 1])
            - (around[(i + 3) % 8] + around[(i + 4) % 8] + around[(i + 5) % 8])
        ).abs()
        for i in range(4)
    ]
    steepest = gradients[0]
    direction = torch.zeros_like(steepest, dtype=torch.int64)
    for i in (2, 1, 3):  # of equal gradients a row or a column goes before a diagonal
        better = gradients[i] > steepest
        steepest = torch.where(better, gradients[i], steepest)
        direction = torch.where(better, i, direction)
    here = torch.stack(around).sub(centre).abs()
    near = here.gather(0, direction[None])[0]
    far = here.gather(0, direction[None] + 4)[0]
    return torch.where(near == far, 0, 1 + torch.where(near < far, direction, direction + 4))


def _build(window: int, looks: float, homogeneous: float) -> Callable[..., Any]:
    import torch
    from torch.nn.functional import pad

    half = window // 2
    noise = 1.0 / looks

    def forward(date: Tensor, valid: Tensor) -> Tensor:
        """``date`` ``[N, C, H, W]`` linear power -> the same shape and units; NaN where invalid."""
        # A NaN that the mask did not catch would decide comparisons; it takes no part either.
        valid = valid & torch.isfinite(date)
        power = torch.where(valid, date, 0)
        edges = (half,) * 4
        x, known = pad(power, edges), pad(valid.to(date.dtype), edges)
        count = torch.stack(_window_sums(known, half))
        mean = torch.stack(_window_sums(x, half)) / count.clamp(min=1)
        variance = torch.stack(_window_sums(x * x, half)) / count.clamp(min=1) - mean**2
        flat = variance[0] <= homogeneous * noise * mean[0] ** 2
        chosen = torch.where(flat, 0, _side(x, known, half))[None]
        mean, variance = (values.gather(0, chosen)[0] for values in (mean, variance))
        # z = x n with E[n] = 1, Var[n] = noise: Var[x] = (Var[z] - E[z]^2 noise) / (1 + noise).
        signal = ((variance - noise * mean**2) / (1 + noise)).clamp(min=0)
        gain = torch.where(signal > 0, signal / variance.clamp(min=torch.finfo(x.dtype).tiny), 0)
        return torch.where(valid, mean + gain * (power - mean), torch.nan)

    return forward


def refined_lee(
    weights: str | None = None,
    *,
    bands: BandsOption = 1,
    looks: float = 4.4,
    window: int = 7,
    homogeneous: float = 1.5,
) -> Kernel:
    """Return the kernel of the refined Lee speckle filter, for one date of backscatter in linear power.

    Parameters
    ----------
    weights
        None: the kernel has none.
    bands
        Number of bands, or their names separated by commas; each is filtered by itself.
    looks
        Equivalent number of looks of the input: mean^2 / variance of the power over an even area. 4.4 is that
        of Sentinel-1 IW GRD; the larger, the less is smoothed.
    window
        Side of the window in pixels: 5, 7, 9 or 11.
    homogeneous
        The whole window is averaged where its variance is at most this many times that of speckle alone, as
        Lee's 1981 paper looks for edges only where the variance is high; 0 looks for an edge everywhere.

    Raises
    ------
    KernelError
        An option is out of its range.
    """
    options = {k: v for k, v in locals().items() if k != "weights"}
    no_weights(weights, _PLACE)
    if window not in SUBWINDOWS:
        raise KernelError(
            f"window={window}", place=_PLACE, remedy=f"give one of {', '.join(map(str, SUBWINDOWS))}"
        )
    if not looks > 0 or homogeneous < 0:
        raise KernelError(
            f"looks={looks}, homogeneous={homogeneous}",
            place=_PLACE,
            remedy="give looks above 0 and homogeneous of at least 0",
        )
    names = band_names(bands, _PLACE)
    spec = KernelSpec(
        name=_PLACE,
        description=f"Refined Lee speckle filter, {window} x {window} px, {looks:g} looks",
        inputs={"image": InputSpec(dates=1, bands=names, units="linear power")},
        outputs={
            "filtered": OutputSpec(
                kind="value",
                bands=names,
                units="linear power",
                valid_rule="own",
                description="Backscatter with speckle reduced, in the units of the input",
            )
        },
        radius=window // 2,
        boundary="fill",
        autocast=False,
        licence="Apache-2.0",
        citation="Lee 1981; Lee, Grunes and de Grandi 1999",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, window, looks, homogeneous), options=options)
