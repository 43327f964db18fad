"""Questions about change: the tools, the rules for words, and the policy over two dates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from embedders import colours
from rasterio.enums import Resampling
from scenes import write_scene

import tilewright
from tilewright.errors import KernelError
from tilewright.kernels.ask import BudgetSpentError, LevelInfo, Scene
from tilewright.kernels.contract import InputSpec, Kernel, KernelSpec, OutputSpec
from tilewright.kernels.load import load_kernel
from tilewright.kernels.vlm.change_map import ChangeMap, spread_of, stratified
from tilewright.kernels.vlm.change_places import ChangedPlace
from tilewright.kernels.vlm.change_talk import ChangeTalk
from tilewright.kernels.vlm.change_words import caption, direction, kind_of, listed, topic_of
from tilewright.pipeline.areas import pixel_areas
from tilewright.pipeline.ask import Outcome, ask, evidence_geojson
from tilewright.pipeline.grid import Window
from tilewright.pipeline.looked import picture_of
from tilewright.pipeline.pyramid import Pyramid, open_pyramid
from tilewright.pipeline.rasters import raster_source

if TYPE_CHECKING:
    from tilewright.kernels.vlm.answerers import Turn

SIDE = 1536
SQUARES = ((100, 200, 80), (460, 1000, 120))
"""Row, column and side of what changes; the second lies over the edges of cells of 512 px."""
REPOSITORY = Path(__file__).resolve().parents[2]


def write_date(path: Path, *, changed: bool, seed: int, side: int = SIDE) -> Path:
    """Green ground with noise; the squares are blue at the second date."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 30, (3, side, side), np.uint8)
    pixels[1] += 150
    for row, col, length in SQUARES if changed else ():
        square = (slice(row, row + length), slice(col, col + length))
        pixels[1][square] -= 150
        pixels[2][square] += 180
    write_scene(path, pixels, crs="EPSG:32632", transform=Affine(10, 0, 300_000, 0, -10, 6_000_000))
    with rasterio.open(path, "r+") as out:
        out.build_overviews([2, 4, 8], Resampling.average)
    return path


@pytest.fixture(scope="module")
def dates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dates")
    return (
        write_date(folder / "before.tif", changed=False, seed=1),
        write_date(folder / "after.tif", changed=True, seed=2),
    )


def opened(*paths: Path, bands: Sequence[str] = ("red", "green", "blue")) -> Pyramid:
    return open_pyramid(raster_source(list(paths), bands=list(bands)), coarsest=64)


@pytest.fixture(scope="module")
def pair(dates: tuple[Path, Path]) -> Pyramid:
    return opened(*dates)


def coarse_to_fine(**options: Any) -> ChangeTalk:
    return ChangeTalk(**{"scan": 200_000, "fine": 3_000_000, **options})


def overlap(outcome: Outcome) -> list[float]:
    """How well the box of each piece of evidence fits the nearest square, as intersection over union."""
    found = []
    for one in outcome.answer.evidence:
        col0, row0, col1, row1 = one.box
        best = 0.0
        for row, col, side in SQUARES:
            across = max(0.0, min(col1, col + side) - max(col0, col))
            down = max(0.0, min(row1, row + side) - max(row0, row))
            both = across * down
            best = max(best, both / ((col1 - col0) * (row1 - row0) + side * side - both))
        found.append(best)
    return found


# -- the policy ----------------------------------------------------------------------------------------


def test_a_closer_look_finds_what_changed_and_reads_little(pair: Pyramid, tmp_path: Path) -> None:
    outcome = ask(coarse_to_fine(), "What has changed?", pair)
    assert overlap(outcome) == pytest.approx([1, 1], abs=1e-9)
    trace = outcome.trace()
    assert (trace["scanned_level"], trace["answered_level"]) == (2, 0)
    assert [one["tool"] for one in trace["tools"]] == ["change", "change", "count", "area", "caption"]
    assert trace["places"] == 2
    assert outcome.answer.text.startswith(
        "2 places changed, together 2.08 km2 (0.88 % of what was compared), the "
    )
    assert "largest 1.44 km2 in the east." in outcome.answer.text
    assert "No language model was asked: change-vector" in outcome.answer.text
    assert trace["share_read"] < 0.85
    assert picture_of(outcome, pair, tmp_path / "where.png").stat().st_size > 3_000
    json.dumps(trace)


