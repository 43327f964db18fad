"""Catalogs without a server: JSON files on disk or HTTP, and stac-geoparquet tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tilewright.catalogs.api import Found
from tilewright.catalogs.endpoints import is_remote
from tilewright.catalogs.hrefs import make_item, resolve_href
from tilewright.catalogs.times import item_times
from tilewright.errors import CatalogError, nearest_name

if TYPE_CHECKING:
    import pystac

    from tilewright.catalogs.criteria import Criteria
    from tilewright.catalogs.endpoints import Endpoint

__all__ = ["read_geoparquet", "read_static", "search_static"]

_MOST_FILES = 100_000
"""JSON files that one walk may open; a larger catalog needs an API or a table."""
_TOP_LEVEL = {
    "type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets", "collection"
}  # fmt: skip
_ROWS = 4096


def search_static(endpoint: Endpoint, criteria: Criteria) -> Found:
    """Return the Items of a catalog without a server that match, measured as an API would.

    With ``max_items``, the newest ones, which is what APIs give first.

    Raises
    ------
    CatalogError
        The catalog cannot be read, or has no collection of a name asked for.
    """
    read = read_geoparquet if endpoint.kind == "geoparquet" else read_static
    items = list(read(endpoint))
    collections = {item.collection_id for item in items if item.collection_id}
    for name in criteria.collections:
        if name not in collections:
            raise CatalogError(
                f"unknown collection {name!r}", place=endpoint.name, remedy=nearest_name(name, collections)
            )
    found = Found(holds=_holds(items, criteria))
    seen: set[tuple[str | None, str]] = set()
    unique: list[pystac.Item] = []
    for item in items:
        key = (item.collection_id, item.id)
        (found.repeated if key in seen else unique).append(item)
        seen.add(key)
    found.items = criteria.select(unique)
    found.matched = len(found.items)
    if criteria.max_items is not None:
        newest = sorted(found.items, key=_moment, reverse=True)
        found.items = newest[: criteria.max_items]
    return found


def read_static(endpoint: Endpoint) -> Iterator[pystac.Item]:
    """Yield all Items below a Catalog, Collection, ItemCollection, Item or list of Items, in file order.

    The links are followed here, and not by pystac, so that each file is read under the rule of its own
    origin: what stands in a remote file can never make this machine open a local one, not even where a
    local catalog leads to it.
    """
    reader = _Reader()
    waiting = [(endpoint.url, None)]
    visited: set[str] = set()
    while waiting:
        href, collection = waiting.pop()
        if href in visited:
            continue
        visited.add(href)
        if len(visited) > _MOST_FILES:
            raise CatalogError(
                f"more than {_MOST_FILES:,} files",
                place=endpoint.url,
                remedy="use its API or a stac-geoparquet table",
            )
        data = reader.json(href)
        if _is_item_data(data):
            yield from _items(data, href, collection)
            continue
        if isinstance(data, dict) and data.get("type") == "Collection":
            collection = data.get("id")
        # Reversed, because the last in is the first out: Items come in the order of the file.
        waiting += [(target, collection) for target in reversed(_children(data, href))]


def read_geoparquet(endpoint: Endpoint) -> Iterator[pystac.Item]:
    """Yield the rows of a stac-geoparquet table as Items, a few thousand at a time.

    https://github.com/stac-utils/stac-geoparquet/blob/main/spec/stac-geoparquet-spec.md
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(_Reader().table(endpoint.url))
        missing = {"id", "geometry", "assets"} - set(table.schema_arrow.names)
        if missing:
            raise CatalogError(
                f"no column {', '.join(sorted(missing))}, so it is not stac-geoparquet",
                place=endpoint.url,
                remedy="give a table written by stac-geoparquet or rustac",
            )
        for batch in table.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                yield make_item(_row(row), endpoint.url, remote=endpoint.remote)
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(
            f"not a readable Parquet file: {error}", place=endpoint.url, remedy="check the file"
        ) from error


class _Reader:
    """Opens the files of a catalog, those on the network through one session with retries."""

    def __init__(self) -> None:
        self._session: Any = None

    def json(self, href: str) -> Any:
        try:
            return json.loads(self._bytes(href))
        except (ValueError, UnicodeDecodeError) as error:
            raise CatalogError(
                f"not valid JSON: {error}",
                place=href,
                remedy="give a STAC Catalog, Collection or ItemCollection",
            ) from error

    def table(self, href: str) -> Any:
        """Return what pyarrow reads a Parquet file from."""
        if not is_remote(href):
            return href
        if urlsplit(href).scheme in ("http", "https"):
            import pyarrow as pa

            return pa.BufferReader(self._bytes(href))
        from pyarrow.fs import FileSystem

        filesystem, path = FileSystem.from_uri(href)
        return filesystem.open_input_file(path)

    def _bytes(self, href: str) -> bytes:
        if not is_remote(href):
            try:
                return Path(href).read_bytes()
            except OSError as error:
                raise CatalogError(
                    f"cannot be read: {error.strerror or error}",
                    place=href,
                    remedy="check the catalog's links",
                ) from error
        if urlsplit(href).scheme not in ("http", "https"):
            raise CatalogError("only http(s) catalogs can be walked", place=href, remedy="copy it to disk")
        import requests

        from tilewright.catalogs.faults import http_session

        if self._session is None:
            self._session = http_session()
        try:
            answer = self._session.get(href, timeout=(10, 60))
            answer.raise_for_status()
        except requests.RequestException as error:
            raise CatalogError(
                f"cannot be read: {error}", place=href, remedy="check the address and the network"
            ) from error
        content: bytes = answer.content
        return content


