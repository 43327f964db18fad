"""``esrgan-slim``: pictures at two, three or four times the resolution, by a small residual dense network.

Architecture and weights of the npm package ``@upscalerjs/esrgan-slim`` 1.0.0 (MIT), which lie beside this file.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewright.errors import KernelError

from ..contract import Kernel, KernelSpec, TileRule
from ..published import Published, make_kernel
from .pictures import BYTE, checked_names, picture_rasters

__all__ = ["SHIPPED", "esrgan_slim"]

_PLACE = "esrgan-slim"
_NETS = "tilewright.kernels.nets"

SHIPPED = {
    2: "fa30a2daf017c5d8449e03bba3ad432bddaba1ae1761e1033511e6012119d0fd",
    3: "6d16d7f0296f20187ed76b047bac7e66a77536f606af5b52413f4d2ab94e3746",
    4: "3f3b2b54d22dadea183e39a231bc11d07c2bc71b689a61c2753285bafc55b00f",
}
"""Scale -> sha256 of the weights in this package."""


def esrgan_slim(
    weights: Any = None,
    *,
    scale: Literal[2, 3, 4] = 4,
    low: float = 0.0,
    high: float = BYTE,
    bands: str = "red,green,blue",
) -> Kernel:
    """Return the super-resolution kernel of ESRGAN-slim for pictures of three bands.

    Parameters
    ----------
    weights
        Others of the same shape, see `load_kernel`; None takes those of the npm package, which are shipped.
    scale
        Output pixels an input pixel and axis: 2, 3 or 4. Each has a network of its own.
    low, high
        Values of the image that stand for 0 and 255 of a picture; the output has the units of the input and is
        clipped to them, as the package clips its pictures.
    bands
        Names of the three bands, in the order red, green, blue.

    Raises
    ------
    KernelError
        An option is out of its range.
    WeightsError
        Given weights are absent. When the network is built: their tensors are others.
    """
    if scale not in SHIPPED:
        raise KernelError(f"scale={scale}", place=_PLACE, remedy="give 2, 3 or 4")
    names = checked_names(bands, low, high, _PLACE)
    published = Published(
        f"{_NETS}.esrgan_slim:ESRGANSlim",
        f"{_NETS}.pictures:picture_of_values",
        {"scale": scale},
        {"low": low, "high": high, "full": BYTE},
        variants={f"{_PLACE} with scale={n}": {"scale": n} for n in SHIPPED},
    )
    shipped = {
        "ref": f"pkg://tilewright.kernels.sr/weights/esrgan-slim-x{scale}.safetensors",
        "sha256": SHIPPED[scale],
    }
    options = {"scale": scale, "low": low, "high": high, "bands": bands}
    spec = _spec(scale, low, high, names)
    return make_kernel(published, spec, shipped if weights is None else weights, options)


def _spec(scale: int, low: float, high: float, names: tuple[str, ...]) -> KernelSpec:
    return KernelSpec(
        name=_PLACE,
        description=f"ESRGAN-slim: pictures at {scale} times the resolution, by a network of 0.2 M parameters",
        **picture_rasters(names, low, high, BYTE),
        radius=10,
        scale=scale,
        tile=TileRule(default=256),
        channels_last=True,
        licence="Apache-2.0 (this code); weights: npm @upscalerjs/esrgan-slim 1.0.0, MIT",
        citation="Zhang et al. 2018, https://arxiv.org/abs/1802.08797; Kevin Scott 2022, UpscalerJS",
        status="parity",
    )