def test_the_closer_look_and_a_look_at_everything_say_the_same(pair: Pyramid) -> None:
    closer = ask(coarse_to_fine(), "Where?", pair).answer
    whole = ask(ChangeTalk(), "Where?", pair)
    assert whole.trace()["answered_level"] == whole.trace()["scanned_level"] == 0
    boxes = [[one.box for one in answer.evidence] for answer in (closer, whole.answer)]
    assert boxes[0] == boxes[1]
    areas = [[one.properties["area_m2"] for one in answer.evidence] for answer in (closer, whole.answer)]
    assert areas[0] == areas[1]


def test_evidence_is_the_outline_in_longitude_and_latitude(pair: Pyramid) -> None:
    from pyproj import Geod

    outcome = ask(coarse_to_fine(), "Where?", pair)
    collection = evidence_geojson(outcome, pair)
    for feature in collection["features"]:
        area, _ = Geod(ellps="WGS84").polygon_area_perimeter(
            *np.array(feature["geometry"]["coordinates"][0]).T
        )
        assert abs(area) == pytest.approx(feature["properties"]["area_m2"], rel=1e-3)


def test_areas_are_those_of_the_ellipsoid(tmp_path: Path) -> None:
    paths = []
    for name, value in (("before", 10), ("after", 200)):
        pixels = np.full((1, 60, 60), 10.0, np.float32) + np.random.default_rng(value).normal(
            0, 1, (1, 60, 60)
        )
        pixels[:, 20:30, 15:35] += value
        at = Affine(100, 0, 0, 0, -100, 8_400_000)  # 60 degrees north, where Web Mercator is twice too large
        paths.append(
            write_scene(tmp_path / f"{name}.tif", pixels.astype(np.float32), crs="EPSG:3857", transform=at)
        )
    pyramid = opened(*paths, bands=["height"])
    outcome = ask(ChangeTalk(), "How large is what changed?", pyramid)
    expected = pixel_areas(pyramid.grid.geobox, Window(20, 30, 15, 35)).sum()
    (place,) = outcome.answer.evidence
    assert place.properties["area_m2"] == pytest.approx(expected, abs=0.1)
    assert expected < 0.27 * 200 * 100**2
    assert outcome.answer.text.startswith("50.")
    assert " ha changed, 5.6 % of what was compared, in one place in the " in outcome.answer.text


@pytest.mark.parametrize(
    ("question", "opening"),
    [
        ("Has anything changed?", "No. Nothing changed that stands out. No language model"),
        pytest.param("How many places changed?", "Nothing changed that stands out.", marks=pytest.mark.slow),
        pytest.param("Where?", "Nothing changed that stands out.", marks=pytest.mark.slow),
    ],
)
def test_the_same_ground_twice_is_no_change(tmp_path: Path, question: str, opening: str) -> None:
    paths = [write_date(tmp_path / f"{seed}.tif", changed=False, seed=seed, side=300) for seed in (5, 6)]
    outcome = ask(ChangeTalk(), question, opened(*paths))
    assert outcome.answer.text.startswith(opening)
    assert not outcome.answer.evidence


@pytest.mark.parametrize("kernel", ["change-vector", "ir-mad"])
def test_a_file_and_itself_are_no_change(dates: tuple[Path, Path], kernel: str) -> None:
    outcome = ask(ChangeTalk(kernel), "Has anything changed?", opened(dates[0], dates[0]))
    assert outcome.answer.text.startswith("No. Nothing changed that stands out. No language model was asked")


