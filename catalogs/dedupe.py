"""One Item for each acquisition: the newest processing of a scene wins, and the rest is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.offsets import processing_baseline
from tilewright.catalogs.times import item_times

if TYPE_CHECKING:
    import pystac

__all__ = ["Deduplicated", "Dropped", "acquisition", "deduplicate"]

_COVERED = 0.95
"""Share of an older footprint that the newer ones must cover before it is dropped.

Two granules of one datatake and tile can be two halves of the scene (the tile crosses a datastrip), and
then both are needed.
"""
_TIERS = {"RT": 0, "T2": 1, "T1": 2}
"""Landsat collection categories: real time is replaced by tier 2 or 1 once the final orbit is known."""

_S2_PRODUCT = re.compile(r"(S2[A-D])_MSI(L\d[A-C])_(\d{8}T\d{6})_N(\d{4})_R\d{3}_T(\w{5})_(\d{8}T\d{6})")
_S2_PC_ID = re.compile(r"(S2[A-D])_MSI(L\d[A-C])_(\d{8}T\d{6})_R\d{3}_T(\w{5})_(\d{8}T\d{6})")
_S2_ES_ID = re.compile(r"^(S2[A-D])_T?(\w{4,5})_(\d{8})(?:T\d{6})?(?:_(\d+))?_(L\d[A-C])$")
_S2_DATATAKE = re.compile(r"(\d{8}T\d{6})_(\d{6})")
_DATASTRIP = re.compile(r"_S(\d{8}T\d{6})")
_BASELINE = re.compile(r"N(\d\d)\.?(\d\d)")
_LANDSAT_ID = re.compile(
    r"^L([COETM])0?(\d)_(L\d\w\w)_(\d{3})(\d{3})_(\d{8})(?:_(\d{8}))?_(\d\d)_(T1|T2|RT)(?:_(SR|ST))?"
)
_OPERA_ID = re.compile(r"(T\d{3}-\d{6}-IW\d)_(\d{8}T\d{6})Z_(\d{8}T\d{6})Z")
_S1_ID = re.compile(r"^(S1[A-D])_(\w\w)_(\w{3})\w_\d\w(\w\w)_(\d{8}T\d{6})_(\d{8}T\d{6})_(\d{6})")

type _Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """An Item that is not used, and why."""

    id: str
    """Its id."""
    collection: str | None
    """Its collection."""
    kept: str
    """Id of the Item that stands for it."""
    reason: str
    """In words, for the ledger and the report."""


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The outcome of :func:`deduplicate`."""

    kept: tuple[pystac.Item, ...]
    """One Item an acquisition, ordered by time and id."""
    dropped: tuple[Dropped, ...]
    """What they stand for, ordered by id."""


def deduplicate(items: Iterable[pystac.Item]) -> Deduplicated:
    """Keep one Item for each acquisition and product. The order of ``items`` makes no difference.

    Items are the same acquisition when platform, datatake and tile (Sentinel-2), path, row and day
    (Landsat), orbit and start (Sentinel-1) or burst and start (OPERA RTC-S1) agree, and so does the product.
    Of those the newest processing baseline wins, then the better tier, the newer processing time, ``created``,
    and the higher sequence number. An older one is dropped only where the kept ones cover its footprint.
    """
    groups: dict[_Key, list[pystac.Item]] = {}
    for item in items:
        groups.setdefault(acquisition(item) or ("id", item.collection_id, item.id), []).append(item)
    kept: list[pystac.Item] = []
    dropped: list[Dropped] = []
    for group in groups.values():
        if len(group) == 1:
            kept += group
        else:
            _choose(sorted(group, key=_rank, reverse=True), kept, dropped)
    return Deduplicated(
        tuple(sorted(kept, key=order)),
        tuple(sorted(dropped, key=lambda drop: (drop.id, drop.collection or "", drop.kept, drop.reason))),
    )


def order(item: pystac.Item) -> tuple[str, str, str]:
    """Return the sort key of Items: time, id, collection. Items without a time come first."""
    first, _ = item_times(item)
    return ("" if first is None else first.astimezone(UTC).isoformat(), item.id, item.collection_id or "")


