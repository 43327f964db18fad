"""The Prefect flow of a recipe for one region: search, plan, groups of shards, publish.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

from typing import Any

from tilewright.flows.quiet import quiet

with quiet():
    from prefect import flow, get_run_logger, task
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

from tilewright.flows import runs
from tilewright.flows.recipe import Recipe  # noqa: TC001 - Prefect reads the types of parameters
from tilewright.flows.tasks import (
    GROUPS,
    OPTIONS,
    SEARCH_SECONDS,
    Held,
    Part,
    carry_out,
    host_limit,
    one_of,
    parts_of,
)
from tilewright.pipeline.report import Report  # noqa: TC001

__all__ = ["region", "run_region"]

PATIENCE = 180
"""Seconds that a server of our own may take to start; its first start on two busy cores took over 20, its default."""


class _Wanted:
    """The parameters of a flow run, sorted by who takes them."""

    def __init__(self, seek: dict[str, Any], plan: dict[str, Any]) -> None:
        self.seek, self.plan = seek, plan


@task(name="search", task_run_name="search", timeout_seconds=SEARCH_SECONDS, **OPTIONS)
def _search(wanted: _Wanted) -> Held[runs.Sought]:
    with one_of(host_limit(wanted.seek["recipe"].catalog)):
        return Held(runs.seek(**wanted.seek, say=get_run_logger().info))


@task(name="plan", task_run_name="plan", **OPTIONS)
def _plan(sought: Held[runs.Sought], wanted: _Wanted) -> list[Part]:
    return parts_of(runs.plan_runs(sought.value, **wanted.plan), sought.value.recipe.name)


@flow(name="region", validate_parameters=False)
def region(
    recipe: Recipe,
    region: str | dict[str, Any] | list[float] | None = None,
    out: str = "out",
    weights: str | None = None,
    bands: list[str] | None = None,
    only: str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    cluster: str | None = None,
    wishes: dict[str, Any] | None = None,
) -> list[Report]:
    """Run a recipe as a Prefect flow; its files are those of `tilewright.run`, to the byte.

    Parameters
    ----------
    recipe
        A `Recipe`, plain data, or a YAML file that the worker sees.
    region
        Instead of the recipe's: a file, GeoJSON, ``"W,S,E,N"`` or four numbers in degrees.
    out
        Folder of the run, or an address in an object store. The same parameters resume what was interrupted there.
    weights, bands, only, fresh, retry_failed
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
    plan = {"out": out, "only": only, "fresh": fresh, "retry_failed": retry_failed, "cluster": cluster}
    wanted = _Wanted(seek, {**plan, **(wishes or {})})
    parts = _plan(_search(wanted), wanted)
    return [carry_out(part, max(1, GROUPS // len(parts))) for part in parts]


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
