"""Spans of time as STAC APIs take them: an instant, a day, a month, a year, or two of them with open ends."""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from tilewright.errors import InputError

if TYPE_CHECKING:
    import pystac

    type TimeLike = str | date | datetime | Sequence[str | date | datetime | None]

__all__ = ["Interval"]

_PARTIAL = re.compile(r"^(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?$")
_LAST = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Interval:
    """A span of time, both ends inside it; None is an open end."""

    start: datetime | None
    """First instant, aware (UTC)."""
    end: datetime | None
    """Last instant, aware (UTC): a year, month or day ends one microsecond before the next."""

    def __post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start > self.end:
            raise InputError(
                f"the dates are reversed: {_short(self.start)} is after {_short(self.end)}",
                place="datetime",
                remedy="write the earlier one first",
            )

    @classmethod
    def parse(cls, value: TimeLike | Interval | None) -> Interval | None:
        """Read ``"2024"``, ``"2024-05"``, ``"2024-05-01"``, an RFC 3339 instant, ``"a/b"``, ``"../b"``, ``"a/.."``.

        Dates, datetimes and pairs of all these do as well; without a zone they are UTC. None is no limit.

        Raises
        ------
        InputError
            Not a date, both ends open, or reversed.
        """
        if value is None or isinstance(value, Interval):
            return value
        if isinstance(value, str):
            pieces: list[str | date | datetime | None] = list(value.split("/"))
        elif isinstance(value, date):
            pieces = [value]
        else:
            pieces = list(value)
        if len(pieces) > 2 or not pieces:
            raise InputError(
                f"{value!r} is not one date or two", place="datetime", remedy="write a date, or first/last"
            )
        first, last = (_bounds(piece) for piece in (pieces[0], pieces[-1]))
        if first[0] is None and last[1] is None:
            raise InputError(
                "both ends are open", place="datetime", remedy="leave the dates out, or give one end"
            )
        return cls(first[0], last[1])

    def __str__(self) -> str:
        """Return the RFC 3339 form that STAC APIs take."""
        if self.start is not None and self.start == self.end:
            return _rfc3339(self.start)
        return "/".join(".." if end is None else _rfc3339(end) for end in (self.start, self.end))

    def overlaps(self, first: datetime | None, last: datetime | None) -> bool:
        """Return whether a span from ``first`` to ``last`` shares an instant with this one."""
        if first is None or last is None:
            return False
        return (self.end is None or first <= self.end) and (self.start is None or last >= self.start)

    def holds(self, item: pystac.Item) -> bool:
        """Return whether an Item's time is in the interval: its start and end where it has them, else datetime."""
        return self.overlaps(*item_times(item))


def item_times(item: pystac.Item) -> tuple[datetime | None, datetime | None]:
    """Return first and last instant of an Item, aware (UTC); None where it gives none."""
    meta = item.common_metadata
    if meta.start_datetime is not None and meta.end_datetime is not None:
        return _utc(meta.start_datetime), _utc(meta.end_datetime)
    when = None if item.datetime is None else _utc(item.datetime)
    return when, when


def _bounds(piece: str | date | datetime | None) -> tuple[datetime | None, datetime | None]:
    """Return first and last instant of one piece; both None for an open end."""
    if piece is None or piece in ("", ".."):
        return None, None
    if isinstance(piece, datetime):
        return _utc(piece), _utc(piece)
    if isinstance(piece, date):
        start = datetime.combine(piece, time(), UTC)
        return start, start + timedelta(days=1) - _LAST
    try:
        return _partial(piece.strip())
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{piece!r} is not a date: {error}",
            place="datetime",
            remedy="write for example 2024, 2024-05, 2024-05-01 or 2024-05-01T10:30:00Z",
        ) from error


def _partial(text: str) -> tuple[datetime, datetime]:
    match = _PARTIAL.match(text)
    if match is None:
        instant = _utc(datetime.fromisoformat(text))
        return instant, instant
    year, month, day = (None if part is None else int(part) for part in match.groups())
    start = datetime(year or 0, month or 1, day or 1, tzinfo=UTC)
    if day is not None:
        length = 1
    elif month is not None:
        length = calendar.monthrange(start.year, start.month)[1]
    else:
        length = 366 if calendar.isleap(start.year) else 365
    return start, start + (timedelta(days=length) - _LAST)


def _utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _short(value: datetime) -> str:
    return value.date().isoformat() if value.time() == time() else _rfc3339(value)