def test_places_that_run_on_are_followed_or_said_to_be_cut(tmp_path: Path) -> None:
    """Two arms that are averaged away in the scan hang on a place that is not."""
    rng = np.random.default_rng(0)
    paths = []
    for name in ("before", "after"):
        pixels = rng.normal(100, 10, (1, 2048, 2048)).astype(np.float32)
        if name == "after":
            pixels[:, 1000:1048, 1000:1049] += 200  # the arms touch it where both add up
            pixels[:, 1020:1024, 200:1800] += 200 * (-1.0) ** np.arange(200, 1800)
        paths.append(write_scene(tmp_path / f"{name}.tif", pixels))
    pyramid = open_pyramid(raster_source(paths), coarsest=64)
    policy = ChangeTalk(scan=5_000, fine=8_000_000, smallest=100)
    followed = ask(policy, "Where?", pyramid)
    assert followed.trace()["scanned_level"] == 5
    assert followed.answer.evidence[0].box == pytest.approx((200, 1000, 1800, 1048), abs=8)
    assert followed.trace()["cells_not_followed"] == 0
    cut = ask(ChangeTalk(scan=5_000, fine=1_100_000, smallest=100), "Where?", pyramid)
    assert cut.trace()["cells_not_followed"] == 2
    assert "places that run on beyond what was read are cut" in cut.answer.text
    budget = cut.account.bytes_read + 10_000
    ended = ask(policy, "Where?", pyramid, budget=budget)
    assert ended.account.bytes_read <= budget
    assert ended.trace()["cells_not_followed"] == 2
    assert [one.box for one in ended.answer.evidence] == [one.box for one in cut.answer.evidence]


def test_kinds_of_questions_are_answered_in_kind(pair: Pyramid) -> None:
    def said(question: str) -> str:
        return ask(coarse_to_fine(), question, pair).answer.text

    assert said("Has anything changed?").startswith("Yes. 2 places changed")
    assert said("Were houses built?").startswith("Something did. 2 places changed")
    assert "changes of all kinds are meant" in said("Were houses built?")
    assert said("How many hectares have changed?").startswith("2.08 km2 changed")
    assert "They are: 1. in the east, 1.44 km2, columns 1000-1120, rows 460-580; 2. " in said("Where?")


def test_the_budget_is_a_wall(pair: Pyramid) -> None:
    cheapest = ask(coarse_to_fine(), "Where?", pair, budget=2 * 3 * 192 * 192 + 50_000)
    assert cheapest.trace()["scanned_level"] == 3
    assert cheapest.account.bytes_read <= 2 * 3 * 192 * 192 + 50_000
    scan = pair.cost([pair_request(pair, 2)])
    ended = ask(coarse_to_fine(), "Where?", pair, budget=scan + 1000)
    assert ended.account.bytes_read == scan
    assert ended.trace()["budget_ended"]
    assert "at 4 px a pixel, for the budget ended the closer look" in ended.answer.text
    assert min(overlap(ended)) > 0.8
    with pytest.raises(BudgetSpentError, match="give more by --budget"):
        ask(coarse_to_fine(), "Where?", pair, budget=1000)


def pair_request(pyramid: Pyramid, level: int) -> Any:
    from tilewright.kernels.ask import Request

    return Request(level, 0, 0, *pyramid.levels[level].shape)


def test_too_much_change_for_full_resolution_is_told_from_a_coarser_level(pair: Pyramid) -> None:
    outcome = ask(coarse_to_fine(fine=600_000), "Where?", pair)
    assert outcome.trace()["answered_level"] == 1
    assert "at 2 px a pixel" in outcome.answer.text
    assert min(overlap(outcome)) > 0.9


def test_small_places_are_left_out(pair: Pyramid) -> None:
    outcome = ask(coarse_to_fine(smallest=100 * 100), "How many places changed?", pair)
    assert outcome.answer.text.startswith("1 place changed")


