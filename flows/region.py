"""The Prefect flow of a recipe: search, plan, groups of shards, publish. It computes nothing itself.

Prefect sees tens of task runs, whatever the raster: 100 Sentinel-2 scenes would be 194,002 tasks at one a
chunk. Groups run one after another in the flow's process and share one `Run`, so that the margins of blended
tiles travel from group to group, and no array ever passes through Prefect. A group that fails is repeated
alone: the ledger knows which of its shards are durable.

Importing this module imports Prefect (`pip install tilewright[flows]`); nothing else of tilewright does.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import ceil
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from tilewright.flows.quiet import quiet

with quiet():
    from prefect import flow, get_run_logger, task
    from prefect.artifacts import (
        create_link_artifact,
        create_markdown_artifact,
        create_progress_artifact,
        update_progress_artifact,
    )
    from prefect.cache_policies import NO_CACHE
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

from tilewright.errors import ReadError, StoreError
from tilewright.flows import runs

if TYPE_CHECKING:
    from uuid import UUID

    from prefect import State

    from tilewright.pipeline.grid import Shard
    from tilewright.pipeline.progress import Status
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.run import Run

__all__ = ["region", "run_region"]

GROUPS = 16
"""Most groups of shards of a flow run, all parts of the region together."""
PATIENCE = 180
"""Seconds that a server of our own may take to start; its first start on two busy cores took over 20, its default."""
QUIET = 5.0
"""Seconds between two updates of a progress artifact: each is a call of Prefect's API."""
RETRIES = 2
"""Further tries of a task that failed for want of a network or a disk."""


class _Part:
    """One result under way: what the tasks of a part of the region share."""

    def __init__(self, prepared: runs.PreparedRun, label: str) -> None:
        self.prepared, self.label = prepared, label
        self._run: Run | None = None
        self._artifact: UUID | None = None
        self._told = 0.0

    def open(self, stack: ExitStack) -> Run:
        """Enter the run, until ``stack`` is left: check the plan, open the ledger, take the statistics."""
        from tilewright.api import open_run

        self._run = stack.enter_context(open_run(self.prepared.job, self.prepared.request, self.tell))
        return self._run

    @property
    def key(self) -> str:
        """How the keys of the part's artifacts begin."""
        return "tilewright-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in self.label.lower())

    def tell(self, status: Status) -> None:
        """Show where the run stands, as one artifact; a call of the API every `QUIET` seconds at most."""
        last = status.done == status.total or status.phase not in ("statistics", "shards")
        if self._artifact is not None and not last and monotonic() - self._told < QUIET:
            return
        self._told = monotonic()
        share = 100.0 * status.done / status.total
        if self._artifact is None:
            made = create_progress_artifact(share, key=f"{self.key}-progress", description=str(status))
            self._artifact = cast("UUID", made)
        else:
            update_progress_artifact(self._artifact, share, str(status))

    @property
    def run(self) -> Run:
        """The run, which `open` has entered."""
        assert self._run is not None
        return self._run


class _Held[T]:
    """A value that Prefect passes on as it is: it looks into dataclasses, lists and dicts for futures."""

    def __init__(self, value: T) -> None:
        self.value = value


class _Wanted:
    """The parameters of a flow run, sorted by who takes them."""

    def __init__(self, seek: dict[str, Any], plan: dict[str, Any]) -> None:
        self.seek, self.plan = seek, plan


def _worth_another_try(_task: Any, _run: Any, state: State[Any]) -> bool:
    """True where a network or a disk failed; a wrong request or kernel stays wrong."""
    return isinstance(state.data, (ReadError, StoreError, OSError))


_OPTIONS: dict[str, Any] = {
    "cache_policy": NO_CACHE,  # no key is made of parameters, and nothing of a run is reused but by its ledger
    "persist_result": False,
    "retries": RETRIES,
    "retry_delay_seconds": [2, 20],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _worth_another_try,
}


@task(name="search", task_run_name="search", **_OPTIONS)
def _search(wanted: _Wanted) -> _Held[runs.Sought]:
    return _Held(runs.seek(**wanted.seek, say=get_run_logger().info))


@task(name="plan", task_run_name="plan", **_OPTIONS)
def _plan(sought: _Held[runs.Sought], wanted: _Wanted) -> list[_Part]:
    from tilewright.pipeline.plan import make_plan

    prepared = runs.plan_runs(sought.value, **wanted.plan)
    parts = []
    for i, one in enumerate(prepared):
        label = f"{one.recipe.name}, part {i + 1} of {len(prepared)}"
        made = make_plan(one.job)
        made.check()
        mib = made.memory.total / 2**20
        get_run_logger().info(
            f"{label}: {len(one.items)} items, {made.shape[0]} x {made.shape[1]} px, {made.tiles} tiles in"
            f" {made.shards} shards, {mib:,.0f} MiB"
        )
        parts.append(_Part(one, label))
    return parts


