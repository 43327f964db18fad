"""The attributes of a result's Zarr: CF for xarray and rioxarray, GeoZarr's conventions for everyone else.

Followed, as of version 0.1 of each:

- ``multiscales``: https://github.com/zarr-conventions/multiscales/blob/v0.1/README.md
- ``proj:``: https://github.com/zarr-conventions/proj/blob/v0.1/README.md
- ``spatial:``: https://github.com/zarr-conventions/spatial/blob/v0.1/README.md
- CF 1.11 for grid mapping, flags, scale and offset: https://cfconventions.org/cf-conventions/cf-conventions.html

GeoZarr 1.0 is not out; these three conventions are what its working group published in its place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError

from .overviews import level_shape
from .reduce import quantisation
from .source import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.crs import CRS

    from tilewright.kernels.contract import OutputSpec

    from .grid import Grid

__all__ = [
    "axis_attributes",
    "axis_coordinates",
    "fill_value",
    "grid_from_attributes",
    "group_attributes",
    "level_transform",
    "outputs_from_attributes",
    "reason_attributes",
    "root_attributes",
    "spatial_ref_attributes",
    "variable_attributes",
]

Attributes = dict[str, Any]

_RAW = "https://raw.githubusercontent.com/zarr-conventions"
_WEB = "https://github.com/zarr-conventions"
CONVENTIONS = {
    "multiscales": ("d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
    "proj": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "Coordinate reference system information for geospatial data",
    ),
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}
"""Name -> (identifier, description) of the conventions, as their README files register them."""


def _registered(*names: str) -> list[dict[str, str]]:
    return [
        {
            "uuid": CONVENTIONS[name][0],
            "schema_url": f"{_RAW}/{name}/refs/tags/v0.1/schema.json",
            "spec_url": f"{_WEB}/{name}/blob/v0.1/README.md",
            "name": name,
            "description": CONVENTIONS[name][1],
        }
        for name in names
    ]


def level_transform(grid: Grid, level: int) -> tuple[float, float, float, float, float, float]:
    """Return the affine ``(a, b, c, d, e, f)`` of a level: pixels are exactly ``2**level`` times larger."""
    a, b, c, d, e, f = grid.transform
    side = 2**level
    return a * side, b * side, c, d * side, e * side, f


def _bbox(grid: Grid) -> list[float]:
    a, b, c, d, e, f = grid.transform
    rows, cols = grid.shape
    corners = [(0, 0), (0, cols), (rows, 0), (rows, cols)]
    xs = [a * col + b * row + c for row, col in corners]
    ys = [d * col + e * row + f for row, col in corners]
    return [min(xs), min(ys), max(xs), max(ys)]


def _crs(grid: Grid) -> CRS:
    if grid.geobox.crs is None:
        raise StoreError("the grid has no CRS", place="result.zarr", remedy="give the input a CRS")
    return grid.geobox.crs


def _proj(grid: Grid) -> Attributes:
    crs = _crs(grid)
    code = f"EPSG:{crs.epsg}" if crs.epsg else None
    return {"proj:code": code} if code else {"proj:wkt2": crs.to_wkt()}


def root_attributes(
    grid: Grid, outputs: dict[str, OutputSpec], levels: int, shard: int, complete: bool, extra: Attributes
) -> Attributes:
    """Return the root group's attributes; ``complete`` says that all levels are there and will not change."""
    layout: list[Attributes] = []
    for level in range(levels):
        entry: Attributes = {"asset": str(level)}
        if level:
            entry["derived_from"] = str(level - 1)
        side = 2.0 if level else 1.0
        entry["transform"] = {"scale": [side, side], "translation": [0.0, 0.0]}
        entry["spatial:shape"] = list(level_shape(grid.shape, level))
        entry["spatial:transform"] = list(level_transform(grid, level))
        layout.append(entry)
    methods = sorted({"mode" if spec.kind == "class" else "average" for spec in outputs.values()})
    method = methods[0] if len(methods) == 1 else "average for values, mode for classes"
    attributes: Attributes = {
        **extra,
        "Conventions": "CF-1.11",
        "zarr_conventions": _registered("multiscales", "proj", "spatial"),
        "multiscales": {"layout": layout, "resampling_method": method},
        **_proj(grid),
        "spatial:dimensions": ["y", "x"],
        "spatial:bbox": _bbox(grid),
        "spatial:registration": "pixel",
        "tilewright:complete": complete,
        "tilewright:shard": shard,
        "tilewright:crs_wkt": _crs(grid).to_wkt(),
        "tilewright:outputs": {name: _spec_json(spec) for name, spec in outputs.items()},
    }
    if grid.region is not None:
        attributes["tilewright:region"] = _region_text(grid)
    return attributes


def _region_text(grid: Grid) -> str:
    import shapely

    return str(shapely.to_wkt(grid.region, rounding_precision=-1))


def _spec_json(spec: OutputSpec) -> Attributes:
    plain: Attributes = spec.model_dump(mode="json", exclude_defaults=True)
    plain["kind"] = spec.kind
    if isinstance(nodata := plain.get("nodata"), float) and not math.isfinite(nodata):
        plain["nodata"] = str(nodata)  # JSON has no NaN
    return plain


