"""``eurosat``: the embedder that comes with the package, for Sentinel-2 tiles of 64 px at 10 m and texts about them.

Trained by `tilewright train-embedder` on EuroSAT (Helber et al. 2019, https://arxiv.org/abs/1709.00029), whose pictures
are Level-1C: reflectance at the top of the atmosphere, 0 to 0.2754 shown as 0 to 255. Surface reflectance (Level-2A)
lacks the blue light that the air scatters, so the towers for it add what a clear sky would: `at_top`.
docs/kernels/eurosat.md.
"""

from __future__ import annotations

import math

from ..contract import InputSpec
from .contract import Profile, Tower

__all__ = ["EUROSAT", "WHITE", "at_top"]

WHITE = 0.2754
"""Reflectance at the top of the atmosphere that EuroSAT shows as 255."""

SIDE = 64
BANDS = ("red", "green", "blue")
MEAN, STD = (88.3, 97.2, 103.6), (51.4, 34.9, 29.6)
"""Of EuroSAT's bytes; the network clips with the same numbers."""

_WAVELENGTHS = (0.6646, 0.5598, 0.4924)
"""Micrometres: centres of B4, B3 and B2 of Sentinel-2A."""
_SUN = math.cos(math.radians(40))
"""Cosine of the sun's distance from the zenith for which `at_top` counts; the view is downwards."""


def at_top(wavelength: float) -> tuple[float, float]:
    """Return (addend, factor) that turn surface reflectance into reflectance at the top of a clear, clean atmosphere.

    Scattering by molecules alone, once, the sun 40 degrees from the zenith: optical depth by Hansen and Travis 1974
    (https://doi.org/10.1007/BF00168069), Rayleigh's phase function. ``wavelength`` is in micrometres.
    """
    inverse = wavelength**-2
    depth = 0.008569 * inverse**2 * (1 + 0.0113 * inverse + 0.00013 * inverse**2)
    phase = 0.75 * (1 + _SUN**2)
    return depth * phase / (4 * _SUN), math.exp(-depth / 2 * (1 / _SUN + 1))


def _tower(
    units: str | None, mean: tuple[float, ...], std: tuple[float, ...], span: tuple[float, float]
) -> Tower:
    image = InputSpec(bands=BANDS, units=units, mean=mean, std=std, resolution=10)
    return Tower(image, SIDE, span, units == "8-bit", resize="none")


def _surface(white: float, units: str | None) -> Tower:
    """The tower for surface reflectance of which the number ``white`` is 1."""
    air = [at_top(wavelength) for wavelength in _WAVELENGTHS]
    top = [(mean * WHITE / 255, std * WHITE / 255) for mean, std in zip(MEAN, STD, strict=True)]
    means = tuple(white * (mean - added) / kept for (mean, _), (added, kept) in zip(top, air, strict=True))
    stds = tuple(white * std / kept for (_, std), (_, kept) in zip(top, air, strict=True))
    return _tower(units, tuple(round(v, 10) for v in means), tuple(round(v, 10) for v in stds), (0.0, white))


EUROSAT = Profile(
    name="eurosat",
    description="Sentinel-2 tiles of 10 m and texts on land cover and use in one space of 128 numbers; trained here",
    network="tilewright.kernels.nets.eurosat:DualEncoder",
    towers={
        "image": _tower("8-bit", MEAN, STD, (0.0, 255.0)),
        "surface": _surface(1.0, "reflectance"),
        "numbers": _surface(10_000.0, None),
    },
    dim=128,
    citation="Helber et al. 2019, https://arxiv.org/abs/1709.00029; Wang et al. 2020, https://arxiv.org/abs/2002.10957",
    licence="Apache-2.0 (code and weights); trained on EuroSAT, MIT; texts by all-MiniLM-L6-v2, Apache-2.0",
    arguments={"dim": 128},
    temperature=20.0,
    prompt="a satellite image of {}",
    dense=True,
    weights="pkg://tilewright.kernels.embed/weights/eurosat.safetensors",
    weights_sha256="1f764a6c3512ed0439093d91d75b3286d4247ec6dd982d62c714feba70b0fb14",
    status="trained-here",
)
