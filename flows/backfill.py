"""The Prefect flow that fills a span of dates: what a monitor would have made, had it watched then.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Literal

from tilewright.flows.quiet import quiet

with quiet():
    from prefect import flow

from tilewright.errors import InputError
from tilewright.flows.monitor import Outcome, check_watch, keep_watch
from tilewright.flows.recipe import Recipe  # noqa: TC001 - Prefect reads the types of parameters

__all__ = ["backfill", "months"]


@flow(name="backfill", validate_parameters=False)
def backfill(
    recipe: Recipe,
    regions: str,
    start: date,
    end: date,
    by: Literal["month", "scene"] = "scene",
    out: str = "out",
    catalog: str | None = None,
    alert_above: float | None = None,
    alert_pixels: int = 1,
    cluster: str | None = None,
    name_key: str = "name",
) -> list[Outcome]:
    """Make the results of a span of dates that are not in the catalog yet, the oldest first.

    Parameters
    ----------
    recipe, regions, out, catalog, alert_above, alert_pixels, cluster, name_key
        As those of the flow `monitor`; the span stands for the recipe's dates, or for the last of its periods.
    start, end
        First and last day.
    by
        ``scene``: a result for each date of the Items. ``month``: one for each calendar month, of all its Items.

    Returns
    -------
    list of Outcome
        One for each result, and one for each region and month without.

    Raises
    ------
    InputError
        Recipe, regions or span are wrong: before any search.
    FailedRegions
        At the end, where some failed; the others are done, and the same parameters resume.
    """
    first, last = (day if isinstance(day, date) else date.fromisoformat(day) for day in (start, end))
    if first > last:
        raise InputError(f"start {first} is after end {last}", place="backfill", remedy="swap them")
    if by not in ("month", "scene"):
        raise InputError(f"unknown {by!r}", place="by", remedy="known: month, scene")
    spans = list(months(first, last)) if by == "month" else [f"{first}/{last}"]
    shared = {
        "recipe": recipe,
        "regions": regions,
        "out": out,
        "catalog": catalog,
        "name_key": name_key,
        "alert_above": alert_above,
        "alert_pixels": alert_pixels,
        "cluster": cluster,
        "each": "span" if by == "month" else "date",
        "backlog": None,
    }
    watches = [check_watch({**shared, "span": span}) for span in spans]
    return keep_watch(watches)


def months(first: date, last: date) -> Iterator[str]:
    """Yield the calendar months of a span, whole ones as ``2024-05``, the others as ``2024-05-10/2024-05-31``."""
    from calendar import monthrange

    year, month = first.year, first.month
    while (year, month) <= (last.year, last.month):
        begin, close = date(year, month, 1), date(year, month, monthrange(year, month)[1])
        inside = max(begin, first), min(close, last)
        yield f"{year:04}-{month:02}" if inside == (begin, close) else f"{inside[0]}/{inside[1]}"
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
