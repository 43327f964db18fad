"""Small scenes on disk with their STAC Items, for tests that go the real way from Item to pixel."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pystac
import rasterio
from affine import Affine
from pyproj import Transformer

if TYPE_CHECKING:
    import numpy as np


def write_scene(
    path: Path,
    bands: np.ndarray,
    *,
    crs: str = "EPSG:32633",
    transform: Affine | None = None,
    nodata: float | None = None,
    **options: Any,
) -> Path:
    """Write ``[bands, rows, columns]`` as a tiled GeoTIFF."""
    count, height, width = bands.shape
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": bands.dtype,
        "crs": crs,
        "transform": transform or Affine(10, 0, 500_000, 0, -10, 5_000_000),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
    }
    with rasterio.open(path, "w", **(profile | options)) as out:
        out.write(bands)
    return path


def bbox_of(path: Path) -> list[float]:
    with rasterio.open(path) as data:
        west, south, east, north = data.bounds
        back = Transformer.from_crs(data.crs, "OGC:CRS84", always_xy=True)
        return list(back.transform_bounds(west, south, east, north))


def make_item(
    name: str,
    assets: dict[str, Path | str],
    *,
    when: str = "2024-06-01T10:00:00",
    collection: str = "plain",
    properties: dict[str, Any] | None = None,
    bbox: list[float] | None = None,
    **asset_fields: dict[str, Any],
) -> pystac.Item:
    """Return an Item over local files; ``asset_fields[key]`` are the fields of that asset."""
    local = [Path(str(href)) for href in assets.values() if Path(str(href)).exists()]
    box = bbox or bbox_of(local[0])
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    item = pystac.Item(
        name,
        {"type": "Polygon", "coordinates": [ring]},
        box,
        datetime.fromisoformat(when).replace(tzinfo=UTC),
        properties or {},
        collection=collection,
    )
    for key, href in assets.items():
        extra = {"raster:bands": [{}]} | asset_fields.get(key, {})
        item.add_asset(
            key, pystac.Asset(str(href), media_type="image/tiff; application=geotiff", extra_fields=extra)
        )
    return item


def sentinel_2(name: str, red: Path, nir: Path, scl: Path, when: str, cloud: float = 10.0) -> pystac.Item:
    """Return an Item as Earth Search v1 has them: the offset is applied already, whatever raster:offset says."""
    band = {"raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}]}
    return make_item(
        name,
        {"red": red, "nir": nir, "scl": scl},
        when=when,
        collection="sentinel-2-l2a",
        properties={
            "eo:cloud_cover": cloud,
            "earthsearch:boa_offset_applied": True,
            "s2:processing_baseline": "05.09",
            "constellation": "sentinel-2",
            "platform": "sentinel-2b",
        },
        red=band,
        nir=band,
        scl={"raster:bands": [{"nodata": 0, "data_type": "uint8"}]},
    )
