"""What changed between two results of one place, as polygons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

from .compare import blocks_of, grid_differences, label_of
from .joined import Joiner
from .store import REASON
from .stored import StoredLayer, StoredRasters, open_rasters
from .warp import transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry


__all__ = ["Alert", "find_alerts"]

MOST = 10_000
"""Alerts of one comparison: the largest are kept. More of them is no alert, but another map."""
_UP, _DOWN = 1, 2
_DIRECTIONS = {_UP: ("lower", "higher"), _DOWN: ("higher", "lower")}


@dataclass(frozen=True, slots=True)
class Alert:
    """One connected area in which an output changed in one way."""

    output: str
    """Which output."""
    before: str
    """Label before; of numbers ``lower`` or ``higher``."""
    after: str
    """Label after; of numbers ``higher`` or ``lower``."""
    pixels: int
    """Pixels of the area."""
    geometry: BaseGeometry
    """The area along pixel edges, in the results' CRS."""

    def feature(self, box: GeoBox) -> dict[str, Any]:
        """Return a GeoJSON Feature in longitude and latitude; area in square metres where the CRS is in metres."""
        import shapely

        geometry, crs = self.geometry, box.crs
        if crs is not None:
            geometry = shapely.transform(
                geometry, transformer(str(crs), "OGC:CRS84").transform, interleaved=False
            )
        properties: dict[str, Any] = {
            "output": self.output,
            "before": self.before,
            "after": self.after,
            "pixels": self.pixels,
        }
        if crs is not None and crs.projected and crs.units[0] in ("metre", "m"):
            properties["area_m2"] = round(float(self.geometry.area), 3)
        return {"type": "Feature", "geometry": shapely.geometry.mapping(geometry), "properties": properties}


def find_alerts(
    before: str, after: str, *, above: float | None = None, least: int = 1
) -> tuple[list[Alert], GeoBox, list[str]]:
    """Return the areas that changed from one result to the next, the largest first.

    Labels have changed where both results have one and they differ; numbers where they differ by more than
    ``above``. Pixels without a value on one side are no change. The memory is that of a block of both results
    (2,048 px a side at most) and the polygons.

    Parameters
    ----------
    before, after
        Folders of runs, at paths or in an object store.
    above
        Least difference of a number, in units of its output; None leaves numbers out.
    least
        Fewest pixels of an area.

    Returns
    -------
    alerts, geobox, notes
        The areas in pixels of ``geobox``; sentences on what could not be compared or was left out.

    Raises
    ------
    ReadError, InputError
        Where a result cannot be opened.
    """
    with open_rasters(before) as one, open_rasters(after) as other:
        box = other.geobox
        if differing := tuple(grid_differences(one.geobox, box)):
            return [], box, [f"not compared, the grids differ: {'; '.join(differing)}"]
        names = [
            name
            for name, layer in other.layers.items()
            if name != REASON and name in one.layers and (layer.labels or above is not None)
        ]
        found = [alert for name in names for alert in _areas(one, other, name, above)]
    found = [alert for alert in found if alert.pixels >= least]
    found.sort(key=lambda alert: (-alert.pixels, alert.output, alert.geometry.bounds))
    notes = []
    if len(found) > MOST:
        notes.append(f"{len(found) - MOST:,} areas of at most {found[MOST].pixels} px were left out")
    return found[:MOST], box, notes


def _areas(a: StoredRasters, b: StoredRasters, name: str, above: float | None) -> Iterator[Alert]:
    """Yield the areas of one output, joined over the edges of blocks."""
    layer, box = b.layers[name], b.geobox
    if layer.labels and a.layers[name].classes != layer.classes:
        raise InputError(f"the classes of {name} are not those of the result before", place="alerts")
    joiners: dict[int, Joiner] = {}
    for _, window in blocks_of(b):
        for band, kinds in enumerate(_kinds(layer, a.read(name, window), b.read(name, window), above)):
            joiners.setdefault(band, Joiner(box.shape[1])).add(window, kinds, {})
    for joiner in joiners.values():
        for area in joiner.finish():
            yield Alert(name, *_names(layer, area.kind), area.pixels, area.placed(box))


def _kinds(layer: StoredLayer, a: NDArray[Any], b: NDArray[Any], above: float | None) -> NDArray[np.int64]:
    """Return in which way each pixel changed, 0 where it did not, for stored values ``[C, rows, columns]``."""
    both = layer.valid(a) & layer.valid(b)
    if layer.labels:
        # Labels are counted from 1: the change from 0 to another is one too.
        kinds = (a.astype(np.int64) + 1) << 17 | (b.astype(np.int64) + 1)
        return np.where(both & (a != b), kinds, 0).astype(np.int64)
    step = (b.astype(np.float64) - a.astype(np.float64)) * layer.scale
    assert above is not None
    return np.where(both & (np.abs(step) > above), np.where(step > 0, _UP, _DOWN), 0).astype(np.int64)


def _names(layer: StoredLayer, kind: int) -> tuple[str, str]:
    if not layer.labels:
        return _DIRECTIONS[kind]
    return label_of(layer, (kind >> 17) - 1), label_of(layer, (kind & 0x1FFFF) - 1)
