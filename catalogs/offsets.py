"""Scale and offset of every band, decided in one place by a table that can be read and is tested row by row.

A digital number becomes a physical value by ``value = DN * scale + offset``. For most products both numbers are
constants. For Sentinel-2 L2A they are not: from processing baseline 04.00 on (first products 2022-01-25) ESA
adds 1000 to every digital number so that dark pixels can be negative, and catalogs disagree about who takes it
away again. Earth Search's ``sentinel-2-l2a`` subtracts it from the pixels, says so in
``earthsearch:boa_offset_applied``, and goes on stating ``raster:offset`` -0.1 all the same; its
``sentinel-2-c1-l2a`` keeps ESA's pixels and states the same number in earnest; Planetary Computer keeps ESA's
pixels and states nothing. Applied twice or never, a vegetation index is off by tens of per cent.

:data:`TABLE` decides. At most one row fits any combination of facts (a test walks all of them); where none
fits, an :class:`~tilewright.errors.InputError` names the facts and the recipe key that overrides them.
``docs/offsets.md`` shows the same table.

DN 0 of Sentinel-2 and Landsat stays nodata: it is never offset. Classes and bit fields are never scaled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.catalogs.sensors import Band, Sensor, band_records
from tilewright.errors import InputError

if TYPE_CHECKING:
    import pystac
    from numpy.typing import NDArray

__all__ = [
    "TABLE",
    "Facts",
    "Row",
    "ScaleOffset",
    "facts_of",
    "markdown_table",
    "processing_baseline",
    "scale_offset",
    "to_units",
]

Publisher = Literal[
    "earth-search v1", "earth-search c1", "earth-search v0", "planetary-computer", "esa original", "other"
]
"""Whose pixels they are. ``esa original``: JPEG 2000 as ESA wrote it, which nobody has touched since."""

OFFSET_BASELINE = (4, 0)
"""First Sentinel-2 processing baseline with BOA_ADD_OFFSET."""

OFFSET_DATE = "2022-01-25"
"""Day of the first products of baseline 04.00. A scene sensed before may have been reprocessed since."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the metadata of one Item say that bears on the scale and offset of one band."""

    sensor: str
    """Name of the :class:`~tilewright.catalogs.sensors.Sensor`."""

    band: str
    """The house's name of the band."""

    units: str = "reflectance"
    """Units of the band after scale and offset."""

    categorical: bool = False
    """True for classes and bit fields."""

    publisher: Publisher = "other"
    """Whose pixels they are."""

    baseline: tuple[int, int] | None = None
    """Sentinel-2 processing baseline, ``(5, 10)`` for 05.10; None where the Item does not say."""

    applied: bool | None = None
    """``earthsearch:boa_offset_applied``: True where the offset was subtracted from the pixels; None if absent."""

    stated_scale: float | None = None
    """``raster:scale`` of the band, in whichever spelling the Item has it; None if absent."""

    stated_offset: float | None = None
    """``raster:offset`` of the band; None if absent."""

    sensed: str = ""
    """Sensing time in ISO 8601, empty if unknown."""


