"""One Item over a window: its bands in physical units, masked, with the reason of every pixel that is missing.

This is the only place of the pipeline where scale and offset are applied; which they are is decided by
:mod:`tilewright.catalogs.offsets`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

from .outlines import touches
from .readers import BandFile, BandReader
from .reading import concurrently
from .source import Reason
from .warp import centres_inside, transformer

if TYPE_CHECKING:
    import pystac
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from tilewright.catalogs.offsets import ScaleOffset
    from tilewright.catalogs.sensors import MaskKind
    from tilewright.catalogs.sources import BandSource

    from .grid import Grid, Window

__all__ = ["ItemPlan", "MaskRule", "describe_plan", "item_reason", "plan_item", "read_item", "read_mask"]

_SLACK = 0.1
"""Share of an Item's bbox by which it is widened before anything is concluded from it: catalogs round."""


@dataclass(frozen=True, slots=True)
class MaskRule:
    """The band that masks an Item, and how it is read."""

    file: BandFile
    """The mask band."""
    kind: MaskKind
    """How its values are read; see `tilewright.catalogs.masks`."""
    exclude: tuple[str | int, ...] | None
    """What is left out; None for the default of the kind."""


@dataclass(frozen=True)
class ItemPlan:
    """All that reading an Item needs, as plain data that travels to workers."""

    item_id: str
    """The Item."""
    collection: str | None
    """Its collection."""
    time: str
    """Its time, ISO 8601 UTC."""
    sources: tuple[BandSource, ...]
    """Its bands, in the order wanted, with scale, offset and nodata."""
    files: tuple[BandFile, ...]
    """The same bands, as readers take them."""
    mask: MaskRule | None
    """What masks it besides nodata."""
    outline: BaseGeometry | None
    """Its bbox in grid pixels, widened by a tenth; None where it has none that can be placed."""

    def touches(self, window: Window) -> bool:
        """False where the Item surely has no pixel in ``window``; decided without opening a file."""
        import shapely

        if self.outline is None:
            return True
        box = shapely.box(window.col0, window.row0, window.col1, window.row1)
        return touches(self.outline, box)


def _file(source: BandSource) -> BandFile:
    stated = None
    if source.crs is not None and source.transform is not None and source.shape is not None:
        stated = (source.crs, source.transform, source.shape)
    return BandFile(
        source.href,
        source.index,
        source.nodata,
        source.nodata_from in ("recipe", "item"),
        source.categorical,
        f"{source.item_id}, band {source.band}",
        stated,
    )


def plan_item(
    item: pystac.Item,
    bands: Sequence[str],
    grid: Grid,
    *,
    mask: str | Collection[str | int] | None,
    offsets: Mapping[str, Sequence[float]] | None,
    nodata: Mapping[str, float] | None,
) -> ItemPlan:
    """Resolve what is to be read of ``item``; opens nothing.

    ``mask`` is ``"default"``, None, or what the mask band's reader shall leave out. Raises `InputError` for
    a band that the Item lacks, or whose scale and offset are undecided.
    """
    from tilewright.catalogs.sources import band_sources

    from .groups import item_time

    sources = band_sources(item, bands, offsets=offsets, nodata=nodata)
    rule = None if mask is None else _mask_rule(item, mask, nodata)
    return ItemPlan(
        item.id,
        item.collection_id,
        item_time(item).isoformat().replace("+00:00", "Z"),
        sources,
        tuple(_file(source) for source in sources),
        rule,
        _outline(item, grid),
    )


def _mask_rule(
    item: pystac.Item, mask: str | Collection[str | int], nodata: Mapping[str, float] | None
) -> MaskRule | None:
    from tilewright.catalogs.sensors import sensor_for
    from tilewright.catalogs.sources import band_source

    if isinstance(mask, str) and mask != "default":
        raise InputError(
            f"unknown mask {mask!r}", place="mask", remedy="use default, none, or a list of classes"
        )
    sensor = sensor_for(item)
    if sensor.mask_band is None or sensor.mask_kind is None:
        return None
    try:
        file = _file(band_source(item, sensor.mask_band, nodata=nodata))
    except InputError as error:
        if sensor.radar and isinstance(mask, str):
            return None  # radar is NaN outside its footprint; a layover mask refines that
        raise InputError(
            f"it has no mask band: {error.cause}",
            place=item.id,
            remedy="set mask to none to read it unmasked",
        ) from error
    return MaskRule(file, sensor.mask_kind, None if isinstance(mask, str) else tuple(mask))


