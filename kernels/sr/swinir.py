"""``swinir``: pictures at two, three, four or eight times the resolution, by attention in windows.

Liang, J. et al. (2021): SwinIR: Image Restoration Using Swin Transformer, https://arxiv.org/abs/2108.10257. Takes the
authors' checkpoints for classical and for lightweight super-resolution.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewright.errors import KernelError

from ..classic.common import choose
from ..contract import Kernel, KernelSpec, RadiusAt, TileRule
from ..published import Published, make_kernel
from .pictures import BYTE, checked_names, picture_rasters

__all__ = ["SIZES", "swinir"]

_PLACE = "swinir"
_NETS = "tilewright.kernels.nets"

SIZES: dict[str, dict[str, Any]] = {
    "classical": {"width": 180, "depths": (6,) * 6, "heads": (6,) * 6, "direct": False},
    "lightweight": {"width": 60, "depths": (6,) * 4, "heads": (6,) * 4, "direct": True},
}
"""Size -> arguments of the network."""
SCALES = {"classical": (2, 3, 4, 8), "lightweight": (2, 3, 4)}
"""Size -> scales that were published."""
PATCHES = (48, 64)
"""Sides of the pictures of the training: the first with DIV2K alone, the second with Flickr2K beside it."""


def swinir(
    weights: Any = None,
    *,
    size: Literal["classical", "lightweight"] = "lightweight",
    scale: Literal[2, 3, 4, 8] = 2,
    patch: Literal[48, 64] = 64,
    low: float = 0.0,
    high: float = BYTE,
    bands: str = "red,green,blue",
) -> Kernel:
    """Return the super-resolution kernel of SwinIR for pictures of three bands.

    Parameters
    ----------
    weights
        See `load_kernel`; None builds the network untrained.
    size
        ``classical``: six groups of 180 channels; ``lightweight``: four of 60.
    scale
        Output pixels an input pixel and axis: 2, 3, 4 or, classical only, 8. Each has weights of its own.
    patch
        Side of the pictures of the training, as in the name of the checkpoint: ``s48`` or ``s64``. It says which
        shape the masks in the checkpoint have; results do not depend on it.
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
    if scale not in SCALES[size]:
        known = ", ".join(map(str, SCALES[size]))
        raise KernelError(f"scale={scale} with size={size}", place=_PLACE, remedy=f"give one of {known}")
    if patch not in PATCHES:
        raise KernelError(f"patch={patch}", place=_PLACE, remedy="give 48 or 64")
    names = checked_names(bands, low, high, _PLACE)
    published = Published(
        f"{_NETS}.swinir:SwinIR",
        f"{_NETS}.pictures:picture_of_values",
        {**SIZES[size], "scale": scale, "patch": patch},
        {"low": low, "high": high, "full": 1.0},
        variants={
            f"{_PLACE} with size={name}, scale={n}, patch={side}": {**SIZES[name], "scale": n, "patch": side}
            for name, scales in SCALES.items()
            for n in scales
            for side in PATCHES
        },
    )
    spec = KernelSpec(
        name=_PLACE,
        description=f"SwinIR ({size}): pictures at {scale} times the resolution, by attention in windows",
        **picture_rasters(names, low, high, 1.0),
        radius=None,
        radius_at=RadiusAt(eps=0.001, px=24),
        stride=8,
        scale=scale,
        tile=TileRule(multiple=8, default=128),
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
        citation="Liang et al. 2021, https://arxiv.org/abs/2108.10257",
        status="parity",
    )
    options = {"size": size, "scale": scale, "patch": patch, "low": low, "high": high, "bands": bands}
    return make_kernel(published, spec, weights, options)
