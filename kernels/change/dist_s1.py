"""``dist-s1``: how far the newest Sentinel-1 image is from what a transformer expects after the images before.

Hardiman-Mostow, H. et al. (2025): Deep Self-Supervised Disturbance Mapping with Sentinel-1 OPERA RTC Synthetic
Aperture Radar, https://arxiv.org/abs/2501.09129. The weights are those of the package ``distmetrics``
(Apache-2.0), which OPERA's DIST-S1 product uses. docs/kernels/dist-s1.md has dates, thresholds and parity.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError, nearest_name

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, RadiusAt, TileRule
from ..weights import Weights, load_into, load_state_dict, packaged_file, resolve_weights

if TYPE_CHECKING:
    from .dist_s1_network import DistS1Forward

__all__ = ["MODELS", "STATUS", "TV_REACH", "Architecture", "dist_s1"]

_PLACE = "dist-s1"
_PACKAGE = "distmetrics"

STATUS = (
    "no disturbance",
    "first low-confidence disturbance",
    "provisional low-confidence disturbance",
    "confirmed low-confidence disturbance",
    "first high-confidence disturbance",
)
"""Codes 0 to 4 of the product layer GEN-DIST-STATUS-ACQ. One date gives 0, 1 and 4; 2 and 3 need a history of
products."""

TV_REACH = 24
"""Pixels after which total-variation despeckling carries a change no further than 5e-5 dB; measured, see
docs/kernels/dist-s1.md. It iterates over the whole image, so there is no exact radius."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of one pretrained transformer, and the checksum of its weights file."""

    context: int
    """Most dates before."""
    side: int
    """Pixels a side of the window that the network sees at once."""
    patch: int
    """Pixels a side of a token."""
    width: int
    """Values a token."""
    heads: int
    """Attention heads."""
    layers: int
    """Encoder layers."""
    hidden: int
    """Width of the feed-forward parts and of the two heads."""
    sha256: str
    """Checksum of ``weights.pth`` in distmetrics 1.0.8."""

    @property
    def patches(self) -> int:
        """Tokens of one date."""
        return (self.side // self.patch) ** 2


_SHIPPED = {
    "transformer_optimized": (
        (10, 16, 8, 128, 16, 2, 384),
        "0705e75189efa6d263776db09c42e919108ef63799539e3fd43bc2afea96aa8a",
    ),
    "transformer_optimized_fine": (
        (10, 16, 4, 256, 16, 2, 384),
        "920dd849015d2a771222aa201b1873cdf280f5b8c5d3d7078a9f2fde752683b9",
    ),
    "transformer_original": (
        (10, 16, 8, 256, 4, 4, 768),
        "e6fba7b5180cb0ba4ff9684a035ebebfbf95a1874a5a60b6ef2993ef851705e0",
    ),
    "transformer_anniversary_trained": (
        (20, 16, 8, 256, 4, 4, 768),
        "549db59e856741d9ebfe2512b22ec1aa3e95f8d2b203247ae29c6e551f553629",
    ),
    "transformer_anniversary_trained_10": (
        (10, 16, 8, 256, 4, 4, 768),
        "b3b891c7b0ac288f86deb37a194a8399acf9c510f2a4e3d649d698937e5bee72",
    ),
    "transformer_anniversary_trained_optimized": (
        (30, 16, 8, 128, 16, 2, 384),
        "72d458d1c135cc768b5487fec79344da161755c5f19f80da465c9f676b2c4f1e",
    ),
    "transformer_anniversary_trained_optimized_fine": (
        (30, 16, 4, 128, 8, 2, 384),
        "71a77f52ebd51a241ce96ce4a5ec9a2b0c9ddd404cd1a3005e355d4643e6f1f8",
    ),
    "transformer_v0_32": (
        (10, 32, 8, 128, 8, 2, 384),
        "5693ecd3d714bc8a8a0f9ff1567d09d1db95e1bd15beee7d77f5481947ef5741",
    ),
    "transformer_v1_32": (
        (30, 32, 8, 128, 16, 2, 384),
        "ee55a47c1e4b1bedad39ce360002a3f78e4682c7740c4adf2134ca1d4a551c8e",
    ),
}
MODELS = {name: Architecture(*sizes, sha256=sha256) for name, (sizes, sha256) in _SHIPPED.items()}
"""The pretrained models by the names of the package."""


def _packaged(model: str) -> Weights:
    """Find the weights in the package; importing it would change how the whole process starts others."""
    inside = f"model_data/{model}/weights.pth"
    return packaged_file(_PACKAGE, inside, MODELS[model].sha256, place=_PLACE, extra="dist-s1")


def _build(model: str, weights: Weights | None, options: dict[str, Any]) -> DistS1Forward:
    from .dist_s1_network import DistS1Forward, DistS1Network

    file = weights or _packaged(model)
    network = DistS1Network(MODELS[model])
    load_into(network, load_state_dict(file), place=file.source)
    return DistS1Forward(network, **options).eval()


def _check(model: str, stride: int, low: float, high: float, max_nodata: float, fill: float) -> None:
    if model not in MODELS:
        raise KernelError(f"unknown model {model!r}; {nearest_name(model, MODELS)}", place=_PLACE)
    side = MODELS[model].side
    if not 1 <= stride <= side:
        raise KernelError(
            f"stride={stride} leaves pixels without a window of {side} px",
            place=_PLACE,
            remedy=f"use 1 to {side}",
        )
    if not 0 < low <= high:
        raise KernelError(
            f"thresholds low={low:g}, high={high:g}", place=_PLACE, remedy="use 0 < low <= high"
        )
    if not 0 <= max_nodata <= 1:
        raise KernelError(f"max_nodata={max_nodata:g} is no share", place=_PLACE, remedy="use 0 to 1")
    if not 0 < fill < 1:
        raise KernelError(
            f"fill={fill:g} has no logit", place=_PLACE, remedy="use 1e-7, or 0.5 for the middle"
        )


def _pair(polarisations: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in polarisations.split(","))
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise KernelError(
            f"polarisations={polarisations!r}: the model takes two",
            place=_PLACE,
            remedy="name the co-polarised band first, such as vv,vh",
        )
    return names


def _outputs(bands: tuple[str, ...], parameters: bool, rule: Literal["all", "own"]) -> dict[str, OutputSpec]:
    outputs = {
        "metric": OutputSpec(
            kind="value",
            valid_rule=rule,
            units="standard deviations",
            description="Distance of the newest image from the predicted mean, in predicted standard"
            " deviations of the logit of gamma0; the larger of the two polarisations",
        ),
        "disturbance": OutputSpec(
            kind="class",
            classes=STATUS,
            valid_rule=rule,
            description="The metric against two thresholds, in the codes of GEN-DIST-STATUS-ACQ",
        ),
    }
    if parameters:
        outputs["mean"] = OutputSpec(
            kind="value", bands=bands, valid_rule=rule, units="logit", description="Predicted mean"
        )
        outputs["sigma"] = OutputSpec(
            kind="value",
            bands=bands,
            valid_rule=rule,
            units="logit",
            description="Predicted standard deviation",
        )
    return outputs


def dist_s1(
    weights: str | None = None,
    *,
    model: str = "transformer_optimized",
    stride: int = 4,
    low: float = 2.5,
    high: float = 4.5,
    parameters: bool = False,
    polarisations: str = "vv,vh",
    missing: Literal["mask", "fill"] = "mask",
    max_nodata: float = 1.0,
    fill: float = 1e-7,
    despeckle: Literal["none", "tv"] = "none",
) -> Kernel:
    """Return the disturbance kernel of DIST-S1: several dates before, and as the last one the date in question.

    Parameters
    ----------
    weights
        A file with the tensors of ``model`` (path or ``hf://``); None takes those of the installed package
        ``distmetrics``, whose checksum is pinned.
    model
        One of `MODELS`; the default is that of the operational product. It decides how many dates may come
        before the last one: 1 to 10, 20 or 30.
    stride
        Distance of the windows whose predictions are averaged, 1 to the window's side. 4 is the default of
        ``distmetrics.compute_transformer_zscore``; the operational product takes 7, for speed.
    low, high
        Thresholds of the map ``disturbance``, as ``metric >= low``.
    parameters
        True gives the predicted ``mean`` and ``sigma``, too, in logits, one band a polarisation.
    polarisations
        Names of the two bands, the co-polarised one first.
    missing
        ``mask``: no result where any date is missing (as ``distmetrics``). ``fill``: only where the last
        date is missing; other gaps count as ``fill`` (as the operational product).
    max_nodata
        Windows in which more than this share of pixels misses a date are left out of the average, where
        others are there. 1 takes all (the package's ``high`` memory strategy), 0.1 is its ``low`` one.
    fill
        Linear power that stands in for a missing pixel: 1e-7 as the operational product, 0.5 (a logit
        of 0) as the functions of ``distmetrics``.
    despeckle
        ``tv`` despeckles every image first, as the operational product does with scenes as they are
        downloaded (needs scikit-image). It has no exact radius, see docs/kernels/dist-s1.md.

    Raises
    ------
    KernelError
        An option out of its range, or an unknown model.
    WeightsError
        A given weights file is absent. When the network is built: the package is not installed, or the
        file has another checksum or other tensors.
    """
    _check(model, stride, low, high, max_nodata, fill)
    names = _pair(polarisations)
    arch = MODELS[model]
    own = None if weights is None else resolve_weights(weights)
    options = {
        "stride": stride,
        "low": low,
        "high": high,
        "max_nodata": max_nodata,
        "missing": missing,
        "despeckle": despeckle,
        "fill": fill,
    }
    reach: dict[str, Any] = {"radius": arch.side - 1}
    if despeckle == "tv":
        reach = {"radius": None, "radius_at": RadiusAt(eps=1e-3, px=arch.side - 1 + TV_REACH)}
        _need_skimage()
    spec = KernelSpec(
        name=_PLACE,
        description="Disturbance seen by Sentinel-1: distance of the newest image from what a transformer"
        f" expects after up to {arch.context} images before it ({model})",
        inputs={
            "rtc": InputSpec(
                dates=f"2-{arch.context + 1}", bands=names, units="gamma0 power", fill=fill, resolution=30
            )
        },
        outputs=_outputs(names, parameters, "own" if missing == "fill" or max_nodata < 1 else "all"),
        **reach,
        stride=stride,
        boundary="reflect",
        tile=TileRule(default=256),
        licence="Apache-2.0; weights: distmetrics, Apache-2.0",
        citation="Hardiman-Mostow et al. 2025, https://arxiv.org/abs/2501.09129",
        status="parity",
    )
    build: Callable[[], DistS1Forward] = partial(_build, model, own, options)
    return Kernel(
        spec=spec,
        build=build,
        options={"model": model, "parameters": parameters, "polarisations": polarisations, **options},
        weights=own.source if own else f"pkg://{_PACKAGE}/model_data/{model}/weights.pth",
        weights_sha256=own.sha256 if own else arch.sha256,
    )


def _need_skimage() -> None:
    if importlib.util.find_spec("skimage") is None:
        raise KernelError(
            "despeckle=tv needs scikit-image, which is not installed",
            place=_PLACE,
            remedy="install 'tilewright[dist-s1]', or use despeckle=none on despeckled images",
        )
