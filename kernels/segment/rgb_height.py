"""``rgb-height``: land cover from colour and height above ground together, in the manner of GAMUS.

Xiong et al. 2023, https://arxiv.org/abs/2305.14914. Neither code nor weights of its fusion module (TIMF) are released:
this is a network of the same idea, for weights that the user trains. docs/kernels/rgb-height.md.
"""

from __future__ import annotations

from typing import Any

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from ..published import Published, make_kernel

__all__ = ["CLASSES", "rgb_height"]

_PLACE = "rgb-height"
_NETS = "tilewright.kernels.nets.rgb_height"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLASSES = ("other", "ground", "low vegetation", "building", "water", "road", "tree")
"""Labels 0 to 6 of GAMUS."""


def rgb_height(
    weights: Any = None,
    *,
    width: int = 32,
    tokens: int = 16,
    metres: float = 10.0,
    low: float = 0.0,
    high: float = 255.0,
    probabilities: bool = False,
) -> Kernel:
    """Return the kernel that maps seven classes from an image and a height of the same grid.

    Parameters
    ----------
    weights
        The ``state_dict`` of `tilewright.kernels.nets.rgb_height.RgbHeight` (see `load_kernel`); None leaves the
        network untrained.
    width, tokens
        Sizes of the network: channels of the first level (a multiple of 4), tokens of an exchange.
    metres
        Height that counts as 1.
    low, high
        Values of the image that stand for 0 and 255 of a picture.
    probabilities
        True gives the probability of each class, too.

    Raises
    ------
    KernelError
        A size or range that is none.
    WeightsError
        The weights are absent. When the network is built: their tensors do not fit.
    """
    if width < 4 or width % 4 or tokens < 1:
        raise KernelError(
            f"width={width}, tokens={tokens}", place=_PLACE, remedy="a multiple of 4, and 1 or more"
        )
    if not low < high or not metres > 0:
        raise KernelError(
            f"low={low:g}, high={high:g}, metres={metres:g}", place=_PLACE, remedy="low < high, metres > 0"
        )
    published = Published(
        f"{_NETS}:RgbHeight",
        f"{_NETS}:classes_of_both",
        {"classes": len(CLASSES), "width": width, "tokens": tokens},
        {"scale": metres},
    )
    size = high - low
    image = InputSpec(
        bands=("red", "green", "blue"),
        mean=tuple(value * size + low for value in _MEAN),
        std=tuple(value * size for value in _STD),
    )
    outputs = {
        "classes": OutputSpec(
            kind="class",
            classes=CLASSES,
            range=(0, 1),
            valid_rule="own",
            description="The most probable class",
        )
    }
    if probabilities:
        outputs["probability"] = OutputSpec(
            kind="score",
            bands=CLASSES,
            dtype="uint8",
            valid_rule="own",
            description="Probability of each class",
        )
    spec = KernelSpec(
        name=_PLACE,
        description="Land cover from colour and height above ground, by two streams that exchange tokens (after GAMUS)",
        inputs={"image": image, "height": InputSpec(bands=("height",), units="m")},
        outputs=outputs,
        radius=None,  # attention over the tile: tiles are blended
        stride=8,
        tile=TileRule(multiple=8, default=256),
        licence="Apache-2.0 (this code); weights: the user's",
        citation="After Xiong et al. 2023, https://arxiv.org/abs/2305.14914",
        status="reconstruction",
    )
    options = {
        "width": width, "tokens": tokens, "metres": metres, "low": low, "high": high, "probabilities": probabilities,
    }  # fmt: skip
    return make_kernel(published, spec, weights, options)
