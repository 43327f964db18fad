"""``bicubic``: enlargement by cubic convolution, the baseline that a learned method has to beat.

Keys, R. (1981): Cubic convolution interpolation for digital image processing, IEEE Trans. ASSP 29(6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError

from ..classic.common import BandsOption, band_names, no_weights, ordered_sum
from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bicubic", "taps"]

_PLACE = "bicubic"
_REACH = 2


def _cubic(distance: float, a: float) -> float:
    """Weight of a pixel whose centre is ``distance`` pixels away (Keys 1981, eq. 15, with ``a`` left free)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def taps(scale: int, a: float) -> list[tuple[float, ...]]:
    """Return for each of the ``scale`` output pixels in an input pixel the weights of its neighbours -2 to 2.

    The centre of output pixel p lies (p + 1/2) / scale - 1/2 input pixels from the centre of the pixel that it is
    in. The weights do not depend on the place in the tile, so tiles agree to the last bit.
    """
    centres = [(p + 0.5) / scale - 0.5 for p in range(scale)]
    return [tuple(_cubic(k - t, a) for k in range(-_REACH, _REACH + 1)) for t in centres]


def _neighbours(x: Tensor, valid: Tensor, dim: int) -> list[Tensor]:
    """Return the neighbours -2 to 2 along ``dim``; one that is missing takes the value of the next one inwards."""
    import torch
    from torch.nn.functional import pad

    edges = (_REACH, _REACH, 0, 0) if dim == -1 else (0, 0, _REACH, _REACH)
    size = x.shape[dim]
    wide, known = pad(x, edges), pad(valid, edges)

    def at(k: int, inward: Tensor) -> Tensor:
        there = known.narrow(dim, _REACH + k, size)
        return torch.where(there, wide.narrow(dim, _REACH + k, size), inward)

    before, after = at(-1, x), at(1, x)
    return [at(-2, before), before, x, after, at(2, after)]


def _enlarge(x: Tensor, valid: Tensor, weights: list[tuple[float, ...]], dim: int) -> Tensor:
    import torch

    around = _neighbours(x, valid, dim)
    phases = [ordered_sum([n * w for n, w in zip(around, row, strict=True) if w]) for row in weights]
    return torch.stack(phases, dim).flatten(dim - 1, dim)


def _build(scale: int, a: float) -> Callable[..., Any]:
    import torch

    weights = taps(scale, a)

    def forward(date: Tensor, valid: Tensor) -> Tensor:
        """``date`` ``[N, C, H, W]`` in any units -> the same ``scale`` times as large."""
        valid = valid & torch.isfinite(date)
        across = _enlarge(torch.where(valid, date, 0), valid, weights, -1)
        valid = valid.repeat_interleave(scale, -1)
        down = _enlarge(across, valid, weights, -2)
        return torch.where(valid.repeat_interleave(scale, -2), down, torch.nan)

    return forward


def bicubic(
    weights: str | None = None,
    *,
    scale: Literal[2, 3, 4] = 2,
    bands: BandsOption = 1,
    a: float = -0.75,
) -> Kernel:
    """Return the kernel that enlarges one date by cubic convolution.

    Parameters
    ----------
    weights
        None: the kernel has none.
    scale
        Output pixels an input pixel and axis: 2, 3 or 4.
    bands
        Number of bands, or their names separated by commas; each is enlarged by itself.
    a
        Slope of the cubic at distance 1: -0.75 as torch and OpenCV have it, -0.5 as Keys, GDAL, Pillow and MATLAB.

    Raises
    ------
    KernelError
        An option is out of its range.
    """
    options = {k: v for k, v in locals().items() if k != "weights"}
    no_weights(weights, _PLACE)
    if scale not in (2, 3, 4):
        raise KernelError(f"scale={scale}", place=_PLACE, remedy="give 2, 3 or 4")
    if not (math.isfinite(a) and -1 <= a <= 0):
        raise KernelError(f"a={a:g}", place=_PLACE, remedy="give -1 to 0, such as -0.75 or -0.5")
    names = band_names(bands, _PLACE)
    spec = KernelSpec(
        name=_PLACE,
        description=f"Cubic convolution to {scale} times the resolution",
        inputs={"image": InputSpec(dates=1, bands=names)},
        outputs={
            "image": OutputSpec(
                kind="value",
                bands=names,
                valid_rule="own",
                description="The image on the finer grid, in the units of the input; overshoots at edges",
            )
        },
        radius=_REACH,
        scale=scale,
        boundary="fill",
        autocast=False,
        licence="Apache-2.0",
        citation="Keys 1981, IEEE Trans. ASSP 29(6)",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, scale, a), options=options)
