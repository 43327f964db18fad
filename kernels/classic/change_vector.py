"""Change vector analysis: how far, and in which direction, each pixel moved in the space of its bands.

Malila, W. A. (1980): Change vector analysis, an approach for detecting forest changes with Landsat.
Bruzzone, L. and Prieto, D. F. (2000): Automatic analysis of the difference image for unsupervised change
detection, IEEE Trans. Geosci. Remote Sens. 38(3) (the threshold by EM).
Bovolo, F., Marchesi, S. and Bruzzone, L. (2012): A framework for automatic and unsupervised detection of
multiple changes in multitemporal images, IEEE Trans. Geosci. Remote Sens. 50(6) (the direction).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from ..contract import Context, InputSpec, Kernel, KernelSpec, OutputSpec, StatisticsSpec
from .common import BandsOption, band_label, band_names, choose, no_weights, ordered_sum, statistic
from .thresholds import automatic_threshold

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["change_vector"]

_PLACE = "change-vector"
_MAD_TO_STD = 1.482602218505602
"""Median absolute deviation times this is the standard deviation of a normal sample."""


def _spread(sample: NDArray[np.float64], centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the robust standard deviation ``[T, C]``; the plain one where half the pixels are equal."""
    robust = _MAD_TO_STD * np.median(np.abs(sample - centre), axis=0)
    return np.where(robust > 0, robust, sample.std(axis=0))


def _fit(
    samples: Mapping[str, NDArray[np.float64]],
    *,
    bands: int | tuple[str, ...],
    method: str,
    normalise: bool,
    threshold: float | None,
) -> dict[str, Any]:
    """Return centre and spread of each date and band, and the threshold; the sample is ``[n, 2, C]``."""
    sample = np.asarray(samples["image"], dtype=np.float64)
    if len(sample) < 2:
        raise KernelError(
            f"{len(sample)} pixels are valid on both dates, at least 2 are needed", place=_PLACE
        )
    centre, spread = np.zeros(sample.shape[1:]), np.ones(sample.shape[1:])
    if normalise:
        centre = np.median(sample, axis=0)
        spread = _spread(sample, centre)
        for date, band in np.argwhere(~(spread > 0)):
            raise KernelError(
                f"{band_label(bands, int(band))} of date {date + 1} has the one value"
                f" {sample[0, date, band]:g} in all {len(sample)} sampled pixels",
                place=_PLACE,
                remedy="leave the band out, or give normalise=false",
            )
    moved = (sample - centre) / spread
    magnitude = np.sqrt(((moved[:, 1] - moved[:, 0]) ** 2).sum(axis=1))
    cut = automatic_threshold(magnitude, method, _PLACE) if threshold is None else threshold
    return {
        "centre": centre.tolist(),
        "spread": spread.tolist(),
        "threshold": cut,
        "changed_share": float((magnitude >= cut).mean()),
    }


def _build(
    magnitudes: bool, direction: bool, threshold: float | None, needs_statistics: bool
) -> Callable[..., Any]:
    import torch

    def forward(image: Tensor, valid: Tensor, context: Context) -> dict[str, Tensor]:
        """``image`` ``[N, 2, C, H, W]`` -> each output ``[N, 1, H, W]``."""
        before, after = image[:, 0], image[:, 1]
        if needs_statistics:
            centre, spread = (
                torch.tensor(statistic(context, name, _PLACE), dtype=image.dtype, device=image.device)[
                    ..., None, None
                ]
                for name in ("centre", "spread")
            )
            before, after = (before - centre[0]) / spread[0], (after - centre[1]) / spread[1]
        cut: float = statistic(context, "threshold", _PLACE) if threshold is None else threshold
        steps = (after - before).unbind(1)
        magnitude = ordered_sum([step * step for step in steps]).sqrt()[:, None]
        result = {"change": (magnitude >= cut).to(magnitude.dtype)}
        if magnitudes:
            result["magnitude"] = magnitude
        if direction:
            cosine = ordered_sum(steps)[:, None] / (magnitude * math.sqrt(len(steps)))
            known = valid.all(dim=1) & (magnitude > 0)
            result["direction"] = torch.where(known, cosine.clamp(-1, 1).acos(), torch.nan)
        return result

    return forward


def change_vector(
    weights: str | None = None,
    *,
    bands: BandsOption = 1,
    method: str = "em",
    threshold: float | None = None,
    normalise: bool = True,
    magnitude: bool = True,
    direction: bool = False,
    sample: int = 100_000,
) -> Kernel:
    """Return the kernel of change vector analysis between two dates.

    Parameters
    ----------
    weights
        None: the kernel has none.
    bands
        Number of bands, or their names separated by commas.
    method
        How the threshold on the magnitude is found from the sample: ``em`` for two normal densities and
        Bayes' rule, or ``otsu``.
    threshold
        A fixed threshold on the magnitude instead; ``method`` is then not used.
    normalise
        True brings each band of each date to median 0 and robust standard deviation 1 before the dates are
        compared, so that a gain or an offset between the dates is no change and bands of different spread
        count alike; magnitudes are then in standard deviations. False compares the values as they are.
    magnitude
        False leaves the output ``magnitude`` out: a map of classes takes a fifth of the disk.
    direction
        True adds the output ``direction``: the angle between the change vector and the diagonal on which all
        bands brighten alike, 0 where all brighten, pi where all darken, in radians.
    sample
        Most pixels in the sample.

    With a fixed threshold and without normalisation no statistics pass is made.

    Raises
    ------
    KernelError
        An option is not a choice; from the fit: fewer than two pixels, a band with one value only, or no
        difference from which a threshold could be found.
    """
    options = {k: v for k, v in locals().items() if k != "weights" and v is not None}
    no_weights(weights, _PLACE)
    choose("method", method, ("em", "otsu"), _PLACE)
    if threshold is not None and not threshold > 0:
        raise KernelError(f"threshold={threshold} is not above zero", place=_PLACE)
    names = band_names(bands, _PLACE)
    outputs = {
        "magnitude": OutputSpec(
            kind="value",
            units="standard deviations" if normalise else None,
            description="Euclidean length of the change vector",
        ),
        "change": OutputSpec(
            kind="class",
            classes=("no-change", "change"),
            description="1 where the magnitude is at least the threshold",
        ),
    }
    if not magnitude:
        del outputs["magnitude"]
    if direction:
        outputs["direction"] = OutputSpec(
            kind="value",
            range=(0.0, math.pi),
            units="radians",
            valid_rule="own",
            description="Angle between the change vector and equal brightening of all bands",
        )
    needs = normalise or threshold is None
    spec = KernelSpec(
        name=_PLACE,
        description="Change vector analysis of two dates with an automatic threshold",
        inputs={"image": InputSpec(dates=2, bands=names)},
        outputs=outputs,
        radius=0,
        statistics=StatisticsSpec(sample=sample, names=("centre", "spread", "threshold", "changed_share"))
        if needs
        else None,
        autocast=False,
        licence="Apache-2.0",
        citation="Malila 1980; Bruzzone and Prieto 2000; Bovolo et al. 2012",
        status="reconstruction",
    )
    fit = partial(_fit, bands=names, method=method, normalise=normalise, threshold=threshold)
    return Kernel(
        spec=spec,
        build=partial(_build, magnitude, direction, threshold, needs),
        fit=fit if needs else None,
        options=options,
    )