def test_nothing_measured_at_both_dates(tmp_path: Path) -> None:
    pixels = np.full((1, 40, 40), 5, np.uint8)
    pixels[:, :20] = 0
    paths = [
        write_scene(tmp_path / "a.tif", pixels, nodata=0),
        write_scene(tmp_path / "b.tif", pixels[:, ::-1], nodata=0),
    ]
    outcome = ask(ChangeTalk(), "What changed?", opened(*paths, bands=["grey"]))
    assert outcome.answer.text.startswith("Nothing was measured at both dates.")


def test_the_embedder_says_from_what_to_what(pair: Pyramid) -> None:
    embedder = colours(side=32).embedder({"gain": torch.ones(1)})
    policy = coarse_to_fine(embedder=embedder, labels=("red roofs", "green fields", "blue water"))
    answer = ask(policy, "What has changed?", pair).answer
    assert {one.label for one in answer.evidence} == {"green fields -> blue water"}
    assert answer.evidence[0].properties["before"] == "green fields"
    assert "Ranked by the embedder colours, not measured: green fields -> blue water (2)." in answer.text
    lost = ask(policy, "Were green fields lost?", pair).answer.text
    assert lost.startswith("Yes. 2 places changed from green fields, together")
    new = ask(policy, "How many new roofs are there?", pair).answer
    assert new.text.startswith("Nothing changed to red roofs that stands out.")
    assert not new.evidence


def test_the_embedder_wants_its_bands(dates: tuple[Path, Path]) -> None:
    embedder = colours(side=32).embedder({"gain": torch.ones(1)})
    pyramid = open_pyramid(raster_source(list(dates), bands=[1, 3]), coarsest=64)
    with pytest.raises(KernelError, match="the embedder takes 3 bands"):
        ask(coarse_to_fine(embedder=embedder), "What changed?", pyramid)


class Scripted:
    """Says what it was told to say, and keeps what it was shown."""

    name = "scripted"

    def __init__(self, said: str) -> None:
        self.said = said
        self.turns: list[Turn] = []

    def answer(self, images: Sequence[np.ndarray], prompt: str, max_tokens: int = 256) -> str:
        raise AssertionError("it knows dialogues")

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        self.turns = list(turns)
        return self.said


def test_an_answerer_is_shown_both_dates_and_the_results(pair: Pyramid) -> None:
    model = Scripted(" Two lakes appeared. ")
    outcome = ask(coarse_to_fine(answerer=model, side=192), "What has changed?", pair)
    assert outcome.answer.text == "Two lakes appeared."
    (turn,) = model.turns
    before, after = turn.images
    assert before.shape == after.shape == (192, 192, 3)
    assert (before != after).any()
    assert "count: 2" in turn.text
    assert "caption: 2 places changed, together 2.08 km2" in turn.text
    assert (
        "place 1: in the east, 1.44 km2, columns 1000-1120, rows 460-580, <box>[[651, 299, 729, 378]]</box>"
        in turn.text
    )
    assert turn.text.endswith("What has changed?")
    assert len(outcome.answer.evidence) == 2
    assert outcome.trace()["answerer"] == "scripted"
    assert outcome.trace()["caption"].startswith("2 places changed")


@pytest.mark.parametrize(
    ("renderings", "count", "opening"),
    [
        (
            ("true-colour",),
            1,
            "Image 1 shows a piece of ground, image 2 the same piece at a later date.\nImage 1 is a true",
        ),
        (
            ("true-colour", "triplets"),
            2,
            "Images 1 to 2 show a piece of ground, images 3 to 4 the same piece at a later",
        ),
    ],
)
def test_an_answerer_is_shown_renderings(
    pair: Pyramid, renderings: tuple[str, ...], count: int, opening: str
) -> None:
    model = Scripted("x")
    ask(coarse_to_fine(answerer=model, side=192, renderings=renderings), "What has changed?", pair)
    (turn,) = model.turns
    assert len(turn.images) == 2 * count
    assert turn.text.startswith(opening)
    assert (turn.images[0] != turn.images[count]).any()
    assert "Image 1 is a true-colour picture. Red shows red light, green shows green light" in turn.text


