"""``s2cloudless``: the probability of clouds in Sentinel-2 L1C, pixel by pixel, by Sentinel Hub's boosted trees.

https://github.com/sentinel-hub/sentinel2-cloud-detector. The trees (CC BY-SA 4.0) are a file of the installed package
``s2cloudless``, which is found but not imported; lightgbm runs them. docs/kernels/s2cloudless.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from ..weights import Weights, packaged_file, resolve_weights

if TYPE_CHECKING:
    from .s2cloudless_forward import CloudTrees

__all__ = ["BANDS", "s2cloudless"]

_PLACE = "s2cloudless"
_PACKAGE = "s2cloudless"
_FILE = "models/pixel_s2_cloud_detector_lightGBM_v0.1.txt"
_SHA256 = "0f92b6822cc0ad42982f55bab9b1688329e119451ad9a9e0a56384b9f37bc61d"
_MOST = 64

BANDS = ("coastal", "blue", "red", "rededge1", "nir", "nir08", "nir09", "cirrus", "swir16", "swir22")
"""B01, B02, B04, B05, B08, B8A, B09, B10, B11, B12 in the order of the trees' features."""


def s2cloudless(
    weights: str | None = None, *, threshold: float = 0.4, average: int = 1, dilation: int = 1
) -> Kernel:
    """Return the cloud detector.

    Parameters
    ----------
    weights
        The file of the trees, if it lies elsewhere than in the installed package; its checksum is the same.
    threshold
        Probability above which a pixel is cloud.
    average
        Radius in pixels of the disk over which the probability is averaged before the cut; 0 for none.
    dilation
        Radius of the disk by which clouds are widened after it; 0 for none.

    Raises
    ------
    KernelError
        An option out of its range.
    WeightsError
        A given file is absent or another. When the kernel is built: the package is not installed.
    """
    if not 0 < threshold < 1:
        raise KernelError(f"threshold={threshold:g} is no probability", place=_PLACE, remedy="use 0 to 1")
    for name, value in (("average", average), ("dilation", dilation)):
        if not 0 <= value <= _MOST:
            raise KernelError(f"{name}={value} is no radius", place=_PLACE, remedy=f"use 0 to {_MOST}")
    own = None if weights is None else resolve_weights(weights, _SHA256)
    spec = KernelSpec(
        name=_PLACE,
        description="s2cloudless: clouds in ten bands of Sentinel-2 L1C, by gradient-boosted trees on each pixel",
        inputs={"image": InputSpec(bands=BANDS, units="reflectance")},
        outputs={
            "probability": OutputSpec(
                kind="score", threshold=threshold, description="Probability of cloud, of the pixel alone"
            ),
            "mask": OutputSpec(
                kind="class",
                classes=("clear", "cloud"),
                description="1 where the averaged probability is above the threshold, widened",
            ),
        },
        radius=average + dilation,
        boundary="reflect",
        tile=TileRule(default=128),
        autocast=False,
        licence="Apache-2.0 (this code); trees: s2cloudless, CC BY-SA 4.0",
        citation="Sentinel Hub, s2cloudless, https://github.com/sentinel-hub/sentinel2-cloud-detector",
        status="parity",
    )
    return Kernel(
        spec=spec,
        build=partial(_build, own, threshold, average, dilation),
        options={"threshold": threshold, "average": average, "dilation": dilation},
        weights=own.source if own else f"pkg://{_PACKAGE}/{_FILE}",
        weights_sha256=_SHA256,
    )


def _build(weights: Weights | None, threshold: float, average: int, dilation: int) -> CloudTrees:
    from .s2cloudless_forward import CloudTrees

    file = weights or packaged_file(_PACKAGE, _FILE, _SHA256, place=_PLACE, extra="s2cloudless")
    return CloudTrees(file, threshold, average, dilation).eval()
