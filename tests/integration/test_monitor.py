"""The flows `monitor` and `backfill` over an archive that grows, shrinks and changes its mind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from archive import Archive

from tilewright.errors import InputError
from tilewright.flows.runs import run
from tilewright.flows.watch import PROPERTY
from tilewright.kernels.user import kernel
from tilewright.pipeline.report import Report

if TYPE_CHECKING:
    import torch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.usefixtures("prefect_api")]

LEVEL = {"level": {"kind": "class", "classes": ["dark", "bright"]}}


@kernel(inputs={"image": {"bands": ["b1"]}}, outputs=LEVEL, radius=0)
def level(x: torch.Tensor) -> torch.Tensor:
    return (x > 5000).float()


@kernel(inputs={"image": {"bands": ["b1"], "dates": "2-3"}}, outputs={"rise": {"kind": "value"}}, radius=0)
def rise(x: torch.Tensor) -> torch.Tensor:
    return x[:, -1] - x[:, 0]


@kernel(inputs={"image": {"bands": ["b1"]}}, outputs={"mean": {"kind": "value"}}, radius=0)
def mean(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "archive")
    made.add("2024-05-01")
    made.add("2024-05-01", 1)
    return made


def watch(
    archive: Archive, kernel: str = "level", places: dict[str, int] | None = None, **more: Any
) -> dict[str, str]:
    """Run the monitor; return region -> ``state date``, results of one region joined."""
    from tilewright.flows.monitor import monitor

    regions = archive.regions(places or {"west": 0, "east": 1})
    recipe = more.pop("recipe", None) or archive.recipe(f"{__file__}:{kernel}")
    found = monitor(recipe, str(regions), out=str(archive.folder.parent / "maps"), **more)
    told: dict[str, str] = {}
    for one in found:
        text = f"{one.state} {one.date}".strip()
        told[one.region] = f"{told[one.region]}, {text}" if one.region in told else text
    return told


def results(archive: Archive) -> dict[str, Report]:
    folder = archive.folder.parent / "maps" / "watched"
    found = {str(p.parent.relative_to(folder)): Report.read(p.parent) for p in folder.glob("*/*/report.json")}
    return {name: report for name, report in found.items() if report is not None}


def items(archive: Archive) -> dict[str, dict[str, Any]]:
    folder = archive.folder.parent / "maps" / "catalog" / "watched"
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*/*.json")}


def test_what_is_new_is_made_once(archive: Archive) -> None:
    archive.add("2024-04-20")  # older than the newest: for a backfill
    assert watch(archive) == {"west": "published 2024-05-01", "east": "published 2024-05-01"}
    assert watch(archive) == {"west": "nothing new", "east": "nothing new"}
    archive.add("2024-05-09")
    archive.add("2024-05-21", bright=slice(30, 60))
    assert watch(archive) == {"west": "published 2024-05-09, published 2024-05-21", "east": "nothing new"}
    archive.add("2024-05-15")  # comes late, between others
    archive.add("2024-04-25")  # before all that was published
    assert watch(archive)["west"] == "published 2024-05-15"
    assert len(results(archive)) == 5
    shape = json.loads((archive.folder / "regions.geojson").read_text())["features"][0]["geometry"]
    recipe = archive.recipe(f"{__file__}:level", dates="2024-05-21")
    (plain,) = run(recipe, region=shape, out=archive.folder.parent / "plain")
    (made,) = (r for name, r in results(archive).items() if name.startswith("west/2024-05-21"))
    assert made.digest == plain.digest
    alerts = json.loads(
        next((archive.folder.parent / "maps/watched/west").glob("2024-05-21*/alerts.geojson")).read_text()
    )
    assert alerts["before"] == "2024-05-09"
    assert [f["properties"]["pixels"] for f in alerts["features"]] == [900]


def test_a_scene_processed_again_replaces_its_date(archive: Archive) -> None:
    watch(archive)
    archive.add("2024-05-01", version="02.00")
    assert watch(archive) == {"west": "published 2024-05-01", "east": "nothing new"}
    assert watch(archive) == {"west": "nothing new", "east": "nothing new"}
    assert set(items(archive)) == {"west-2024-05-01", "east-2024-05-01"}
    assert len(results(archive)) == 3, "the older result stays on the disk"
    newest = items(archive)["west-2024-05-01"]
    (made,) = (name for name in results(archive) if name.split("/")[1] in newest["assets"]["level"]["href"])
    assert made.startswith("west/2024-05-01-")


def test_a_second_scene_of_a_date_completes_it(archive: Archive) -> None:
    watch(archive, places={"west": 0})
    archive.add("2024-05-01", name="other-half")
    assert watch(archive, places={"west": 0}) == {"west": "published 2024-05-01"}
    assert len(items(archive)["west-2024-05-01"]["properties"][PROPERTY]["items"]) == 2


def test_a_withdrawn_item_harms_one_region_once(archive: Archive) -> None:
    from tilewright.flows.monitor import FailedRegions

    watch(archive)
    gone = archive.add("2024-05-11")
    archive.add("2024-05-11", 1)
    (archive.folder / f"{gone}-01.00.tif").unlink()  # between search and read
    with pytest.raises(FailedRegions, match=r"1 of 2 failed: west: .*scene-2024-05-11-0"):
        watch(archive)
    assert {name.split("/")[0] for name in results(archive) if "05-11" in name} == {"east"}
    archive.withdraw(gone, file=False)
    assert watch(archive) == {"west": "nothing new", "east": "nothing new"}


def test_a_region_without_items_is_no_failure(archive: Archive) -> None:
    told = watch(archive, places={"west": 0, "sea": 7})
    assert told == {"west": "published 2024-05-01", "sea": "nothing new"}


def test_dates_before_it_that_the_kernel_takes(archive: Archive) -> None:
    assert watch(archive, "rise", {"west": 0}) == {"west": "waiting"}
    for day in ("2024-05-05", "2024-05-09", "2024-05-13"):
        archive.add(day)
    assert watch(archive, "rise", {"west": 0}) == {"west": "published 2024-05-13"}
    (item,) = items(archive).values()
    assert [i["id"] for i in item["properties"][PROPERTY]["items"]] == ["scene-2024-05-13-0"]
    assert len([link for link in item["links"] if link["rel"] == "derived_from"]) == 3


def test_another_monitor_is_at_it(archive: Archive) -> None:
    from tilewright.pipeline.lease import Lease

    region = archive.folder.parent / "maps" / "watched" / "west"
    with Lease(None, str(region), owner="elsewhere 1", name="monitor.lock"):
        assert watch(archive) == {"west": "busy", "east": "published 2024-05-01"}
    assert watch(archive) == {"west": "published 2024-05-01", "east": "nothing new"}


def test_without_prefect_s_database_nothing_is_lost(archive: Archive) -> None:
    """Its state is the catalog: with that gone too, the folders of finished runs are found again, not made again."""
    watch(archive)
    before = {name: report.seconds for name, report in results(archive).items()}
    shutil.rmtree(archive.folder.parent / "maps" / "catalog")
    assert watch(archive) == {"west": "published 2024-05-01", "east": "published 2024-05-01"}
    assert {name: report.seconds for name, report in results(archive).items()} == before


def test_regions_side_by_side_on_dask(archive: Archive) -> None:
    dask = pytest.importorskip("prefect_dask")
    from tilewright.flows.monitor import monitor

    workers = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    regions, out = str(archive.regions({"west": 0, "east": 1})), str(archive.folder.parent / "maps")
    spread = monitor.with_options(task_runner=dask.DaskTaskRunner(cluster_kwargs=workers))
    found = spread(archive.recipe(f"{__file__}:level"), regions, out=out, spread=True)
    assert {(one.region, one.state) for one in found} == {("west", "published"), ("east", "published")}
    assert watch(archive) == {"west": "nothing new", "east": "nothing new"}
    digests = {report.digest for report in results(archive).values()}
    assert len(digests) == 1, "both show the same scene"


def test_a_span_is_made_again_whenever_it_gains_an_item(archive: Archive) -> None:
    composite = {"composite": {"method": "mean"}, "kernel": {"name": f"{__file__}:mean"}}
    recipe = {**archive.recipe(""), **composite}
    watch_span = {"recipe": recipe, "each": "span", "places": {"west": 0}}
    assert watch(archive, **watch_span)["west"].startswith("published 2024-01-01")
    assert watch(archive, **watch_span) == {"west": "nothing new"}
    archive.add("2024-05-20")
    assert watch(archive, **watch_span)["west"].startswith("published")
    assert len(items(archive)) == 1


def test_backfill_by_scenes_and_by_months(archive: Archive) -> None:
    from tilewright.flows.backfill import backfill, months

    for day in ("2024-03-30", "2024-04-02", "2024-04-20"):
        archive.add(day)
    watch(archive, places={"west": 0})
    regions, out = str(archive.folder / "regions.geojson"), str(archive.folder.parent / "maps")
    span: dict[str, Any] = {"start": "2024-03-01", "end": "2024-05-31", "out": out}
    made = backfill(archive.recipe(f"{__file__}:level"), regions, **span)
    assert [one.date for one in made] == ["2024-03-30", "2024-04-02", "2024-04-20"]
    assert [one.state for one in backfill(archive.recipe(f"{__file__}:level"), regions, **span)] == [
        "nothing new"
    ]
    recipe = archive.recipe(f"{__file__}:mean", name="monthly", composite={"method": "mean"})
    made = backfill(recipe, regions, **span, by="month")
    assert [(one.state, one.date) for one in made] == [
        ("published", "2024-03"), ("published", "2024-04"), ("published", "2024-05"),
    ]  # fmt: skip
    from datetime import date

    assert list(months(date(2023, 12, 10), date(2024, 2, 29))) == [
        "2023-12-10/2023-12-31",
        "2024-01",
        "2024-02",
    ]


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"region": [15, 47, 16, 48]}, {}, "the recipe has a region of its own"),
        ({"grid": {"resolutoin": 10}}, {}, "did you mean 'resolution'"),
        ({}, {"out": "s3://bucket/maps"}, "kept in a catalog on a disk"),
        ({}, {"each": "month"}, "unknown 'month'"),
    ],
)
def test_a_recipe_that_does_not_fit(archive: Archive, changes: Any, more: Any, message: str) -> None:
    from tilewright.flows.monitor import monitor

    recipe = archive.recipe(f"{__file__}:level", **changes)
    given = {"out": str(archive.folder.parent / "maps"), **more}
    with pytest.raises(InputError, match=message):
        monitor(recipe, str(archive.regions({"west": 0})), **given)
    assert not (archive.folder.parent / "maps").exists()
