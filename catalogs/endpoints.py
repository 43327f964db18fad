"""Which catalogs there are: the named ones, and what a path or an address stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tilewright.errors import CatalogError, nearest_name

__all__ = ["ENDPOINTS", "Endpoint", "endpoint", "is_remote"]

_PARQUET = (".parquet", ".geoparquet")
_JSON = (".json", ".geojson")
_REMOTE = ("http", "https", "s3", "gs", "az", "abfs", "abfss")
_ROOT_NAMES = ("catalog.json", "collection.json")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A catalog that can be searched."""

    name: str
    """Short name, or the address itself where it has none."""
    url: str
    """Address of the API or file; of a file on disk, its absolute path."""
    kind: Literal["api", "static", "geoparquet"]
    """How it is searched: by the server, by walking JSON files, or by scanning a table."""
    signing: Literal["none", "planetary-computer", "s3-keys"] = "none"
    """What its assets need at open: nothing, Planetary Computer's tokens, or keys of the bucket, which are found
    by :mod:`tilewright.catalogs.stores`."""
    note: str = ""
    """What a user should know about it: collections, limits."""

    @property
    def remote(self) -> bool:
        """True when somebody else writes the catalog, so its hrefs must never reach the local disk."""
        return is_remote(self.url)


ENDPOINTS: dict[str, Endpoint] = {
    each.name: each
    for each in (
        Endpoint(
            "earth-search",
            "https://earth-search.aws.element84.com/v1",
            "api",
            note="sentinel-2-l2a, sentinel-2-c1-l2a, sentinel-1-grd, landsat-c2-l2, naip, cop-dem-glo-30; "
            "pages above some 6 MB answer 502; landsat and naip assets are requester pays on S3",
        ),
        Endpoint(
            "planetary-computer",
            "https://planetarycomputer.microsoft.com/api/stac/v1",
            "api",
            signing="planetary-computer",
            note="sentinel-2-l2a, sentinel-1-rtc, landsat-c2-l2, naip, cop-dem-glo-30; assets need tokens that "
            "last under an hour; PC_SDK_SUBSCRIPTION_KEY raises the rate limit",
        ),
        # https://documentation.dataspace.copernicus.eu/APIs/STAC.html
        Endpoint(
            "cdse",
            "https://stac.dataspace.copernicus.eu/v1",
            "api",
            signing="s3-keys",
            note="sentinel-2-l2a, and others that are read as plain rasters; assets are JPEG 2000 in s3://eodata and "
            "need CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY",
        ),
        # https://www.usgs.gov/landsat-missions/spatiotemporal-asset-catalog-stac
        Endpoint(
            "landsatlook",
            "https://landsatlook.usgs.gov/stac-server",
            "api",
            signing="s3-keys",
            note="landsat-c2l2-sr and landsat-c2l2-st, Items of their own; assets are read from s3://usgs-landsat, "
            "requester pays, with the account of AWS_ACCESS_KEY_ID",
        ),
    )
}
"""The catalogs that have a name."""


def endpoint(name_or_url: str | Path | Endpoint) -> Endpoint:
    """Return the catalog meant by a name, an address or a path.

    Parameters
    ----------
    name_or_url
        A key of ``ENDPOINTS``; the address of a STAC API; a path or address of a ``catalog.json``,
        ``collection.json``, Item or ItemCollection (``.json``, ``.geojson``), or of a stac-geoparquet file
        (``.parquet``); or a folder that holds a ``catalog.json`` or ``collection.json``.

    Raises
    ------
    CatalogError
        It is none of these.
    """
    if isinstance(name_or_url, Endpoint):
        return name_or_url
    text = str(name_or_url)
    if text in ENDPOINTS:
        return ENDPOINTS[text]
    if is_remote(text):
        return _remote(text)
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        roots = [path / name for name in _ROOT_NAMES if (path / name).is_file()]
        if not roots:
            raise CatalogError(
                "the folder holds no catalog.json or collection.json",
                place=text,
                remedy="give the file of a catalog, or another folder",
            )
        path = roots[0]
    if path.is_file():
        return _local(path)
    if "/" in text or "\\" in text or path.suffix:
        raise CatalogError("no such file", place=text, remedy="check the path of the catalog")
    raise CatalogError(f"unknown catalog {text!r}", remedy=nearest_name(text, ENDPOINTS))


def is_remote(href: str) -> bool:
    """Return whether an href names something on the network."""
    return urlsplit(href).scheme.lower() in _REMOTE


def _remote(url: str) -> Endpoint:
    for known in ENDPOINTS.values():
        if url.rstrip("/") == known.url:
            return known
    path = urlsplit(url).path.lower()
    if path.endswith(_PARQUET):
        return Endpoint(url, url, "geoparquet")
    if path.endswith(_JSON):
        return Endpoint(url, url, "static")
    if urlsplit(url).scheme not in ("http", "https"):
        raise CatalogError(
            "not a catalog that can be read", place=url, remedy="give an http(s) address or a .parquet file"
        )
    return Endpoint(url, url.rstrip("/"), "api")


def _local(path: Path) -> Endpoint:
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return Endpoint(str(path), str(path.resolve()), "geoparquet")
    if suffix in _JSON:
        return Endpoint(str(path), str(path.resolve()), "static")
    raise CatalogError(
        f"a {suffix or 'nameless'} file is not a catalog",
        place=str(path),
        remedy="known: .json, .geojson (STAC) and .parquet (stac-geoparquet)",
    )
