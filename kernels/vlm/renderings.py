"""Renderings: multispectral and radar images as pictures for models that know red, green and blue, and words for them.

A model that was trained on photographs can use infrared and radar where they are shown as colours and the prompt says
what the colours mean (Mallya et al. 2025, https://arxiv.org/abs/2509.19087, who show true and false colours and indices
beside each other, without training). Or the bands are shown three by three as they come (EarthDial, Soni et al. 2024,
https://arxiv.org/abs/2412.15190), which is what its model was trained on.

Which value is black and which is full is fixed in physical units, never taken from the picture: tiles of one image, and
images of two dates, agree. Colours of indices are ramps that can be read backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError, nearest_name

from .looks import Painter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Scene

    from .answerers import Picture
    from .looks import Look

__all__ = [
    "ALL",
    "RAMPS",
    "RENDERINGS",
    "SPANS",
    "Composite",
    "Index",
    "Ramp",
    "Rendered",
    "Renderer",
    "Showing",
    "available",
]

type Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

ALL = "all"
"""Stands for every rendering that the bands allow."""
SPANS: Mapping[str, tuple[float, float]] = {
    "coastal": (0.0, 0.3), "blue": (0.0, 0.3), "green": (0.0, 0.3), "red": (0.0, 0.3),
    "rededge1": (0.0, 0.4), "rededge2": (0.0, 0.5), "rededge3": (0.0, 0.5),
    "nir": (0.0, 0.5), "nir08": (0.0, 0.5), "nir09": (0.0, 0.5), "swir16": (0.0, 0.5), "swir22": (0.0, 0.4),
    "vv": (-20.0, 0.0), "hh": (-20.0, 0.0), "vh": (-26.0, -6.0), "hv": (-26.0, -6.0),
}  # fmt: skip
"""Band -> what is black and what is full: reflectance, of radar decibels."""
RATIO_SPAN = (0.0, 15.0)
"""Decibels by which the co-polarised channel is above the other one: no blue, and full blue."""
_IN_WORDS = {
    "coastal": "violet light", "blue": "blue light", "green": "green light", "red": "red light",
    "rededge1": "red edge at 0.70 um", "rededge2": "red edge at 0.74 um", "rededge3": "red edge at 0.78 um",
    "nir": "near infrared", "nir08": "near infrared at 0.87 um", "nir09": "near infrared at 0.95 um",
    "swir16": "short-wave infrared at 1.6 um", "swir22": "short-wave infrared at 2.2 um",
    "vv": "radar VV", "vh": "radar VH", "hh": "radar HH", "hv": "radar HV",
}  # fmt: skip
_RADAR = ("vv", "vh", "hh", "hv")
_LOWEST = 1e-10
"""Power that stands in for none, which has no decibels."""


@dataclass(frozen=True)
class Ramp:
    """Colours of numbers: straight between its stops, the outermost beyond them."""

    stops: tuple[tuple[float, Colour], ...]
    """Numbers, ascending, and their colours; none is black, which is what was not measured."""

    def paint(self, values: NDArray[Any]) -> Picture:
        """Return the colours ``[..., 3]`` of values."""
        at, colours = self._arrays()
        shares = [np.interp(values, at, colours[:, channel]) for channel in range(3)]
        return np.rint(np.stack(shares, axis=-1)).astype(np.uint8)

    def values(self, colours: NDArray[Any]) -> NDArray[np.float64]:
        """Return the numbers of colours ``[..., 3]``: that of the nearest colour of the ramp."""
        at, stops = self._arrays()
        points = np.asarray(colours, np.float64)
        best, found = np.full(points.shape[:-1], np.inf), np.zeros(points.shape[:-1])
        for low, high, first, last in zip(at, at[1:], stops, stops[1:], strict=False):
            along = last - first
            share = np.clip((points - first) @ along / (along @ along), 0, 1)
            far = ((points - first - share[..., None] * along) ** 2).sum(axis=-1)
            found = np.where(far < best, low + share * (high - low), found)
            best = np.minimum(far, best)
        return found

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array([at for at, _ in self.stops]), np.array([colour for _, colour in self.stops], float)


RAMPS: Mapping[str, Ramp] = {
    "vegetation": Ramp(((-1.0, (30, 60, 255)), (0.0, (245, 235, 200)), (1.0, (0, 95, 0)))),
    "water": Ramp(((-1.0, (130, 70, 0)), (0.0, (255, 255, 255)), (1.0, (0, 40, 200)))),
    "built": Ramp(((-1.0, (0, 110, 60)), (0.0, (255, 255, 255)), (1.0, (200, 0, 40)))),
    "burnt": Ramp(((-1.0, (200, 0, 200)), (0.0, (255, 255, 255)), (1.0, (0, 110, 0)))),
}
"""Name -> colours from -1 to 1."""


@dataclass(frozen=True)
class Composite:
    """Three bands as red, green and blue."""

    title: str
    """What it is called."""
    bands: tuple[tuple[str, ...], ...]
    """For each colour the band, and others that may stand in for it."""
    meaning: str
    """What things look like."""


@dataclass(frozen=True)
class Index:
    """A normalised difference of two bands as a ramp of colours."""

    title: str
    """What it is called."""
    bands: tuple[tuple[str, ...], ...]
    """(first - second) / (first + second), each with others that may stand in."""
    ramp: str
    """Its colours, of `RAMPS`."""
    meaning: str
    """What the colours mean."""


_NIR, _NARROW_NIR = ("nir", "nir08"), ("nir08", "nir")
RENDERINGS: Mapping[str, Composite | Index] = {
    "true-colour": Composite(
        "a true-colour picture", (("red",), ("green",), ("blue",)), "Colours are those that an eye would see."
    ),
    "false-colour": Composite(
        "a false-colour composite",
        (_NIR, ("red",), ("green",)),
        "Healthy vegetation is bright red, sparse vegetation pale red, water nearly black, bare soil tan to grey, "
        "buildings and roads grey to cyan, clouds and snow white.",
    ),
    "swir": Composite(
        "a short-wave infrared composite",
        (("swir22",), _NARROW_NIR, ("red",)),
        "Vegetation is green, bare soil and buildings pink to reddish brown, burnt ground dark red, water nearly "
        "black, snow and ice blue to cyan, clouds white.",
    ),
    "ndvi": Index(
        "the vegetation index NDVI", (_NIR, ("red",)), "vegetation",
        "From blue (-1, water) over cream (0, bare ground, rock, buildings) to dark green (1, dense vegetation).",
    ),
    "ndwi": Index(
        "the water index NDWI (McFeeters)", (("green",), _NIR), "water",
        "From brown (-1, vegetation and dry ground) over white (0) to blue (1, open water).",
    ),
    "mndwi": Index(
        "the modified water index MNDWI (Xu)", (("green",), ("swir16",)), "water",
        "From brown (-1, dry ground and buildings) over white (0) to blue (1, open water, and snow).",
    ),
    "ndmi": Index(
        "the moisture index NDMI", (_NARROW_NIR, ("swir16",)), "water",
        "From brown (-1, dry and bare) over white (0, vegetation short of water) to blue (1, moist dense vegetation, "
        "and snow).",
    ),
    "ndbi": Index(
        "the built-up index NDBI", (("swir16",), _NIR), "built",
        "From green (-1, vegetation and water) over white (0) to red (1, buildings, and dry bare soil).",
    ),
    "nbr": Index(
        "the burn index NBR", (_NARROW_NIR, ("swir22",)), "burnt",
        "From magenta (-1, burnt ground) over white (0, bare or dry) to green (1, healthy vegetation, and snow).",
    ),
    "sar": Composite(
        "a radar composite",
        (("vv", "hh"), ("vh", "hv")),
        "Calm water and smooth ground are dark or bluish, vegetation green to yellow-green (rough in both channels), "
        "buildings bright yellow to white, bare rough soil purple. Speckle is noise, not texture.",
    ),
}  # fmt: skip
"""Name -> rendering. Beside them, ``triplets``: all bands three by three in the order in which the image has them."""


@dataclass(frozen=True)
class Rendered:
    """Pictures of one piece of ground, and what a model is told of them."""

    pictures: tuple[Picture, ...]
    """``[rows, columns, 3]`` each; black where nothing was measured."""
    text: str
    """One sentence or two for each, numbered."""


@dataclass(frozen=True)
class _Bound:
    """A rendering with the channels of one scene."""

    title: str
    names: tuple[str, ...]
    channels: tuple[int, ...]
    meaning: str
    ramp: Ramp | None = None


def available(bands: Sequence[str]) -> list[str]:
    """Return the names of the renderings that an image with these bands can be shown in."""
    found = [name for name, one in RENDERINGS.items() if _found(one, bands) is not None]
    return [*found, "triplets"] if any(band in SPANS for band in bands) else found


def _found(rendering: Composite | Index, bands: Sequence[str]) -> tuple[str, ...] | None:
    """Return the bands of an image that a rendering takes; None where one is not there."""
    names = [next((name for name in names if name in bands), None) for names in rendering.bands]
    known = tuple(name for name in names if name is not None)
    return known if len(known) == len(names) else None


class Renderer:
    """Makes the pictures of one scene.

    Parameters
    ----------
    scene
        What is shown; bands go by their common names, such as ``nir``.
    names
        Renderings in the order in which they are shown, or `ALL`, which leaves out what the bands do not allow.
    scale, offset
        Reflectance is value * scale + offset. None and 0: numbers with decimals are reflectance, whole numbers of 16
        bits ten-thousandths of it. Bytes are shown as they are: their reflectance is not known.
    decibels
        True where radar is in decibels already; None: where the scene's units say so, else it is linear power.
    date
        Which date, 0 the first and -1 the last.

    Raises
    ------
    KernelError
        There is no rendering of a name, or it lacks a band.
    """

    def __init__(
        self,
        scene: Scene,
        names: str | Sequence[str] = ALL,
        *,
        scale: float | None = None,
        offset: float = 0.0,
        decibels: bool | None = None,
        date: int = -1,
    ) -> None:
        self._scale, self._offset = scale, offset
        self._decibels = "dB" in (scene.units or "") if decibels is None else decibels
        self._first = (date % scene.dates) * len(scene.bands)
        listed = [names] if isinstance(names, str) else list(names)
        wanted = available(scene.bands) if listed == [ALL] else listed
        if not wanted:
            raise KernelError(
                f"no rendering for the bands {', '.join(scene.bands)}",
                place="renderings",
                remedy="give them common names, such as red,green,blue,nir, by --bands",
            )
        self._bound = [one for name in wanted for one in self._bind(name, scene.bands)]

    def _bind(self, name: str, bands: Sequence[str]) -> list[_Bound]:
        if name == "triplets":
            return _triplets(bands)
        if name not in RENDERINGS:
            raise KernelError(
                f"unknown rendering {name!r}",
                place="renderings",
                remedy=nearest_name(name, [*RENDERINGS, "triplets", ALL]),
            )
        one = RENDERINGS[name]
        found = _found(one, bands)
        if found is None:
            missing = next(names for names in one.bands if not set(names) & set(bands))
            raise KernelError(
                f"rendering {name} needs the band {' or '.join(missing)}",
                place="renderings",
                remedy=f"the image has {', '.join(bands)}; name its bands by --bands, or leave the rendering out",
            )
        ramp = RAMPS[one.ramp] if isinstance(one, Index) else None
        channels = tuple(list(bands).index(band) for band in found)
        return [_Bound(one.title, found, channels, one.meaning, ramp)]

    def render(self, seen: Look, first: int = 1) -> Rendered:
        """Return the pictures of a box of the scene; the text numbers them from ``first``."""
        pictures, told = [], []
        for number, one in enumerate(self._bound, start=first):
            values = seen.pixels[[self._first + channel for channel in one.channels]].astype(np.float64)
            bytes_ = seen.dtype == np.uint8
            pictures.append(self._paint(one, values, seen.valid, seen.dtype))
            told.append(
                f"Image {number} is {one.title}. {_colours_of(one, bytes_=bytes_)}{one.meaning}".strip()
            )
        return Rendered(tuple(pictures), "\n".join([*told, "Black is where nothing was measured."]))

    def _paint(
        self, one: _Bound, values: NDArray[np.float64], valid: NDArray[np.bool_], dtype: np.dtype[Any]
    ) -> Picture:
        physical = np.stack(
            [self._physical(value, name, dtype) for value, name in zip(values, one.names, strict=True)]
        )
        if one.ramp is not None:
            total = physical[0] + physical[1]
            known = valid & (total > 0)
            index = np.clip((physical[0] - physical[1]) / np.where(known, total, 1), -1, 1)
            painted = one.ramp.paint(index)
        else:
            spans = [self._span(name, dtype) for name in one.names]
            if len(one.names) == 2:
                physical = np.concatenate([physical, [physical[0] - physical[1]]])
                spans.append(RATIO_SPAN)
            low, high = (np.array(side)[:, None, None] for side in zip(*spans, strict=True))
            shares = np.clip((physical - low) / (high - low), 0, 1)
            known = valid
            painted = np.rint(np.moveaxis(shares, 0, -1) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.where(known[..., None], painted, 0).astype(np.uint8))

    def _physical(self, values: NDArray[np.float64], name: str, dtype: np.dtype[Any]) -> NDArray[np.float64]:
        """Return reflectance, of radar decibels; bytes as they are."""
        if name in _RADAR:
            if dtype == np.uint8:
                raise KernelError(
                    "radar in bytes has no decibels", place="renderings", remedy="show it by --bands instead"
                )
            return values if self._decibels else 10 * np.log10(np.maximum(values, _LOWEST))
        if self._scale is not None:
            return values * self._scale + self._offset
        if dtype == np.uint8:
            return values
        return values * (1e-4 if dtype.kind in "iu" else 1.0) + self._offset

    def _span(self, name: str, dtype: np.dtype[Any]) -> tuple[float, float]:
        return (0.0, 255.0) if dtype == np.uint8 and self._scale is None else SPANS[name]


class Showing:
    """What a policy shows of boxes of a scene: one picture of three bands each, or one for each rendering.

    Parameters
    ----------
    scene, bands, limits, date
        As `Painter` takes them; without renderings it makes the picture.
    renderings, scale
        As `Renderer` takes them; no names are no renderings.
    """

    def __init__(
        self,
        scene: Scene,
        bands: Sequence[str | int] | None = None,
        limits: tuple[float, float] | None = None,
        renderings: str | Sequence[str] = (),
        scale: float | None = None,
        date: int = -1,
    ) -> None:
        self._renderer = Renderer(scene, renderings, scale=scale, date=date) if renderings else None
        self.painter = Painter(scene, bands, limits, date)
        """Makes the picture where there are no renderings."""

    def show(self, seen: Look, first: int = 1) -> Rendered:
        """Return the pictures of a box, and what is said of them, numbered from ``first``: nothing of a plain one."""
        if self._renderer is not None:
            return self._renderer.render(seen, first)
        return Rendered((self.painter.paint(seen),), "")


def _triplets(bands: Sequence[str]) -> list[_Bound]:
    """Return the bands three by three; the last one is repeated until it has three, as EarthDial does."""
    known = [band for band in bands if band in SPANS]
    if not known:
        raise KernelError(
            "rendering triplets knows none of the bands",
            place="renderings",
            remedy=f"the image has {', '.join(bands)}; name them by --bands",
        )
    found = []
    for n in range(0, len(known), 3):
        names = known[n : n + 3]
        three = tuple(names + names[-1:] * (3 - len(names)))
        found.append(
            _Bound("a composite of three bands", three, tuple(list(bands).index(name) for name in three), "")
        )
    return found


def _colours_of(one: _Bound, *, bytes_: bool) -> str:
    """Return which colour shows what, between which values; nothing for ramps, whose meaning says it."""
    if one.ramp is not None:
        return ""
    told = []
    for colour, name in zip(("Red", "green", "blue"), one.names, strict=False):
        low, high = SPANS[name]
        unit = "" if bytes_ else f" ({low:g} to {high:g}{' dB' if name in _RADAR else ' reflectance'})"
        told.append(f"{colour} shows {_IN_WORDS[name]}{unit}")
    if len(one.names) == 2:
        low, high = RATIO_SPAN
        told.append(f"blue how far the first is above the second ({low:g} to {high:g} dB)")
    return f"{', '.join(told)}. "
