"""`tilewright ask` about change: two rasters or a recipe, with and without a model on a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chat_server import Server, said
from commands import CATALOG, command, write_tif

NAMES = ("red", "green", "blue", "nir")
FIELD, LAKE = (400, 800, 400, 4000), (200, 400, 600, 100)


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A field before, and with a lake of 60 x 40 px in its north-west after, as ten-thousandths of reflectance."""
    folder = tmp_path_factory.mktemp("dates")
    rng = np.random.default_rng(0)
    paths = []
    for name in ("before", "after"):
        pixels = np.array(FIELD, float)[:, None, None] + rng.normal(0, 30, (4, 300, 300))
        if name == "after":
            pixels[:, 20:60, 30:90] += (np.array(LAKE, float) - FIELD)[:, None, None]
        paths.append(write_tif(folder / f"{name}.tif", pixels.clip(0).astype("uint16"), names=NAMES))
    return paths


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def asked(*arguments: Any) -> list[dict[str, Any]]:
    """Run a question that is answered, and return the traces of its turns."""
    done = command("ask", *arguments, "--json")
    assert done.status in (0, None), done
    traces: list[dict[str, Any]] = json.loads(done.out)
    return traces


def test_two_dates_are_asked_what_has_changed(dates: list[Path], tmp_path: Path) -> None:
    done = command("ask", *dates, "What has changed?", "--out", tmp_path / "answer")
    assert done.status in (0, None), done
    assert done.out.startswith(
        "1 place changed: 2.16 km2 (2.7 % of what was compared), in the north-west. No language"
    )
    assert "\n  1. changed, score " in done.out
    assert "columns 30..90, rows 20..60" in done.out
    (feature,) = json.loads((tmp_path / "answer/evidence.geojson").read_text())["features"]
    assert feature["properties"]["area_m2"] == pytest.approx(60 * 40 * 900, rel=2e-3)
    assert feature["properties"]["pixels"] == [30, 20, 90, 60]
    (trace,) = json.loads((tmp_path / "answer/trace.json").read_text())
    assert trace["policy"] == "change"
    assert (tmp_path / "answer/where.png").stat().st_size > 2_000


def test_kernel_and_limits_are_options(dates: list[Path]) -> None:
    options = ("--set", "kernel=ir-mad", "--set", "smallest=5000")
    (trace,) = asked(*dates, "Has anything changed?", *options)
    assert trace["answer"].startswith(
        "No. Nothing changed that stands out. No language model was asked: ir-mad"
    )
    (trace,) = asked(*dates, "Anything?", "--set", "kernel_options={threshold: 1000}")
    assert trace["threshold"] == 1000
    assert trace["answer"].startswith("No. ")


def test_a_dialogue_about_change(dates: list[Path], tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text(
        "How many places changed?\nHow large are they?\nWhere are they?\n"
    )
    traces = asked(*dates, "--dialogue", tmp_path / "questions.txt", "--out", tmp_path / "out")
    assert [trace["question_kind"] for trace in traces] == ["count", "area", "where"]
    assert [trace["turns_before"] for trace in traces] == [0, 1, 2]
    assert (tmp_path / "out/turn-3/evidence.geojson").exists()


def test_the_embedder_that_comes_with_the_package_ranks_classes(dates: list[Path]) -> None:
    (trace,) = asked(
        *dates,
        "What has changed?",
        "--bands",
        "red,green,blue",
        "--embedder",
        "eurosat",
        "--set",
        "high=2754",
    )
    assert trace["embedder"] == "eurosat"
    assert "Ranked by the embedder eurosat, not measured: " in trace["answer"]


def test_a_model_on_a_server_is_shown_both_dates_as_renderings(server: Server, dates: list[Path]) -> None:
    server.replies = [said("A lake was dug in the north-west.")]
    (trace,) = asked(
        *dates, "What has changed?", "--answerer", f"openai:tiny@{server.url}",
        "--set", "renderings=true-colour,ndvi",
    )  # fmt: skip
    assert trace["answer"] == "A lake was dug in the north-west."
    assert trace["caption"].startswith("1 place changed: 2.16 km2")
    ((_, _, body),) = server.requests
    parts = body["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["image_url"] * 4 + ["text"]
    text = parts[-1]["text"]
    assert "Images 1 to 2 show a piece of ground, images 3 to 4 the same piece at a later date" in text
    assert "Image 2 is the vegetation index NDVI." in text
    assert "place 1: in the north-west, 2.16 km2, columns 30-90, rows 20-60" in text


def test_a_recipe_with_two_periods(tmp_path: Path) -> None:
    recipe = {
        "name": "pair",
        "catalog": str(CATALOG),
        "collections": "opera-rtc-s1",
        "region": [-119.9584, 35.2622, -119.9267, 35.2882],
        "periods": ["2023-11-01/2023-11-30", "2024-12-01/2025-01-03"],
        "grid": {"resolution": 30, "crs": "items"},
        "bands": ["vv", "vh"],
        "kernel": {"name": "log-ratio"},
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(recipe))
    (trace,) = asked(path, "Where has it changed?", "--set", "kernel=log-ratio")
    assert "in the north" in trace["answer"].partition(". They are")[0]
    assert trace["tools"][0] == {"tool": "change", "kernel": "log-ratio", "level": 0}
    assert command("ask", path, path, "What changed?").line.startswith("image: a recipe has its dates itself")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("BEFORE", "What changed?", "--policy", "change"), "the image has one date, and change is between two"),
        (("BEFORE", "AFTER"), "give a question, or --dialogue"),
        (("BEFORE", "AFTER", "What?", "--set", "kernel=tinycd", "--bands", "red,green,blue"), "tinycd: has no weights"),
        (("BEFORE", "AFTER", "What?", "--weights", "x.safetensors"), "weights, and no embedder is named"),
        (("BEFORE", "AFTER", "What?", "--set", "kernel=ndvi"), "unknown kernel 'ndvi'"),
        (("BEFORE", "AFTER", "What?", "--set", "kernal=x"), "unknown option 'kernal'; did you mean 'kernel'"),
        (("BEFORE", "AFTER", "What?", "--budget", "10KiB"), "give more by --budget"),
        (("BEFORE", "missing.tif", "What?"), "missing.tif"),
        (
            ("BEFORE", "What?", "--policy", "zoom-in", "--answerer", "openai:m@http://127.0.0.1:9/v1",
             "--set", "renderings=nbr"),
            "rendering nbr needs the band swir22; the image has red, green, blue, nir",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(
    dates: list[Path], arguments: tuple[str, ...], match: str
) -> None:
    named = {"BEFORE": str(dates[0]), "AFTER": str(dates[1])}
    assert match in command("ask", *(named.get(one, one) for one in arguments)).line
