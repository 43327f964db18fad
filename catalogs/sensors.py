"""What the sensors of the house measure: one vocabulary of band names, units and masks.

Catalogs name the same band differently: Planetary Computer calls Sentinel-2's red band ``B04``, Earth Search
``red``, LandsatLook ``SR_B4.TIF``. Here every band has one name, the common name of the STAC ``eo`` extension
where there is one, and a list of the asset keys and native names under which catalogs publish it. Nothing in
this module reads pixels; scale and offset live in :mod:`tilewright.catalogs.offsets`, and the asset behind a
band of one Item in :mod:`tilewright.catalogs.sources`.

Sources: Sentinel-2 Products Specification Document (bands, SCL); USGS Landsat 8-9 and 4-7 Collection 2 Level 2
Science Product Guides (LSDS-1619, LSDS-1618); OPERA RTC-S1 Product Specification (JPL D-108758); the
collections ``sentinel-1-rtc``, ``sentinel-2-l2a``, ``landsat-c2-l2`` and ``naip`` of the two public catalogs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    import pystac

__all__ = [
    "LANDSAT_ETM",
    "LANDSAT_OLI",
    "LANDSAT_TM",
    "NAIP",
    "OPERA_RTC_S1",
    "SENSORS",
    "SENTINEL_1_RTC",
    "SENTINEL_2_L2A",
    "Band",
    "MaskKind",
    "Sensor",
    "sensor_for",
]

MaskKind = Literal["scl", "qa_pixel", "layover_shadow"]
"""How a mask band is read: the name of a function of :mod:`tilewright.catalogs.masks` after ``valid_from_``."""


@dataclass(frozen=True, slots=True)
class Band:
    """One measured quantity of a sensor, whatever a catalog calls it."""

    name: str
    """The house's name: the common name of the STAC ``eo`` extension where one exists."""

    units: str
    """Units after scale and offset: ``reflectance``, ``kelvin``, ``gamma0 power``, ``class``, ``1``, ..."""

    resolution: float | None = None
    """Native pixel size in metres; None where it differs from Item to Item."""

    aliases: tuple[str, ...] = ()
    """Native names and asset keys of this band, compared without regard to case."""

    categorical: bool = False
    """True for classes and bit fields: never scaled, never averaged, resampled by nearest only."""

    wavelength: float | None = None
    """Centre of the band in micrometres; None for radar, masks and derived layers."""

    nodata: float | None = None
    """Digital number that marks a pixel without data by the rule of the product; None where there is none."""

    index: int = 1
    """Band within the asset's file, from 1; above 1 only for files that hold several bands."""

    asset: str | None = None
    """Key of the asset where the Item itself defines the band (plain rasters); None elsewhere."""

    def answers_to(self, name: str) -> bool:
        """Say whether ``name`` means this band."""
        wanted = name.lower()
        return wanted == self.name.lower() or any(wanted == alias.lower() for alias in self.aliases)


@dataclass(frozen=True, slots=True)
class Sensor:
    """The bands of one product, and the band that tells clouds and voids from data."""

    name: str
    """Short name, as recipes and errors use it: ``sentinel-2-l2a``, ``landsat-c2-l2-oli``, ..."""

    title: str
    """The product in words."""

    bands: tuple[Band, ...]
    """All bands the product can have; one Item may lack some."""

    mask_band: str | None = None
    """Name of the band that masks the others, or None: then only nodata is masked."""

    mask_kind: MaskKind | None = None
    """How the mask band is read."""

    radar: bool = False
    """True for backscatter in linear power: means are taken in power, dB is a named conversion."""

    @property
    def names(self) -> tuple[str, ...]:
        """The house's names of all bands, in the order of the product."""
        return tuple(band.name for band in self.bands)

    def band(self, name: str) -> Band:
        """Return the band that ``name`` means: a common name or a native one, upper or lower case.

        Raises
        ------
        InputError
            No band of the product answers to the name; the nearest one is offered.
        """
        for band in self.bands:
            if band.name.lower() == name.lower():
                return band
        for band in self.bands:
            if band.answers_to(name):
                return band
        known = [*self.names, *(alias for band in self.bands for alias in band.aliases)]
        raise InputError(
            f"no band {name!r}; {nearest_name(name, known)}",
            place=self.title,
            remedy=f"bands: {', '.join(self.names)}",
        )


def _s2(name: str, native: str, resolution: float, wavelength: float, *more: str) -> Band:
    short = native.replace("B0", "B")
    aliases = (native, *((short,) if short != native else ()), *more)
    return Band(name, "reflectance", resolution, aliases, wavelength=wavelength, nodata=0)


