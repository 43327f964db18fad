"""``presto``: 128 numbers that say what a pixel's months of images have in common with those of other pixels.

Tseng, G. et al. (2023): Lightweight, Pre-trained Transformers for Remote Sensing Timeseries,
https://arxiv.org/abs/2304.14065; https://github.com/nasaharvest/presto. The network is
`tilewright.kernels.nets.presto`; here are units, masks, months and the place of each pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilewright.errors import KernelError, nearest_name

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec, TileRule
from ..published import Published, make_kernel

__all__ = ["PUBLISHED_SHA256", "presto"]

_PLACE = "presto"
_WIDTH = 128
_LONGEST = 24

PUBLISHED_SHA256 = "559c9d76f525bdf2dd3774da8b1e7f1510769b73baacac12e9e4d8d5c67fbe65"
"""Checksum of ``data/default_model.pt`` of the authors' repository."""

_INPUTS = {
    "s2": InputSpec(
        dates=f"1-{_LONGEST}",
        bands=(
            "blue",
            "green",
            "red",
            "rededge1",
            "rededge2",
            "rededge3",
            "nir",
            "nir08",
            "swir16",
            "swir22",
        ),
        units="reflectance",
        resolution=10,
    ),
    "s1": InputSpec(dates=f"1-{_LONGEST}", bands=("vv", "vh"), units="gamma0 power", fill=1.0, resolution=10),
    "era5": InputSpec(dates=f"1-{_LONGEST}", bands=("temperature", "precipitation"), units="K; m"),
    "srtm": InputSpec(dates=1, bands=("elevation", "slope"), units="m; degrees"),
}
"""What the network can be given, by name of the input."""


def _names(inputs: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in inputs.split(","))
    for name in names:
        if name not in _INPUTS:
            raise KernelError(f"unknown input {name!r}; {nearest_name(name, _INPUTS)}", place=_PLACE)
    if len(set(names)) < len(names) or names == ("srtm",):
        raise KernelError(
            f"inputs={inputs!r}", place=_PLACE, remedy="name each input once, and one with dates first"
        )
    if names[0] == "srtm":
        raise KernelError(
            "the first input has the dates, and srtm has none", place=_PLACE, remedy="name it last"
        )
    return names


def _pinned(weights: Any, published: bool) -> Any:
    """Return the weights with the checksum of the published ones, where a file is given without one of its own."""
    if published and isinstance(weights, (str, Path)):
        return {"ref": weights, "sha256": PUBLISHED_SHA256}
    return weights


def presto(
    weights: Any = None,
    *,
    inputs: str = "s2",
    month: int | None = None,
    place: str | None = None,
    published: bool = True,
) -> Kernel:
    """Return the kernel of Presto's embeddings.

    Parameters
    ----------
    weights
        The authors' ``default_model.pt``: a path or ``hf://``. None leaves the network untrained.
    inputs
        Which inputs there are, separated by commas: ``s2``, ``s1``, ``era5``, ``srtm``. Those that are not named are
        hidden from the network. The first one gives the months.
    month
        Month, 1 to 12, of the first date; the others follow month by month. None takes the months of the dates.
    place
        ``longitude,latitude`` in degrees for all pixels. None takes that of each pixel.
    published
        True refuses a file that is not the published one, by its checksum; False takes others of the same shape.

    Raises
    ------
    KernelError
        An option is out of its range; when called: no months or no place, or inputs of different numbers of dates.
    WeightsError
        The weights are absent or others.
    """
    names = _names(inputs)
    if month is not None and not 1 <= month <= 12:
        raise KernelError(f"month={month}", place=_PLACE, remedy="give 1 to 12")
    spec = KernelSpec(
        name=_PLACE,
        description="Presto: an embedding of each pixel's months of images, by a transformer of 0.8 M parameters",
        inputs={name: _INPUTS[name] for name in names},
        outputs={
            "embedding": OutputSpec(
                kind="value",
                bands=_WIDTH,
                valid_rule="own",
                description="Embedding of the pixel's series; its values have no units",
            )
        },
        radius=0,
        tile=TileRule(default=64),
        autocast=False,
        licence="Apache-2.0 (this code); official code and weights: MIT",
        citation="Tseng et al. 2023, https://arxiv.org/abs/2304.14065",
        status="parity",
    )
    network = Published(
        "tilewright.kernels.nets.presto:Presto",
        "tilewright.kernels.series.presto_pixels:embedding_of_pixels",
        options={"month": month, "place": _degrees(place)},
    )
    options = {"inputs": inputs, "month": month, "place": place, "published": published}
    return make_kernel(network, spec, _pinned(weights, published), options)


def _degrees(place: str | None) -> tuple[float, float] | None:
    if place is None:
        return None
    try:
        lon, lat = (float(part) for part in str(place).split(","))
    except ValueError as error:
        raise KernelError(f"place={place!r}", place=_PLACE, remedy="give longitude,latitude") from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise KernelError(f"place={place!r} is not on Earth", place=_PLACE, remedy="give longitude,latitude")
    return lon, lat