@dataclass(frozen=True, slots=True)
class ScaleOffset:
    """``value = DN * scale + offset``, and why."""

    scale: float
    """Factor of the digital number."""

    offset: float
    """Added after scaling, in the band's units."""

    row: str
    """Name of the row of :data:`TABLE` that decided, or ``recipe``."""

    why: str
    """The reason in one sentence."""

    @property
    def identity(self) -> bool:
        """True where digital numbers already are values."""
        return self.scale == 1.0 and self.offset == 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the truth table: under which facts which scale and offset hold."""

    name: str
    """Short name, which plans, ledgers and ``tilewright why`` show."""

    sensors: tuple[str, ...]
    """Sensors the row is about; empty for all."""

    bands: tuple[str, ...]
    """Bands by name, or by units where the entry starts with ``=``; empty for all."""

    scale: float | None
    """Scale; None takes the stated one, or 1 where none is stated."""

    offset: float | None
    """Offset; None takes the stated one, or 0 where none is stated."""

    why: str
    """Why this is right, with the source."""

    publishers: tuple[Publisher, ...] = ()
    """Publishers; empty for all."""

    baseline: Literal["any", "< 04.00", ">= 04.00", "absent"] = "any"
    """Sentinel-2 processing baseline."""

    applied: Literal["any", "true", "not true"] = "any"
    """``earthsearch:boa_offset_applied``; ``not true`` is false or absent."""

    stated: Literal["any", "absent", "not 0", "as here or absent"] = "any"
    """``raster:offset``; ``as here or absent`` compares scale and offset with this row's own."""

    sensed: Literal["any", "before 2022-01-25"] = "any"
    """Day of sensing."""

    categorical: bool = False
    """True for the row about classes and bit fields."""

    def fits(self, facts: Facts) -> bool:
        """Say whether the row is about these facts."""
        return (
            self.categorical == facts.categorical
            and (not self.sensors or facts.sensor in self.sensors)
            and (not self.bands or facts.band in self.bands or f"={facts.units}" in self.bands)
            and (not self.publishers or facts.publisher in self.publishers)
            and self._fits_baseline(facts.baseline)
            and (self.applied == "any" or (self.applied == "true") == (facts.applied is True))
            and self._fits_stated(facts)
            and (self.sensed == "any" or "" < facts.sensed[:10] < OFFSET_DATE)
        )

    def _fits_baseline(self, baseline: tuple[int, int] | None) -> bool:
        if self.baseline == "any":
            return True
        if baseline is None or self.baseline == "absent":
            return baseline is None and self.baseline == "absent"
        return (baseline >= OFFSET_BASELINE) == (self.baseline == ">= 04.00")

    def _fits_stated(self, facts: Facts) -> bool:
        if self.stated == "any":
            return True
        if self.stated == "absent":
            return facts.stated_offset is None
        if self.stated == "not 0":
            return facts.stated_offset is not None and facts.stated_offset != 0
        return _same(facts.stated_scale, self.scale) and _same(facts.stated_offset, self.offset)


def _same(stated: float | None, own: float | None) -> bool:
    return stated is None or (own is not None and math.isclose(stated, own, rel_tol=1e-6, abs_tol=1e-12))


_S2 = ("sentinel-2-l2a",)
_LANDSAT = ("landsat-c2-l2-oli", "landsat-c2-l2-etm", "landsat-c2-l2-tm")
_S1 = ("sentinel-1-rtc", "opera-rtc-s1")
_REFLECTANCE = ("=reflectance",)
_KEPT: tuple[Publisher, ...] = ("planetary-computer", "esa original", "other")
_MARKED: tuple[Publisher, ...] = ("earth-search v1", "earth-search c1", "earth-search v0", "other")

