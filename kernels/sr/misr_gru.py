"""``misr-gru``: several dates of one band to one picture, three times as fine.

Arefin, M. R. et al. (2020): Multi-Image Super-Resolution for Remote Sensing using Deep Recurrent Networks.
"""

from __future__ import annotations

from typing import Any

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..published import Published, make_kernel

__all__ = ["misr_gru"]

_PLACE = "misr-gru"
_NETS = "tilewright.kernels.nets.misr_gru"
_FULL = 65535.0


def misr_gru(weights: Any = None, *, low: float = 0.0, high: float = _FULL, band: str = "red") -> Kernel:
    """Return the kernel that makes one finer picture of several dates.

    Parameters
    ----------
    weights
        See `load_kernel`; None builds the network untrained.
    low, high
        Values of the image that stand for 0 and 1 of what the network sees. The output has the units of the input.
    band
        Name of the band.

    Raises
    ------
    KernelError
        An empty range.
    WeightsError
        The weights are absent. When the network is built: their tensors are others.
    """
    if not low < high:
        raise KernelError(
            f"low={low:g}, high={high:g} is an empty range", place=_PLACE, remedy="use low < high"
        )
    published = Published(
        f"{_NETS}:MISRGRU",
        f"{_NETS}:finer_of_views",
        options={"low": low, "high": high},
        rename={"encode.": ""},
    )
    spec = KernelSpec(
        name=_PLACE,
        description="MISR-GRU: several dates of a band to one picture three times as fine",
        inputs={"image": InputSpec(dates="2-32", bands=(band,), mean=(low,), std=(high - low,))},
        outputs={
            "image": OutputSpec(
                kind="value",
                bands=(band,),
                valid_rule="any",
                description="The band on a grid three times as fine, in the units of the input",
            )
        },
        radius=None,
        radius_at=RadiusAt(eps=0.001, px=16),
        scale=3,
        tile=TileRule(default=128),
        licence="Apache-2.0 (this code); official code and weights: Do No Harm License with Apache-2.0, not free",
        citation="Arefin et al. 2020, CVPR Workshops (EarthVision)",
        status="reconstruction",
    )
    return make_kernel(published, spec, weights, {"low": low, "high": high, "band": band})
