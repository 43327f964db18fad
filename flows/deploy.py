"""Deployments of the flows on a Prefect server: what `tilewright deploy` does, and says.

The same deployments stand in ``prefect.yaml`` of the repository for those who rather call ``prefect deploy``.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError, nearest_name
from tilewright.flows.quiet import quiet
from tilewright.flows.server import connected

with quiet():
    from prefect.automations import Automation
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.exceptions import ObjectNotFound
    from prefect.schedules import Cron, Schedule

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["ENTRYPOINTS", "POOL", "Wish", "deploy"]

POOL = "tilewright"
"""Work pool of the deployments."""
ENTRYPOINTS = {
    "region": "tilewright.flows.region.region",
    "monitor": "tilewright.flows.monitor.monitor",
    "backfill": "tilewright.flows.backfill.backfill",
}
"""Deployment -> its flow. They are importable wherever tilewright is installed: no code is pulled."""
ABOUT = {
    "region": "Runs a recipe over one region.",
    "monitor": "Keeps watch over named regions: what is new is processed, compared and published.",
    "backfill": "Fills a span of dates, by months or by scenes.",
}
HEARTBEAT = 30
"""Seconds between two signs of life of a flow run, Prefect's least."""
LOST = timedelta(seconds=4 * HEARTBEAT)
"""Silence after which a flow run counts as crashed: its process was killed, or its machine is gone."""
AUTOMATION = "tilewright: flow runs without a sign of life"


@dataclass(frozen=True)
class Wish:
    """What a deployment shall be; None and empty leave it to the defaults."""

    flow: str
    """``region``, ``monitor`` or ``backfill``."""
    name: str | None = None
    """Name of the deployment; the flow's unless given."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the flow's parameters, as plain data."""
    cron: str | None = None
    """When it runs by itself."""
    timezone: str = "UTC"
    """Of ``cron``, a name of the IANA database."""
    pool: str = POOL
    """Work pool; one of type ``process`` is made where there is none of this name."""
    image: str | None = None
    """Container image, for a Docker or Kubernetes pool."""
    at_once: int | None = None
    """Most flow runs of the deployment at a time; further ones wait. None is no bound: locks keep two runs of one
    place apart. A bound is a lease of the server, which forgets it when it is restarted, unless it keeps leases in
    files, and then calls the run crashed (docs/production.md)."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment variable of the run -> name of the Secret block that holds its value."""


def deploy(wish: Wish, say: Callable[[str], Any]) -> str:
    """Make or replace a deployment and what it needs; tells each step and returns ``flow/name``.

    Raises
    ------
    InputError
        No such flow, a cron that is none, parameters that do not fit, a Secret block that is missing, or a server
        that does not answer. Nothing was made then.
    """
    if wish.flow not in ENTRYPOINTS:
        raise InputError(
            f"no flow {wish.flow!r}", place="deploy", remedy=nearest_name(wish.flow, ENTRYPOINTS)
        )
    schedule = _schedule(wish)
    _check_parameters(wish)
    with connected() as client:
        _check_secrets(client, wish)
        for told in (*_pool(client, wish), *_automation(client)):
            say(told)
    variables: dict[str, Any] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}
    variables |= {name: f"{{{{ prefect.blocks.secret.{block} }}}}" for name, block in wish.secrets.items()}
    made = RunnerDeployment.from_entrypoint(
        ENTRYPOINTS[wish.flow],
        name=wish.name or wish.flow,
        flow_name=wish.flow,
        schedule=schedule,
        parameters=dict(wish.parameters),
        description=ABOUT[wish.flow],
        tags=["tilewright"],
        concurrency_limit=wish.at_once,
        work_pool_name=wish.pool,
        job_variables={"env": variables} | ({"image": wish.image} if wish.image else {}),
    )
    made.apply(image=wish.image)
    full = f"{wish.flow}/{wish.name or wish.flow}"
    when = f"runs at `{wish.cron}` ({wish.timezone})" if wish.cron else "runs on demand"
    say(f"deployment {full} in work pool {wish.pool}: {when}, {wish.at_once or 'any number'} at a time")
    return full


def _schedule(wish: Wish) -> Schedule | None:
    if wish.cron is None:
        return None
    try:
        CronSchedule(cron=wish.cron, timezone=wish.timezone)
        return Cron(wish.cron, timezone=wish.timezone)
    except ValueError as error:
        raise InputError(
            f"{wish.cron!r} in {wish.timezone!r} is no schedule",
            place="--cron",
            remedy="write minute hour day month weekday, such as '0 6 * * *', and a zone such as Europe/Vienna",
        ) from error


def _check_parameters(wish: Wish) -> None:
    """Refuse parameters that the flow does not have, or does not take together; reads no catalog."""
    import importlib
    import inspect

    module, _, name = ENTRYPOINTS[wish.flow].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    known = inspect.signature(flow.fn).parameters
    for given in wish.parameters:
        if given not in known:
            raise InputError(
                f"the flow {wish.flow} has no parameter {given!r}",
                place="deploy",
                remedy=nearest_name(given, known),
            )
    if wish.flow != "region" and {"recipe", "regions"} <= wish.parameters.keys():
        from tilewright.flows.monitor import check_watch

        check_watch(wish.parameters)
    if wish.cron is not None:
        missing = [p.name for p in known.values() if p.default is p.empty and p.name not in wish.parameters]
        if missing:
            raise InputError(
                f"a schedule needs all parameters, and {', '.join(missing)} is missing",
                place=f"deploy {wish.flow}",
                remedy="give it, or leave the schedule out",
            )


def _check_secrets(client: SyncPrefectClient, wish: Wish) -> None:
    for variable, block in wish.secrets.items():
        try:
            client.read_block_document_by_name(block, "secret", include_secrets=False)
        except ObjectNotFound as error:
            raise InputError(
                f"there is no Secret block {block!r} for {variable}",
                place="--secret",
                remedy=f"make it in the server's pages, or by Secret(value=...).save({block!r})",
            ) from error


def _pool(client: SyncPrefectClient, wish: Wish) -> Iterator[str]:
    try:
        client.read_work_pool(wish.pool)
    except ObjectNotFound:
        if wish.image is not None:
            raise InputError(
                f"there is no work pool {wish.pool!r}",
                place="--pool",
                remedy=f"make it first: prefect work-pool create {wish.pool} --type kubernetes (or docker)",
            ) from None
        client.create_work_pool(WorkPoolCreate(name=wish.pool, type="process"))
        yield f"work pool {wish.pool} made: start a worker by `prefect worker start --pool {wish.pool}`"


def _automation(client: SyncPrefectClient) -> Iterator[str]:
    """Let the server call a flow run crashed that gives no sign of life: nobody else notices a killed worker."""
    if client.read_automations_by_name(AUTOMATION):
        return
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
    Automation(
        name=AUTOMATION,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ends)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=LOST,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                message=f"no sign of life for {LOST.seconds} s; the next run resumes",
                force=False,
            )
        ],
    ).create()
    yield f"automation made: a flow run without a sign of life for {LOST.seconds} s is called crashed"
