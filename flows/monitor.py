"""The Prefect flow that keeps watch over regions: what is new is processed, compared and published.

Nothing of its state is Prefect's: results and what they were made of stand in the local catalog (`watch`), finished
shards in the ledgers. A second monitor of the same region finds a lock with an owner and an end, and leaves it alone.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.flows.quiet import quiet

with quiet():
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import create_table_artifact
    from prefect.cache_policies import NO_CACHE
    from prefect.events import emit_event

from tilewright.errors import InputError, ResumeError, TilewrightError
from tilewright.flows import runs, watch
from tilewright.flows.alerts import write_alerts
from tilewright.flows.recipe import Recipe  # noqa: TC001 - Prefect reads the types of parameters
from tilewright.flows.tasks import OPTIONS, SEARCH_SECONDS, Held, carry_out, host_limit, one_of, parts_of

if TYPE_CHECKING:
    from tilewright.catalogs.region import Region
    from tilewright.pipeline.lease import Lease

__all__ = ["FailedRegions", "Outcome", "Watch", "check_watch", "keep_watch", "monitor"]

CHUNK = 10
"""Regions that one task run looks at: 100 regions are ten task runs."""
LOCK = "monitor.lock"


class FailedRegions(TilewrightError):
    """Some regions of a monitor failed; the others are done."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one region."""

    region: str
    """Its name."""
    state: Literal["published", "nothing new", "waiting", "busy", "failed"]
    """``waiting``: there are too few dates yet. ``busy``: another monitor is at it."""
    date: str = ""
    """Of the result."""
    note: str = ""
    """In words: digest, alerts, or what failed."""


@dataclass(frozen=True)
class Watch:
    """What a monitor watches, checked: see the parameters of `monitor`."""

    recipe: Recipe
    """What is made; its catalog of results is absolute."""
    regions: Mapping[str, Region]
    """By name."""
    out: str
    """Where results go, absolute."""
    look: Mapping[str, Any]
    """``each`` and ``backlog`` of `watch.look`."""
    alerts: Mapping[str, Any]
    """``above`` and ``least`` of `find_alerts`."""
    cluster: str | None
    """Where shards are computed."""

    @property
    def catalog(self) -> str:
        """Folder of the catalog of results."""
        assert self.recipe.outputs.catalog is not None
        return self.recipe.outputs.catalog


@flow(name="monitor", validate_parameters=False)
def monitor(
    recipe: Recipe,
    regions: str,
    out: str = "out",
    catalog: str | None = None,
    each: Literal["date", "span"] = "date",
    lookback_days: int | None = None,
    backlog: int = 1,
    alert_above: float | None = None,
    alert_pixels: int = 1,
    cluster: str | None = None,
    name_key: str = "name",
    spread: bool = False,
) -> list[Outcome]:
    """Look for new or reprocessed Items of named regions, process them, compare, and publish results and alerts.

    Parameters
    ----------
    recipe
        What is made of them: a `Recipe`, plain data, or a YAML file that the worker sees. An open end of its dates
        (``2024-05-01/..``) lets new Items in.
    regions
        File of named regions, GeoJSON or GeoParquet.
    out
        Folder, or an address in an object store: results go to ``OUT/RECIPE/REGION/DATE-HASH``.
    catalog
        Folder of the local STAC catalog of results; None takes the recipe's ``outputs.catalog``, else
        ``OUT/catalog``.
    each
        ``date``: a result for each new date. ``span``: one for the recipe's whole span, again whenever its Items
        change.
    lookback_days
        Watch only the last days, instead of the recipe's dates.
    backlog
        Most dates of a region that has no result yet, its newest.
    alert_above
        Least change of a number that is an alert, in units of the output; None alerts changed labels alone.
    alert_pixels
        Fewest pixels of an alert.
    cluster
        Where shards are computed, as in `tilewright.run`.
    name_key
        Property of the regions that holds their names.
    spread
        True hands each region with something due to the flow's task runner, as one task run; with prefect-dask's
        regions are then made side by side: ``monitor.with_options(task_runner=DaskTaskRunner(...))``. False makes
        one after another in the flow's process, which keeps its cores busy anyway.

    Returns
    -------
    list of Outcome
        One for each result, and one for each region without.

    Raises
    ------
    InputError
        Recipe, regions or settings are wrong: before any search.
    FailedRegions
        At the end, where some regions failed; the others are done.
    """
    given = {
        "recipe": recipe,
        "regions": regions,
        "out": out,
        "catalog": catalog,
        "each": each,
        "lookback_days": lookback_days,
        "backlog": backlog,
        "alert_above": alert_above,
        "alert_pixels": alert_pixels,
        "cluster": cluster,
        "name_key": name_key,
    }
    return keep_watch([check_watch(given)], spread=spread)


