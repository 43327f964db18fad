"""``sen2sr-cnn``: ten bands of Sentinel-2 at 2.5 m, with the low frequencies of what was measured.

SEN2SR of ESA's OpenSR project (https://github.com/ESAOpenSR/SEN2SR), in its convolutional form.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import Published, make_kernel

__all__ = ["BANDS", "SIDE", "sen2sr_cnn"]

_PLACE = "sen2sr-cnn"
_NETS = "tilewright.kernels.nets.sen2sr"

BANDS = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
"""B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12."""
SIDE = 128
"""Pixels a side of the tiles that the networks were trained on, and for which the masks are made."""


def sen2sr_cnn(
    weights: Any = None,
    *,
    features: int = 24,
    blocks: int = 6,
    mask: Literal["file", "butterworth"] = "file",
) -> Kernel:
    """Return the kernel that brings ten bands of Sentinel-2 from 10 and 20 m to 2.5 m.

    Parameters
    ----------
    weights
        One file with the tensors of the three networks and, with ``mask=file``, their masks; docs/kernels/sen2sr-cnn.md
        says how it is made of the released files. None leaves the networks untrained.
    features, blocks
        Sizes of the networks: 24 and 6 in the released models.
    mask
        What counts as low frequency: ``file`` takes the masks that come with the weights, ``butterworth`` makes them,
        of order 6.

    Raises
    ------
    KernelError
        A size below 1.
    WeightsError
        The weights are absent. When the networks are built: their tensors are others.
    """
    if features < 1 or blocks < 1:
        raise KernelError(f"features={features}, blocks={blocks}", place=_PLACE, remedy="give 1 or more")
    published = Published(
        f"{_NETS}:Sen2SR",
        f"{_NETS}:bands_of_values",
        {
            "features": features,
            "blocks": blocks,
            "side": SIDE if mask == "file" else None,
        },
    )
    spec = KernelSpec(
        name=_PLACE,
        description="SEN2SR: ten bands of Sentinel-2 at 2.5 m by convolutional networks under a Fourier constraint",
        inputs={"image": InputSpec(bands=BANDS, units="reflectance", resolution=10, resampling="nearest")},
        outputs={
            "image": OutputSpec(
                kind="value",
                bands=BANDS,
                units="reflectance",
                description="Surface reflectance at a quarter of the pixel side; fine detail is likely, not measured",
            )
        },
        radius=None,
        radius_at=RadiusAt(eps=0.01, px=16),
        stride=4,
        scale=4,
        tile=TileRule(fixed=SIDE),
        autocast=False,
        licence="Apache-2.0 (this code); official code: CC0-1.0 by its licence file, MIT by its README",
        citation="SEN2SR, ESAOpenSR; SPAN: Wan et al. 2023, https://arxiv.org/abs/2311.12770",
        status="parity",
    )
    return make_kernel(published, spec, weights, {"features": features, "blocks": blocks, "mask": mask})