TABLE: tuple[Row, ...] = (
    Row("classes", (), (), 1, 0, "Classes and bit fields are names, not amounts.", categorical=True),
    # Sentinel-2 L2A surface reflectance
    Row(
        "s2-applied",
        _S2,
        _REFLECTANCE,
        1e-4,
        0,
        "The offset has been subtracted from the pixels. A stated raster:offset of -0.1 contradicts that and "
        "describes ESA's original; the catalog's maintainers name the flag as the truth "
        "(Element84/earth-search#9, cirrus-geo/cirrus-earth-search#21).",
        publishers=_MARKED,
        applied="true",
    ),
    Row(
        "s2-before-0400",
        _S2,
        _REFLECTANCE,
        1e-4,
        0,
        "ESA introduced BOA_ADD_OFFSET with baseline 04.00: earlier products cannot carry it, even if "
        "raster:offset states one.",
        publishers=_MARKED,
        baseline="< 04.00",
        applied="not true",
    ),
    Row(
        "s2-es-v1-not-applied",
        _S2,
        _REFLECTANCE,
        1e-4,
        -0.1,
        "The flag says that the pixels still hold ESA's +1000. Some Items of 2022 and 2025 are flagged false "
        "although the offset was subtracted (Element84/earth-search#66, #71): for those, override.",
        publishers=("earth-search v1", "earth-search v0"),
        baseline=">= 04.00",
        applied="not true",
    ),
    Row(
        "s2-es-v0-undated",
        _S2,
        _REFLECTANCE,
        1e-4,
        0,
        "Items of the first API carry a baseline only since just before 04.00 began "
        "(cirrus-geo/cirrus-earth-search#21); one without, sensed before, has no offset.",
        publishers=("earth-search v0",),
        baseline="absent",
        applied="not true",
        sensed="before 2022-01-25",
    ),
    Row(
        "s2-c1-stated",
        _S2,
        _REFLECTANCE,
        1e-4,
        None,
        "Collection 1 on Earth Search holds ESA's pixels and states the true offset.",
        publishers=("earth-search c1",),
        baseline=">= 04.00",
        applied="not true",
        stated="not 0",
    ),
    Row(
        "s2-c1-silent",
        _S2,
        _REFLECTANCE,
        1e-4,
        -0.1,
        "Collection 1 on Earth Search holds ESA's pixels; without a stated offset the baseline decides.",
        publishers=("earth-search c1",),
        baseline=">= 04.00",
        applied="not true",
        stated="absent",
    ),
    Row(
        "s2-esa-before-0400",
        _S2,
        _REFLECTANCE,
        1e-4,
        0,
        "ESA's pixels, and no offset before baseline 04.00.",
        publishers=("planetary-computer", "esa original"),
        baseline="< 04.00",
    ),
    Row(
        "s2-esa-silent",
        _S2,
        _REFLECTANCE,
        1e-4,
        -0.1,
        "ESA's pixels with +1000; nothing states it (microsoft/PlanetaryComputer#134).",
        publishers=("planetary-computer", "esa original"),
        baseline=">= 04.00",
        stated="absent",
    ),
    Row(
        "s2-esa-stated",
        _S2,
        _REFLECTANCE,
        1e-4,
        None,
        "ESA's pixels, and an offset stated from the product's own BOA_ADD_OFFSET, which may differ from band "
        "to band. A flag in the same Item speaks of other files, the converted ones.",
        publishers=("planetary-computer", "esa original"),
        baseline=">= 04.00",
        stated="not 0",
    ),
    Row(
        "s2-other-silent",
        _S2,
        _REFLECTANCE,
        1e-4,
        -0.1,
        "No word that the pixels were changed: they are taken as ESA's.",
        publishers=("other",),
        baseline=">= 04.00",
        applied="not true",
        stated="absent",
    ),
    Row(
        "s2-other-stated",
        _S2,
        _REFLECTANCE,
        1e-4,
        None,
        "No word that the pixels were changed, and an offset that fits the baseline is stated.",
        publishers=("other",),
        baseline=">= 04.00",
        applied="not true",
        stated="not 0",
    ),
    # Sentinel-2 L2A, the rest
    Row("s2-aot-wvp", _S2, ("aot", "wvp"), 1e-3, 0, "Quantification value 1000, and never an offset."),
    Row("s2-percent", _S2, ("cloud", "snow"), 1, 0, "Probabilities in per cent as they are."),
    # Landsat Collection 2 Level 2 (LSDS-1619, LSDS-1618)
    Row(
        "landsat-reflectance",
        _LANDSAT,
        _REFLECTANCE,
        2.75e-5,
        -0.2,
        "Surface reflectance of Collection 2, stated or not; another statement is refused.",
        stated="as here or absent",
    ),
    Row(
        "landsat-temperature",
        _LANDSAT,
        ("lwir", "lwir11"),
        0.00341802,
        149.0,
        "Surface temperature of Collection 2 in kelvin.",
        stated="as here or absent",
    ),
    Row(
        "landsat-st-qa", _LANDSAT, ("qa", "cdist"), 0.01, 0, "Collection 2 auxiliary layers in 0.01 K and km."
    ),
    Row("landsat-emissivity", _LANDSAT, ("emis", "emsd", "atran"), 1e-4, 0, "Collection 2 auxiliary layers."),
    Row(
        "landsat-radiance",
        _LANDSAT,
        ("drad", "urad", "trad", "atmos_opacity"),
        1e-3,
        0,
        "Collection 2 auxiliary layers.",
    ),
    # Radar, aerial, everything else
    Row(
        "s1-power",
        _S1,
        ("=gamma0 power",),
        1,
        0,
        "Linear power as it is; dB is a conversion with a name, never a scale.",
        stated="as here or absent",
    ),
    Row("s1-incidence", _S1, ("incidence",), None, None, "Degrees, by the stated scale if there is one."),
    Row("naip", ("naip",), (), 1, 0, "Digital numbers as they are."),
    Row("raster", ("raster",), (), None, None, "A plain raster is what its Item states, else itself."),
)
"""The truth table. Order does not matter: at most one row fits."""


