"""Items into dates: the solar day, the instant, or each for itself; and what counts first within a date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    import pystac

__all__ = ["GroupBy", "ItemGroup", "group_items", "item_time"]

GroupBy = Literal["solar_day", "time", "id"]
_SECONDS_A_DEGREE = 240
"""The sun moves 15 degrees an hour."""


@dataclass(frozen=True, slots=True)
class ItemGroup:
    """The Items of one date, in the order in which they fill pixels: by acquisition time, then by id."""

    time: np.datetime64
    """Acquisition (UTC) of the earliest Item."""
    items: tuple[pystac.Item, ...]
    """The Items; the first valid pixel wins."""
    key: str = ""
    """What they have in common: the solar day, the instant, or the collection and id of the only one."""

    @property
    def cloud_cover(self) -> float:
        """Mean ``eo:cloud_cover`` in percent; infinite where an Item states none."""
        covers = [item.properties.get("eo:cloud_cover") for item in self.items]
        if any(cover is None for cover in covers):
            return float("inf")
        return sum(float(cover) for cover in covers if cover is not None) / len(covers)


def item_time(item: pystac.Item) -> datetime:
    """Return the acquisition time of ``item`` in UTC; the start where it states a range."""
    value = item.datetime or item.common_metadata.start_datetime
    if value is None:
        raise InputError("the Item states no time", place=item.id, remedy="leave it out, or repair it")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def group_items(
    items: Sequence[pystac.Item], groupby: GroupBy | None, longitude: float
) -> tuple[ItemGroup, ...]:
    """Return the dates of ``items``, oldest first.

    ``solar_day`` joins what was taken on one day of mean solar time at ``longitude`` (degrees, of the grid's
    centre): neighbouring scenes and path/rows of one pass, and never two passes of a sun-synchronous
    satellite over a place; ``time`` joins what has one instant; ``id`` and None join nothing. The order of
    ``items`` does not matter.
    """
    shift = timedelta(seconds=round(longitude * _SECONDS_A_DEGREE))
    keys = {
        "solar_day": lambda item: (item_time(item) + shift).date().isoformat(),
        "time": lambda item: item_time(item).isoformat(),
        "id": lambda item: f"{item.collection_id or ''}/{item.id}",
    }
    key_of = keys.get(groupby or "id")
    if key_of is None:
        raise InputError(
            f"unknown groupby {groupby!r}", place="groupby", remedy=nearest_name(str(groupby), keys)
        )
    groups: dict[str, list[pystac.Item]] = {}
    for item in sorted(items, key=lambda item: (item_time(item), item.collection_id or "", item.id)):
        groups.setdefault(key_of(item), []).append(item)
    dates = [ItemGroup(_stamp(members[0]), tuple(members), key) for key, members in groups.items()]
    return tuple(sorted(dates, key=lambda group: (group.time, group.items[0].id)))


def _stamp(item: pystac.Item) -> np.datetime64:
    return np.datetime64(item_time(item).replace(tzinfo=None), "ns")
