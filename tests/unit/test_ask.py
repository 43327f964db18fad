"""The loop of `ask`, and the policy that finds what a text names with an embedder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import torch
from embedders import colours
from rasterio.enums import Resampling

from tilewright.errors import InputError, KernelError
from tilewright.kernels.ask import Answer, Asking, BudgetSpentError, Evidence, Request, Scene
from tilewright.kernels.vlm.find import Find, named_thing
from tilewright.pipeline.ask import ask, evidence_geojson, write_evidence, write_trace
from tilewright.pipeline.looked import look_of, picture_of
from tilewright.pipeline.pyramid import Pyramid, open_pyramid
from tilewright.pipeline.rasters import raster_source

if TYPE_CHECKING:
    from tilewright.kernels.embed import ImageTextEmbedder

SIDE = 2048


def colour_embedder() -> ImageTextEmbedder:
    return colours(side=32).embedder({"gain": torch.ones(1)})


def scene_file(path: Path, blue: tuple[int, int, int] | None, nodata: bool = False) -> Path:
    """Green ground with a little noise; a blue square ``(row, col, side)``."""
    rng = np.random.default_rng(3)
    pixels = np.zeros((3, SIDE, SIDE), np.uint8)
    pixels[1] = 150
    pixels += rng.integers(0, 30, pixels.shape, np.uint8)
    if blue is not None:
        row, col, side = blue
        pixels[:, row : row + side, col : col + side] = rng.integers(0, 30, (3, side, side), np.uint8)
        pixels[2, row : row + side, col : col + side] += 180
    if nodata:
        pixels[:, :, SIDE // 2 :] = 0
    transform = rasterio.transform.from_origin(300_000, 6_000_000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=3, dtype="uint8", crs="EPSG:32632",
        transform=transform, tiled=True, blockxsize=256, blockysize=256, compress="deflate",
        nodata=0 if nodata else None,
    ) as out:  # fmt: skip
        out.write(pixels)
        out.build_overviews([2, 4, 8, 16], Resampling.average)
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    path = scene_file(tmp_path_factory.mktemp("ask") / "planted.tif", (1213, 517, 140))
    return open_pyramid(raster_source([path]), coarsest=64)


@dataclass
class Scripted:
    """A policy made of a function."""

    steps: Callable[[str, Scene], Asking]
    name: str = "scripted"

    def ask(self, question: str, scene: Scene) -> Asking:
        return self.steps(question, scene)


def test_a_policy_sees_what_it_asked_for(planted: Pyramid) -> None:
    def steps(question: str, scene: Scene) -> Asking:
        assert scene.shape == (SIDE, SIDE)
        assert scene.resolution == 10
        first, second = yield [Request(4, 0, 0, 5, 7), Request(0, 1300, 600, 1302, 603)]
        assert first.pixels.shape == (3, 5, 7)
        (third,) = yield [Request(scene.coarsest, 0, 0, 1, 1)]
        return Answer(
            f"{question} {second.pixels[2].min()} {third.pixels[1, 0, 0]}", [Evidence((0, 0, 10, 20), 1.0)]
        )

    outcome = ask(Scripted(steps), "blue?", planted)
    blue, green = (int(word) for word in outcome.answer.text.split()[1:])
    assert blue >= 180
    assert 150 <= green <= 180
    assert [len(step) for step in outcome.account.windows] == [2, 1]
    trace = outcome.trace()
    assert trace["bytes_read"] == outcome.account.bytes_read > 0
    assert trace["share_read"] == outcome.account.bytes_read / (SIDE * SIDE * 3)


def test_a_policy_that_never_answers_is_stopped(planted: Pyramid) -> None:
    def steps(question: str, scene: Scene) -> Asking:
        while True:
            yield [Request(scene.coarsest, 0, 0, 1, 1)]

    with pytest.raises(KernelError, match="no answer after"):
        ask(Scripted(steps), "?!", planted)


def test_the_budget_is_a_wall_and_a_policy_may_answer_at_it(planted: Pyramid) -> None:
    def greedy(question: str, scene: Scene) -> Asking:
        yield [Request(4, 0, 0, 10, 10)]
        try:
            yield [Request(0, 0, 0, SIDE, SIDE)]
        except BudgetSpentError:
            return Answer("what I saw")
        return Answer("everything")

    assert ask(Scripted(greedy), "q", planted).answer.text == "everything"
    spent = ask(Scripted(greedy), "q", planted, budget=1_000_000)
    assert spent.answer.text == "what I saw"
    assert spent.account.bytes_read <= 1_000_000

    def stubborn(question: str, scene: Scene) -> Asking:
        yield [Request(0, 0, 0, SIDE, SIDE)]
        return Answer("everything")

    with pytest.raises(BudgetSpentError, match="give more by --budget"):
        ask(Scripted(stubborn), "q", planted, budget=1_000_000)


def test_an_empty_question_is_refused(planted: Pyramid) -> None:
    with pytest.raises(InputError, match="empty"):
        ask(Find(colour_embedder()), "  ", planted)


@pytest.mark.parametrize(
    ("question", "thing"),
    [
        ("Where is the forest?", "forest"),
        ("find all the ships", "ships"),
        ("Where are there any lakes?", "lakes"),
        ("Show me a river", "river"),
        ("Is there a highway?", "highway"),
        ("residential area", "residential area"),
        ("Where?", "Where"),
    ],
)
def test_what_a_question_names(question: str, thing: str) -> None:
    assert named_thing(question) == thing


def test_find_finds_the_planted_square_and_reads_little(planted: Pyramid, tmp_path: Path) -> None:
    policy = Find(colour_embedder(), share=0.2)
    outcome = ask(policy, "Where is the blue square?", planted)
    best = outcome.answer.evidence[0]
    col, row = (best.box[0] + best.box[2]) / 2, (best.box[1] + best.box[3]) / 2
    assert 517 < col < 517 + 140
    assert 1213 < row < 1213 + 140
    assert best.properties["found"]
    assert "no language model" in outcome.answer.text
    collection = json.loads(write_evidence(outcome, planted, tmp_path / "evidence.geojson").read_text())
    lon, lat = np.mean(collection["features"][0]["geometry"]["coordinates"][0][:-1], axis=0)
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    assert 300_000 + 5170 < x < 300_000 + 6570
    assert 6_000_000 - 13_530 < y < 6_000_000 - 12_130
    trace = json.loads(write_trace([outcome], tmp_path / "trace.json").read_text())
    assert trace[0]["found"] >= 1
    picture = picture_of(outcome, planted, tmp_path / "where.png")
    assert picture.stat().st_size > 5_000


def test_find_says_so_where_nothing_stands_out(tmp_path: Path) -> None:
    pyramid = open_pyramid(raster_source([scene_file(tmp_path / "plain.tif", None)]), coarsest=64)
    outcome = ask(Find(colour_embedder(), share=0.2), "Where is the blue square?", pyramid)
    assert "Nothing stands out" in outcome.answer.text
    assert not any(found.properties["found"] for found in outcome.answer.evidence)


def test_find_leaves_nodata_out(tmp_path: Path) -> None:
    pyramid = open_pyramid(
        raster_source([scene_file(tmp_path / "half.tif", (300, 300, 200), nodata=True)]), coarsest=64
    )
    outcome = ask(Find(colour_embedder(), share=0.2), "blue", pyramid)
    best = outcome.answer.evidence[0]
    assert 300 < (best.box[0] + best.box[2]) / 2 < 500
    assert all(found.box[0] < SIDE / 2 for found in outcome.answer.evidence)


def test_find_answers_from_its_scan_where_the_budget_ends(planted: Pyramid) -> None:
    policy = Find(
        colour_embedder(), share=0.001
    )  # the scan takes what it may always take: four million pixels
    scan = planted.cost([Request(1, 0, 0, *planted.levels[1].shape)])
    outcome = ask(policy, "blue", planted, budget=scan)
    assert outcome.account.bytes_read == scan
    assert outcome.trace()["looked_again"] is False
    best = outcome.answer.evidence[0].box
    assert 517 < (best[0] + best[2]) / 2 < 657


def test_find_wants_the_bands_of_its_embedder(tmp_path: Path) -> None:
    path = scene_file(tmp_path / "a.tif", None)
    pyramid = open_pyramid(raster_source([path], bands=[1, 2]))
    with pytest.raises(KernelError, match="2 bands"):
        ask(Find(colour_embedder()), "blue", pyramid)


def test_an_image_of_one_pixel_can_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "one.tif"
    transform = rasterio.transform.from_origin(300_000, 6_000_000, 10, 10)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=1,
        height=1,
        count=3,
        dtype="uint8",
        crs="EPSG:32632",
        transform=transform,
    ) as out:
        out.write(np.full((3, 1, 1), 90, np.uint8))
    outcome = ask(Find(colour_embedder()), "blue", open_pyramid(raster_source([path])))
    assert outcome.answer.text


def test_a_look_at_other_types_is_stretched() -> None:
    pixels = np.linspace(0, 5000, 300, dtype=np.float32).reshape(3, 10, 10)
    valid = np.ones((10, 10), bool)
    valid[0, 0] = False
    picture = look_of(pixels, valid)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == (225, 225, 225)
    assert picture[..., 0][valid].min() == 0
    assert picture[..., 0][valid].max() == 255
    assert look_of(pixels[:1], valid).shape == (10, 10, 3)
    limits = [[0.0, 0.0, 0.0], [10_000.0, 5_000.0, 2_500.0]]
    fixed = look_of(np.full((3, 10, 10), 2500.0, np.float32), valid, limits)
    assert [int(v) for v in fixed[5, 5]] == [64, 128, 255]


def test_evidence_over_the_antimeridian_is_in_two_parts(tmp_path: Path) -> None:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from tilewright.pipeline.grid import Grid

    grid = Grid(GeoBox((100, 100), Affine(0.1, 0, 175, 0, -0.1, 5), "EPSG:4326"))
    outcome = SimpleNamespace(answer=Answer("x", [Evidence((0, 0, 100, 100), float("inf"))]))
    feature = evidence_geojson(outcome, SimpleNamespace(grid=grid))["features"][0]  # type: ignore[arg-type]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert feature["properties"]["score"] is None
