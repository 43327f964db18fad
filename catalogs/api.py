"""Search of a STAC API by pystac-client, with retries that include POST and pages that shrink."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tilewright.catalogs.faults import PASSING, TOO_LARGE, retry_policy
from tilewright.catalogs.hrefs import make_item
from tilewright.errors import CatalogError, nearest_name

if TYPE_CHECKING:
    import pystac
    from pystac_client import Client

    from tilewright.catalogs.criteria import Criteria
    from tilewright.catalogs.endpoints import Endpoint

__all__ = ["Found", "is_searchable", "open_api", "search_api"]

_log = logging.getLogger(__name__)

PAGE = 100
"""Items asked for at a time. Larger pages hit the answer limits of Earth Search and Planetary Computer."""
_TIMEOUT = (10.0, 60.0)
_GATEWAY_RETRIES = 4
_FILTER_CLASS = "/item-search#filter"
_QUERY_CLASS = "/item-search#query"


@dataclass(slots=True)
class Found:
    """What a source gave, before it is sorted and de-duplicated."""

    items: list[pystac.Item] = field(default_factory=list)
    """Items that match."""
    repeated: list[pystac.Item] = field(default_factory=list)
    """Items that the catalog gave more than once, one entry for each repetition."""
    matched: int | None = None
    """How many Items the catalog says it has for the search, where it says so."""
    notes: list[str] = field(default_factory=list)
    """What a user should know, one sentence each."""
    holds: str = ""
    """What the catalog has at all, for the message when nothing was found."""


def open_api(endpoint: Endpoint) -> Client:
    """Return a client of the API, or of the catalog file that answers at its address.

    Raises
    ------
    CatalogError
        Nothing answers, or the answer is no STAC.
    """
    import pystac
    from pystac_client import Client
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError

    try:
        return Client.open(endpoint.url, stac_io=_stac_io())
    except APIError as error:
        raise CatalogError(
            f"the catalog does not answer: {_reason(error)}",
            place=endpoint.url,
            remedy="check the address and the network, or try again later",
        ) from error
    except (
        ClientTypeError,
        pystac.STACError,
        pystac.STACTypeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise CatalogError(
            f"the answer is not a STAC catalog: {error}",
            place=endpoint.url,
            remedy="give the address of a STAC API's landing page",
        ) from error


def is_searchable(client: Client) -> bool:
    """Return whether an address offers search, or is only a catalog to be walked."""
    return client.get_search_link() is not None


def search_api(client: Client, endpoint: Endpoint, criteria: Criteria) -> Found:
    """Return all Items that an API has for the criteria, ``max_items`` applied.

    The server filters as far as it says that it can. Its answer is then measured here again, because some
    servers ignore a filter and say nothing.

    Raises
    ------
    CatalogError
        An unknown collection, a refusal, or paging that repeats itself.
    """
    from pystac_client.exceptions import APIError

    place = f"{endpoint.url} ({criteria.searched(endpoint)})"
    try:
        _check_collections(client, endpoint, criteria.collections)
        try:
            return _collect(client, endpoint, criteria, "POST")
        except APIError as error:
            if getattr(error, "status_code", None) != 405:
                raise
            return _collect(client, endpoint, criteria, "GET")
    except APIError as error:
        raise CatalogError(
            f"the search failed: {_reason(error)}",
            place=place,
            remedy="try again later, or narrow the region or the dates",
        ) from error
    except (KeyError, ValueError, TypeError) as error:
        raise CatalogError(
            f"the catalog's answer is not what a STAC API gives: {error!r}",
            place=place,
            remedy="check that the address is a STAC API",
        ) from error


def _collect(client: Client, endpoint: Endpoint, criteria: Criteria, method: str) -> Found:
    found = Found()
    seen: set[tuple[str | None, str]] = set()
    for page in _pages(client, criteria, method, found):
        if found.matched is None:
            found.matched = page.get("numberMatched", (page.get("context") or {}).get("matched"))
        fresh: list[pystac.Item] = []
        for data in page["features"]:
            item = make_item(data, _self_href(data), remote=endpoint.remote)
            key = (item.collection_id, item.id)
            (found.repeated if key in seen else fresh).append(item)
            seen.add(key)
        if not fresh:
            raise CatalogError(
                f"the catalog's paging repeats itself after {len(seen)} Items",
                place=endpoint.url,
                remedy="narrow the region or the dates so that one page suffices",
            )
        found.items += criteria.select_condition(fresh)
        if criteria.max_items is not None and len(found.items) >= criteria.max_items:
            del found.items[criteria.max_items :]
            return found
    if found.matched is not None and found.matched > len(seen):
        found.notes.append(
            f"{endpoint.name} counts {found.matched} Items for this search but gave {len(seen)}"
        )
    return found


def _pages(client: Client, criteria: Criteria, method: str, found: Found) -> Iterator[Mapping[str, Any]]:
    """Ask in the most telling way that the server says it understands."""
    region, condition = criteria.region, criteria.condition
    asked: dict[str, Any] = {"limit": PAGE}
    if condition is not None:
        if _conforms(client, _FILTER_CLASS):
            asked |= {"filter": condition.to_dict(), "filter_lang": "cql2-json"}
        else:
            found.notes.append("this catalog does not filter by properties; its Items were filtered here")
    if criteria.max_items is not None and (condition is None or "filter" in asked):
        asked["limit"] = min(PAGE, criteria.max_items)
    if region is not None:
        asked |= {"bbox": region.bbox} if region.is_rectangle else {"intersects": region.to_geojson()}
    search = client.search(
        method=method,
        datetime=None if criteria.interval is None else str(criteria.interval),
        collections=list(criteria.collections) or None,
        ids=list(criteria.ids) or None,
        **asked,
    )
    return search.pages_as_dicts()


def _conforms(client: Client, suffix: str) -> bool:
    return any(str(uri).endswith(suffix) for uri in client.get_conforms_to())


def _check_collections(client: Client, endpoint: Endpoint, names: tuple[str, ...]) -> None:
    """Raise for a collection that the API does not have: most would answer a search for it with nothing."""
    for name in names:
        if client.get_collection(name) is None:
            known = [each.id for each in client.get_collections()]
            raise CatalogError(
                f"unknown collection {name!r}", place=endpoint.name, remedy=nearest_name(name, known)
            )


def _self_href(data: Mapping[str, Any]) -> str | None:
    return next((link.get("href") for link in data.get("links") or [] if link.get("rel") == "self"), None)


def _reason(error: Exception) -> str:
    """Return the status and the first words of a refusal; pages of HTML are cut."""
    status = getattr(error, "status_code", None)
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}..."
    return f"HTTP {status}: {text}" if status else text


def _stac_io() -> Any:
    """Return pystac-client's reader with our retries, kept off the local disk."""
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO

    class ShrinkingIO(StacApiIO):
        """Halves the page when the server cannot send it; the smaller size holds for the rest of the search."""

        page = PAGE

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            # pystac opens anything that is no address as a file; what an API names must not be opened so.
            href = getattr(source, "href", source)
            if urlsplit(str(href)).scheme not in ("http", "https"):
                raise APIError(f"the catalog points to {href!s}, which is no web address")
            return super().read_text(source, *args, **kwargs)

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            refusals = 0
            while True:
                href, parameters, limit = _limited(href, parameters, self.page)
                try:
                    return super().request(href, method, headers, parameters)
                except APIError as error:
                    status = getattr(error, "status_code", None)
                    if status not in TOO_LARGE:
                        raise
                    if limit is not None and limit > 1:
                        self.page = limit // 2
                        _log.info("HTTP %s for %s Items a page; asking for %s", status, limit, self.page)
                        continue
                    refusals += 1
                    if status == 413 or refusals > _GATEWAY_RETRIES:
                        raise
                    time.sleep(0.2 * 2**refusals)

    return ShrinkingIO(timeout=_TIMEOUT, max_retries=retry_policy(PASSING))  # type: ignore[arg-type, unused-ignore]


def _limited(
    href: str, parameters: Mapping[str, Any] | None, most: int
) -> tuple[str, dict[str, Any] | None, int | None]:
    """Return a request whose ``limit``, in body or query, is at most ``most``, and that limit (None: no page).

    Numbered pages (``page=3``) keep their size: with another one they would skip or repeat Items.
    """
    parts = urlsplit(href)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    body = None if parameters is None else dict(parameters)
    if "page" in query or "page" in (body or {}):
        return href, body, None
    limit = None
    if body and body.get("limit"):
        limit = body["limit"] = min(int(body["limit"]), most)
    elif "limit" in query:
        with suppress(ValueError):
            limit = min(int(query["limit"]), most)
            query["limit"] = str(limit)
            href = urlunsplit(parts._replace(query=urlencode(query)))
    return href, body, limit