def test_where_the_budget_ends_the_answerer_is_told_by_the_tools_alone(pair: Pyramid) -> None:
    model = Scripted("two places")
    scan = pair.cost([pair_request(pair, 2)])
    outcome = ask(coarse_to_fine(answerer=model), "What has changed?", pair, budget=scan + 1000)
    assert outcome.answer.text == "two places"
    (turn,) = model.turns
    assert turn.images == ()
    assert turn.text.startswith("No picture could be read, for the budget has ended.")


def test_a_turn_may_mean_what_the_turn_before_was_about(pair: Pyramid) -> None:
    embedder = colours(side=32).embedder({"gain": torch.ones(1)})
    policy = coarse_to_fine(embedder=embedder, labels=("red roofs", "green fields", "blue water"))
    first = ask(policy, "Is there new water?", pair)
    second = ask(policy, "How large is it?", pair, history=[first])
    assert second.answer.text.startswith("2.08 km2 changed to blue water, 0.88 %")
    assert second.trace()["turns_before"] == 1


def test_real_backscatter(tmp_path: Path) -> None:
    """The northern Carrizo Plain: a patch in the north of the window turned dark before January 2025."""
    folder = REPOSITORY / "data/opera-rtc-s1/cogs"

    def date(day: str) -> str:
        (vv,) = folder.glob(f"*T137-292324-IW2_{day}*VV.tif")
        return f"{vv},{str(vv).replace('_VV', '_VH')}"

    pyramid = open_pyramid(raster_source([date("20231121"), date("20250102")], bands=["vv", "vh"]))
    outcome = ask(ChangeTalk("log-ratio"), "Where has it changed?", pyramid)
    largest = outcome.answer.evidence[0]
    assert 1.5e6 < largest.properties["area_m2"] < 3.6e6
    assert (largest.box[1] + largest.box[3]) / 2 < 50
    assert "the largest 2.54 km2 in the north." in outcome.answer.text


# -- the tools -----------------------------------------------------------------------------------------


def test_the_tool_is_the_kernel_as_apply_maps_it(dates: tuple[Path, Path], tmp_path: Path) -> None:
    cropped = []
    for path in dates:
        with rasterio.open(path) as data:
            pixels = data.read()[:, 50:250, 150:350]
        cropped.append(write_scene(tmp_path / path.name, pixels))
    tilewright.apply("change-vector", cropped, out=tmp_path / "out")
    (written,) = (tmp_path / "out").rglob("*change*.tif")
    with rasterio.open(written) as data:
        expected = data.read(1)
    pyramid = opened(*cropped, bands=["a", "b", "c"])
    (view,) = pyramid.read([pair_request(pyramid, 0)])
    tool = ChangeMap(load_kernel("change-vector", bands=3), pyramid.scene)
    tool.fit(tool.samples(view.pixels, view.valid))
    found = tool(view.pixels, view.valid)
    np.testing.assert_array_equal(found.change, expected == 1)
    assert found.change.sum() > 6000


def blurred_difference(radius: int = 3, tile: Any = None) -> Kernel:
    """A kernel with a neighbourhood: change where the mean difference around a pixel is large."""

    def build() -> Callable[..., Any]:
        def forward(before: torch.Tensor, after: torch.Tensor) -> dict[str, torch.Tensor]:
            difference = (after - before).abs().mean(1, keepdim=True)
            side = 2 * radius + 1
            score = torch.nn.functional.avg_pool2d(difference, side, 1, radius)
            return {"score": score, "change": score}

        return forward

    spec = KernelSpec(
        name="blurred",
        inputs={"image": InputSpec(dates=2, bands=("blue", "red"), mean=(10.0, 20.0), std=(2.0, 4.0))},
        outputs={
            "score": OutputSpec(kind="score", range=(0, 100)),
            "change": OutputSpec(kind="class", classes=("no", "yes"), range=(0, 100), threshold=5.0),
        },
        radius=radius,
        tile=tile or {"multiple": 8, "default": 32},
    )
    return Kernel(spec, build)