def outputs_from_attributes(attributes: Attributes) -> dict[str, OutputSpec]:
    """Return the outputs that `root_attributes` wrote."""
    from tilewright.kernels.contract import OutputSpec

    return {
        name: OutputSpec.model_validate(plain) for name, plain in attributes["tilewright:outputs"].items()
    }


def grid_from_attributes(attributes: Attributes) -> Grid:
    """Return the grid that `root_attributes` wrote."""
    import shapely
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from .grid import Grid

    level = attributes["multiscales"]["layout"][0]
    crs = attributes.get("proj:code") or attributes["tilewright:crs_wkt"]
    region = attributes.get("tilewright:region")
    geobox = GeoBox(tuple(level["spatial:shape"]), Affine(*level["spatial:transform"]), crs)
    return Grid(geobox, shapely.from_wkt(region) if region else None)


def group_attributes(grid: Grid, level: int) -> Attributes:
    """Return the attributes of one level's group."""
    return {
        "Conventions": "CF-1.11",
        "coordinates": "spatial_ref",  # so that xarray carries the grid mapping with every variable
        "zarr_conventions": _registered("proj", "spatial"),
        **_proj(grid),
        "spatial:dimensions": ["y", "x"],
        "spatial:shape": list(level_shape(grid.shape, level)),
        "spatial:transform": list(level_transform(grid, level)),
        "spatial:registration": "pixel",
    }


def spatial_ref_attributes(grid: Grid, level: int) -> Attributes:
    """Return the grid mapping of a level as rioxarray and GDAL read it: CF's parameters, WKT, GeoTransform."""
    import pyproj

    wkt = _crs(grid).to_wkt()
    a, b, c, d, e, f = level_transform(grid, level)
    mapping = {key: value for key, value in pyproj.CRS.from_wkt(wkt).to_cf().items() if value is not None}
    return {
        **mapping,
        "crs_wkt": wkt,
        "spatial_ref": wkt,
        "GeoTransform": " ".join(repr(float(n)) for n in (c, a, b, f, d, e)),
    }


def axis_coordinates(grid: Grid, level: int) -> dict[str, NDArray[np.float64]] | None:
    """Return the pixel centres ``{"y": [rows], "x": [columns]}`` of a level; None where the grid is rotated."""
    a, b, c, d, e, f = level_transform(grid, level)
    if b or d:
        return None
    rows, cols = level_shape(grid.shape, level)
    along_y, along_x = (np.arange(n, dtype=np.float64) + 0.5 for n in (rows, cols))
    return {"y": f + e * along_y, "x": c + a * along_x}


def axis_attributes(grid: Grid, axis: str) -> Attributes:
    """Return the CF attributes of the coordinate variable ``x`` or ``y``."""
    geographic = bool(_crs(grid).geographic)
    if geographic:
        name = {"x": "longitude", "y": "latitude"}[axis]
        units = {"x": "degrees_east", "y": "degrees_north"}[axis]
    else:
        name = f"projection_{axis}_coordinate"
        units = str(_crs(grid).units[0]).replace("metre", "m")
    return {
        "axis": axis.upper(),
        "standard_name": name,
        "long_name": f"{axis} of the pixel centre",
        "units": units,
    }


def fill_value(spec: OutputSpec) -> Any:
    """Return the stored mark of a pixel without a result as a numpy scalar of the stored type."""
    return np.array(spec.stored_nodata).astype(spec.stored_dtype)[()]


def variable_attributes(spec: OutputSpec) -> Attributes:
    """Return the CF attributes of an output's variable: meaning, units, flags, scale, offset, fill."""
    from xarray.backends.zarr import FillValueCoder

    nodata = fill_value(spec)
    attributes: Attributes = {
        "grid_mapping": "spatial_ref",
        "_FillValue": FillValueCoder.encode(nodata.item(), np.dtype(spec.stored_dtype)),
        "tilewright:kind": spec.kind,
    }
    if spec.description:
        attributes["long_name"] = spec.description
    if spec.units:
        attributes["units"] = spec.units
    scale, offset = quantisation(spec)
    if (scale, offset) != (1.0, 0.0):
        attributes |= {"scale_factor": scale, "add_offset": offset}
    if spec.kind == "class" and spec.classes:
        attributes["flag_values"] = list(range(len(spec.classes)))
        attributes["flag_meanings"] = " ".join("_".join(name.split()) for name in spec.classes)
    elif spec.kind != "class" and spec.range is not None:
        attributes["tilewright:range"] = list(spec.range)  # not valid_range: rounding would be masked
    if spec.kind == "score" and spec.threshold is not None:
        attributes["tilewright:threshold"] = spec.threshold
    return attributes


def reason_attributes() -> Attributes:
    """Return the CF attributes of the ``reason`` layer. It has no nodata: 0 means that nothing is missing."""
    return {
        "grid_mapping": "spatial_ref",
        "long_name": "why a pixel has no result",
        "flag_values": [int(reason) for reason in Reason],
        "flag_meanings": " ".join(reason.name.lower() for reason in Reason),
    }
