"""A small archive on a disk that grows: scenes as GeoTIFF, their Items in an ItemCollection, and recipes over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

SIDE = 96
"""Pixels a side of a scene."""
RESOLUTION = 10.0
ORIGIN = (500_000.0, 5_300_000.0)
"""Upper left corner of the archive in UTM 33N."""
CRS = "EPSG:32633"
LEVEL_KERNEL = """
import tilewright

@tilewright.kernel(
    inputs={"image": {"bands": ["b1"]}},
    outputs={"level": {"kind": "class", "classes": ["dark", "bright"]}},
    radius=0,
)
def level(x):
    return (x > 5000).float()
"""


def slow_kernel(seconds: float) -> str:
    """Return the code of a kernel ``slow`` that takes so long for a batch; it stands below `LEVEL_KERNEL`."""
    return f"""
import time

@tilewright.kernel(inputs={{"image": {{"bands": ["b1"]}}}}, outputs={{"twice": {{"kind": "value"}}}}, radius=0)
def slow(x):
    time.sleep({seconds})
    return 2 * x
"""


def durable(out: Path) -> list[str]:
    """Names of the shards in a ledger, in order, repeated where they were computed twice."""
    path = out / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []
    return [line["shard"] for line in lines if "shard" in line]


"""Text of a file with a kernel that tells what is bright, for processes that find it by its path."""


class Archive:
    """Scenes of one band, ``[SIDE, SIDE]`` uint16, in a row from west to east: column 0, 1, ... is a place.

    What a scene shows is a gradient; a square of it may be bright.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.items: dict[str, dict[str, Any]] = {}

    @property
    def catalog(self) -> Path:
        """The ItemCollection."""
        return self.folder / "items.json"

    def add(
        self, day: str, place: int = 0, *, bright: slice | None = None, version: str = "01.00", name: str = ""
    ) -> str:
        """Add a scene, or put another processing in its place; returns the Item's id."""
        name = name or f"scene-{day}-{place}"
        pixels = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint16) + 100
        if bright is not None:
            pixels[bright, bright] = 9_000
        if version != "01.00":
            pixels += 1
        left, top = ORIGIN[0] + place * SIDE * RESOLUTION, ORIGIN[1]
        transform = from_origin(left, top, RESOLUTION, RESOLUTION)
        path = self.folder / f"{name}-{version}.tif"
        profile = {
            "driver": "GTiff",
            "width": SIDE,
            "height": SIDE,
            "count": 1,
            "dtype": "uint16",
            "crs": CRS,
        }
        with rasterio.open(path, "w", **profile, transform=transform, nodata=0) as out:
            out.write(pixels, 1)
        self.items[name] = _item(name, day, path, transform, version)
        self._write()
        return name

    def withdraw(self, name: str, *, file: bool = True) -> None:
        """Take a scene out of the archive: its file, and its Item."""
        item = self.items.pop(name)
        if file:
            (self.folder / item["assets"]["b1"]["href"].removeprefix("./")).unlink()
        self._write()

    def recipe(self, kernel: str, **changes: Any) -> dict[str, Any]:
        """Return a recipe over the archive, as plain data."""
        return {
            "name": "watched",
            "catalog": str(self.catalog),
            "collections": ["scenes"],
            "dates": "2024-01-01/..",
            "bands": ["b1"],
            "grid": {"resolution": RESOLUTION, "crs": CRS},
            "cube": {"resampling": "nearest", "mask": "none"},
            "kernel": {"name": kernel},
            "run": {"tile": 32, "shard": 32, "batch": 1, "device": "cpu", "threads": 1, "cores": 1},
            **changes,
        }

    def regions(self, places: dict[str, int], file: str = "regions.geojson") -> Path:
        """Write a file of regions: each lies inside of the scenes of a place."""
        features = []
        for name, place in places.items():
            left = ORIGIN[0] + place * SIDE * RESOLUTION
            box = (
                left + 50,
                ORIGIN[1] - SIDE * RESOLUTION + 50,
                left + SIDE * RESOLUTION - 50,
                ORIGIN[1] - 50,
            )
            features.append(
                {
                    "type": "Feature",
                    "properties": {"name": name},
                    "geometry": _polygon(transform_bounds(CRS, "EPSG:4326", *box)),
                }
            )
        path = self.folder / file
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return path

    def _write(self) -> None:
        content = {"type": "FeatureCollection", "features": list(self.items.values())}
        beside = self.catalog.with_suffix(".new")
        beside.write_text(json.dumps(content))
        beside.replace(self.catalog)


def _polygon(bounds: tuple[float, float, float, float]) -> dict[str, Any]:
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def _item(name: str, day: str, path: Path, transform: Any, version: str) -> dict[str, Any]:
    left, top = transform.c, transform.f
    bounds = transform_bounds(CRS, "EPSG:4326", left, top - SIDE * RESOLUTION, left + SIDE * RESOLUTION, top)
    asset = {
        "href": f"./{path.name}",
        "type": "image/tiff; application=geotiff",
        "roles": ["data"],
        "bands": [{"name": "b1", "data_type": "uint16", "nodata": 0}],
        "proj:code": CRS,
        "proj:shape": [SIDE, SIDE],
        "proj:transform": list(transform)[:6],
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        "id": name,
        "collection": "scenes",
        "geometry": _polygon(bounds),
        "bbox": list(bounds),
        "properties": {"datetime": f"{day}T10:00:00Z", "processing:version": version, "proj:code": CRS},
        "links": [],
        "assets": {"b1": asset},
    }