def test_tiles_leave_no_seams_and_bands_go_by_name() -> None:
    scene = Scene((LevelInfo(1, (75, 90)),), ("red", "green", "blue"), dates=3)
    rng = np.random.default_rng(0)
    pixels = rng.normal(50, 30, (9, 75, 90)).astype(np.float32)
    valid = rng.random((75, 90)) > 0.1
    tool = ChangeMap(blurred_difference(), scene)
    assert tool.side == 32
    assert tool.halo == 3
    found = tool(pixels, valid)
    first, last = pixels[[2, 0]], pixels[[8, 6]]  # the first and the last date, blue before red
    size = np.array([2.0, 4.0])[:, None, None]
    moved = np.where(valid, np.abs(last - first) / size, 0).mean(0)
    from scipy.ndimage import uniform_filter

    expected = uniform_filter(np.pad(moved, 3, mode="reflect"), 7)[3:-3, 3:-3]
    np.testing.assert_allclose(found.strength[valid], expected[valid], rtol=1e-4)
    np.testing.assert_array_equal(found.change[valid], expected[valid] >= 5)
    assert np.isnan(found.strength[~valid]).all()
    assert not found.change[~valid].any()


def test_classes_of_the_kernel_are_told(pair: Pyramid) -> None:
    def build() -> Callable[..., Any]:
        def forward(before: torch.Tensor, after: torch.Tensor) -> dict[str, torch.Tensor]:
            def blue(date: torch.Tensor) -> torch.Tensor:
                water = (date[:, 2:] > 100).float()
                return torch.cat([1 - water, water], 1)

            changed = (blue(before).argmax(1) != blue(after).argmax(1)).float()[:, None]
            return {"change": changed, "before": blue(before), "after": blue(after)}

        return forward

    kinds = OutputSpec(kind="class", classes=("meadow", "water"))
    spec = KernelSpec(
        name="waters",
        inputs={"image": InputSpec(dates=2, bands=3)},
        outputs={"change": OutputSpec(kind="class", classes=("no", "yes")), "before": kinds, "after": kinds},
        radius=0,
    )
    answer = ask(coarse_to_fine(kernel=Kernel(spec, build)), "Is there new water?", pair).answer
    assert answer.text.startswith("Yes. 2 places changed to water, together 2.08 km2")
    assert "By the classes of waters: meadow -> water (2)." in answer.text
    assert [one.score for one in answer.evidence] == [1, 1]


