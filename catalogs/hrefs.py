"""What an href of a catalog may point to, and Items made from dictionaries under that rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from tilewright.catalogs.endpoints import is_remote
from tilewright.catalogs.signing import unsigned
from tilewright.catalogs.stores import needs_login
from tilewright.errors import CatalogError

if TYPE_CHECKING:
    import pystac

__all__ = ["local_path", "make_item", "readable_href", "resolve_href"]

_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_TREE_LINKS = {"root", "parent", "child", "item", "next", "prev", "items"}
"""Links that only mean something inside the catalog that was walked."""


def resolve_href(href: str, base: str | None, *, remote: bool, place: str) -> str:
    """Return the absolute, unsigned form of an href found in a catalog.

    Parameters
    ----------
    href
        As the catalog has it.
    base
        Address or absolute path of the file or answer that it stands in.
    remote
        True when somebody else wrote the catalog. Then only http(s), s3, gs, az and abfs(s) addresses come
        out; what would reach the local disk (``file:``, absolute paths, GDAL's ``/vsi...`` names and
        ``DRIVER:path`` strings, and relative paths without a remote base) raises.
    place
        Item and asset, for the message.

    Raises
    ------
    CatalogError
        The href breaks the rule, or is relative and has no base.
    """
    if is_remote(href):
        return unsigned(href)
    relative = not (urlsplit(href).scheme or href.startswith(("/", "\\")) or _DRIVE.match(href))
    if remote:
        if relative and href and base is not None and is_remote(base):
            return unsigned(_join_remote(base, href, place))
        raise CatalogError(
            f"the href {href!r} of a remote catalog would be opened on this machine",
            place=place,
            remedy="only http(s), s3, gs, az and abfs addresses are taken; ask the catalog's keeper to repair it",
        )
    if href.startswith("file://") or _DRIVE.match(href):
        return str(Path(local_path(href)))
    if urlsplit(href).scheme:
        raise CatalogError(
            f"the href {href!r} is neither a path nor an address that can be read",
            place=place,
            remedy="use a path, http(s), s3, gs, az or abfs",
        )
    if not relative:
        return href
    if base is None:
        raise CatalogError(
            f"the href {href!r} is relative and the catalog does not say to what",
            place=place,
            remedy="write absolute hrefs, or save the Item as a file",
        )
    if is_remote(base):
        return unsigned(_join_remote(base, href, place))
    return str(Path(base).parent.joinpath(href).resolve())


def local_path(href: str) -> str:
    """Return the path of a ``file:`` href; any other href as it is."""
    return unquote(urlsplit(href).path) if href.startswith("file://") else href


def readable_href(asset: pystac.Asset) -> str:
    """Return where the file of an asset is read: at its href, or where that wants a login at ``alternate.s3``.

    Items of LandsatLook have both (https://github.com/stac-extensions/alternate-assets). Where the second is
    missing the href comes back, and :func:`tilewright.catalogs.stores.check_access` refuses it.
    """
    href: str = asset.get_absolute_href() or asset.href
    if not needs_login(href):
        return href
    alternates = asset.extra_fields.get("alternate")
    record = alternates.get("s3") if isinstance(alternates, Mapping) else None
    other = str(record.get("href") or "") if isinstance(record, Mapping) else ""
    # Nobody has looked at this address yet: only the network may come out of it.
    return unsigned(other) if other.startswith("s3://") else href


def _join_remote(base: str, href: str, place: str) -> str:
    if urlsplit(base).scheme in ("http", "https"):
        return urljoin(base, href)
    # urljoin does not know s3 and its kin; give it a scheme that it knows and take it back.
    scheme, _, rest = base.partition("://")
    joined = urljoin(f"http://{rest}", href)
    if not joined.startswith("http://"):
        raise CatalogError(f"the href {href!r} leaves {base}", place=place)
    return f"{scheme}://{joined.removeprefix('http://')}"


def make_item(data: Mapping[str, Any], base: str | None, *, remote: bool) -> pystac.Item:
    """Return the Item of a dictionary of any STAC version since 0.7, with absolute and unsigned hrefs.

    pystac migrates old versions (``proj:epsg`` becomes ``proj:code``, and so on). Links of the tree that
    the Item came from are left out; ``self``, ``collection``, ``derived_from`` and the like stay.

    Raises
    ------
    CatalogError
        It is no Item, or an href breaks the rule of :func:`resolve_href`.
    """
    import pystac

    name = str(data.get("id", "an item without id"))
    data = _prepared(data, base, remote=remote, name=name)
    try:
        item = pystac.Item.from_dict(data, preserve_dict=False)
    except (pystac.STACError, pystac.STACTypeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CatalogError(
            f"not a STAC Item that can be read: {error!r}", place=name, remedy="validate the catalog"
        ) from error
    if remote and item.get_self_href() is None and base is not None:
        item.set_self_href(base)
    return item


def _prepared(data: Mapping[str, Any], base: str | None, *, remote: bool, name: str) -> dict[str, Any]:
    """Return a copy with hrefs resolved and the slips of old catalogs repaired that pystac trips over."""
    links = [dict(link) for link in data.get("links") or [] if link.get("rel") not in _TREE_LINKS]
    own = next((str(link["href"]) for link in links if link.get("rel") == "self" and link.get("href")), None)
    base = _base(base, own, remote=remote)
    kept = []
    for link in links:
        try:
            href = resolve_href(
                str(link.get("href", "")), base, remote=remote, place=f"{name}, link {link.get('rel')}"
            )
        except CatalogError:
            # A link is never opened; one that cannot be kept is left out, not worth a failed search.
            continue
        kept.append({**link, "href": href})
    if own is None and base is not None and _is_item_file(base):
        kept.append({"rel": "self", "href": base, "type": "application/json"})
    assets = {
        key: {
            **asset,
            "href": resolve_href(
                str(asset.get("href", "")), base, remote=remote, place=f"{name}, asset {key}"
            ),
        }
        for key, asset in (data.get("assets") or {}).items()
    }
    properties = dict(data.get("properties") or {})
    when = properties.get("datetime")
    if isinstance(when, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", when):
        properties["datetime"] = f"{when}T00:00:00Z"  # STAC 0.7 of LandsatLook gives only the day
    return {**data, "links": kept, "assets": assets, "properties": properties}


def _base(base: str | None, own: str | None, *, remote: bool) -> str | None:
    """Return what relative hrefs are relative to: where the file lies, or else the self link.

    A file on disk counts more than its self link, which often still names the place of publication.
    """
    if own is not None and is_remote(own) and (base is None or is_remote(base)):
        return own
    if remote and base is None:
        return None
    return base


def _is_item_file(base: str) -> bool:
    return base.lower().endswith((".json", ".geojson"))