def _outline(item: pystac.Item, grid: Grid) -> BaseGeometry | None:
    """Return the Item's bbox in grid pixels, or None where nothing can be told from it."""
    import shapely

    if not item.bbox or len(item.bbox) not in (4, 6) or grid.geobox.crs is None:
        return None
    half = len(item.bbox) // 2
    west, south, east, north = item.bbox[0], item.bbox[1], item.bbox[half], item.bbox[half + 1]
    if west > east:  # over the antimeridian (RFC 7946, section 5.2)
        east += 360
    pad_x, pad_y = _SLACK * (east - west) + 0.01, _SLACK * (north - south) + 0.01
    south, north = max(south - pad_y, -90), min(north + pad_y, 90)
    ring = shapely.segmentize(
        shapely.box(west - pad_x, south, east + pad_x, north), (east - west + 1e-9) / 16
    )
    move = transformer("OGC:CRS84", str(grid.geobox.crs))

    def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = move.transform(points[:, 0], points[:, 1])
        u, v = ~grid.geobox.affine * (np.asarray(x), np.asarray(y))
        return np.column_stack([u, v])

    moved = shapely.transform(ring, to_pixels)
    usable = np.isfinite(shapely.get_coordinates(moved)).all() and moved.is_valid
    # A lon/lat grid sees the other side of the antimeridian 360 degrees away.
    wraps = grid.geobox.crs.geographic and (west - pad_x < -180 or east + pad_x > 180)
    return moved if usable and not wraps else None


def item_reason(plan: ItemPlan, window: Window, code: Reason) -> NDArray[np.uint8]:
    """Return ``code`` where the Item may have pixels, by its bbox, and NO_SCENE elsewhere."""
    inside = centres_inside(plan.outline, window)
    return np.where(inside, np.uint8(code), np.uint8(Reason.NO_SCENE))


