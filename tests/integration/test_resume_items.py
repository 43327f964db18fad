"""A run is repeated with its own Items: what comes into the archive meanwhile belongs to the next run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import write_recipe

from tilewright.errors import CatalogError
from tilewright.flows.runs import run

if TYPE_CHECKING:
    from tilewright.pipeline.progress import Status

pytestmark = pytest.mark.integration
SCENES = Path(__file__).parents[2] / "data" / "landsat-c1-l1"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A copy of the Landsat collection, to which things may happen."""
    return Path(shutil.copytree(SCENES, tmp_path / "archive"))


def test_an_interrupted_run_goes_on_with_its_items(archive: Path, tmp_path: Path) -> None:
    place = [-54.80, -25.30, -54.74, -25.24]
    cut = {"shard": 64, "tile": 64}
    recipe = write_recipe(
        tmp_path / "r.yaml", catalog=str(archive / "collection.json"), run=cut, region=place
    )
    (whole,) = run(recipe, out=tmp_path / "whole")

    def stop(status: Status) -> None:
        assert status.total > 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=tmp_path / "out", progress=stop)
    listed = archive / "collection.json"
    collection = json.loads(listed.read_text())
    collection["links"] = [link for link in collection["links"] if link["rel"] != "item"]
    listed.write_text(json.dumps(collection))  # the catalog has withdrawn everything

    said: list[str] = []
    (resumed,) = run(recipe, out=tmp_path / "out", say=said.append)
    assert resumed.digest == whole.digest
    assert 0 < resumed.shards_reused < resumed.shards
    assert any("snapshot" in line for line in said)
    (again,) = run(recipe, out=tmp_path / "out")
    assert again.digest == whole.digest
    with pytest.raises(CatalogError):
        run(recipe, out=tmp_path / "out", fresh=True)
    with pytest.raises(CatalogError):
        run(recipe, out=tmp_path / "elsewhere")


def test_another_region_is_searched(archive: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", catalog=str(archive / "collection.json"))
    run(recipe, out=tmp_path / "out")
    shutil.rmtree(archive / "items")
    with pytest.raises(CatalogError):
        run(recipe, out=tmp_path / "out", region=[-54.80, -25.30, -54.78, -25.28])
