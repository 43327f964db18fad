"""The task runs that Prefect sees of a result, and what they show in its pages. They compute nothing themselves.

Prefect sees tens of task runs, whatever the raster: 100 Sentinel-2 scenes would be 194,002 tasks at one a
chunk. Groups run one after another in the flow's process and share one `Run`, so that the margins of blended
tiles travel from group to group, and no array ever passes through Prefect. A group that fails is repeated
alone: the ledger knows which of its shards are durable.

Importing this module imports Prefect (`pip install tilewright[flows]`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import lru_cache
from math import ceil
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from tilewright.flows.quiet import quiet

with quiet():
    from prefect import get_run_logger, task
    from prefect.artifacts import (
        create_image_artifact,
        create_link_artifact,
        create_markdown_artifact,
        create_progress_artifact,
        create_table_artifact,
        update_progress_artifact,
    )
    from prefect.cache_policies import NO_CACHE
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import ObjectNotFound

from tilewright.errors import ReadError, StoreError
from tilewright.flows import runs

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from uuid import UUID

    from prefect import State

    from tilewright.pipeline.grid import Shard
    from tilewright.pipeline.progress import Status
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.run import Run

__all__ = ["GPU_LIMIT", "GROUPS", "OPTIONS", "Held", "Part", "carry_out", "host_limit", "one_of", "parts_of"]

GROUPS = 16
"""Most groups of shards of a flow run's result, all parts of the region together."""
LEAST = 4
"""Fewest shards of a group, but for the last."""
QUIET = 5.0
"""Seconds between two updates of a progress artifact: each is a call of Prefect's API."""
RETRIES = 2
"""Further tries of a task that failed for want of a network or a disk."""
SEARCH_SECONDS = 1800
"""After which a search has failed: a catalog that answers page after page for ever must not hold a worker."""
GPU_LIMIT = "tilewright-gpu"
"""Global concurrency limit that a group holds while it computes on a GPU; it bounds nothing until it is made."""
REMEMBERED = 60.0
"""Seconds for which it is remembered whether a limit exists."""
ROWS = 500
"""Shards that the table of a result lists, the slowest first."""
THUMBNAIL = 640
"""Pixels a side of the quicklook in Prefect's pages; it is stored in the server's database."""


def host_limit(catalog: str) -> str:
    """Return the name of the global concurrency limit that searches of a catalog hold."""
    from tilewright.catalogs.endpoints import endpoint

    host = urlsplit(endpoint(catalog).url).hostname
    return f"tilewright-catalog-{host or 'local'}"


def one_of(limit: str) -> AbstractContextManager[None]:
    """Hold one place of a global concurrency limit, where there is such a limit."""
    return concurrency(limit, occupy=1) if _exists(limit, int(monotonic() / REMEMBERED)) else nullcontext()


@lru_cache(maxsize=64)
def _exists(limit: str, _minute: int) -> bool:
    """Ask the server for a limit; without one `concurrency` would warn at each call."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            return False
        return True


class Part:
    """One result under way: what its tasks share."""

    def __init__(
        self,
        prepared: runs.PreparedRun,
        label: str,
        announce: Callable[[runs.PreparedRun], Any] = runs.announce,
    ) -> None:
        self.prepared, self.label, self.announce = prepared, label, announce
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


class Held[T]:
    """A value that Prefect passes on as it is: it looks into dataclasses, lists and dicts for futures."""

    def __init__(self, value: T) -> None:
        self.value = value


def _worth_another_try(_task: Any, _run: Any, state: State[Any]) -> bool:
    """True where a network or a disk failed; a wrong request or kernel stays wrong."""
    return isinstance(state.data, (ReadError, StoreError, OSError))


OPTIONS: dict[str, Any] = {
    "cache_policy": NO_CACHE,  # no key is made of parameters, and nothing of a run is reused but by its ledger
    "persist_result": False,
    "retries": RETRIES,
    "retry_delay_seconds": [2, 20],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _worth_another_try,
}
"""Of every task."""


def parts_of(
    prepared: list[runs.PreparedRun],
    label: str,
    announce: Callable[[runs.PreparedRun], Any] = runs.announce,
) -> list[Part]:
    """Check the plans of a result's parts, say what they cost, and return them."""
    from tilewright.pipeline.cluster import plan_for

    parts = []
    for i, one in enumerate(prepared):
        name = label if len(prepared) == 1 else f"{label}, part {i + 1} of {len(prepared)}"
        made = plan_for(one.job, one.request.cluster)
        made.check()
        mib = made.memory.total / 2**20
        get_run_logger().info(
            f"{name}: {len(one.items)} items, {made.shape[0]} x {made.shape[1]} px, {made.tiles} tiles in"
            f" {made.shards} shards, {mib:,.0f} MiB"
        )
        parts.append(Part(one, name, announce))
    return parts


