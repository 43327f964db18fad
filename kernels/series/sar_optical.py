"""``sar-optical``: change seen by radar and by an optical sensor, as one score.

Each sensor gives a magnitude of change (log-ratio in dB, length of the change vector), each magnitude becomes a score
by the same curve with a scale of its own, and the two are fused. Where only one sensor looked, it decides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError

from ..classic.common import BandsOption, band_names, choose, no_weights, ordered_sum
from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec
from .log_ratio import decibels
from .stack import MOST, observed_power, polarisations

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fuse", "sar_optical"]

_PLACE = "sar-optical"
SENSORS = ("sar", "optical", "both")
"""Codes 0 to 2 of the output ``sensors``."""


def _score(magnitude: Tensor, scale: float) -> Tensor:
    """Return m^2 / (m^2 + scale^2): 0 without change, 0.5 at the scale, towards 1 beyond; NaN stays."""
    square = magnitude * magnitude
    return square / (square + scale * scale)


def fuse(first: Tensor, second: Tensor, rule: str) -> Tensor:
    """Return one score of two in 0 to 1, or the one that is no NaN.

    ``noisy-or`` is the probability that at least one of two independent witnesses is right, 1 - (1 - a)(1 - b);
    ``mean`` is theirs.
    """
    import torch

    both = 1 - (1 - first) * (1 - second) if rule == "noisy-or" else (first + second) / 2
    return torch.where(first.isnan(), second, torch.where(second.isnan(), first, both))


def _build(sar_scale: float, optical_scale: float, rule: str, ends: int) -> Callable[..., Any]:
    import torch

    def forward(inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``sar`` ``[N, T, P, H, W]``, ``optical`` ``[N, 2, C, H, W]`` -> each output ``[N, 1, H, W]``."""
        power, observed = observed_power(inputs["sar"], valid["sar"], _PLACE)
        ratio = decibels(power, observed, ends).abs().amax(dim=1, keepdim=True)
        before, after = inputs["optical"].double().unbind(1)
        known = valid["optical"].all(dim=1)
        steps = (after - before).unbind(1)
        length = torch.where(known, ordered_sum([step * step for step in steps]).sqrt()[:, None], torch.nan)
        sar, optical = _score(ratio, sar_scale), _score(length, optical_scale)
        score = fuse(sar, optical, rule)
        sensors = torch.where(
            score.isnan(), torch.nan, 2 * (~optical.isnan()).double() - sar.isnan().double()
        )
        found = {"score": score, "change": torch.where(score.isnan(), torch.nan, (score >= 0.5).double())}
        found |= {"sar": sar, "optical": optical, "sensors": sensors}
        return {name: values.to(inputs["sar"].dtype) for name, values in found.items()}

    return forward


def _outputs() -> dict[str, OutputSpec]:
    def score(text: str) -> OutputSpec:
        return OutputSpec(kind="score", valid_rule="own", threshold=0.5, description=text)

    return {
        "score": score("Both sensors fused, or the one that looked"),
        "change": OutputSpec(
            kind="class",
            classes=("no-change", "change"),
            valid_rule="own",
            description="1 where score is at least 0.5",
        ),
        "sar": score("Score of the radar alone"),
        "optical": score("Score of the optical sensor alone"),
        "sensors": OutputSpec(
            kind="class", classes=SENSORS, valid_rule="own", description="Which sensors the score rests on"
        ),
    }


def sar_optical(
    weights: str | None = None,
    *,
    optical_bands: BandsOption = "blue,green,red,nir",
    sar_bands: str = "vv,vh",
    sar_scale: float = 3.0,
    optical_scale: float = 0.1,
    rule: Literal["noisy-or", "mean"] = "noisy-or",
    ends: int = 1,
) -> Kernel:
    """Return the kernel that fuses a log-ratio of backscatter and a change vector of reflectance.

    Parameters
    ----------
    weights
        None: the kernel has none.
    optical_bands
        Number of optical bands, or their names separated by commas.
    sar_bands
        Names of the polarisations, separated by commas.
    sar_scale
        Decibels that get the score 0.5, in the polarisation that changed most.
    optical_scale
        Length of the change vector that gets the score 0.5, in the units of the bands.
    rule
        ``noisy-or`` or ``mean``.
    ends
        Radar dates whose mean stands for before, and for after.

    Raises
    ------
    KernelError
        An option is out of its range; when called: values that are no linear power.
    """
    options = {k: v for k, v in locals().items() if k != "weights"}
    no_weights(weights, _PLACE)
    choose("rule", rule, ("noisy-or", "mean"), _PLACE)
    if not (sar_scale > 0 and optical_scale > 0) or ends < 1:
        raise KernelError(
            f"sar_scale={sar_scale:g}, optical_scale={optical_scale:g}, ends={ends}",
            place=_PLACE,
            remedy="give scales above 0 and ends of at least 1",
        )
    radar = polarisations(sar_bands, _PLACE)
    spec = KernelSpec(
        name=_PLACE,
        description=f"Change by radar and optical images together, {rule} of two scores",
        inputs={
            "sar": InputSpec(dates=f"{2 * ends}-{MOST}", bands=radar, units="gamma0 power", fill=1.0),
            "optical": InputSpec(dates=2, bands=band_names(optical_bands, _PLACE), units="reflectance"),
        },
        outputs=_outputs(),
        radius=0,
        autocast=False,
        licence="Apache-2.0",
        citation="Rignot and van Zyl 1993; Malila 1980",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, sar_scale, optical_scale, rule, ends), options=options)