SENTINEL_2_L2A = Sensor(
    name="sentinel-2-l2a",
    title="Sentinel-2 L2A",
    bands=(
        _s2("coastal", "B01", 60, 0.443),
        _s2("blue", "B02", 10, 0.490),
        _s2("green", "B03", 10, 0.560),
        _s2("red", "B04", 10, 0.665),
        _s2("rededge1", "B05", 20, 0.704, "rededge071"),
        _s2("rededge2", "B06", 20, 0.740, "rededge075"),
        _s2("rededge3", "B07", 20, 0.783, "rededge078"),
        _s2("nir", "B08", 10, 0.842),
        _s2("nir08", "B8A", 20, 0.865),
        _s2("nir09", "B09", 60, 0.945),
        _s2("swir16", "B11", 20, 1.610),
        _s2("swir22", "B12", 20, 2.190),
        Band("scl", "class", 20, ("SCL", "SCL_20m"), categorical=True, nodata=0),
        Band("aot", "1", 20, ("AOT", "AOT_20m"), nodata=0),
        Band("wvp", "cm", 20, ("WVP", "WVP_20m"), nodata=0),
        Band("cloud", "percent", 20, ("CLD", "CLD_20m")),
        Band("snow", "percent", 20, ("SNW", "SNW_20m")),
    ),
    mask_band="scl",
    mask_kind="scl",
)


def _sr(name: str, number: int, wavelength: float, *more: str) -> Band:
    native = f"SR_B{number}"
    aliases = (
        native,
        f"{native}.TIF",
        f"B{number}",
        f"OLI_B{number}",
        f"ETM_B{number}",
        f"TM_B{number}",
        *more,
    )
    return Band(name, "reflectance", 30, aliases, wavelength=wavelength, nodata=0)


def _landsat_quality(*optional: Band) -> tuple[Band, ...]:
    auxiliary = ("drad", "urad", "trad")
    radiance = "W m-2 sr-1 um-1"
    return (
        Band("qa_pixel", "class", 30, ("QA_PIXEL.TIF",), categorical=True, nodata=1),
        Band("qa_radsat", "class", 30, ("QA_RADSAT.TIF",), categorical=True),
        *optional,
        Band("qa", "kelvin", 30, ("ST_QA", "ST_QA.TIF"), nodata=-9999),
        Band("emis", "1", 30, ("ST_EMIS", "ST_EMIS.TIF"), nodata=-9999),
        Band("emsd", "1", 30, ("ST_EMSD", "ST_EMSD.TIF"), nodata=-9999),
        Band("atran", "1", 30, ("ST_ATRAN", "ST_ATRAN.TIF"), nodata=-9999),
        Band("cdist", "km", 30, ("ST_CDIST", "ST_CDIST.TIF"), nodata=-9999),
        *(Band(n, radiance, 30, (f"ST_{n}", f"ST_{n}.TIF"), nodata=-9999) for n in auxiliary),
    )


def _landsat_early(name: str, title: str, thermal_resolution: float) -> Sensor:
    return Sensor(
        name=name,
        title=title,
        bands=(
            _sr("blue", 1, 0.485),
            _sr("green", 2, 0.560),
            _sr("red", 3, 0.660),
            # Landsat has one near-infrared band: a kernel that asks for plain `nir` gets it.
            _sr("nir08", 4, 0.835, "nir"),
            _sr("swir16", 5, 1.650),
            _sr("swir22", 7, 2.220),
            Band(
                "lwir",
                "kelvin",
                thermal_resolution,
                ("ST_B6", "ST_B6.TIF", "ETM_B6", "TM_B6"),
                False,
                11.34,
                0,
            ),
            *_landsat_quality(
                Band("cloud_qa", "class", 30, ("SR_CLOUD_QA", "SR_CLOUD_QA.TIF"), categorical=True),
                Band("atmos_opacity", "1", 30, ("SR_ATMOS_OPACITY", "SR_ATMOS_OPACITY.TIF"), nodata=-9999),
            ),
        ),
        mask_band="qa_pixel",
        mask_kind="qa_pixel",
    )


LANDSAT_TM = _landsat_early("landsat-c2-l2-tm", "Landsat 4-5 TM Collection 2 Level 2", 120)
LANDSAT_ETM = _landsat_early("landsat-c2-l2-etm", "Landsat 7 ETM+ Collection 2 Level 2", 60)
LANDSAT_OLI = Sensor(
    name="landsat-c2-l2-oli",
    title="Landsat 8-9 OLI/TIRS Collection 2 Level 2",
    bands=(
        _sr("coastal", 1, 0.443),
        _sr("blue", 2, 0.482),
        _sr("green", 3, 0.561),
        _sr("red", 4, 0.655),
        _sr("nir08", 5, 0.865, "nir"),
        _sr("swir16", 6, 1.609),
        _sr("swir22", 7, 2.201),
        Band("lwir11", "kelvin", 100, ("ST_B10", "ST_B10.TIF", "TIRS_B10", "B10", "lwir"), False, 10.9, 0),
        *_landsat_quality(
            Band("qa_aerosol", "class", 30, ("SR_QA_AEROSOL", "SR_QA_AEROSOL.TIF"), categorical=True)
        ),
    ),
    mask_band="qa_pixel",
    mask_kind="qa_pixel",
)