def keep_watch(watches: Sequence[Watch], *, spread: bool = False) -> list[Outcome]:
    """Look at all regions in chunks, and carry out what is due; one that fails keeps no other from its turn."""
    outcomes: list[Outcome] = []
    away = []
    for wanted in watches:
        names = list(wanted.regions)
        for first in range(0, len(names), CHUNK):
            chunk = names[first : first + CHUNK]
            for name, found in _look(Held(wanted), chunk, f"{chunk[0]} to {chunk[-1]}"):
                if spread and not isinstance(found, Outcome):
                    away.append(_make.submit(Held(wanted), name, Held(found)))
                else:
                    outcomes += _after_look(wanted, name, found)
    for future in away:
        outcomes += future.result()
    _tell(outcomes)
    failed = [one for one in outcomes if one.state == "failed"]
    if failed:
        told = "; ".join(f"{one.region}: {one.note}" for one in failed[:5])
        raise FailedRegions(
            f"{len(failed)} of {len(outcomes)} failed: {told}",
            place="monitor",
            remedy="what is finished is kept; the next run tries again what is not",
        )
    return outcomes


def check_watch(given: Mapping[str, Any]) -> Watch:
    """Return what the parameters of `monitor` mean; raises `InputError` where they do not fit. Reads no catalog.

    ``span`` stands for the recipe's dates, or for the last of its periods.
    """
    from tilewright.catalogs.named_regions import read_named_regions
    from tilewright.catalogs.times import Interval

    recipe, out = runs.as_recipe(given["recipe"]), str(given.get("out", "out"))
    if recipe.region is not None:
        raise InputError(
            "the recipe has a region of its own",
            place=f"recipe {recipe.name}",
            remedy="leave `region` out of it: those of the file are watched",
        )
    if given.get("each", "date") not in ("date", "span"):
        raise InputError(f"unknown {given['each']!r}", place="each", remedy="known: date, span")
    span = given.get("span")
    if (days := given.get("lookback_days")) is not None:
        span = f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}/.."
    if span is not None:
        Interval.parse(span)
        changed = {"periods": (*recipe.periods[:-1], span)} if recipe.periods else {"dates": span}
        recipe = recipe.model_copy(update=changed)
    place = given.get("catalog") or recipe.outputs.catalog
    if place is None and "://" not in out:
        place = str(Path(out) / "catalog")
    if place is None or "://" in place:
        raise InputError(
            "the state of a monitor is kept in a catalog on a disk",
            place=f"catalog {place or ''}".strip(),
            remedy="name a folder that outlives the worker, by catalog",
        )
    outputs = recipe.outputs.model_copy(update={"catalog": str(Path(place).resolve())})
    return Watch(
        recipe.model_copy(update={"outputs": outputs}),
        read_named_regions(given["regions"], given.get("name_key", "name")),
        out if "://" in out else str(Path(out).resolve()),
        {"each": given.get("each", "date"), "backlog": given.get("backlog", 1)},
        {"above": given.get("alert_above"), "least": given.get("alert_pixels", 1)},
        given.get("cluster"),
    )


type _Look = tuple[watch.Due, ...] | Outcome


@task(name="look", task_run_name="look at {label}", timeout_seconds=SEARCH_SECONDS, **OPTIONS)
def _look(wanted: Held[Watch], names: Sequence[str], label: str) -> list[tuple[str, _Look]]:
    """Search for regions; return what is due of each, or what became of it."""
    one = wanted.value
    published = watch.published_results(one.catalog, one.recipe.name)
    found: list[tuple[str, _Look]] = []
    for name in names:
        try:
            with one_of(host_limit(one.recipe.catalog)):
                known = published.get(name, ())
                seen = watch.look(one.recipe, name, one.regions[name], known, **one.look)
        except TilewrightError as error:
            found.append((name, Outcome(name, "failed", note=str(error))))
            continue
        for note in seen.notes:
            get_run_logger().info(note)
        nothing = Outcome(name, "waiting" if seen.waiting else "nothing new", note="; ".join(seen.notes))
        found.append((name, seen.dues or nothing))
    return found


