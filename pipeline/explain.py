"""What a source has at one pixel, and why: dates, files, Items, masks and calibrations, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import ReadError

from .grid import Window
from .harmonise import ItemPlan, read_mask
from .source import Reason

if TYPE_CHECKING:
    import pystac
    from numpy.typing import NDArray

    from .cube_source import CubeDate, CubeSource
    from .source import Source

__all__ = ["WORDS", "explain_items", "explain_source", "plain_number"]

WORDS = {
    Reason.VALID: "valid",
    Reason.NODATA: "nodata: the source marks it so, or holds no finite number",
    Reason.NO_SCENE: "no scene covers it",
    Reason.CLOUD: "masked: cloud, shadow or another class that the mask leaves out",
    Reason.READ_ERROR: "a read failed after all retries, and the run was told to go on",
    Reason.OUTSIDE: "outside the region",
}
"""Every reason in words."""


def plain_number(value: Any) -> float | int | None:
    """Return a numpy scalar as the shortest number that is equal in its own type; None for NaN."""
    if np.issubdtype(type(value), np.integer):
        return int(value)
    return None if np.isnan(value) else float(str(value))


def explain_source(source: Source, row: int, col: int) -> list[dict[str, Any]]:
    """Return for each input and date its time, reason and values at one pixel of the grid.

    Raises `ReadError` where a file cannot be read.
    """
    block = source.read(_pixel(row, col))
    found = []
    for name, layer in source.layers.items():
        for t, time in enumerate(layer.times):
            code = Reason(int(block.reason[name][t, 0, 0, 0]))
            date: dict[str, Any] = {} if len(source.layers) == 1 else {"input": name}
            date |= {} if time is None else {"time": _day(time)}
            date |= {"reason": WORDS[code], "values": _values(layer.bands, block.data[name][t])}
            found.append(date)
    return found


def explain_items(
    source: CubeSource, items: Mapping[tuple[str | None, str], pystac.Item], row: int, col: int
) -> list[dict[str, Any]]:
    """Return for each period what the cube holds at one pixel, and every Item that could have given it.

    Parameters
    ----------
    source
        The cube.
    items
        (collection, id) -> the Item that the cube was made of, for platform and processing baseline.
    row, col
        The pixel of the cube's grid.
    """
    window = _pixel(row, col)
    (layer,) = source.layers.values()
    found = []
    for index, dates in enumerate(source.periods):
        shown = [_date(source, date, items, window) for date in dates]
        one: dict[str, Any] = {}
        if source.composite is None:
            found += shown
            continue
        try:
            values, codes = source.read_period(index, window)
        except ReadError as error:
            one = {"composite": str(source.composite), "reason": str(error)}
        else:
            valid = sum(date["reason"] == WORDS[Reason.VALID] for date in shown)
            one = {
                "composite": f"{source.composite} of {valid} valid dates",
                "reason": WORDS[Reason(int(codes[0, 0]))],
                "values": _values(layer.bands, values),
            }
        found.append({"period": index + 1, **one, "dates": shown})
    return found


def _pixel(row: int, col: int) -> Window:
    return Window(row, row + 1, col, col + 1)


def _day(time: np.datetime64) -> str:
    return str(np.datetime_as_string(time, unit="s"))


def _values(bands: tuple[str, ...], values: NDArray[Any]) -> dict[str, float | int | None]:
    return {band: plain_number(values[c, 0, 0]) for c, band in enumerate(bands)}


def _date(
    source: CubeSource,
    date: CubeDate,
    items: Mapping[tuple[str | None, str], pystac.Item],
    window: Window,
) -> dict[str, Any]:
    near = [plan for plan in date.items if plan.touches(window)]
    shown = [_item(source, plan, items.get((plan.collection, plan.item_id)), window) for plan in near]
    codes = [one.pop("code") for one in shown]
    winner = next((i for i, code in enumerate(codes) if code == Reason.VALID), None)
    result: dict[str, Any] = {"time": _day(date.time)}
    if winner is not None:
        result |= {"reason": WORDS[Reason.VALID], "from": shown[winner]["item"]}
        result["values"] = shown[winner]["values"]
    else:
        seen = [code for code in codes if code not in (None, Reason.NO_SCENE)]
        result["reason"] = WORDS[max(seen)] if seen else WORDS[Reason.NO_SCENE]
        if None in codes:
            result["reason"] = WORDS[Reason.READ_ERROR]
    for i, one in enumerate(shown):
        if winner is not None and i > winner and codes[i] == Reason.VALID:
            one["reason"] = "valid, but an earlier Item of the date has the pixel"
    result["items"] = shown
    if len(near) < len(date.items):
        result["items_elsewhere"] = len(date.items) - len(near)
    return result


def _item(source: CubeSource, plan: ItemPlan, item: pystac.Item | None, window: Window) -> dict[str, Any]:
    from tilewright.catalogs.offsets import processing_baseline

    shown: dict[str, Any] = {"item": plan.item_id, "collection": plan.collection, "datetime": plan.time}
    if item is not None:
        baseline = processing_baseline(item)
        shown["platform"] = item.properties.get("platform")
        shown["baseline"] = None if baseline is None else "{:02d}.{:02d}".format(*baseline)
    shown = {key: value for key, value in shown.items() if value is not None}
    try:
        values, codes = source.read_item(plan, window)
        code: Reason | None = Reason(int(codes[0, 0]))
        mask = read_mask(plan, source.bands_reader, window) if code != Reason.NO_SCENE else None
    except ReadError as error:
        return {**shown, "covers": None, "reason": f"cannot be read: {error}", "code": None}
    shown |= {"covers": code != Reason.NO_SCENE, "reason": WORDS[Reason(int(codes[0, 0]))], "code": code}
    if code == Reason.NO_SCENE:
        shown["reason"] = "does not cover the pixel"
        return shown
    if mask is not None:
        shown["mask"] = mask
    bands = tuple(band.band for band in plan.sources)
    shown["values"] = _values(bands, values)
    rules = {s.band: asdict(s.calibration) for s in plan.sources}
    same = len({s.calibration for s in plan.sources}) == 1
    shown["calibration"] = next(iter(rules.values())) if same else rules
    return shown