@task(name="open", task_run_name="open {part.label}", **_OPTIONS)
def _open(part: _Part, stack: ExitStack) -> None:
    run = part.open(stack)
    get_run_logger().info(
        f"{part.label}: {len(run.todo)} shards to do, {len(run.reused)} kept of an earlier start"
    )


@task(name="compute", task_run_name="compute group {group} of {groups}", **_OPTIONS)
def _compute(part: _Part, shards: _Held[list[Shard]], group: int, groups: int) -> None:
    logger = get_run_logger()
    first, last = shards.value[0].name, shards.value[-1].name
    place = f"{part.label}: group {group} of {groups}, shards {first} to {last}"
    logger.info(place)
    part.run.compute(shards.value)


@task(name="publish", task_run_name="publish {part.label}", **_OPTIONS)
def _publish(part: _Part) -> Report:
    report = part.run.publish()
    runs.announce(part.prepared)
    get_run_logger().info(f"{part.label}: published, digest {report.digest}")
    return report


@flow(name="region")
def region(
    recipe: Any,
    region: Any = None,
    out: str | Path = "out",
    weights: str | None = None,
    bands: list[str] | None = None,
    only: str | None = None,
    fresh: bool = False,
    cluster: str | None = None,
    wishes: dict[str, Any] | None = None,
) -> list[Report]:
    """Run a recipe as a Prefect flow; its files are those of `tilewright.run`, to the byte.

    Parameters
    ----------
    recipe
        A YAML file, plain data, or a `Recipe`.
    region
        Instead of the recipe's: a file, GeoJSON, ``"W,S,E,N"`` or four numbers in degrees.
    out
        Folder of the run. The same parameters resume what was interrupted there.
    weights, bands, only, fresh
        Instead of what the recipe says; as in `tilewright.run`.
    cluster
        Where the shards of each group are computed: ``local:N``, or a Dask scheduler's ``tcp://host:port``; as in
        `tilewright.run`.
    wishes
        Fields of `tilewright.pipeline.settings.Settings` that replace the recipe's ``run``.

    Returns
    -------
    list of Report
        One for each grid that the region needs.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change; a wrong request is not tried again.
    """
    seek = {"recipe": runs.as_recipe(recipe), "region": region, "weights": weights, "bands": bands}
    seek["out"] = None if fresh else out
    wanted = _Wanted(seek, {"out": out, "only": only, "fresh": fresh, "cluster": cluster, **(wishes or {})})
    parts = _plan(_search(wanted), wanted)
    reports = []
    for part in parts:
        with ExitStack() as stack:
            _open(part, stack)
            for group, groups, shards in _grouped(part.run, max(1, GROUPS // len(parts))):
                _compute(part, _Held(shards), group, groups)
            report = _publish(part)
        reports.append(report)
        _artifacts(part, report)
    return reports


def _grouped(run: Run, most: int) -> list[tuple[int, int, list[Shard]]]:
    """Cut what is to do into at most ``most`` runs of neighbours in row-major order: (number, of, shards)."""
    todo = [] if run.finished is not None else run.todo
    size = max(1, ceil(len(todo) / most))
    groups = [todo[i : i + size] for i in range(0, len(todo), size)]
    return [(i + 1, len(groups), shards) for i, shards in enumerate(groups)]


def _artifacts(part: _Part, report: Report) -> None:
    """Show the report's main numbers and the quicklook in Prefect's pages."""
    key, out = part.key, part.prepared.request.out
    rows = {
        "folder": part.prepared.request.remote or out,
        "kernel": report.kernel["name"],
        "items": len(part.prepared.items),
        "pixels with a result": f"{report.pixels_valid:,} of {report.pixels:,}",
        "tiles run / needed": f"{report.tiles_run:,} / {report.tiles_needed:,}",
        "shards, kept of them": f"{report.shards}, {report.shards_reused}",
        "seconds": f"{report.seconds:,.1f}",
        "peak memory": f"{report.peak_rss_bytes / 2**20:,.0f} MiB",
        "digest": f"`{report.digest}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    create_markdown_artifact(f"# {report.title}\n\n| | |\n|---|---|\n{table}\n", key=key)
    if "quicklook" in report.outputs:
        picture = (Path(out) / report.outputs["quicklook"]).resolve().as_uri()
        create_link_artifact(picture, link_text=f"Quicklook of {part.label}", key=f"{key}-quicklook")


def run_region(recipe: Any, **parameters: Any) -> list[Report]:
    """Run the flow `region` from a script: without an API set up, Prefect starts a server of its own.

    That server ends with this process, needs no network, and reports nothing home unless the user's
    environment says otherwise. Parameters and result are those of `region`.
    """
    with (
        quiet(),
        temporary_settings(set_defaults={PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: PATIENCE}),
    ):
        reports: list[Report] = region(recipe, **parameters)
    return reports