def read_item(
    plan: ItemPlan, reader: BandReader, window: Window, resampling: Mapping[str, str], dtype: str
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return ``([C, rows, columns], reason [rows, columns])`` of an Item.

    Values are ``DN * scale + offset`` in the band's units, computed in double precision and stored as
    ``dtype``; NaN where the reason is not VALID. A pixel is valid where all bands are and the mask allows it.
    The files are read beside each other, once the mask has left anything to read.
    """
    covered = reader.placement(plan.files[0]).covers(window)
    codes = np.where(covered, np.uint8(Reason.VALID), np.uint8(Reason.NO_SCENE))
    shape = (len(plan.files), *window.shape)
    if plan.mask is not None and covered.any():
        _apply_mask(plan.mask, reader, window, codes)
    if not (codes == Reason.VALID).any():
        return np.full(shape, np.nan, dtype), codes
    out = np.empty(shape, dtype)
    _read_bands(plan, reader, window, resampling, out, whole=bool(covered.all()))
    for rows in _strips(window.shape):
        _mark_missing(out[:, rows], codes[rows])
    return out, codes


def _read_bands(
    plan: ItemPlan,
    reader: BandReader,
    window: Window,
    resampling: Mapping[str, str],
    out: NDArray[Any],
    *,
    whole: bool,
) -> None:
    """Write the bands into ``out [C, rows, columns]``, NaN where they have no value.

    ``whole`` is True where the first file covers the window. Such a file writes every pixel itself: filling the
    planes first was a third of the time of an undisturbed read, most of it first touches of fresh memory.
    """
    at = reader.placement(plan.files[0])
    by_file: dict[str, list[int]] = {}
    for c, file in enumerate(plan.files):
        by_file.setdefault(file.href, []).append(c)

    def read_file(channels: Sequence[int]) -> None:  # bands of one file share its blocks: one thread for all
        for c in channels:
            source = plan.sources[c]
            if not (whole and reader.placement(plan.files[c]) == at):
                out[c].fill(np.nan)
            for part, pixels in reader.parts(plan.files[c], window, resampling[source.band]):
                _calibrate(pixels, source.calibration, out[c][part.slices(window)])

    for _ in concurrently(by_file, [partial(read_file, channels) for channels in by_file.values()]):
        pass


def _strips(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows whose pixels fit into a processor's cache: five passes are made over them."""
    step = max(1, 65_536 // max(1, shape[1]))
    for row in range(0, shape[0], step):
        yield slice(row, row + step)


def _mark_missing(values: NDArray[Any], codes: NDArray[np.uint8]) -> None:
    """Write NODATA where a band has no value and nothing else is the reason, and NaN wherever there is one."""
    missing = np.isnan(values[0])
    for plane in values[1:]:
        missing |= np.isnan(plane)
    codes[missing & (codes == Reason.VALID)] = Reason.NODATA
    invalid = codes != Reason.VALID
    if invalid.any():
        np.copyto(values, np.nan, where=invalid[None])


def _calibrate(pixels: NDArray[Any], by: ScaleOffset, out: NDArray[Any]) -> None:
    """Write ``pixels`` in physical units into ``out``; in double precision, a few rows at a time."""
    if by.identity:
        out[...] = pixels
        return
    step = max(1, 32_768 // pixels.shape[1])
    for row in range(0, pixels.shape[0], step):
        part = pixels[row : row + step].astype(np.float64)
        part *= by.scale
        part += by.offset
        out[row : row + step] = part


def _apply_mask(rule: MaskRule, reader: BandReader, window: Window, codes: NDArray[np.uint8]) -> None:
    from tilewright.catalogs.masks import valid_from_mask_band

    values = reader.read(rule.file, window, "nearest")
    missing = np.isnan(values)
    classes = np.where(missing, 0, values).astype(np.int64)
    validity = valid_from_mask_band(rule.kind, classes, rule.exclude)
    here = codes == Reason.VALID
    codes[here & validity.cloud & ~missing] = Reason.CLOUD
    codes[here & (missing | validity.nodata)] = Reason.NODATA


def read_mask(plan: ItemPlan, reader: BandReader, window: Window) -> dict[str, Any] | None:
    """Return value and meaning of the mask band at the first pixel of ``window``; None where nothing masks."""
    from tilewright.catalogs.masks import QA_PIXEL_BITS, SCL_CLASSES

    if plan.mask is None:
        return None
    pixel = reader.read(plan.mask.file, window, "nearest")[0, 0]
    if np.isnan(pixel):
        return {"band": plan.mask.kind, "value": None, "means": "no data"}
    value = int(pixel)
    if plan.mask.kind == "scl":
        names = [name for name, code in SCL_CLASSES.items() if code == value]
    elif plan.mask.kind == "qa_pixel":
        names = [name for name, bit in QA_PIXEL_BITS.items() if value >> bit & 1]
    else:
        names = [
            {0: "clear", 1: "shadow", 2: "layover", 3: "layover and shadow"}.get(value, "outside the swath")
        ]
    return {"band": plan.mask.kind, "value": value, "means": ", ".join(names) or "nothing known"}


def describe_plan(plan: ItemPlan) -> dict[str, Any]:
    """Return what an Item's pixels depend on, as plain data, hrefs unsigned."""
    from tilewright.catalogs.signing import unsigned

    return {
        "id": plan.item_id,
        "collection": plan.collection,
        "datetime": plan.time,
        "bands": [
            {
                "band": source.band,
                "asset": source.asset,
                "href": unsigned(source.href),
                "index": source.index,
                "calibration": asdict(source.calibration),
                "nodata": None if source.nodata is None else repr(source.nodata),
                "nodata_from": source.nodata_from,
                "units": source.units,
                "stated_grid": None if file.stated is None else [file.stated[0], *map(list, file.stated[1:])],
            }
            for source, file in zip(plan.sources, plan.files, strict=True)
        ],
        "mask": None
        if plan.mask is None
        else {
            "kind": plan.mask.kind,
            "href": unsigned(plan.mask.file.href),
            "exclude": "default" if plan.mask.exclude is None else list(plan.mask.exclude),
        },
    }
