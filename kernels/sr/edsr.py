"""``edsr``: pictures at two, three or four times the resolution, by residual blocks.

Lim, B. et al. (2017): Enhanced Deep Residual Networks for Single Image Super-Resolution,
https://arxiv.org/abs/1707.02921. Takes the authors' PyTorch checkpoints.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewright.errors import KernelError

from ..classic.common import choose
from ..contract import Kernel, KernelSpec, TileRule
from ..published import Published, make_kernel
from .pictures import BYTE, checked_names, picture_rasters

__all__ = ["SIZES", "edsr"]

_PLACE = "edsr"
_NETS = "tilewright.kernels.nets"
_SCALES = (2, 3, 4)

SIZES: dict[str, dict[str, Any]] = {
    "baseline": {"blocks": 16, "width": 64, "share": 1.0},
    "large": {"blocks": 32, "width": 256, "share": 0.1},
}
"""Size -> arguments of the network."""


def edsr(
    weights: Any = None,
    *,
    size: Literal["baseline", "large"] = "baseline",
    scale: Literal[2, 3, 4] = 2,
    low: float = 0.0,
    high: float = BYTE,
    bands: str = "red,green,blue",
) -> Kernel:
    """Return the super-resolution kernel of EDSR for pictures of three bands.

    Parameters
    ----------
    weights
        See `load_kernel`; None builds the network untrained.
    size
        ``baseline``: 16 blocks of 64 channels; ``large``: 32 of 256.
    scale
        Output pixels an input pixel and axis: 2, 3 or 4. Each has weights of its own.
    low, high
        Values of the image that stand for 0 and 255 of a picture; the output has the units of the input and is
        clipped to them, as the authors clip theirs.
    bands
        Names of the three bands, in the order red, green, blue.

    Raises
    ------
    KernelError
        An option is out of its range.
    WeightsError
        The weights are absent. When the network is built: their tensors are others.
    """
    choose("size", size, tuple(SIZES), _PLACE)
    if scale not in _SCALES:
        raise KernelError(f"scale={scale}", place=_PLACE, remedy="give 2, 3 or 4")
    names = checked_names(bands, low, high, _PLACE)
    published = Published(
        f"{_NETS}.edsr:EDSR",
        f"{_NETS}.pictures:picture_of_values",
        {**SIZES[size], "scale": scale},
        {"low": low, "high": high, "full": BYTE},
        variants={
            f"{_PLACE} with size={name}, scale={n}": {**arguments, "scale": n}
            for name, arguments in SIZES.items()
            for n in _SCALES
        },
    )
    blocks, width = SIZES[size]["blocks"], SIZES[size]["width"]
    spec = KernelSpec(
        name=_PLACE,
        description=f"EDSR: pictures at {scale} times the resolution, by {blocks} blocks of {width} channels",
        **picture_rasters(names, low, high, BYTE),
        radius=2 * blocks + 4,
        scale=scale,
        tile=TileRule(default=256),
        channels_last=True,
        licence="Apache-2.0 (this code); official code: MIT; weights: no licence of their own",
        citation="Lim et al. 2017, https://arxiv.org/abs/1707.02921",
        status="parity",
    )
    options = {"size": size, "scale": scale, "low": low, "high": high, "bands": bands}
    return make_kernel(published, spec, weights, options)