def scale_offset(
    facts: Facts, *, place: str, overrides: Mapping[str, Sequence[float]] | None = None
) -> ScaleOffset:
    """Decide scale and offset of a band.

    Parameters
    ----------
    facts
        What the Item says, from :func:`facts_of`.
    place
        Item and band, for messages.
    overrides
        The recipe's ``offsets``: band name to ``[scale, offset]``. An entry wins over the table.

    Raises
    ------
    InputError
        No row fits: the metadata lack what decides, or contradict each other in a way nobody has explained.
    """
    if overrides and facts.band in overrides:
        scale, offset = overrides[facts.band]
        return ScaleOffset(float(scale), float(offset), "recipe", "Set by `offsets` in the recipe.")
    for row in TABLE:
        if row.fits(facts):
            return ScaleOffset(
                _else(row.scale, facts.stated_scale, 1.0),
                _else(row.offset, facts.stated_offset, 0.0),
                row.name,
                row.why,
            )
    baseline = "absent" if facts.baseline is None else "{:02d}.{:02d}".format(*facts.baseline)
    raise InputError(
        f"scale and offset are undecided: {facts.sensor}, publisher {facts.publisher}, processing baseline "
        f"{baseline}, boa_offset_applied {_said(facts.applied)}, raster:scale {_said(facts.stated_scale)}, "
        f"raster:offset {_said(facts.stated_offset)}",
        place=place,
        remedy=f"say which holds in the recipe, for example `offsets: {{{facts.band}: [0.0001, -0.1]}}`",
    )


def _else(own: float | None, stated: float | None, default: float) -> float:
    if own is not None:
        return float(own)
    return default if stated is None else float(stated)


def _said(value: object) -> str:
    return "absent" if value is None else str(value).lower()


def facts_of(item: pystac.Item, sensor: Sensor, band: Band, asset: pystac.Asset) -> Facts:
    """Gather from an Item what decides the scale and offset of one of its bands."""
    records = band_records(asset)
    record = records[band.index - 1] if band.index <= len(records) else {}
    sentinel_2 = sensor.name == "sentinel-2-l2a"
    return Facts(
        sensor=sensor.name,
        band=band.name,
        units=band.units,
        categorical=band.categorical,
        publisher=_publisher(item, asset) if sentinel_2 else "other",
        baseline=processing_baseline(item) if sentinel_2 else None,
        applied=_flag(item) if sentinel_2 else None,
        stated_scale=_stated("scale", record, asset),
        stated_offset=_stated("offset", record, asset),
        sensed=str(item.properties.get("datetime") or item.properties.get("start_datetime") or ""),
    )


def _stated(key: str, record: Mapping[str, Any], asset: pystac.Asset) -> float | None:
    """Find a scale or offset under the spellings of raster 1.0 to 2.0: per band, with prefix, on the asset."""
    fields = asset.extra_fields
    for value in (record.get(key), record.get(f"raster:{key}"), fields.get(f"raster:{key}")):
        if value is not None:
            return float(value)
    return None


