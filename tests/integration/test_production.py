"""From an empty machine to scheduled runs, on a real server and worker: every result has the bits of a plain run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from archive import LEVEL_KERNEL, Archive, durable, slow_kernel
from prefect_server import PrefectServer, running

from tilewright.flows.runs import run
from tilewright.flows.watch import PROPERTY

pytest.importorskip("prefect")

if TYPE_CHECKING:
    from collections.abc import Iterator

# It waits for two ticks of a schedule, and for eight processes that start.
pytestmark = [pytest.mark.integration, pytest.mark.waiting, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with running(tmp_path_factory.mktemp("prefect")) as made:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "kernels.py").write_text(LEVEL_KERNEL + slow_kernel(1.5))
    return tmp_path


def written(place: Path, archive: Archive, kernel: str, **changes: Any) -> Path:
    path = place / f"{kernel}.yaml"
    path.write_text(yaml.safe_dump(archive.recipe(f"{place}/kernels.py:{kernel}", **changes)))
    return path


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    return {str(p.parent.relative_to(folder)): json.loads(p.read_text()) for p in folder.rglob("report.json")}


def plain_digest(recipe: Path, region: Any, out: Path, day: str | None = None) -> str:
    loaded = yaml.safe_load(recipe.read_text())
    if day is not None:
        loaded["dates"] = day
    return run(loaded, region=region, out=out)[0].digest


def test_from_an_empty_machine(server: PrefectServer, place: Path) -> None:
    archive = Archive(place / "archive")
    archive.add("2024-05-01")
    archive.add("2024-05-01", 1)
    regions = archive.regions({"west": 0, "east": 1})
    shapes = {f["properties"]["name"]: f["geometry"] for f in json.loads(regions.read_text())["features"]}
    level, slow = (written(place, archive, kernel) for kernel in ("level", "slow"))
    maps = place / "maps"

    # deploy
    told = server.tilewright("deploy", "region").stdout
    assert "work pool tilewright made" in told
    assert "deployment region/region in work pool tilewright: runs on demand" in told
    watch = ["--recipe", str(level), "--regions", str(regions), "--out", str(maps)]
    told = server.tilewright("deploy", "monitor", *watch, "--cron", "* * * * *").stdout
    assert "runs at `* * * * *` (UTC), any number at a time" in told
    server.start_worker()

    # run for a region
    region = place / "west.geojson"
    region.write_text(json.dumps(shapes["west"]))
    done = server.tilewright(
        "run", str(level), "--region", str(region), "--out", str(place / "roi"), "--via", "prefect"
    )
    assert "Completed" in done.stdout
    assert reports(place / "roi")["."]["digest"] == plain_digest(level, shapes["west"], place / "plain")

    # a schedule that fires by itself
    fired = server.wait(
        lambda: [one for one in server.runs("monitor/monitor") if one["state"]["type"] == "COMPLETED"],
        150,
        "the schedule to fire",
    )
    assert all(one["auto_scheduled"] for one in fired)
    found = reports(maps)
    assert len(found) == 2
    for name, report in found.items():
        folder = name.split("/")[1]
        assert report["digest"] == plain_digest(level, shapes[folder], place / f"plain-{folder}")

    # a second fire that finds nothing new
    before = {p: p.stat().st_mtime_ns for p in maps.rglob("*") if p.is_file() and p.name != ".lock"}
    second = server.wait(
        lambda: [one for one in server.runs("monitor/monitor") if one["state"]["type"] == "COMPLETED"][1:],
        100,
        "the schedule to fire again",
    )
    assert {p: p.stat().st_mtime_ns for p in maps.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert [task["name"] for task in server.tasks(second[0]["id"])] == ["look at west to east"]
    (table,) = (a for a in server.artifacts(second[0]["id"]) if a["key"] == "tilewright-monitor")
    assert [row["state"] for row in json.loads(table["data"])] == ["nothing new", "nothing new"]
    paused = server.ask("/deployments/name/monitor/monitor")["id"]
    server.ask(f"/deployments/{paused}/pause_deployment", {})

    # a new item that is then processed alone
    archive.add("2024-05-11", 1, bright=slice(20, 50))
    third = server.submit("monitor/monitor")
    server.ended(third)
    (new,) = reports(maps).keys() - found.keys()
    assert new.startswith("watched/east/2024-05-11-")
    assert reports(maps)[new]["digest"] == plain_digest(
        level, shapes["east"], place / "plain-new", "2024-05-11"
    )
    alerts = json.loads((maps / new / "alerts.geojson").read_text())
    (alert,) = alerts["features"]
    assert (alert["properties"]["before"], alert["properties"]["after"]) == ("dark", "bright")
    assert alert["properties"]["pixels"] == 30 * 30
    items = {p.stem: json.loads(p.read_text()) for p in (maps / "catalog" / "watched").glob("*/*.json")}
    assert set(items) == {"west-2024-05-01", "east-2024-05-01", "east-2024-05-11"}
    assert items["east-2024-05-11"]["properties"][PROPERTY]["items"][0]["id"] == "scene-2024-05-11-1"
    assert "alerts" in items["east-2024-05-11"]["assets"]

    # cancel in the middle, run again, and it resumes
    out, given = place / "cancelled", yaml.safe_load(slow.read_text())
    order = {"recipe": given, "region": shapes["west"], "out": str(out)}
    first = server.submit("region/region", **order)
    server.wait(lambda: len(durable(out)) >= 2, 60, "two shards")
    server.ask(f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
    server.ended(first, name="Cancelled")
    kept = durable(out)
    assert 2 <= len(kept) < 9
    assert not (out / "report.json").exists()
    server.ended(server.submit("region/region", **order))
    assert durable(out)[: len(kept)] == kept
    assert len(set(durable(out))) == len(durable(out)) == 9, "no finished shard is computed again"
    digest = plain_digest(slow, shapes["west"], place / "plain-slow")
    assert reports(out)["."]["digest"] == digest

    # the worker is killed in the middle, and replaced
    out = place / "killed"
    server.submit("region/region", **{**order, "out": str(out)})
    server.wait(lambda: len(durable(out)) >= 2, 60, "two shards")
    server.stop("worker", signal.SIGKILL)
    kept = durable(out)
    assert len(kept) < 9
    server.start_worker(name="another")
    server.ended(server.submit("region/region", **{**order, "out": str(out)}))
    assert len(set(durable(out))) == len(durable(out)) == 9
    assert reports(out)["."]["digest"] == digest
    assert reports(out)["."]["shards_reused"] == len(kept)