def carry_out(part: Part, groups: int = GROUPS) -> Report:
    """Open the run of a part, compute it in at most ``groups`` task runs, publish it, and show it."""
    with ExitStack() as stack:
        _open(part, stack)
        for group, of, shards in _grouped(part.run, groups):
            _compute(part, Held(shards), group, of)
        report = _publish(part)
    _show(part, report)
    return report


@task(name="open", task_run_name="open {part.label}", **OPTIONS)
def _open(part: Part, stack: ExitStack) -> None:
    run = part.open(stack)
    get_run_logger().info(
        f"{part.label}: {len(run.todo)} shards to do, {len(run.reused)} kept of an earlier start"
    )


@task(name="compute", task_run_name="compute {part.label}, group {group} of {groups}", **OPTIONS)
def _compute(part: Part, shards: Held[list[Shard]], group: int, groups: int) -> None:
    first, last = shards.value[0].name, shards.value[-1].name
    get_run_logger().info(f"{part.label}: group {group} of {groups}, shards {first} to {last}")
    gpu = part.prepared.job.settings.device.startswith("cuda")
    with one_of(GPU_LIMIT) if gpu else nullcontext():
        part.run.compute(shards.value)


@task(name="publish", task_run_name="publish {part.label}", **OPTIONS)
def _publish(part: Part) -> Report:
    report = part.run.publish()
    part.announce(part.prepared)
    get_run_logger().info(f"{part.label}: published, digest {report.digest}")
    return report


def _grouped(run: Run, most: int) -> list[tuple[int, int, list[Shard]]]:
    """Cut what is to do into at most ``most`` runs of neighbours in row-major order: (number, of, shards).

    A group has `LEAST` shards, so that a small region is no more than a few task runs.
    """
    todo = [] if run.finished is not None else run.todo
    size = max(LEAST, ceil(len(todo) / most))
    groups = [todo[i : i + size] for i in range(0, len(todo), size)]
    return [(i + 1, len(groups), shards) for i, shards in enumerate(groups)]


# -- in Prefect's pages --------------------------------------------------------------------------------------


def _show(part: Part, report: Report) -> None:
    """Show the report's main numbers, its shards, the quicklook, and where the outputs lie."""
    key, out = part.key, part.prepared.request.out
    place = part.prepared.request.remote or str(Path(out).resolve())
    rows = {
        "outputs": f"`{place}`",
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
    shards = [_row(name, facts) for name, facts in part.run.ledger.entries.items()]
    if shards:
        shards.sort(key=lambda row: -float(row["seconds"]))
        about = f"Shards of {part.label}, the slowest first"
        more = f"; {len(shards) - ROWS:,} are not listed" if len(shards) > ROWS else ""
        create_table_artifact(shards[:ROWS], key=f"{key}-shards", description=about + more)
    link = place if "://" in place else Path(place).as_uri()
    create_link_artifact(link, link_text=f"Outputs of {part.label}", key=f"{key}-outputs")
    quicklook = Path(out) / report.outputs.get("quicklook", "quicklook.png")
    if quicklook.is_file():
        create_image_artifact(_thumbnail(quicklook), key=f"{key}-quicklook", description=part.label)


def _row(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    failures = facts.get("failures") or {}
    return {
        "shard": name,
        "seconds": round(float(facts.get("seconds", 0.0)), 2),
        "tiles": facts.get("tiles", 0),
        "read MiB": round(facts.get("bytes_read", 0) / 2**20, 1),
        "failed reads": len(failures),
    }


def _thumbnail(quicklook: Path) -> str:
    """Return the quicklook, small, as a data URL: a browser on another machine sees no file of this one."""
    from PIL import Image

    with Image.open(quicklook) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        small.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
