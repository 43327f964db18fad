"""A local static catalog of results, which the next run can search.

Self-contained and relative: ``catalog.json``, a folder with ``collection.json`` for each recipe, and in it a
folder for each Item. Items name the run's files where they lie; nothing is copied. Every file is replaced by one
rename, children before the parents that link to them, so that a reader never follows a link to nothing. Writers
take turns by a lock on ``.lock``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pystac

from tilewright.catalogs.publish import safe_name, write_json
from tilewright.errors import CatalogError, StoreError

__all__ = ["append_to_catalog"]

_STAC_VERSION = "1.1.0"


def append_to_catalog(
    catalog_dir: str | os.PathLike[str],
    item: pystac.Item,
    *,
    collection: str,
    title: str | None = None,
    description: str | None = None,
    licence: str = "other",
) -> Path:
    """Add an Item to a local static catalog, or replace the one of the same id.

    Parameters
    ----------
    catalog_dir
        Folder of the catalog; made if it is not there.
    item
        The Item of a run, with the self link that :func:`~tilewright.catalogs.publish.publish` gives it.
    collection
        Id of the collection, usually the recipe's name.
    title, description
        Of the collection, used when it is made.
    licence
        SPDX identifier or ``other``.

    Returns
    -------
    pathlib.Path
        The Item's file within the catalog.

    Raises
    ------
    CatalogError
        The folder holds something that is no STAC catalog.
    StoreError
        The Item breaks a schema, or the disk refuses.
    """
    from tilewright.catalogs.validate import validate_item  # jsonschema takes 0.3 s to import

    safe_name(collection, "collection")
    safe_name(item.id, "Item id")
    root = Path(catalog_dir).resolve()
    root.mkdir(parents=True, exist_ok=True)
    target = root / collection / item.id / f"{item.id}.json"
    content = _moved(item, target, collection)
    validate_item(content)
    with _locked(root):
        replaced = target.exists()
        catalog = _read(root / "catalog.json", "Catalog") or _new_catalog()
        place = root / collection / "collection.json"
        group = _read(place, "Collection") or _new_collection(collection, title, description, licence)
        write_json(target, content)
        _link(group, "item", f"./{item.id}/{item.id}.json", "application/geo+json", item.id)
        extents = [_extent(content)]
        if replaced:
            # The old footprint may have been larger: only a new look at all Items gives the true extent.
            extents = [_extent(json.loads(p.read_text("utf-8"))) for p in _items(group, place.parent)]
        elif group["extent"]["spatial"]["bbox"]:
            extents.append(_extent_of_collection(group))
        group["extent"] = _union(extents)
        _validate(group)
        write_json(place, group)
        _link(catalog, "child", f"./{collection}/collection.json", "application/json", title or collection)
        write_json(root / "catalog.json", catalog)
    return target


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the catalog's lock; the system frees it when the process dies, so it cannot go stale."""
    import fcntl

    try:
        with (root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.filename not in (None, str(root / ".lock")):
            raise
        raise StoreError(f"the catalog cannot be locked: {error.strerror}", place=str(root)) from error


def _moved(item: pystac.Item, target: Path, collection: str) -> dict[str, Any]:
    """Return the Item as it must read at ``target``: hrefs relative to there, links into the catalog."""
    own = item.get_self_href()
    if own is None:
        raise StoreError("has no self link, so its assets cannot be found", place=item.id)
    source = Path(own).resolve().parent
    content = item.to_dict(include_self_link=False, transform_hrefs=False)
    content["collection"] = collection
    for asset in content["assets"].values():
        asset["href"] = _rebased(asset["href"], source, target.parent)
    hierarchy = ("root", "parent", "collection", "self")
    kept = [link for link in content["links"] if link["rel"] not in hierarchy]
    for link in kept:
        link["href"] = _rebased(str(link["href"]), source, target.parent)
    up = "application/json"
    content["links"] = [
        {"rel": "root", "href": "../../catalog.json", "type": up},
        {"rel": "parent", "href": "../collection.json", "type": up},
        {"rel": "collection", "href": "../collection.json", "type": up},
        *kept,
    ]
    return content


def _rebased(href: str, source: Path, target: Path) -> str:
    if re.match(r"[a-z][a-z0-9+.-]*:", href, re.IGNORECASE) or href.startswith(("/", "#")):
        return href
    return Path(os.path.relpath(source / href, target)).as_posix()


def _read(path: Path, kind: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CatalogError(
            "is not JSON", place=str(path), remedy="use another folder, or repair it"
        ) from error
    if not isinstance(content, dict) or content.get("type") != kind:
        raise CatalogError(f"is not a STAC {kind}", place=str(path), remedy="use another folder")
    return content


def _new_catalog() -> dict[str, Any]:
    return {
        "type": "Catalog",
        "id": "tilewright",
        "stac_version": _STAC_VERSION,
        "description": "Maps made by tilewright, one collection for each recipe.",
        "links": [{"rel": "root", "href": "./catalog.json", "type": "application/json"}],
    }


def _new_collection(name: str, title: str | None, description: str | None, licence: str) -> dict[str, Any]:
    up = "application/json"
    return {
        "type": "Collection",
        "id": name,
        "stac_version": _STAC_VERSION,
        **({"title": title} if title else {}),
        "description": description or f"Results of the recipe {name}.",
        "license": licence,
        "extent": {"spatial": {"bbox": []}, "temporal": {"interval": []}},
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": up},
            {"rel": "parent", "href": "../catalog.json", "type": up},
        ],
    }


def _link(content: dict[str, Any], rel: str, href: str, media: str, title: str) -> None:
    links = [link for link in content["links"] if not (link["rel"] == rel and link["href"] == href)]
    content["links"] = [*links, {"rel": rel, "href": href, "type": media, "title": title}]


def _items(collection: Mapping[str, Any], folder: Path) -> list[Path]:
    return [folder / link["href"] for link in collection["links"] if link["rel"] == "item"]


_Extent = tuple[list[float], list[str]]


def _extent(item: Mapping[str, Any]) -> _Extent:
    properties = item["properties"]
    start = properties.get("start_datetime") or properties["datetime"]
    end = properties.get("end_datetime") or properties["datetime"]
    box = [float(v) for v in item["bbox"]]
    half = len(box) // 2
    return [box[0], box[1], box[half], box[half + 1]], [start, end]


def _extent_of_collection(collection: Mapping[str, Any]) -> _Extent:
    extent = collection["extent"]
    return list(extent["spatial"]["bbox"][0]), list(extent["temporal"]["interval"][0])


def _union(extents: list[_Extent]) -> dict[str, Any]:
    boxes = [box for box, _ in extents]
    intervals = [interval for _, interval in extents]
    box = [
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    ]
    if any(b[0] > b[2] for b in boxes):
        # A box over the antimeridian has west > east; the union with others is the whole circle.
        box[0], box[2] = (boxes[0][0], boxes[0][2]) if len(set(map(tuple, boxes))) == 1 else (-180.0, 180.0)
    # All times are written in UTC with a Z, so that their texts sort like the times.
    return {
        "spatial": {"bbox": [box]},
        "temporal": {"interval": [[min(i[0] for i in intervals), max(i[1] for i in intervals)]]},
    }


def _validate(collection: dict[str, Any]) -> None:
    from pystac.validation import validate_dict

    from tilewright.catalogs.validate import LocalSchemaValidator

    try:
        validate_dict(collection, validator=LocalSchemaValidator())
    except pystac.errors.STACValidationError as error:
        raise StoreError(f"the collection is not valid: {error}", place=str(collection["id"])) from error
