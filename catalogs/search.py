"""Search: a region, some dates and collections in any catalog, answered with the Items to use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.criteria import Criteria, Searched, names_of
from tilewright.catalogs.dedupe import Dropped, deduplicate
from tilewright.catalogs.endpoints import Endpoint, endpoint
from tilewright.catalogs.filters import Filter, cloud_filter, query_filter
from tilewright.catalogs.region import Region
from tilewright.catalogs.times import Interval
from tilewright.errors import CatalogError

if TYPE_CHECKING:
    import pystac

    from tilewright.catalogs.api import Found
    from tilewright.catalogs.times import TimeLike

__all__ = ["SearchResult", "search"]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The Items of a search, ready for a cube and for a snapshot."""

    items: tuple[pystac.Item, ...]
    """One an acquisition, by time and id; hrefs are absolute and unsigned."""
    dropped: tuple[Dropped, ...]
    """Duplicates that were left out, with the reason."""
    searched: Searched
    """What was asked, of which catalog."""
    matched: int | None
    """How many Items the catalog counts for the search; None where it does not count."""
    notes: tuple[str, ...] = ()
    """What a plan or report should repeat, one sentence each."""

    def __iter__(self) -> Iterator[pystac.Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> pystac.Item:
        return self.items[place]


def search(
    catalog: str | Path | Endpoint,
    *,
    region: Region | str | Path | Mapping[str, Any] | Sequence[float] | None = None,
    datetime: TimeLike | Interval | None = None,
    collections: str | Iterable[str] | None = None,
    filter: str | Mapping[str, Any] | None = None,
    cloud_cover: float | None = None,
    query: Mapping[str, Mapping[str, Any]] | None = None,
    ids: str | Iterable[str] | None = None,
    max_items: int | None = None,
    may_be_empty: bool = False,
) -> SearchResult:
    """Return the Items of a catalog that match everything that is given.

    Parameters
    ----------
    catalog
        What :func:`tilewright.catalogs.endpoints.endpoint` takes: a name, an address or a path.
    region
        What :meth:`tilewright.catalogs.region.Region.parse` takes; Items that touch it.
    datetime
        What :meth:`tilewright.catalogs.times.Interval.parse` takes; Items that overlap it.
    collections, ids
        One or more ids.
    filter
        CQL2 text or CQL2-JSON.
    cloud_cover
        Most percent of ``eo:cloud_cover``; Items without the property do not match.
    query
        The older STAC query, e.g. ``{"platform": {"eq": "sentinel-2a"}}``.
    max_items
        Most Items to take before duplicates are removed; of a catalog without a server the newest.
    may_be_empty
        True returns a result without Items where nothing is found, instead of an error.

    Raises
    ------
    InputError
        Region, dates, filter or limits that contradict themselves.
    CatalogError
        The catalog does not answer, an unknown collection, or no Item found: the message says what was
        searched and, where it is known, what the catalog holds.
    """
    source = endpoint(catalog)
    criteria = Criteria(
        region=None if region is None else Region.parse(region),
        interval=Interval.parse(datetime),
        collections=names_of(collections),
        condition=_all_of(Filter.parse(filter), cloud_filter(cloud_cover), query_filter(query)),
        ids=names_of(ids),
        max_items=max_items,
    )
    found = _ask(source, criteria)
    searched = criteria.searched(source)
    if not found.items and not may_be_empty:
        raise _nothing(searched, found)
    unique = deduplicate(found.items)
    repeats = tuple(
        Dropped(item.id, item.collection_id, item.id, "the catalog gave the same Item twice")
        for item in found.repeated
    )
    notes = (*(criteria.region.notes if criteria.region else ()), *found.notes)
    return SearchResult(unique.kept, (*unique.dropped, *repeats), searched, found.matched, notes)


def _ask(source: Endpoint, criteria: Criteria) -> Found:
    if source.kind == "api":
        from tilewright.catalogs.api import is_searchable, open_api, search_api

        client = open_api(source)
        if is_searchable(client):
            return search_api(client, source, criteria)
    from tilewright.catalogs.local import search_static

    return search_static(source, criteria)


def _all_of(*conditions: Filter | None) -> Filter | None:
    joined: Filter | None = None
    for condition in conditions:
        if condition is not None:
            joined = condition & joined
    return joined


def _nothing(searched: Searched, found: Found) -> CatalogError:
    cause = f"no Items found for {searched}"
    if found.holds:
        cause = f"{cause} ({found.holds})"
    return CatalogError(cause, place=searched.catalog, remedy="widen the region, the dates or the filter")
