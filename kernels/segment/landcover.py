"""``landcover-ai``: buildings, woodland, water and roads in aerial pictures, as the data set LandCover.ai names them.

Boguszewski et al. 2021, https://arxiv.org/abs/2005.02264. No checkpoint was at hand; this is the description of one
that the user trained or found. docs/kernels/landcover-ai.md.
"""

from __future__ import annotations

from typing import Any, Literal

from ..contract import Kernel  # noqa: TC001 - the annotations check the options when it is loaded
from ..published import make_kernel
from .smp import RGB, Segmenter
from .smp_checkpoint import read_checkpoint

__all__ = ["CLASSES", "landcover_ai"]

CLASSES = ("background", "building", "woodland", "water", "road")
"""Labels 0 to 4 of the data set."""

_STRIDES = {"deeplabv3plus": 16, "unet": 32}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def landcover_ai(
    weights: Any = None,
    *,
    architecture: Literal["deeplabv3plus", "unet"] = "deeplabv3plus",
    encoder: str = "resnet50",
    low: float = 0.0,
    high: float = 255.0,
    probabilities: bool = False,
    reach: int | None = None,
    eps: float = 0.01,
    prefix: str = "",
) -> Kernel:
    """Return the kernel that maps the five classes of LandCover.ai.

    Parameters
    ----------
    weights
        As of ``smp:``; None leaves the network untrained, since no weights were at hand.
    architecture, encoder
        The network of segmentation-models-pytorch that the weights are of.
    low, high
        Values of the image that stand for 0 and 255 of a picture.
    probabilities
        True gives the probability of each class, too.
    reach, eps
        As of ``smp:``: for a cut without blending.
    prefix
        What stands before the official names in the checkpoint.

    Raises
    ------
    KernelError
        An empty range, or weights of another network.
    WeightsError
        The weights are absent. When the network is built: their tensors do not fit.
    """
    found = read_checkpoint(weights)
    found.check(architecture, encoder)
    given = Segmenter(
        architecture,
        encoder,
        RGB,
        CLASSES,
        _STRIDES[architecture],
        _MEAN,
        _STD,
        low,
        high,
        probabilities=probabilities,
        reach=reach,
        eps=eps,
    )
    given.check("landcover-ai")
    spec = given.spec(
        "landcover-ai",
        "The classes of LandCover.ai in aerial pictures of 0.25 to 0.5 m, for weights of the user: none come with it",
        licence="Apache-2.0 (this code); data set: CC BY-NC-SA 4.0; weights: the user's",
        citation="Boguszewski et al. 2021, https://arxiv.org/abs/2005.02264",
        status="reconstruction",
    )
    options = {
        "architecture": architecture, "encoder": encoder, "low": low, "high": high,
        "probabilities": probabilities, "prefix": prefix, "arguments": dict(found.arguments),
    }  # fmt: skip
    return make_kernel(given.published(dict(found.arguments), prefix), spec, found.weights, options)