def _flag(item: pystac.Item) -> bool | None:
    """Read ``boa_offset_applied`` under the prefixes of Earth Search v1 and v0."""
    for key in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        value = item.properties.get(key)
        if value is not None:
            return str(value).lower() == "true"
    return None


_BASELINE_KEYS = (
    "s2:processing_baseline",
    "sentinel2:processing_baseline",
    "sentinel:processing_baseline",
    "processing:version",
)
_PRODUCT_KEYS = ("s2:product_uri", "sentinel:product_id", "sentinel2:product_uri")


def processing_baseline(item: pystac.Item) -> tuple[int, int] | None:
    """Return the Sentinel-2 processing baseline of an Item as ``(5, 10)``, or None if nothing tells.

    Properties first, then the ``_N0510_`` in the name of the product. A sensing date tells nothing:
    Collection 1 reprocessed the whole archive with baselines 05.xx.
    """
    for key in _BASELINE_KEYS:
        match = re.fullmatch(r"v?N?(\d{1,2})\.?(\d{2})", str(item.properties.get(key) or "").strip())
        if match:
            return int(match[1]), int(match[2])
    for name in (*(str(item.properties.get(key) or "") for key in _PRODUCT_KEYS), item.id):
        match = re.search(r"_N(\d{2})(\d{2})_", name)
        if match:
            return int(match[1]), int(match[2])
    return None


def _publisher(item: pystac.Item, asset: pystac.Asset) -> Publisher:
    collection = (item.collection_id or "").lower()
    href = asset.href.lower()
    if (asset.media_type or "").lower() == "image/jp2" or "://sentinel-s2-l2a/" in href:
        return "esa original"
    if collection == "sentinel-s2-l2a-cogs":
        return "earth-search v0"
    links = " ".join(str(link.target) for link in item.links if isinstance(link.target, str)).lower()
    ours = any(key.startswith("earthsearch:") for key in item.properties)
    if ours or "earth-search." in links or "/sentinel-cogs" in href:
        return "earth-search c1" if "c1-l2a" in collection else "earth-search v1"
    if "c1-l2a" in collection:
        return "earth-search c1"
    if "planetarycomputer.microsoft.com" in links or "//sentinel2l2a01.blob.core.windows.net/" in href:
        return "planetary-computer"
    return "other"


def to_units(
    numbers: NDArray[Any], by: ScaleOffset, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Turn digital numbers into values of the band's units, float32, NaN where ``valid`` is False.

    Values are not clipped: a negative reflectance is noise around a dark surface, and clipping it would bias
    every mean taken afterwards.
    """
    values = np.asarray(numbers).astype(np.float32)
    if not by.identity:
        values *= np.float32(by.scale)
        values += np.float32(by.offset)
    if valid is not None:
        values[~valid] = np.nan
    return values


def markdown_table(rows: Iterable[Row] = TABLE) -> str:
    """Render the table for ``docs/offsets.md``; a test compares the two."""
    head = ("row", "sensor", "bands", "publisher", "baseline", "boa_offset_applied", "raster:offset")
    lines = [
        f"| {' | '.join(head)} | scale | offset | why |",
        "|" + "---|" * (len(head) + 3),
    ]
    for row in rows:
        bands = "classes, bits" if row.categorical else ", ".join(b.lstrip("=") for b in row.bands) or "all"
        baseline = row.baseline + (f", sensed {row.sensed}" if row.sensed != "any" else "")
        cells = (
            f"`{row.name}`",
            ", ".join(row.sensors) or "all",
            bands,
            ", ".join(row.publishers) or "any",
            baseline,
            row.applied,
            row.stated,
            "stated" if row.scale is None else f"{row.scale:g}",
            "stated" if row.offset is None else f"{row.offset:g}",
            row.why,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
