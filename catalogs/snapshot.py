"""The exact Items of a run, written beside it, so that the run can be repeated after the catalog has changed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.catalogs.criteria import Searched
from tilewright.catalogs.dedupe import order
from tilewright.catalogs.endpoints import is_remote
from tilewright.catalogs.hrefs import make_item
from tilewright.catalogs.signing import unsigned
from tilewright.errors import CatalogError, StoreError

if TYPE_CHECKING:
    import pystac

__all__ = ["Snapshot", "items_digest", "read_snapshot", "write_snapshot"]

_KEY = "tilewright:snapshot"
_VERSION = 1
_ROOT = "catalog:"
"""Stands for the catalog's folder in what is hashed, so that the digest is the same in every checkout."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Items as they were when a run was planned."""

    items: tuple[pystac.Item, ...]
    """By time and id; hrefs are absolute and unsigned."""
    searched: Searched
    """The search that found them."""
    digest: str
    """``sha256:`` and 64 hex digits over the Items alone: the same Items give the same digest, whatever was
    asked to find them and wherever a local catalog lies."""


def items_digest(items: Iterable[pystac.Item], root: str | Path | None = None) -> str:
    """Return the digest of Items in any order.

    Parameters
    ----------
    items
        Items with absolute hrefs.
    root
        Folder of a local catalog. Paths are hashed relative to it, those above it with ``..``; without it
        they are hashed as they are, and the digest then depends on where the files lie.
    """
    features = [
        _relative(_feature(item), None if root is None else str(root)) for item in sorted(items, key=order)
    ]
    return f"sha256:{hashlib.sha256(_canonical(features)).hexdigest()}"


def write_snapshot(path: str | Path, items: Iterable[pystac.Item], searched: Searched) -> Snapshot:
    """Write Items as a STAC ItemCollection that any tool can read, and return what was written.

    The bytes depend on the Items and the search only. Hrefs are unsigned: tokens are neither reproducible nor
    meant to be stored. Local hrefs are absolute in the file and relative to the catalog's folder in the digest.
    The file appears whole or not at all.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    path = Path(path)
    items = tuple(sorted(items, key=order))
    digest = items_digest(items, _root(searched))
    content = {
        "type": "FeatureCollection",
        _KEY: {"version": _VERSION, "digest": digest, "searched": searched.to_dict()},
        "features": [_feature(item) for item in items],
    }
    _write_whole(
        path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )
    return Snapshot(items, searched, digest)


def read_snapshot(path: str | Path, *, root: str | Path | None = None) -> Snapshot:
    """Return what :func:`write_snapshot` wrote, after checking its digest.

    Parameters
    ----------
    path
        The file.
    root
        Folder where a local catalog lies now, if it was moved since; its hrefs are changed to it.

    Raises
    ------
    CatalogError
        No snapshot, one of a later version, or one that was edited; local hrefs in one of a remote catalog.
    """
    path = Path(path)
    content = _load(path)
    head = content[_KEY]
    try:
        searched = Searched.from_dict(head["searched"])
        digest, version = str(head["digest"]), int(head["version"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(
            f"not a snapshot: {error!r}", place=str(path), remedy="search again and write a new one"
        ) from error
    if version > _VERSION:
        raise CatalogError(
            f"a snapshot of version {version}, this program reads {_VERSION}",
            place=str(path),
            remedy="update tilewright",
        )
    remote = is_remote(searched.url)
    items = tuple(make_item(feature, None, remote=remote) for feature in content["features"])
    old = _root(searched)
    if items_digest(items, old) != digest:
        raise CatalogError(
            "its Items are not those that were written: the digest differs",
            place=str(path),
            remedy="restore the file, or search again and write a new one",
        )
    if root is not None and old is not None:
        items = tuple(_moved(item, old, str(Path(root).resolve())) for item in items)
    return Snapshot(items, searched, digest)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogError(f"cannot be read: {error}", place=str(path), remedy="search again") from error
    if not isinstance(content, dict) or _KEY not in content or not isinstance(content.get("features"), list):
        raise CatalogError(
            "not a snapshot", place=str(path), remedy="give an ItemCollection that tilewright wrote"
        )
    return content


def _root(searched: Searched) -> str | None:
    return None if is_remote(searched.url) else str(Path(searched.url).parent)


def _feature(item: pystac.Item) -> dict[str, Any]:
    """Return an Item as a dictionary with unsigned hrefs and links in a fixed order."""
    data = item.to_dict(include_self_link=True, transform_hrefs=False)
    data["assets"] = {
        key: {**asset, "href": unsigned(asset["href"])} for key, asset in data.get("assets", {}).items()
    }
    links = [{**link, "href": unsigned(str(link["href"]))} for link in data.get("links", [])]
    data["links"] = sorted(links, key=lambda link: json.dumps(link, sort_keys=True))
    return data


def _relative(feature: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    """Return a feature with local hrefs made relative to the catalog's folder."""

    def short(href: str) -> str:
        if root is None or is_remote(href):
            return href
        return _ROOT + Path(os.path.relpath(href, root)).as_posix()

    return _with_hrefs(feature, short)


def _moved(item: pystac.Item, old: str, new: str) -> pystac.Item:
    def move(href: str) -> str:
        return href if is_remote(href) else str(Path(new, os.path.relpath(href, old)).resolve())

    return make_item(_with_hrefs(_feature(item), move), None, remote=False)


def _with_hrefs(feature: Mapping[str, Any], change: Any) -> dict[str, Any]:
    assets = {key: {**asset, "href": change(asset["href"])} for key, asset in feature["assets"].items()}
    links = [{**link, "href": change(link["href"])} for link in feature["links"]]
    return {**feature, "assets": assets, "links": links}


def _canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _write_whole(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader never meets half a file."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(
            f"the snapshot cannot be written: {error.strerror or error}",
            place=str(path),
            remedy="free space or use another folder",
        ) from error
