"""What is asked of a catalog, how an Item answers it, and how a message says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.region import Region, split_antimeridian
from tilewright.errors import InputError

if TYPE_CHECKING:
    import pystac
    from shapely.geometry.base import BaseGeometry

    from tilewright.catalogs.endpoints import Endpoint
    from tilewright.catalogs.filters import Filter
    from tilewright.catalogs.times import Interval

__all__ = ["Criteria", "Searched", "footprint"]


@dataclass(frozen=True, slots=True)
class Searched:
    """A search in words and numbers: for messages, and beside the Items in a snapshot."""

    catalog: str
    """Name of the endpoint, or its address."""
    url: str
    """Where the catalog is."""
    region: str | None = None
    """What the region was called."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees; west > east over the antimeridian."""
    datetime: str | None = None
    """RFC 3339 instant or interval."""
    collections: tuple[str, ...] = ()
    """Ids of collections; empty for all."""
    filter: str | None = None
    """CQL2 text of everything asked of properties, cloud cover included."""
    ids: tuple[str, ...] = ()
    """Ids of Items; empty for all."""
    max_items: int | None = None
    """Most Items wanted."""

    def __str__(self) -> str:
        """Say it in one line."""
        said = [
            f"collections {', '.join(self.collections)}" if self.collections else "all collections",
            f"datetime {self.datetime}" if self.datetime else "any time",
            f"bbox {','.join(f'{edge:.6g}' for edge in self.bbox)}" if self.bbox else "anywhere",
        ]
        if self.filter:
            said.append(f"filter {self.filter}")
        if self.ids:
            said.append(f"ids {', '.join(self.ids[:3])}{' ...' if len(self.ids) > 3 else ''}")
        return "; ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, ready for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value not in (None, ())
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Searched:
        """Return what :meth:`to_dict` gave."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Criteria:
    """A checked search. Every source of Items is measured by the same rules, which are those of an API."""

    region: Region | None = None
    """Items whose footprint shares a point with it."""
    interval: Interval | None = None
    """Items whose time overlaps it."""
    collections: tuple[str, ...] = ()
    """Items of these; empty for all."""
    condition: Filter | None = None
    """Filter, cloud cover and query, joined by *and*."""
    ids: tuple[str, ...] = ()
    """Items with these ids; empty for all."""
    max_items: int | None = None
    """Most Items to return."""

    def __post_init__(self) -> None:
        if self.max_items is not None and self.max_items < 1:
            raise InputError(
                f"{self.max_items} is not a number of Items",
                place="max_items",
                remedy="give 1 or more, or None",
            )

    def searched(self, endpoint: Endpoint) -> Searched:
        """Return the search in words, for one catalog."""
        return Searched(
            catalog=endpoint.name,
            url=endpoint.url,
            region=None if self.region is None else self.region.name,
            bbox=None if self.region is None else self.region.bbox,
            datetime=None if self.interval is None else str(self.interval),
            collections=self.collections,
            filter=None if self.condition is None else str(self.condition),
            ids=self.ids,
            max_items=self.max_items,
        )

    def select(self, items: Sequence[pystac.Item]) -> list[pystac.Item]:
        """Return the Items that match everything, in the order given (``max_items`` is not applied)."""
        chosen = [item for item in items if self._plain(item)]
        if self.region is not None:
            from shapely import prepare

            area = self.region.geometry
            prepare(area)
            chosen = [
                item for item in chosen if (shape := footprint(item)) is not None and area.intersects(shape)
            ]
        if self.condition is not None:
            return self.select_condition(chosen)
        return chosen

    def select_condition(self, items: Sequence[pystac.Item]) -> list[pystac.Item]:
        """Return the Items for which the condition holds."""
        if self.condition is None:
            return list(items)
        facts = [
            {
                "id": item.id,
                "collection": item.collection_id,
                "geometry": item.geometry,
                "bbox": item.bbox,
                "properties": item.to_dict(include_self_link=False)["properties"],
            }
            for item in items
        ]
        return [item for item, holds in zip(items, self.condition.select(facts), strict=True) if holds]

    def _plain(self, item: pystac.Item) -> bool:
        return (
            (not self.collections or item.collection_id in self.collections)
            and (not self.ids or item.id in self.ids)
            and (self.interval is None or self.interval.holds(item))
        )


def footprint(item: pystac.Item) -> BaseGeometry | None:
    """Return an Item's footprint in WGS84, cut at the antimeridian; its bbox where it has no geometry.

    None for an Item without both. Footprints that cross themselves are repaired, for catalogs have some;
    one whose ring jumps by more than 180 degrees is read as crossing the antimeridian: no scene is wider.
    """
    from shapely import box, is_valid, make_valid
    from shapely.geometry import shape

    from tilewright.catalogs.region import unwrap_footprint

    if item.geometry is None:
        if item.bbox is None:
            return None
        half = len(item.bbox) // 2
        west, south, east, north = item.bbox[0], item.bbox[1], item.bbox[half], item.bbox[half + 1]
        return split_antimeridian(box(west, south, east + 360 if west > east else east, north))
    geometry = shape(item.geometry)
    if geometry.is_empty:
        return None
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        geometry = unwrap_footprint(geometry)
    if not is_valid(geometry):
        geometry = make_valid(geometry)
    return split_antimeridian(geometry)


def names_of(values: str | Iterable[str] | None) -> tuple[str, ...]:
    """Return one name or many as a tuple, in the order given, each once."""
    if values is None:
        return ()
    return (values,) if isinstance(values, str) else tuple(dict.fromkeys(values))
