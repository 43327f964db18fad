"""The Prefect flow of a recipe against `run`: the same bits, few tasks, one clear error, nothing tracked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tilewright.errors import InputError, ReadError
from tilewright.flows.quiet import quiet
from tilewright.flows.recipe import Recipe
from tilewright.flows.runs import run
from tilewright.kernels.user import kernel

pytest.importorskip("prefect")

if TYPE_CHECKING:
    from tilewright.pipeline.report import Report

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.usefixtures("prefect_api")]

LANDSAT = Path(__file__).resolve().parents[2] / "examples" / "landsat-mosaic.yaml"
SMALL = (-54.80, -25.30, -54.70, -25.20)


@kernel(
    name="global-context",
    inputs={"image": {"dates": 1, "bands": ["green", "red"]}},
    outputs={"index": {"kind": "value", "range": [-1, 1], "valid_rule": "all"}},
    radius=None,
)
def global_context(x: torch.Tensor) -> torch.Tensor:
    """Every pixel looks at the whole tile, so tiles must be blended."""
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    return torch.tanh(centred[:, :1] / 3000 - centred[:, 1:] / 2000)


def a_recipe(**changes: Any) -> Recipe:
    recipe = Recipe.read(LANDSAT)
    return recipe.model_copy(update=changes)


def parsed(recipe: Recipe, **changes: Any) -> Recipe:
    return Recipe.parse({**recipe.model_dump(mode="json"), **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tif")}


def task_names(reports_of: str) -> list[str]:
    """Names of the task runs of the newest flow run of this name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (newest,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        assert newest.state is not None
        assert newest.state.name == reports_of
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[newest.id]))
        return [one.name for one in client.read_task_runs(flow_run_filter=chosen)]


def shown_progress() -> list[float]:
    """Percentages of the progress artifacts of the newest flow run, a part each."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (newest,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        chosen = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[newest.id]), type=ArtifactFilterType(any_=["progress"])
        )
        return [float(one.data) for one in client.read_artifacts(artifact_filter=chosen)]


def same_results(ours: list[Report], theirs: list[Report], a: Path, b: Path) -> None:
    assert [r.digest for r in ours] == [r.digest for r in theirs]
    assert files(a) == files(b)
    assert files(a)
    for one, other in zip(ours, theirs, strict=True):
        assert one.fingerprint == other.fingerprint
        assert one.tiles_run == other.tiles_run
        assert one.work_factor == 1.0
        assert one.reasons == other.reasons


def test_the_flow_gives_the_bits_of_run(tmp_path: Path) -> None:
    from tilewright.flows.region import run_region
    from tilewright.flows.tasks import GROUPS

    wishes = {"tile": 64, "shard": 64, "threads": 2, "device": "cpu"}
    plain = run(LANDSAT, region=SMALL, out=tmp_path / "run", **wishes)
    flow = run_region(LANDSAT, region=SMALL, out=tmp_path / "flow", wishes=wishes)
    same_results(flow, plain, tmp_path / "flow", tmp_path / "run")
    names = task_names("Completed")
    groups = [name for name in names if name.startswith("compute")]
    assert plain[0].shards > GROUPS >= len(groups) > 4
    assert len(names) == len(groups) + 4
    (share,) = shown_progress()
    assert share == pytest.approx(80)  # of the steps of the end, when the last began
    again = run_region(LANDSAT, region=SMALL, out=tmp_path / "flow", wishes=wishes)
    assert again[0].digest == plain[0].digest
    assert not [name for name in task_names("Completed") if name.startswith("compute")]


def blended(tmp_path: Path) -> tuple[Recipe, dict[str, Any]]:
    recipe = parsed(a_recipe(), kernel={"name": f"{__file__}:global_context"})
    return recipe, {"tile": 128, "shard": 192, "threads": 2, "device": "cpu"}


def test_blended_margins_travel_from_group_to_group(tmp_path: Path) -> None:
    from tilewright.flows.region import run_region

    recipe, wishes = blended(tmp_path)
    plain = run(recipe, region=SMALL, out=tmp_path / "run", **wishes)
    flow = run_region(recipe.model_dump(mode="json"), region=SMALL, out=tmp_path / "flow", wishes=wishes)
    same_results(flow, plain, tmp_path / "flow", tmp_path / "run")
    assert flow[0].stitch == "blend"
    assert flow[0].seam == plain[0].seam


def test_a_group_that_failed_is_tried_again_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilewright.flows import region as module
    from tilewright.pipeline.cube_source import CubeSource

    recipe, wishes = blended(tmp_path)
    plain = run(recipe, region=SMALL, out=tmp_path / "run", **wishes)
    reads, real = [], CubeSource.read

    def read(self: CubeSource, window: Any) -> Any:
        reads.append(window)
        if len(reads) == 6:
            raise ReadError("cannot be read", place="a scene")
        return real(self, window)

    monkeypatch.setattr(CubeSource, "read", read)
    flow = module.run_region(recipe, region=SMALL, out=tmp_path / "flow", wishes=wishes)
    assert [r.digest for r in flow] == [r.digest for r in plain]
    assert files(tmp_path / "flow") == files(tmp_path / "run")
    assert flow[0].tiles_run >= plain[0].tiles_run


def test_a_wrong_request_ends_with_one_clear_error_and_no_retry(tmp_path: Path) -> None:
    from tilewright.flows.region import run_region

    with pytest.raises(InputError, match=r"unknown key 'grid.resolutoin'.*did you mean 'resolution'"):
        run_region({**a_recipe().model_dump(mode="json"), "grid": {"resolutoin": 30}}, out=tmp_path / "a")
    with pytest.raises(InputError, match="did you mean 'index'"):
        run_region(parsed(a_recipe(), kernel={"name": "indx"}), out=tmp_path / "b")
    assert task_names("Failed") == ["search"]
    with pytest.raises(InputError, match="tile is 0"):
        run_region(a_recipe(), out=tmp_path / "c", wishes={"tile": 0})
    assert not list(tmp_path.iterdir())


def test_importing_tilewright_imports_no_prefect() -> None:
    code = "import sys, tilewright, tilewright.cli, tilewright.flows.runs; print('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "true")
    with quiet():
        assert os.environ["DO_NOT_TRACK"] == "1"
        assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"
    assert "DO_NOT_TRACK" not in os.environ