@pytest.mark.parametrize(
    ("kernel", "options", "match"),
    [
        ("index", {}, "does not map change"),
        ("tinycd", {}, "has no weights"),
        ("chnage-vector", {}, "did you mean 'change-vector'"),
        ("change-vector", {"bands": "red,nir,swir16"}, "wants the bands red, nir, swir16"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(
    pair: Pyramid, kernel: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(KernelError, match=match) as caught:
        ask(ChangeTalk(kernel, kernel_options=options), "What changed?", pair)
    assert "\n" not in str(caught.value)


def test_one_date_is_refused(dates: tuple[Path, Path]) -> None:
    with pytest.raises(KernelError, match="one date, and change is between two"):
        ask(ChangeTalk(), "What changed?", opened(dates[0]))


def test_a_sample_of_what_was_read_unevenly_has_the_shares_of_the_scene() -> None:
    inside, outside = np.ones(5000), np.zeros(300)
    mixed = stratified(inside, outside, 0.25, 10_000)
    assert len(mixed) == 400
    assert mixed.mean() == pytest.approx(0.25, abs=0.01)
    assert len(stratified(inside, outside, 0.25, 100)) == 100
    assert stratified(inside, outside[:0], 1.0, 10_000).mean() == 1
    assert spread_of(np.array([1.0, np.nan, 3.0, 2.0])) == (2.0, 1.4826)
    assert spread_of(np.array([np.nan])) == (0.0, 0.0)


# -- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What has changed?", "what"),
        ("Describe the change.", "what"),
        ("How many buildings were built?", "count"),
        ("What is the number of changed places?", "count"),
        ("How many hectares of forest were lost?", "area"),
        ("How much has the lake grown?", "area"),
        ("What percentage changed?", "area"),
        ("Has the forest been cut?", "whether"),
        ("is there any new road", "whether"),
        ("Where was forest cut?", "where"),
        ("Which parts changed?", "where"),
        ("Show me the changes", "where"),
    ],
)
def test_kinds_of_questions(question: str, kind: str) -> None:
    assert kind_of(question) == kind


def test_topics_of_questions() -> None:
    classes = ("crop fields", "forest", "a residential area", "a lake or sea", "industrial buildings")
    assert topic_of("Was forest lost?", classes) == (("forest",), "from")
    assert topic_of("Which new buildings and lakes are there?", classes) == (
        ("a lake or sea", "industrial buildings"),
        "to",
    )
    assert topic_of("How has the residential area changed?", classes) == (("a residential area",), "any")
    assert topic_of("What has changed in this area?", classes) == ((), "any")
    assert topic_of("Was forest cut for new fields?", classes) == (("crop fields", "forest"), "any")


def place(row: float, col: float, area: float | None = None, pixels: int = 10) -> ChangedPlace:
    return ChangedPlace((col - 5, row - 5, col + 5, row + 5), (row, col), pixels, area, 1.0)


def test_directions_follow_north_not_the_picture() -> None:
    plain = Scene((LevelInfo(1, (300, 600)),), ("a",))
    assert direction(plain, (10, 590)) == "at the top right"
    assert direction(plain, (150, 300)) == "in the middle"
    assert direction(plain, (150, 10)) == "at the left"

    def turned(places: np.ndarray) -> np.ndarray:  # rows run east, columns north
        return np.stack([10 + places[:, 0] / 1000, 50 + places[:, 1] / 1000], axis=1)

    scene = Scene((LevelInfo(1, (300, 600)),), ("a",), locate=turned)
    assert direction(scene, (290, 300)) == "in the east"
    assert direction(scene, (150, 590)) == "in the north"
    assert direction(scene, (10, 10)) == "in the south-west"


def test_captions_by_hand() -> None:
    scene = Scene((LevelInfo(1, (300, 300)),), ("a",), 10.0)
    three = [place(10, 290, 800_000.0), place(150, 150, 300_000.0), place(290, 10, 100_000.0)]
    assert caption(scene, three, 300e6) == (
        "3 places changed, together 1.2 km2 (0.4 % of what was compared), the largest 80 ha at the top right."
    )
    assert caption(scene, three, 300e6, " from forest", first="area") == (
        "1.2 km2 changed from forest, 0.4 % of what was compared, in 3 places, the largest 80 ha at the top right."
    )
    assert caption(scene, [place(150, 150, 1234.0)], 123_400.0) == (
        "1 place changed: 1,234 m2 (1 % of what was compared), in the middle."
    )
    assert caption(scene, [place(150, 150, pixels=25)], 90_000) == (
        "1 place changed: 25 px (0.028 % of what was compared), in the middle."
    )
    assert caption(scene, [], 1.0, " to water") == "Nothing changed to water that stands out."
    many = listed(scene, [place(10, 10, 5e4)] * 7)
    assert many.startswith("1. at the top left, 5 ha, columns 5-15, rows 5-15; 2. ")
    assert many.endswith("; and 2 more.")