def acquisition(item: pystac.Item) -> _Key | None:
    """Return what identifies an acquisition and its product, or None where the Item does not tell.

    Two Items with the same key show the same pixels of the same moment, except for two datastrips of one
    datatake in catalogs that do not name them.
    """
    for identify in (_sentinel2, _landsat, _opera, _sentinel1):
        key = identify(item)
        if key is not None:
            return key
    return None


def _sentinel2(item: pystac.Item) -> _Key | None:
    platform, tile = _platform(item), _mgrs(item)
    if tile is None or not (platform or "").startswith("sentinel-2"):
        return None
    facts = item.properties
    product = _s2_product(item)
    level = product[1] if product else _level(item)
    # The Copernicus Data Space names both by the extension of ESA's framework.
    taken = _S2_DATATAKE.search(str(facts.get("s2:datatake_id") or facts.get("eopf:datatake_id", "")))
    strip = _DATASTRIP.search(str(facts.get("s2:datastrip_id") or facts.get("eopf:datastrip_id", "")))
    moment: object
    if product:
        moment = product[2]
    elif taken:
        moment = taken.group(1)
    else:
        moment = _second(item)
    return None if moment is None else (platform, level, moment, tile, strip.group(1) if strip else None)


def _landsat(item: pystac.Item) -> _Key | None:
    facts, match = item.properties, _LANDSAT_ID.match(item.id)
    path, row = facts.get("landsat:wrs_path"), facts.get("landsat:wrs_row")
    if not (str(path).isdecimal() and str(row).isdecimal()):
        return None
    tile = f"{int(str(path)):03d}{int(str(row)):03d}"
    if match is None:
        platform, moment = _platform(item), _second(item)
        known = platform and moment and item.collection_id
        return (platform, item.collection_id, moment[:8], tile) if known and moment else None
    # SR and ST are Items of their own at LandsatLook, either by their id or by their collection.
    part = match.group(10) or (item.collection_id or "").rpartition("-")[2].upper()
    return (
        f"landsat-{match.group(2)}",
        match.group(3)[:2],
        part if part in ("SR", "ST") else "",
        match.group(6),
        tile,
    )


def _opera(item: pystac.Item) -> _Key | None:
    match = _OPERA_ID.search(item.id)
    if match is None:
        return None
    product = item.id.partition(match.group(1))[0].strip("_")
    layer = item.id.partition(f"{match.group(3)}Z")[
        2
    ]  # platform, resolution, version and perhaps polarisation
    return "opera", product, match.group(1), match.group(2), re.sub(r"_v\d+(\.\d+)*", "", layer)


def _sentinel1(item: pystac.Item) -> _Key | None:
    platform = _platform(item)
    if not (platform or "").startswith("sentinel-1"):
        return None
    match = _S1_ID.match(item.id)
    kind = "rtc" if "rtc" in f"{item.id} {item.collection_id}".lower() else ""
    if match is not None:
        return platform, *match.groups()[1:], kind
    facts = item.properties
    orbit, tile, moment = facts.get("sat:absolute_orbit"), _mgrs(item), _second(item)
    if orbit is None or tile is None or moment is None:
        return None
    return platform, orbit, tile, moment, kind


def _choose(group: Sequence[pystac.Item], kept: list[pystac.Item], dropped: list[Dropped]) -> None:
    """Move a group, best first, into ``kept`` and ``dropped``."""
    from tilewright.catalogs.criteria import footprint

    best: list[pystac.Item] = []
    covered: Any = None
    for item in group:
        shape = footprint(item)
        if best and _is_covered(shape, covered):
            dropped.append(Dropped(item.id, item.collection_id, best[0].id, _why(item, best[0])))
            continue
        best.append(item)
        covered = shape if covered is None or shape is None else covered.union(shape)
    kept += best


def _is_covered(shape: Any, by: Any) -> bool:
    if shape is None or by is None or shape.area == 0:
        return True
    return bool(shape.intersection(by).area >= _COVERED * shape.area)