def _gamma0(resolution: float | None, nodata: float | None) -> tuple[Band, ...]:
    return tuple(
        Band(pol, "gamma0 power", resolution, (f"gamma0_{pol}", f"iw-{pol}", f"ew-{pol}"), nodata=nodata)
        for pol in ("vv", "vh", "hh", "hv")
    )


SENTINEL_1_RTC = Sensor(
    name="sentinel-1-rtc",
    title="Sentinel-1 RTC gamma0",
    bands=(
        *_gamma0(10, None),
        Band("incidence", "degree", None, ("local_incident_angle", "local_incidence_angle")),
    ),
    radar=True,
)

OPERA_RTC_S1 = Sensor(
    name="opera-rtc-s1",
    title="OPERA RTC-S1 gamma0",
    bands=(
        *_gamma0(30, math.nan),
        Band("mask", "class", 30, ("layover_shadow_mask", "layoverShadowMask"), categorical=True, nodata=255),
        Band("incidence", "degree", 30, ("local_incidence_angle", "localIncidenceAngle"), nodata=math.nan),
    ),
    mask_band="mask",
    mask_kind="layover_shadow",
    radar=True,
)

NAIP = Sensor(
    name="naip",
    title="NAIP aerial imagery",
    bands=tuple(
        Band(name, "digital number", None, (f"band{i}",), wavelength=centre, index=i)
        for i, (name, centre) in enumerate((("red", 0.66), ("green", 0.56), ("blue", 0.48), ("nir", 0.83)), 1)
    ),
)

SENSORS: tuple[Sensor, ...] = (
    SENTINEL_2_L2A,
    SENTINEL_1_RTC,
    OPERA_RTC_S1,
    LANDSAT_OLI,
    LANDSAT_ETM,
    LANDSAT_TM,
    NAIP,
)
"""The products with a description of their own; every other Item is a plain raster."""


def sensor_for(item: pystac.Item) -> Sensor:
    """Return the description of the product that ``item`` belongs to.

    The collection decides where it is known; otherwise constellation, instrument and product level do, so that
    an Item keeps its sensor when somebody copies it into a catalog of his own. An Item that is none of the
    known products is a plain raster: its bands are what its assets say.
    """
    for matches in (_sentinel_2, _sentinel_1, _landsat):
        sensor = matches(item)
        if sensor is not None:
            return sensor
    if item.collection_id == "naip" or (
        "image" in item.assets and any(key.startswith("naip:") for key in item.properties)
    ):
        return NAIP
    return _plain(item)


def _text(item: pystac.Item, *keys: str) -> str:
    """Join the named properties as one lower-case text."""
    parts: list[str] = []
    for key in keys:
        value = item.properties.get(key, "")
        parts.extend(map(str, value)) if isinstance(value, list) else parts.append(str(value))
    return " ".join(part for part in parts if part).lower()


def _sentinel_2(item: pystac.Item) -> Sensor | None:
    collection = (item.collection_id or "").lower()
    if re.fullmatch(r"sentinel-?(2|s2)-(c1-|pre-c1-)?l2a(-cogs)?", collection):
        return SENTINEL_2_L2A
    mission = _text(item, "constellation", "platform", "eo:platform").replace(" ", "-")
    level = _text(item, "s2:product_type", "sentinel2:product_type", "product:type", "s2:product_uri")
    level += " " + _text(item, "sentinel:product_id", "processing:level")
    is_l2a = re.search(r"s2msi2a|msil2a|\bl2a?\b", level) is not None
    return SENTINEL_2_L2A if "sentinel-2" in mission and is_l2a else None


def _sentinel_1(item: pystac.Item) -> Sensor | None:
    collection = (item.collection_id or "").lower()
    if "rtc-s1" in collection or item.id.upper().startswith("OPERA_L2_RTC-S1"):
        return OPERA_RTC_S1
    if collection in ("sentinel-1-rtc", "sentinel1-rtc-aws", "sentinel-s1-rtc-indigo"):
        return SENTINEL_1_RTC
    mission = _text(item, "constellation", "platform").replace(" ", "-")
    is_rtc = _text(item, "sar:product_type", "product:type") == "rtc"
    return SENTINEL_1_RTC if "sentinel-1" in mission and is_rtc else None