@task(name="make", task_run_name="make {name}", cache_policy=NO_CACHE, persist_result=False)
def _make(wanted: Held[Watch], name: str, found: Held[tuple[watch.Due, ...]]) -> list[Outcome]:
    return list(_after_look(wanted.value, name, found.value))


def _after_look(wanted: Watch, name: str, found: _Look) -> Iterator[Outcome]:
    """Carry out what is due of a region; yields what became of it."""
    if isinstance(found, Outcome):
        if found.state == "nothing new":
            _emit("nothing-new", name, {})
        yield found
        return
    try:
        with _lock(wanted, name):
            for due in found:
                yield _one(wanted, due)
    except ResumeError as error:
        yield Outcome(name, "busy", note=str(error))
    except (TilewrightError, OSError) as error:
        get_run_logger().error(f"{name}: {error}")
        yield Outcome(name, "failed", note=str(error))


def _lock(wanted: Watch, name: str) -> Lease:
    """Return the lock of a region of a recipe: it lies with the results and names its owner and its end."""
    from tilewright.pipeline.lease import Lease

    owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
    return Lease(None, f"{wanted.out}/{wanted.recipe.name}/{name}", owner=owner, name=LOCK)


def _one(wanted: Watch, due: watch.Due) -> Outcome:
    """Make one result. What another monitor has published since the look is not made again."""
    known = watch.published_results(wanted.catalog, wanted.recipe.name, due.region).get(due.region, [])
    if any(one.date == due.date and one.scenes == due.scenes for one in known):
        return Outcome(due.region, "nothing new", due.date, "another monitor has published it")
    before = max((one for one in known if one.date < due.date), key=lambda one: one.date, default=None)
    out = f"{wanted.out}/{wanted.recipe.name}/{due.folder}"
    label = f"{wanted.recipe.name} of {due.region}, {due.date}"
    prepared = [
        replace(one, request=replace(one.request, item_id=_item_id(due, i)))
        for i, one in enumerate(runs.plan_runs(due.sought, out=out, cluster=wanted.cluster))
    ]
    notes: list[str] = []
    for part in parts_of(prepared, label, partial(_announce, wanted, due, before, notes)):
        report = carry_out(part)
        notes.insert(0, f"digest {report.digest[:12]}")
    _emit("new-result", due.region, {"date": due.date, "why": due.why, "folder": out, "notes": notes})
    return Outcome(due.region, "published", due.date, f"{due.why}; {'; '.join(notes)}")


def _item_id(due: watch.Due, part: int) -> str:
    return due.name if part == 0 else f"{due.name}-part-{part + 1}"


def _announce(
    wanted: Watch,
    due: watch.Due,
    before: watch.Published | None,
    notes: list[str],
    prepared: runs.PreparedRun,
) -> None:
    """Compare with the result before, and append the Item with its alerts to the catalog."""
    assets: dict[str, Any] = {}
    if before is not None:
        assets, told = write_alerts(before, prepared, due, **wanted.alerts)
        notes.append(told)
    runs.announce(prepared, {watch.PROPERTY: due.facts()}, assets)


def _emit(event: str, region: str, payload: dict[str, Any]) -> None:
    emit_event(
        f"tilewright.monitor.{event}",
        resource={"prefect.resource.id": f"tilewright.region.{region}", "prefect.resource.name": region},
        payload=payload,
    )


def _tell(outcomes: list[Outcome]) -> None:
    """Show a table of the regions, those with something to say first."""
    order = ("failed", "published", "busy", "waiting", "nothing new")
    rows = sorted(outcomes, key=lambda one: (order.index(one.state), one.region))
    create_table_artifact(
        [{"region": o.region, "state": o.state, "date": o.date, "note": o.note} for o in rows],
        key="tilewright-monitor",
        description=f"{sum(o.state == 'published' for o in rows)} published, {len(rows)} in all",
    )
