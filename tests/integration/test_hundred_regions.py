"""A hundred regions through the monitor on a real server, which is restarted in the middle: nothing is lost.

``pytest -m slow tests/integration/test_hundred_regions.py -s`` prints the numbers of docs/production.md.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml
from archive import LEVEL_KERNEL, Archive
from prefect_server import PrefectServer, running

from tilewright.flows.runs import run

pytest.importorskip("prefect")

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600)]

COUNT = 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrefectServer]:
    with running(tmp_path / "prefect") as made:
        yield made


def memory(server: PrefectServer) -> int:
    """Resident bytes of the server and its children."""
    process = psutil.Process(server.processes["server"].pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def measured(server: PrefectServer, what: str, *, restart: bool = False) -> str:
    """Run the monitor, and say what it took."""
    began, most = time.monotonic(), 0
    flow_run = server.submit("monitor/monitor")
    restarted = not restart
    while True:
        try:
            if server.state(flow_run) in ("Completed", "Failed", "Crashed"):
                break
            most = max(most, memory(server))
            if not restarted and server.task_count(flow_run) > 60:
                server.stop("server")
                time.sleep(5)
                server.start_server()
                restarted = True
        except OSError:
            pass
        time.sleep(0.5)
    seconds = time.monotonic() - began
    assert server.state(flow_run) == "Completed", server.tail()
    assert restarted
    flow = server.ask(f"/flow_runs/{flow_run}")
    told = (
        f"{what}: {server.task_count(flow_run)} task runs, {seconds:.0f} s with the start of the process,"
        f" {flow['total_run_time']:.0f} s in the flow, server {most / 2**20:.0f} MiB"
    )
    print(told)
    return flow_run


def test_a_hundred_regions(server: PrefectServer, tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    for place in range(COUNT):
        archive.add("2024-05-01", place)
    regions = archive.regions({f"r{place:03}": place for place in range(COUNT)})
    (tmp_path / "kernels.py").write_text(LEVEL_KERNEL)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(archive.recipe(f"{tmp_path}/kernels.py:level")))
    maps = tmp_path / "maps"
    server.tilewright(
        "deploy", "monitor", "--recipe", str(recipe), "--regions", str(regions), "--out", str(maps)
    )
    server.start_worker()

    measured(server, "100 regions, all new, the server restarted in the middle", restart=True)
    items = sorted((maps / "catalog" / "watched").glob("*/*.json"))
    assert len(items) == COUNT
    digests = {p.parent.parent.name: json.loads(p.read_text())["digest"] for p in maps.rglob("report.json")}
    assert len(digests) == COUNT
    shapes = {f["properties"]["name"]: f["geometry"] for f in json.loads(regions.read_text())["features"]}
    for name in ("r000", "r057", "r099"):
        (plain,) = run(
            yaml.safe_load(recipe.read_text()), region=shapes[name], out=tmp_path / f"plain-{name}"
        )
        assert digests[name] == plain.digest

    quiet = measured(server, "100 regions, nothing new")
    assert server.task_count(quiet) == COUNT // 10
    for place in (3, 50, 97):
        archive.add("2024-05-11", place, bright=slice(10, 30))
    measured(server, "100 regions, three of them new")
    assert len(list((maps / "catalog" / "watched").glob("*/*.json"))) == COUNT + 3