def _is_item_data(data: Any) -> bool:
    return isinstance(data, list) or (
        isinstance(data, dict) and data.get("type") in ("Feature", "FeatureCollection")
    )


def _items(data: Any, href: str, collection: str | None) -> Iterator[pystac.Item]:
    """Yield the Items of one file. An Item that names no collection belongs to the one that led to it."""
    single = isinstance(data, dict) and data.get("type") == "Feature"
    features = [data] if single else data if isinstance(data, list) else data.get("features") or []
    for feature in features:
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise CatalogError("an entry is not a STAC Item", place=href, remedy="give a STAC ItemCollection")
        if collection and not feature.get("collection"):
            feature = {**feature, "collection": collection}
        item = make_item(feature, href, remote=is_remote(href))
        if single:
            item.set_self_href(href)
        yield item


def _children(data: Any, href: str) -> list[str]:
    if not isinstance(data, dict) or "stac_version" not in data or "links" not in data:
        raise CatalogError(
            "not STAC: neither Catalog, Collection, Item nor ItemCollection",
            place=href,
            remedy="give a catalog.json, collection.json or an ItemCollection",
        )
    links = [link for link in data["links"] if link.get("rel") in ("child", "item") and link.get("href")]
    if not links and any(link.get("rel") == "items" for link in data["links"]):
        raise CatalogError(
            "a Collection of an API, not of a static catalog",
            place=href,
            remedy="give the API's landing page as catalog and the Collection's id in collections",
        )
    return [
        resolve_href(link["href"], href, remote=is_remote(href), place=f"{href}, link {link['rel']}")
        for link in links
    ]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Item of a row: properties are what is not top-level, and nulls are absent keys."""
    from shapely import from_wkb
    from shapely.geometry import mapping

    item = {key: _plain(value) for key, value in row.items() if key in _TOP_LEVEL and key != "geometry"}
    if row.get("geometry") is not None:
        item["geometry"] = json.loads(json.dumps(mapping(from_wkb(row["geometry"]))))
    else:
        item["geometry"] = None
    box = item.get("bbox")
    if isinstance(box, dict):
        order = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
        item["bbox"] = [box[key] for key in order if box.get(key) is not None]
    properties = {key: _plain(value) for key, value in row.items() if key not in _TOP_LEVEL}
    if isinstance(row.get("proj:geometry"), bytes):
        properties["proj:geometry"] = json.loads(json.dumps(mapping(from_wkb(row["proj:geometry"]))))
    item["properties"] = {key: value for key, value in properties.items() if value is not None}
    item["properties"].setdefault("datetime", None)
    item["assets"] = {key: asset for key, asset in (item.get("assets") or {}).items() if asset}
    return {"type": "Feature", "stac_version": "1.0.0", "links": [], **item}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: times as RFC 3339, no nulls in structs, no NaN."""
    if isinstance(value, datetime):
        return (
            (value if value.tzinfo else value.replace(tzinfo=UTC))
            .astimezone(UTC)
            .isoformat()
            .replace("+00:00", "Z")
        )
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _moment(item: pystac.Item) -> tuple[datetime, str]:
    return item_times(item)[0] or datetime.min.replace(tzinfo=UTC), item.id


def _holds(items: list[pystac.Item], criteria: Criteria) -> str:
    """Say what a catalog has: Items, collections, extent in space and time, and properties that it lacks."""
    if not items:
        return "it holds no Item at all"
    said = [f"it holds {len(items)} Items"]
    collections = sorted({item.collection_id for item in items if item.collection_id})
    if collections:
        said.append(f"of {', '.join(collections[:5])}{' ...' if len(collections) > 5 else ''}")
    boxes = [item.bbox for item in items if item.bbox]
    if boxes:
        edges = [(b[0], b[1], b[len(b) // 2], b[len(b) // 2 + 1]) for b in boxes]
        west, south, east, north = zip(*edges, strict=True)
        said.append(f"in {min(west):.6g},{min(south):.6g},{max(east):.6g},{max(north):.6g}")
    times = [item_times(item) for item in items]
    first = [start for start, _ in times if start]
    last = [end for _, end in times if end]
    if first and last:
        said.append(f"from {min(first).date()} to {max(last).date()}")
    if criteria.condition is not None:
        known = {name for item in items for name in item.properties} | {
            "id",
            "collection",
            "geometry",
            "datetime",
        }
        said += [
            f"and none has the property {name!r} ({nearest_name(name, known)})"
            for name in sorted(criteria.condition.properties())
            if name.removeprefix("properties.") not in known
        ]
    return " ".join(said)