def _landsat(item: pystac.Item) -> Sensor | None:
    collection = (item.collection_id or "").lower()
    level = _text(item, "landsat:correction")
    known = re.fullmatch(r"landsat-c2-?l2(-sr|-st)?", collection) is not None
    if not known and not (level in ("l2sp", "l2sr") and _text(item, "landsat:collection_number") == "02"):
        return None
    instrument = _text(item, "instruments", "eo:instrument") or item.id[:4].lower()
    for sensor, pattern in (
        (LANDSAT_OLI, r"oli|lc0[89]"),
        (LANDSAT_ETM, r"etm|le07"),
        (LANDSAT_TM, r"\btm\b|lt0[45]"),
    ):
        if re.search(pattern, instrument):
            return sensor
    raise InputError(
        f"instrument {instrument!r} of Landsat Collection 2 Level 2 is unknown",
        place=item.id,
        remedy="known: oli, etm+, tm",
    )


_NOT_PIXELS = {"thumbnail", "overview", "visual", "metadata", "preview", "rendered_preview", "tilejson"}
_RASTER_TYPES = (
    "image/tiff",
    "image/vnd.stac.geotiff",
    "image/jp2",
    "image/x.geotiff",
    "application/vnd.gdal",
)
_RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt")


def _plain(item: pystac.Item) -> Sensor:
    """Describe a raster that no product description covers by what its own assets say."""
    bands: list[Band] = []
    for key, asset in item.assets.items():
        if is_raster(key, asset) and "metadata" not in (asset.roles or ()):
            bands.extend(_plain_bands(key, asset))
    return Sensor(name="raster", title=f"raster {item.collection_id or item.id}", bands=_unique(bands))


def is_raster(key: str, asset: pystac.Asset) -> bool:
    """Say whether an asset holds pixels to compute with: not a picture, not metadata, not a model."""
    roles = set(asset.roles or ())
    if key in _NOT_PIXELS or roles & (_NOT_PIXELS - {"metadata"} | {"mlm:model", "tiles"}):
        return False
    media = (asset.media_type or "").lower()
    if media:
        # LandsatLook's quality bands have the role `metadata` beside that of a mask: the type decides.
        return media.startswith(_RASTER_TYPES)
    return "metadata" not in roles and asset.href.lower().rsplit("?", 1)[0].endswith(_RASTER_SUFFIXES)


def band_records(asset: pystac.Asset) -> list[Mapping[str, Any]]:
    """Merge what ``bands``, ``eo:bands`` and ``raster:bands`` say of each band of an asset, in file order."""
    fields = asset.extra_fields
    lists = [fields.get(key) or [] for key in ("bands", "eo:bands", "raster:bands")]
    usable = [entry for entry in lists if all(isinstance(band, Mapping) for band in entry)]
    length = max((len(entry) for entry in usable), default=0)
    merged: list[Mapping[str, Any]] = []
    for number in range(length):
        record: dict[str, Any] = {}
        for entry in usable:
            if number < len(entry):
                record.update(entry[number])
        merged.append(record)
    return merged


def _plain_bands(key: str, asset: pystac.Asset) -> Iterable[Band]:
    records = band_records(asset) or [{}]
    for number, record in enumerate(records, 1):
        own = str(record.get("name") or record.get("eo:common_name") or record.get("common_name") or "")
        name = key if len(records) == 1 else (own or f"{key}_{number}")
        aliases = {own, str(record.get("common_name") or record.get("eo:common_name") or "")} - {"", name}
        classes = record.get("classification:classes") or asset.extra_fields.get("classification:classes")
        bits = record.get("classification:bitfields") or asset.extra_fields.get("classification:bitfields")
        categorical = bool(classes or bits)
        units = "class" if categorical else str(record.get("unit") or asset.extra_fields.get("unit") or "1")
        yield Band(
            name,
            units,
            record.get("spatial_resolution") or asset.extra_fields.get("gsd"),
            tuple(sorted(aliases)),
            categorical,
            index=number,
            asset=key,
        )


def _unique(bands: Iterable[Band]) -> tuple[Band, ...]:
    """Keep the first of each name, and drop aliases that two bands claim: neither could be meant."""
    first: dict[str, Band] = {}
    for band in bands:
        first.setdefault(band.name.lower(), band)
    claims = Counter(alias.lower() for band in first.values() for alias in band.aliases)
    return tuple(
        replace(band, aliases=tuple(a for a in band.aliases if claims[a.lower()] == 1))
        for band in first.values()
    )
