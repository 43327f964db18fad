"""``harmonic-breaks``: when did the yearly course of a pixel break, how often, and what is it now?

After Zhu and Woodcock 2014 (CCDC), https://doi.org/10.1016/j.rse.2014.01.011: the part that finds breaks, without the
screening of clouds and without the classification. `tilewright.kernels.series.breaks` has the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from ..classic.common import BandsOption, band_count, band_names, no_weights
from ..contract import Context, InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from .breaks import Rules, Segments, find_breaks
from .regression import design
from .stack import MOST, days_of, parse_days

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["harmonic_breaks"]

_PLACE = "harmonic-breaks"


def _build(rules: Rules, given: tuple[float, ...] | None) -> Callable[..., Any]:
    import torch

    def forward(image: Tensor, valid: Tensor, context: Context) -> dict[str, Tensor]:
        """``image`` ``[N, T, C, H, W]``, ``valid`` ``[N, T, 1, H, W]`` -> each output ``[N, *, H, W]``."""
        count, dates, bands, height, width = image.shape
        days = days_of(context, dates, given, _PLACE)
        seen = valid[:, :, 0] & torch.isfinite(image).all(dim=2)
        values = torch.where(seen[:, :, None], image.double(), 0.0)
        y = values.permute(1, 0, 3, 4, 2).reshape(dates, -1, bands)
        x = design(days, rules.harmonics).to(image.device)
        when = torch.tensor(days, dtype=torch.float64, device=image.device)
        found = find_breaks(y, seen.transpose(0, 1).reshape(dates, -1), x, when, rules)

        def raster(part: Tensor) -> Tensor:
            flat = part.reshape(count, height, width, -1)
            return flat.permute(0, 3, 1, 2).to(image.dtype)

        return {name: raster(part) for name, part in _results(found).items()}

    return forward


def _results(found: Segments) -> dict[str, Tensor]:
    """Return the outputs ``[P, *]``; NaN where no model could ever be fitted."""
    import torch

    known = ~found.since.isnan()
    parts = {
        "breaks": found.breaks[:, None],
        "last_break": found.last[:, None],
        "magnitude": found.magnitude,
        "start": found.since[:, None],
        "coefficients": found.beta.flatten(1),
        "rmse": found.rmse,
    }
    return {name: torch.where(known[:, None], part, torch.nan) for name, part in parts.items()}


def _coefficients(bands: int | tuple[str, ...], harmonics: int) -> tuple[str, ...]:
    names = bands if isinstance(bands, tuple) else tuple(f"band{i + 1}" for i in range(bands))
    waves = [f"{wave}{h}" for h in range(1, harmonics + 1) for wave in ("cos", "sin")]
    return tuple(f"{name}_{part}" for name in names for part in ("level", "trend", *waves))


def _outputs(bands: int | tuple[str, ...], harmonics: int) -> dict[str, OutputSpec]:
    def value(text: str, of: int | tuple[str, ...] = 1, units: str | None = None) -> OutputSpec:
        return OutputSpec(kind="value", bands=of, units=units, valid_rule="own", description=text)

    return {
        "breaks": value("Number of breaks"),
        "last_break": value(
            "First date that deviates at the last break, days since 1970-01-01; 0 for none", units="days"
        ),
        "magnitude": value(
            "Mean residual, from the model before, of the dates that made the last break", bands
        ),
        "start": value("First date of the segment of the coefficients, days since 1970-01-01", units="days"),
        "coefficients": value(
            "Of the last segment that has a model: level at the first date of the stack, trend a year, cosines and"
            " sines of multiples of 2 pi days since 1970 / 365.25",
            _coefficients(bands, harmonics),
        ),
        "rmse": value("Root mean square error of that model", bands),
    }


def harmonic_breaks(
    weights: str | None = None,
    *,
    bands: BandsOption = 1,
    harmonics: int = 3,
    consecutive: int = 6,
    threshold: float = 3.0,
    least: int = 12,
    floor: float = 0.0,
    penalty: float = 0.0,
    dates: str | None = None,
) -> Kernel:
    """Return the kernel that finds breaks of a trend with yearly waves, pixel by pixel.

    Parameters
    ----------
    weights
        None: the kernel has none.
    bands
        Number of bands, or their names separated by commas. A break is one of all bands together.
    harmonics
        Waves a year: 1, 2 or 3. The second is used from 18 observations of a segment on, the third from 24 on.
    consecutive
        Observations in a row that must deviate.
    threshold
        What deviates: the mean over the bands of abs(residual) / RMSE is above it.
    least
        Fewest observations of a model; they also span a year.
    floor
        Smallest RMSE, in the units of the bands: noise that is known to be there.
    penalty
        0 fits by least squares, above 0 by the lasso with as much, in the units of the bands; CCDC takes 20 for
        reflectance times 10,000.
    dates
        Dates of acquisition separated by commas, for rasters that do not know them; None takes those of the cube.

    Raises
    ------
    KernelError
        An option is out of its range; when called: no dates, or dates that do not ascend.
    """
    options = {k: v for k, v in locals().items() if k != "weights" and v is not None}
    no_weights(weights, _PLACE)
    if harmonics not in (1, 2, 3):
        raise KernelError(f"harmonics={harmonics}", place=_PLACE, remedy="give 1, 2 or 3")
    if consecutive < 1 or not threshold > 0 or least <= 4:
        raise KernelError(
            f"consecutive={consecutive}, threshold={threshold:g}, least={least}",
            place=_PLACE,
            remedy="give consecutive of at least 1, a threshold above 0, least above 4",
        )
    if floor < 0 or penalty < 0:
        raise KernelError(f"floor={floor:g}, penalty={penalty:g}", place=_PLACE, remedy="give 0 or more")
    days = parse_days(dates, _PLACE)
    names = band_names(bands, _PLACE)
    rules = Rules(harmonics, consecutive, threshold, least, max(floor, 1e-12), penalty)
    spec = KernelSpec(
        name=_PLACE,
        description=f"Breaks of a trend with {harmonics} waves a year, in {band_count(names)} bands together",
        inputs={"image": InputSpec(dates=f"{least}-{MOST}", bands=names)},
        outputs=_outputs(names, harmonics),
        radius=0,
        tile=TileRule(default=128),
        autocast=False,
        licence="Apache-2.0",
        citation="Zhu and Woodcock 2014, https://doi.org/10.1016/j.rse.2014.01.011",
        status="reconstruction",
    )
    return Kernel(spec=spec, build=partial(_build, rules, days), options=options)
