"""What a reader must know about one band of one Item: file, band, nodata, scale, units, grid.

The answer is plain data that travels to workers. Every value that the metadata may lack says where it came
from, because a nodata value that nobody declared is a guess, and a guess must be visible in the plan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tilewright.catalogs.hrefs import readable_href
from tilewright.catalogs.offsets import ScaleOffset, facts_of, scale_offset
from tilewright.catalogs.sensors import Band, Sensor, band_records, is_raster, sensor_for
from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    import pystac

__all__ = ["BandSource", "NodataOrigin", "band_source", "band_sources"]

NodataOrigin = Literal["recipe", "item", "sensor", "none"]
"""Where a nodata value comes from: the recipe, the Item's metadata, the product's rule, or nowhere."""


@dataclass(frozen=True, slots=True)
class BandSource:
    """One band of one Item, ready to be opened."""

    item_id: str
    """The Item."""

    band: str
    """The house's name of the band."""

    asset: str
    """Key of the asset within the Item."""

    href: str
    """Address at which the file is read, unsigned: as the Item has it, absolute wherever the Item knows its own
    address, or ``alternate.s3`` where the former wants a login."""

    index: int
    """Band within the file, from 1."""

    units: str
    """Units after scale and offset."""

    categorical: bool
    """True for classes and bit fields: nearest neighbour, no scale."""

    calibration: ScaleOffset
    """Scale, offset, and the row of the truth table that chose them."""

    nodata: float | None
    """Digital number without data; NaN for floats that use it; None where nothing declares one."""

    nodata_from: NodataOrigin
    """Where ``nodata`` comes from. ``none``: the file's own header may still declare one."""

    dtype: str | None
    """Data type as stated (``uint16``, ...); None where the Item does not say."""

    resolution: float | None
    """Pixel size in metres: of the transform if stated, else of ``gsd``, else the product's."""

    crs: str | None
    """``EPSG:32633`` and the like, if stated."""

    shape: tuple[int, int] | None
    """Rows, columns as stated. Trust the file: Items of resampled copies state the original's."""

    transform: tuple[float, float, float, float, float, float] | None
    """Affine ``(a, b, c, d, e, f)``, pixel corner to CRS, as stated; the same caution."""


def band_sources(
    item: pystac.Item,
    names: Sequence[str],
    *,
    offsets: Mapping[str, Sequence[float]] | None = None,
    nodata: Mapping[str, float] | None = None,
) -> tuple[BandSource, ...]:
    """Resolve several bands of one Item, in the order asked for; see :func:`band_source`."""
    return tuple(band_source(item, name, offsets=offsets, nodata=nodata) for name in names)


def band_source(
    item: pystac.Item,
    name: str,
    *,
    offsets: Mapping[str, Sequence[float]] | None = None,
    nodata: Mapping[str, float] | None = None,
) -> BandSource:
    """Find the file behind a band of an Item and all that is known about it.

    Parameters
    ----------
    item
        The Item, of any STAC version that pystac reads.
    name
        A common name (``red``, ``nir08``, ``scl``, ``vv``) or a native one (``B04``, ``SR_B4``).
    offsets
        The recipe's overrides, band to ``[scale, offset]``.
    nodata
        The recipe's overrides, band to digital number.

    Raises
    ------
    InputError
        The product has no such band, this Item lacks it, or scale and offset are undecided.
    """
    sensor = sensor_for(item)
    band = sensor.band(name)
    key = _asset_key(item, sensor, band)
    asset = item.assets[key]
    index = _index(asset, band)
    place = f"{item.id}, band {band.name}"
    records = band_records(asset)
    record = records[index - 1] if index <= len(records) else {}
    number, origin = _nodata(band, record, asset, nodata)
    by_name = {sensor.band(known).name: value for known, value in (offsets or {}).items()}
    transform = _transform(asset, item)
    return BandSource(
        item_id=item.id,
        band=band.name,
        asset=key,
        href=readable_href(asset),
        index=index,
        units=band.units,
        categorical=band.categorical,
        calibration=scale_offset(facts_of(item, sensor, band, asset), place=place, overrides=by_name),
        nodata=number,
        nodata_from=origin,
        dtype=record.get("data_type") or asset.extra_fields.get("data_type"),
        resolution=_resolution(transform, record, asset, band),
        crs=_crs(asset, item),
        shape=_shape(asset, item),
        transform=transform,
    )


