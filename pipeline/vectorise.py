"""The objects of a class map as polygons: joined over tiles and shards, measured on the ellipsoid."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tilewright.catalogs.region import split_antimeridian
from tilewright.errors import InputError, StoreError, nearest_name

from .areas import chosen_output, pixel_areas
from .compare import blocks_of, label_of
from .grid import Window
from .joined import Joiner
from .stored import open_rasters
from .warp import transformer

if TYPE_CHECKING:
    import geopandas
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

    from .stored import StoredLayer, StoredRasters

__all__ = ["Cleaning", "MapObject", "find_objects", "in_degrees", "write_objects"]

SUFFIXES = (".parquet", ".geojson", ".gpkg", ".fgb")
"""Formats: GeoParquet, GeoPackage and FlatGeobuf in the result's CRS; GeoJSON in longitude and latitude."""
SCORE = "score"


@dataclass(frozen=True)
class Cleaning:
    """What is done to the mask of each class before it becomes polygons, and what is left out after."""

    opening: int = 0
    """Pixels: parts of an object that no square of 2 n + 1 pixels a side fits into are taken away."""
    closing: int = 0
    """Pixels: gaps that no such square fits into are filled. Comes after the opening."""
    least_m2: float = 0.0
    """Square metres: smaller objects are left out."""

    def __post_init__(self) -> None:
        for name, value in (("open", self.opening), ("close", self.closing), ("least", self.least_m2)):
            if not 0 <= value < math.inf:
                raise InputError(f"{value:g} is not 0 or more", place=f"--{name}")

    @property
    def halo(self) -> int:
        """Pixels around a block on which its mask depends."""
        return 2 * (self.opening + self.closing)

    def clean(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask ``[rows, columns]`` opened and closed; beyond its edge nothing is known, nor changed."""
        from scipy.ndimage import binary_dilation, binary_erosion

        square = np.ones((3, 3), bool)
        for first, second, times in (
            (binary_erosion, binary_dilation, self.opening),
            (binary_dilation, binary_erosion, self.closing),
        ):
            for step in (first, second):
                if times:
                    mask = step(mask, square, iterations=times, border_value=step is binary_erosion)
        return mask


@dataclass(frozen=True, slots=True)
class MapObject:
    """One object: connected pixels of one class."""

    value: int
    """Number of the class."""
    label: str
    """Its name."""
    pixels: int
    """Pixels of the object."""
    area_m2: float | None
    """Its area on the ellipsoid in square metres; None where the grid has no CRS."""
    score: float | None
    """Mean of the result's ``score`` over its pixels; None where there is none."""
    geometry: BaseGeometry
    """Its outline along pixel edges, in the result's CRS."""


def find_objects(
    place: str,
    output: str | None = None,
    classes: Collection[str] | None = None,
    cleaning: Cleaning | None = None,
) -> tuple[list[MapObject], GeoBox]:
    """Return the objects of a class map, from the first row on, and its grid.

    The memory is that of a block (2,048 px a side at most) and the polygons.

    Parameters
    ----------
    place
        Folder of a run, a ``.zarr`` or a ``.tif``, at a path or in an object store.
    output
        Name of a class map; None where there is only one.
    classes
        Names or numbers of classes; None takes all, of a map of two classes the second.
    cleaning
        Morphology of the mask of each class, and the smallest object.

    Raises
    ------
    InputError
        No such class map or class.
    """
    cleaning = cleaning or Cleaning()
    with open_rasters(place) as rasters:
        name = chosen_output(rasters, output, place)
        layer, box = rasters.layers[name], rasters.geobox
        wanted = _numbers(layer, classes, place)
        joiner = Joiner(box.shape[1])
        for _, window in blocks_of(rasters):
            kinds = _kinds(rasters, name, window, wanted, cleaning)
            joiner.add(window, kinds, _weights(rasters, window))
    found = []
    for area in joiner.finish():
        m2 = area.sums.get("area")
        if m2 is not None and m2 < cleaning.least_m2:
            continue
        counted = area.sums.get("scored")
        score = area.sums["score"] / counted if counted else None
        number = area.kind - 1
        placed = area.placed(box)
        found.append(MapObject(number, label_of(layer, number), area.pixels, m2, score, placed))
    return found, box


def write_objects(objects: list[MapObject], box: GeoBox, path: str | Path) -> Path:
    """Write objects as a table with a row each; the file appears when it is complete.

    Columns: ``class`` (number), ``label``, ``pixels``, ``area_m2``, ``score`` and ``geometry``.

    Raises
    ------
    InputError
        A suffix that is none of `SUFFIXES`, or GeoJSON of a grid without a CRS.
    StoreError
        It cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"unknown format {path.suffix!r}", place=str(path), remedy=f"use {', '.join(SUFFIXES)}"
        )
    table = _table(objects, box, lonlat=suffix == ".geojson", place=str(path))
    unfinished = path.with_name(f".{path.stem}.partial{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            table.to_parquet(unfinished, compression="zstd", schema_version="1.1.0")
        elif suffix == ".geojson":
            unfinished.write_text(table.to_json(drop_id=True), encoding="utf-8")
        else:
            table.to_file(unfinished, layer=path.stem)
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        raise StoreError(f"cannot be written: {error}", place=str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _numbers(layer: StoredLayer, classes: Collection[str] | None, place: str) -> set[int] | None:
    """Return the numbers of the wanted classes; None for all."""
    if classes is None:
        return {1} if len(layer.classes) == 2 else None
    found = set()
    for one in classes:
        if one in layer.classes:
            found.add(layer.classes.index(one))
        elif one.isdecimal() and (not layer.classes or int(one) < len(layer.classes)):
            found.add(int(one))
        else:
            raise InputError(
                f"no class {one!r} in {layer.name}", place=place, remedy=nearest_name(one, layer.classes)
            )
    return found


def _kinds(
    rasters: StoredRasters, name: str, window: Window, wanted: set[int] | None, cleaning: Cleaning
) -> NDArray[np.int32]:
    """Return class + 1 of each pixel of the window, 0 where it is in no object."""
    layer, (rows, cols) = rasters.layers[name], rasters.geobox.shape
    around = Window(
        max(0, window.row0 - cleaning.halo),
        min(rows, window.row1 + cleaning.halo),
        max(0, window.col0 - cleaning.halo),
        min(cols, window.col1 + cleaning.halo),
    )
    stored = rasters.read(name, around)[:1]
    valid = layer.valid(stored)[0]
    kinds = np.where(valid, stored[0].astype(np.int32) + 1, 0).astype(np.int32)
    if wanted is not None:
        kinds[~np.isin(kinds, [number + 1 for number in wanted])] = 0
    if cleaning.halo:
        cleaned = np.zeros_like(kinds)
        for kind in np.unique(kinds[kinds > 0]).tolist():
            mask = cleaning.clean(kinds == kind) & valid
            cleaned[mask & ((cleaned == 0) | (kinds == kind))] = kind  # in doubt the pixel's own class
        kinds = cleaned
    return kinds[window.slices(around)]


def _weights(rasters: StoredRasters, window: Window) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    if rasters.geobox.crs is not None:
        found["area"] = pixel_areas(rasters.geobox, window)
    layer = rasters.layers.get(SCORE)
    if layer is not None and not layer.labels:
        stored = rasters.read(SCORE, window)[:1]
        there = layer.valid(stored)[0]
        found["score"] = np.where(there, stored[0] * layer.scale + layer.offset, 0.0).astype(np.float64)
        found["scored"] = there.astype(np.float64)
    return found


def _table(objects: list[MapObject], box: GeoBox, *, lonlat: bool, place: str) -> geopandas.GeoDataFrame:
    import geopandas

    crs = None if box.crs is None else str(box.crs)
    shapes = [one.geometry for one in objects]
    if lonlat:
        if crs is None:
            raise InputError(
                "the grid has no CRS, GeoJSON is in degrees", place=place, remedy="write .parquet or .gpkg"
            )
        shapes, crs = list(in_degrees(shapes, crs)), "OGC:CRS84"
    columns = {
        "class": np.array([one.value for one in objects], np.int32),
        "label": [one.label for one in objects],
        "pixels": np.array([one.pixels for one in objects], np.int64),
        "area_m2": np.array([one.area_m2 for one in objects], np.float64),
        "score": np.array([one.score for one in objects], np.float64),
    }
    return geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(shapes, crs=crs), crs=crs)


def in_degrees(shapes: list[BaseGeometry], crs: str) -> Iterator[BaseGeometry]:
    """Yield polygons in longitude and latitude, cut at the antimeridian (RFC 7946, section 3.1.9)."""
    import shapely

    there = transformer(crs, "OGC:CRS84").transform
    for one in shapes:
        moved = shapely.transform(one, there, interleaved=False)
        west, _, east, _ = moved.bounds
        if east - west > 180:
            unrolled = shapely.transform(
                moved, lambda x, y: (np.where(x < 0, x + 360, x), y), interleaved=False
            )
            moved = split_antimeridian(unrolled)
        yield moved
