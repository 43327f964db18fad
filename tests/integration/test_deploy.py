"""`tilewright deploy`: what stands on the server afterwards, what makes nothing, and a server that is away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from archive import Archive

from tilewright.errors import InputError

pytest.importorskip("prefect")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
served = pytest.mark.usefixtures("prefect_api")


def made(flow: str, **wish: Any) -> list[str]:
    """Deploy, and return what was said."""
    from tilewright.flows.deploy import Wish, deploy

    said: list[str] = []
    deploy(Wish(flow, **wish), said.append)
    return said


def deployment(name: str) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


@served
def test_everything_that_a_deployment_needs_is_made_once() -> None:
    first = made("region", pool="one")
    assert [line.split(":")[0] for line in first] == [
        "work pool one made",
        "automation made",
        "deployment region/region in work pool one",
    ]
    assert len(made("region", pool="one")) == 1, "only the deployment is replaced"
    found = deployment("region/region")
    assert found.entrypoint == "tilewright.flows.region.region"
    assert found.work_pool_name == "one"
    assert found.job_variables["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert not found.schedules


@served
def test_the_form_has_the_keys_of_a_recipe() -> None:
    made("region", pool="one")
    schema = deployment("region/region").parameter_openapi_schema
    assert "recipe" in schema["required"]
    definitions = schema["definitions"]
    assert {"grid", "kernel", "collections", "catalog"} <= definitions["Recipe"]["properties"].keys()
    assert "resolution" in definitions["GridSpec"]["properties"]
    assert "an API's URL" in definitions["Recipe"]["properties"]["catalog"]["description"]


@served
def test_a_schedule_and_its_parameters(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add("2024-05-01")
    given = {
        "recipe": archive.recipe("index"),
        "regions": str(archive.regions({"a": 0})),
        "out": str(tmp_path),
    }
    said = made(
        "monitor", name="alps", cron="0 6 * * *", timezone="Europe/Vienna", parameters=given, at_once=2
    )
    assert said[-1].endswith("runs at `0 6 * * *` (Europe/Vienna), 2 at a time")
    found = deployment("monitor/alps")
    (schedule,) = found.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == (
        "0 6 * * *",
        "Europe/Vienna",
        True,
    )
    assert found.parameters["recipe"]["name"] == "watched"
    assert found.global_concurrency_limit.limit == 2


@served
@pytest.mark.parametrize(
    ("flow", "wish", "message"),
    [
        ("monitr", {}, "no flow 'monitr'; did you mean 'monitor'"),
        ("region", {"cron": "every day"}, "'every day' in 'UTC' is no schedule"),
        ("region", {"cron": "0 6 * * *", "timezone": "Wien"}, "in 'Wien' is no schedule"),
        ("region", {"parameters": {"regoin": "a"}}, "no parameter 'regoin'; did you mean 'region'"),
        ("monitor", {"cron": "0 6 * * *"}, "recipe, regions is missing"),
        ("region", {"secrets": {"TOKEN": "absent"}}, "no Secret block 'absent' for TOKEN"),
        ("region", {"image": "a/b:1", "pool": "none-such"}, "no work pool 'none-such'"),
    ],
)
def test_what_is_refused_makes_nothing(flow: str, wish: dict[str, Any], message: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        before = {one.name for one in client.read_deployments()}
        with pytest.raises(InputError, match=message):
            made(flow, **{"pool": f"refused-{abs(hash(message))}", "name": "refused", **wish})
        assert {one.name for one in client.read_deployments()} == before
        assert not [pool for pool in client.read_work_pools() if pool.name.startswith("refused")]


@served
def test_a_recipe_that_does_not_fit_its_deployment(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    regions = str(archive.regions({"a": 0}))
    with pytest.raises(InputError, match="the recipe has a region of its own"):
        made(
            "monitor", parameters={"recipe": archive.recipe("index", region=[1, 2, 3, 4]), "regions": regions}
        )
    with pytest.raises(InputError, match="no such file of regions"):
        made(
            "monitor",
            parameters={"recipe": archive.recipe("index"), "regions": str(tmp_path / "absent.geojson")},
        )


@served
def test_a_secret_reaches_the_environment_of_the_run_and_no_parameter() -> None:
    from prefect.blocks.system import Secret

    Secret(value="not-a-token").save("pc-key", overwrite=True)
    made("region", pool="one", secrets={"PC_SDK_SUBSCRIPTION_KEY": "pc-key"})
    found = deployment("region/region")
    assert found.job_variables["env"]["PC_SDK_SUBSCRIPTION_KEY"] == "{{ prefect.blocks.secret.pc-key }}"
    assert "not-a-token" not in found.model_dump_json()


@served
def test_prefect_yaml_makes_the_same_deployments() -> None:
    from tilewright.flows.deploy import ABOUT, ENTRYPOINTS, HEARTBEAT

    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    found = {one["name"]: one for one in content["deployments"]}
    assert {name: one["entrypoint"] for name, one in found.items()} == ENTRYPOINTS
    assert {name: one["description"].strip() for name, one in found.items()} == ABOUT
    for one in (*found.values(), *({"work_pool": pool} for pool in content["definitions"]["pools"].values())):
        frequency = one["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert frequency == str(HEARTBEAT)


def command(*arguments: str, url: str | None) -> tuple[int, str, float]:
    """Run the command line with an address of a server; return status, what it printed, and seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= {"PREFECT_API_URL": url} if url else {}
    started = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tilewright")), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


@pytest.mark.parametrize(
    "arguments",
    [("deploy", "region"), ("run", str(ROOT / "examples/landsat-mosaic.yaml"), "--via", "prefect")],
)
def test_a_server_that_is_away_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    status, told, seconds = command(*arguments, url="http://127.0.0.1:9/api")
    assert status == 2
    assert len(told.strip().splitlines()) == 1, told
    assert "http://127.0.0.1:9/api: the Prefect server does not answer (ConnectError); start one by" in told
    assert seconds < 60
    status, told, _ = command(*arguments, url=None)
    assert status == 2
    assert told.startswith("tilewright: PREFECT_API_URL: no Prefect server is set")
    assert len(told.strip().splitlines()) == 1


def test_other_wrong_orders_are_one_line() -> None:
    for arguments, message in (
        (("run", str(ROOT / "examples/landsat-mosaic.yaml"), "--via", "airflow"), "unknown way 'airflow'"),
        (("deploy", "region", "--set", "out"), "'out' is no pair"),
        (("deploy", "monitor", "--recipe", "absent.yaml"), "absent.yaml: cannot be read"),
    ):
        status, told, _ = command(*arguments, url="http://127.0.0.1:9/api")
        assert (status, len(told.strip().splitlines())) == (2, 1), told
        assert message in told
