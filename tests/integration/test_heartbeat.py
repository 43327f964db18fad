"""A flow run whose worker was killed is called crashed by the server, which hears nothing of it any more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml
from archive import LEVEL_KERNEL, Archive, durable, slow_kernel
from prefect_server import running

pytest.importorskip("prefect")

# Two minutes without a sign of life are waited for.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_run_becomes_crashed_and_the_next_one_resumes(tmp_path: Path) -> None:
    from tilewright.flows.deploy import HEARTBEAT, LOST

    (tmp_path / "kernels.py").write_text(LEVEL_KERNEL + slow_kernel(5))
    archive = Archive(tmp_path / "archive")
    archive.add("2024-05-01")
    regions = yaml.safe_load(archive.regions({"west": 0}).read_text())
    order = {
        "recipe": archive.recipe(f"{tmp_path}/kernels.py:slow"),
        "region": regions["features"][0]["geometry"],
        "out": str(tmp_path / "out"),
    }
    with running(tmp_path / "prefect") as server:
        assert "automation made" in server.tilewright("deploy", "region").stdout
        server.start_worker()
        killed = server.submit("region/region", **order)
        server.wait(lambda: server.state(killed) == "Running", 90, "the run to begin")
        server.wait(lambda: durable(tmp_path / "out"), 60, "a shard")
        server.stop("worker", signal.SIGKILL)
        kept = durable(tmp_path / "out")
        assert server.state(killed) == "Running"  # nobody has told the server

        server.ended(killed, LOST.seconds + 2 * HEARTBEAT + 60, name="Crashed")
        assert "no sign of life" in server.ask(f"/flow_runs/{killed}")["state"]["message"]
        server.start_worker(name="another")
        server.ended(server.submit("region/region", **order), 180)
        assert durable(tmp_path / "out")[: len(kept)] == kept
        assert len(set(durable(tmp_path / "out"))) == len(durable(tmp_path / "out")) == 9