def _asset_key(item: pystac.Item, sensor: Sensor, band: Band) -> str:
    """Find the asset of a band: by its key first, then by what the assets say they hold."""
    candidates = {key: asset for key, asset in item.assets.items() if is_raster(key, asset)}
    if band.asset is not None:
        return band.asset
    wanted = [band.name, *band.aliases]
    lowered = _keys_by_name(candidates)
    for alias in wanted:
        if alias.lower() in lowered:
            return lowered[alias.lower()]
    for key, asset in candidates.items():
        if _describes(asset, band):
            return key
    if sensor.name == "naip" and "image" in candidates and _holds(candidates["image"], band.index):
        return "image"
    present = [b.name for b in sensor.bands if any(a.lower() in lowered for a in (b.name, *b.aliases))]
    held = sorted({*present, *(key for key in candidates)})
    raise InputError(
        f"no asset holds band {band.name!r}; {nearest_name(band.name, held)}",
        place=item.id,
        remedy=f"assets with pixels: {', '.join(candidates) or 'none'}",
    )


_AT_RESOLUTION = re.compile(r"_(\d+)m$")


def _keys_by_name(candidates: Mapping[str, pystac.Asset]) -> dict[str, str]:
    """Return asset keys by the lower-case names that mean them.

    ESA's products hold a band at several resolutions, and the Copernicus Data Space names all of them:
    ``B04_10m``, ``B04_20m``, ``B04_60m``. ``B04`` means the finest, but for ``sampling:upsampled``, which only
    repeats what a coarser one measured (``B01_20m``).
    """

    def rank(key: str) -> tuple[bool, int]:
        found = _AT_RESOLUTION.search(key)
        return "sampling:upsampled" in (candidates[key].roles or ()), int(found[1]) if found else 0

    names: dict[str, str] = {}
    for key in sorted(candidates, key=rank):
        names.setdefault(_AT_RESOLUTION.sub("", key).lower(), key)
    return names | {key.lower(): key for key in candidates}


def _describes(asset: pystac.Asset, band: Band) -> bool:
    """Say whether an asset's own metadata name the band (eo, core 1.1 ``bands``, sar polarization)."""
    for record in band_records(asset):
        # A common name is no proof: Sentinel-2 has three bands whose common name is `rededge`.
        if record.get("name") and band.answers_to(str(record["name"])):
            return True
    polarizations = asset.extra_fields.get("sar:polarizations")
    return (
        band.units == "gamma0 power"
        and isinstance(polarizations, list)
        and [str(p).lower() for p in polarizations] == [band.name]
    )


def _holds(asset: pystac.Asset, index: int) -> bool:
    """Say whether an asset has a band of this number; one that describes no bands is believed."""
    records = band_records(asset)
    return not records or index <= len(records)


def _index(asset: pystac.Asset, band: Band) -> int:
    records = band_records(asset)
    if len(records) > 1:
        for number, record in enumerate(records, 1):
            if record.get("name") and band.answers_to(str(record["name"])):
                return number
    return band.index


def _nodata(
    band: Band, record: Mapping[str, Any], asset: pystac.Asset, overrides: Mapping[str, float] | None
) -> tuple[float | None, NodataOrigin]:
    for name, value in (overrides or {}).items():
        if band.answers_to(name):
            return float(value), "recipe"
    stated = record.get("nodata", asset.extra_fields.get("nodata"))
    if stated is not None:
        # The raster extension spells the values that JSON lacks: "nan", "inf", "-inf".
        return float(stated), "item"
    if band.nodata is not None:
        return band.nodata, "sensor"
    return None, "none"


def _crs(asset: pystac.Asset, item: pystac.Item) -> str | None:
    for fields in (asset.extra_fields, item.properties):
        if fields.get("proj:code"):
            return str(fields["proj:code"])
        if fields.get("proj:epsg"):
            return f"EPSG:{fields['proj:epsg']}"
        if fields.get("proj:wkt2"):
            return str(fields["proj:wkt2"])
    return None


def _shape(asset: pystac.Asset, item: pystac.Item) -> tuple[int, int] | None:
    for fields in (asset.extra_fields, item.properties):
        shape = fields.get("proj:shape")
        if shape:
            return int(shape[0]), int(shape[1])
    return None


def _transform(
    asset: pystac.Asset, item: pystac.Item
) -> tuple[float, float, float, float, float, float] | None:
    for fields in (asset.extra_fields, item.properties):
        values = fields.get("proj:transform")
        if values and len(values) >= 6:
            a, b, c, d, e, f = (float(v) for v in values[:6])
            return a, b, c, d, e, f
    return None


def _resolution(
    transform: tuple[float, ...] | None, record: Mapping[str, Any], asset: pystac.Asset, band: Band
) -> float | None:
    stated = record.get("spatial_resolution") or asset.extra_fields.get("raster:spatial_resolution")
    if stated:
        return float(stated)
    if transform is not None and "proj:transform" in asset.extra_fields:
        size = math.hypot(transform[0], transform[3])
        # Below a hundredth the transform is in degrees: no pixel of ours is smaller than a centimetre.
        if size >= 0.01:
            return size
    gsd = asset.extra_fields.get("gsd")
    return float(gsd) if gsd else band.resolution