def _why(item: pystac.Item, winner: pystac.Item) -> str:
    names = ("processing baseline", "collection tier", "processing time", "creation time", "sequence number")
    for name, mine, its in zip(names, _rank(item), _rank(winner), strict=False):
        if mine != its:
            return f"same acquisition, older {name}: {mine or 'none'} against {its or 'none'}"
    same = (item.id, item.collection_id) == (winner.id, winner.collection_id)
    return "the same Item twice" if same else "same acquisition and processing"


def _rank(item: pystac.Item) -> tuple[Any, ...]:
    """Return what makes one processing better than another, most telling first; the last parts break ties."""
    facts = item.properties
    landsat, opera, product = _LANDSAT_ID.match(item.id), _OPERA_ID.search(item.id), _s2_product(item)
    tier = facts.get("landsat:collection_category") or (landsat.group(9) if landsat else "")
    sequence = _S2_ES_ID.match(item.id)
    return (
        _baseline(item),
        _TIERS.get(str(tier), -1),
        _digits(
            product[3]
            if product
            else opera.group(3)
            if opera
            else landsat.group(7)
            if landsat
            else facts.get("s2:generation_time") or facts.get("processing:datetime")
        ),
        _digits(facts.get("created") or facts.get("updated")),
        str((sequence and sequence.group(4)) or facts.get("s2:sequence") or "").zfill(3),
        item.id,
        item.collection_id or "",
        item.get_self_href() or "",
    )


def _baseline(item: pystac.Item) -> str:
    """Return the processing baseline as ``"05.10"``, or an empty text."""
    stated = processing_baseline(item)
    if stated is not None:
        return "{:02d}.{:02d}".format(*stated)
    for name in ("s2:datatake_id", "s2:datastrip_id"):
        match = _BASELINE.search(str(item.properties.get(name, "")))
        if match:
            return f"{match.group(1)}.{match.group(2)}"
    return ""


def _s2_product(item: pystac.Item) -> tuple[str, str, str, str] | None:
    """Return platform letter code, level, datatake start and product discriminator of a product's name."""
    for text in (item.properties.get("s2:product_uri"), item.properties.get("sentinel:product_id"), item.id):
        match = _S2_PRODUCT.search(str(text or ""))
        if match:
            return match.group(1), match.group(2), match.group(3), match.group(6)
    match = _S2_PC_ID.search(item.id)
    return (match.group(1), match.group(2), match.group(3), match.group(5)) if match else None


def _level(item: pystac.Item) -> str:
    """Return the processing level, from the id or else from the collection."""
    match = re.search(r"L\d[A-C]", item.id) or re.search(r"l\d[a-c]", item.collection_id or "")
    return match.group(0).upper() if match else item.collection_id or ""


def _mgrs(item: pystac.Item) -> str | None:
    """Return the MGRS tile as five characters, such as ``33TWM``."""
    facts = item.properties
    whole = facts.get("s2:mgrs_tile") or str(facts.get("grid:code", "")).removeprefix("MGRS-")
    if not whole:
        for prefix in ("mgrs", "sentinel"):
            parts = [facts.get(f"{prefix}:{name}") for name in ("utm_zone", "latitude_band", "grid_square")]
            if all(part is not None for part in parts):
                whole = "".join(str(part) for part in parts)
                break
    if not whole and (match := _S2_ES_ID.match(item.id)):
        whole = match.group(2)
    return str(whole).zfill(5) if whole else None


def _platform(item: pystac.Item) -> str | None:
    """Return the platform as ``sentinel-2a``; catalogs write it in half a dozen ways."""
    name = item.properties.get("platform")
    if name:
        return str(name).lower().replace("_", "-")
    match = re.match(r"S([12])([A-D])_", item.id)
    return f"sentinel-{match.group(1)}{match.group(2).lower()}" if match else None


def _second(item: pystac.Item) -> str | None:
    first, _ = item_times(item)
    return None if first is None else first.astimezone(UTC).strftime("%Y%m%dT%H%M%S")


def _digits(value: object) -> str:
    """Return the digits of a time, to the second, so that its spellings compare; empty for none."""
    return "" if value is None else re.sub(r"\D", "", str(value))[:14].ljust(14, "0")
