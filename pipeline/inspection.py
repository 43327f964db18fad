"""A look at a few windows of the inputs before anything is computed: are these the values that the kernel expects?

A kernel that is given digital numbers instead of reflectance, or decibels instead of power, gives a map that looks like
one. So a handful of windows is read: values that cannot be in the declared units are refused, the distance from the
statistics that a network was trained with is said, and of two dates the shift that is left between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import KernelError, ReadError

from .shift import LIMIT, grey_dates, measure_shift, sample_windows
from .source import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tilewright.kernels.contract import InputSpec

    from .job import Job

__all__ = ["inspect_inputs"]

FAR = 3.0
"""Standard deviations from the training data from which the user is warned."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """What values in a unit can be."""

    about: str
    """As a message says it."""
    impossible: Callable[[float, float], bool]
    """Takes the 5th and the 95th percentile; True where values of this unit are never so."""
    remedy: str
    """What is probably wrong."""


_POWER = _Unit(
    "linear power (above 0)",
    lambda low, high: high < 0,
    "they look like decibels: convert them by tilewright.pipeline.sar, or load the power",
)
UNITS = {
    "reflectance": _Unit(
        "reflectance (0 to 1)",
        lambda low, high: high > 20,
        "they look like digital numbers: give the scale of the bands (most products: 0.0001)",
    ),
    "8-bit": _Unit(
        "8-bit pictures (0 to 255)",
        lambda low, high: high > 300 or (0 < high <= 1.5 and low >= -0.5),
        "say which values stand for black and white by --set low=... --set high=... (0 and 0.3 for reflectance)",
    ),
    "linear power": _POWER,
    "gamma0 power": _POWER,
    "dB": _Unit(
        "decibels",
        lambda low, high: low >= 0 and high <= 3,
        "they look like linear power: convert them by tilewright.pipeline.sar, or load decibels",
    ),
}
"""What is known of a unit. Limits are wide: bright clouds reach a reflectance of 2, and are no mistake."""


def inspect_inputs(job: Job) -> Job:
    """Return the job with notes on what its inputs look like.

    Nine windows of 256 px are read at most, and none where the kernel declares neither units nor statistics and has
    not two dates. What cannot be read is left to the run.

    Raises
    ------
    KernelError
        The values cannot be in the units that the kernel expects.
    """
    spec = job.kernel.spec
    compared = {n: s for n, s in spec.inputs.items() if n in job.bindings and (s.units in UNITS or s.mean)}
    paired = [n for n, b in job.bindings.items() if b.dates == 2 and spec.inputs[n].dates == 2]
    if not compared and not paired:
        return job
    seen: dict[str, list[tuple[NDArray[np.floating], NDArray[np.bool_]]]] = {n: [] for n in job.bindings}
    try:
        for window in sample_windows(job.grid.shape):
            if not job.grid.inside(window).any():
                continue
            block = job.source.read(window)
            for name, binding in job.bindings.items():
                data = block.data[binding.layer][:, list(binding.channels)]
                valid = (block.reason[binding.layer] == Reason.VALID) & job.grid.inside(window)
                seen[name].append((np.asarray(data), valid))
    except ReadError:
        return job
    notes: list[str] = []
    for name, expected in compared.items():
        notes += _compared(name, expected, seen[name], f"kernel {spec.name}")
    for name in paired:
        notes += _shifted(name, [grey_dates(data, valid) for data, valid in seen[name]])
    return replace(job, notes=(*job.notes, *notes))


def _compared(
    name: str, expected: InputSpec, seen: list[tuple[NDArray[np.floating], NDArray[np.bool_]]], place: str
) -> Iterator[str]:
    """Yield what is to be said of an input; raises where its values cannot be."""
    dates = range(seen[0][0].shape[0] if seen else 0)
    per_date = [
        np.concatenate([data[t][:, valid[t, 0]] for data, valid in seen], axis=1).astype(np.float64)
        for t in dates
    ]
    values = [v for v in per_date if v.size]
    if not values:
        return
    low, high = (float(q) for q in np.nanpercentile(np.concatenate(values, axis=1), (5, 95)))
    unit = UNITS.get(expected.units or "")
    if unit is not None and unit.impossible(low, high):
        raise KernelError(
            f"input {name!r} is to be {unit.about}; the values are {low:.4g} to {high:.4g} (5 to 95 %)",
            place=place,
            remedy=unit.remedy,
        )
    if expected.mean is None or expected.std is None:
        return
    mean, std = (_by_date(x, len(per_date)) for x in (expected.mean, expected.std))
    off = [
        (abs(float(np.nanmean(v[c])) - mean[t][c]) / std[t][c], t, c)
        for t, v in enumerate(per_date)
        for c in range(v.shape[0])
        if v.size and std[t][c] > 0
    ]
    if not off or all(float(m) == 0 for row in mean for m in row):
        return  # a scaling to 0 to 1, no statistics of data
    far, t, c = max(off)
    bands = expected.bands if isinstance(expected.bands, tuple) else None
    band = bands[c] if bands else f"band {c + 1}"
    where = f"{band}, date {t + 1}" if len(per_date) > 1 else band
    warning = ": its results may mean little; check bands, units and scale" if far > FAR else ""
    yield (
        f"input {name!r} lies at most {far:.1f} standard deviations from what the kernel was trained on ({where})"
        f"{warning}"
    )


def _by_date(values: tuple[float, ...] | tuple[tuple[float, ...], ...], dates: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return np.broadcast_to(array.reshape(-1, array.shape[-1]), (dates, array.shape[-1]))


def _shifted(name: str, pairs: list[NDArray[np.float64]]) -> Iterator[str]:
    try:
        shift = measure_shift([(a, b) for a, b in pairs])
    except ImportError:
        return  # scikit-image comes with an extra: --coregister asks for it, a look does not
    if shift is not None and math.hypot(*shift.pixels) > LIMIT:
        rows, cols = shift.pixels
        yield (
            f"input {name!r}: its second date lies {rows:+.2f} rows and {cols:+.2f} columns off the first"
            f" ({shift.windows} windows agree): --coregister lines it up"
        )
