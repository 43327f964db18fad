"""The zoom-in and the retrieval policies over arrays: what they read, show and answer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, Evidence, LevelInfo, Request, Scene, View
from tilewright.kernels.vlm.answerers import Turn, converse, evidence_text
from tilewright.kernels.vlm.cues import LabelStore
from tilewright.kernels.vlm.looks import Painter, look, look_all
from tilewright.kernels.vlm.retrieval import Retrieval, keywords_of, said_list
from tilewright.kernels.vlm.zoom import ZoomIn, smart_resize

RED, BLUE = (220, 20, 20), (20, 20, 220)


class Image:
    """An image ``[C, rows, columns]`` with overviews that are block means, and an account of what was read."""

    def __init__(self, full: np.ndarray, levels: int = 4, valid: np.ndarray | None = None) -> None:
        self.levels = [full]
        self.valid = valid
        for _ in range(levels - 1):
            last = self.levels[-1]
            rows, cols = (n // 2 * 2 for n in last.shape[1:])
            blocks = last[:, :rows, :cols].reshape(len(last), rows // 2, 2, cols // 2, 2)
            self.levels.append(blocks.mean(axis=(2, 4)).astype(full.dtype))
        self.read = 0
        self.largest = 0

    def scene(self, bands: tuple[str, ...] = ("red", "green", "blue")) -> Scene:
        infos = [LevelInfo(2.0**n, one.shape[1:]) for n, one in enumerate(self.levels)]
        return Scene(tuple(infos), bands, 10.0)

    def view(self, request: Request) -> View:
        level = self.levels[request.level]
        assert request.row1 <= level.shape[1]
        assert request.col1 <= level.shape[2]
        pixels = level[:, request.row0 : request.row1, request.col0 : request.col1]
        self.read += pixels[0].size
        self.largest = max(self.largest, pixels[0].size)
        valid = np.ones(pixels.shape[1:], bool)
        if self.valid is not None:
            step = 2**request.level
            part = self.valid[::step, ::step]
            valid = part[request.row0 : request.row1, request.col0 : request.col1]
        return View(request, pixels, valid)

    def drive(self, asking: Any) -> Any:
        try:
            requests = next(asking)
            while True:
                requests = asking.send([self.view(request) for request in requests])
        except StopIteration as done:
            return done.value


class Scripted:
    """Says what it was told to say, and keeps what it was shown."""

    name = "scripted"

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.seen: list[tuple[list[np.ndarray], str]] = []

    def answer(self, images: Sequence[np.ndarray], prompt: str, max_tokens: int = 256) -> str:
        self.seen.append((list(images), prompt))
        return self.said.pop(0)


@pytest.fixture
def image() -> Image:
    full = np.zeros((3, 1000, 1400), np.uint8)
    full[1] = 120
    full[:, 700:800, 1000:1200] = np.array(RED)[:, None, None]
    return Image(full)


def call(*box: float) -> str:
    return f'<tool_call>\n{{"name": "image_zoom_in", "arguments": {{"bbox": {list(box)}}}}}\n</tool_call>'


def test_the_box_that_the_model_asks_for_is_cut_from_the_full_image(image: Image) -> None:
    shape = smart_resize(1000, 1400, min_pixels=3136, max_pixels=100_000)
    across, down = shape[1] / 1400, shape[0] / 1000
    model = Scripted(call(1000 * across, 700 * down, 1200 * across, 800 * down), " a red block ")
    policy = ZoomIn(model, min_pixels=3136, max_pixels=100_000)
    answer = image.drive(policy.ask("What is there?", image.scene()))
    assert answer.text == "a red block"
    assert answer.evidence[0].box == (1000, 700, 1200, 800)
    assert answer.evidence[0].label == "zoom"
    (first, _), (second, prompt) = model.seen
    assert first[0].shape == (*shape, 3)
    assert len(second) == 2
    assert second[1].shape == (*smart_resize(100, 200, min_pixels=3136, max_pixels=100_000), 3)
    assert (second[1] == RED).all()
    assert "What is there?" in prompt
    assert answer.trace["zoomed"]


@pytest.mark.parametrize(
    "said", ["<tool_call>what?</tool_call>", call(1, 2, 3), call(5000, 5000, 6000, 6000)]
)
def test_a_malformed_call_shows_the_whole_image_again(image: Image, said: str) -> None:
    model = Scripted(said, "grass")
    answer = image.drive(ZoomIn(model).ask("What is there?", image.scene()))
    assert answer.text == "grass"
    assert answer.evidence == [Evidence((0, 0, 1400, 1000), 1.0, "overview")]
    assert "fallback" in answer.trace
    assert (model.seen[1][0][0] == model.seen[1][0][1]).all()


def test_an_answer_without_a_call_is_the_answer(image: Image) -> None:
    answer = image.drive(ZoomIn(Scripted("grass")).ask("What is there?", image.scene()))
    assert (answer.text, answer.trace["zoomed"]) == ("grass", False)


def test_the_released_evaluation_cuts_the_overview(image: Image) -> None:
    model = Scripted(call(0, 0, 56, 56), "x")
    policy = ZoomIn(model, crop="overview", parse="official", min_pixels=3136, max_pixels=50_000)
    image.drive(policy.ask("?", image.scene()))
    overview, closer = model.seen[1][0]
    assert (closer == overview[:56, :56]).all()


def test_the_reading_of_a_call_is_a_choice(image: Image) -> None:
    said = "I look closer.\n" + call(10, 10, 90, 90)
    for parse, zoomed in (("official", False), ("tolerant", True)):
        policy = ZoomIn(Scripted(said, "x"), parse=parse)
        assert image.drive(policy.ask("?", image.scene())).trace["zoomed"] is zoomed


def test_a_large_image_without_overviews_is_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(700, dtype=np.float32)[None, :, None]
    whole = Image(np.broadcast_to(rows, (1, 700, 500)).copy(), levels=1)
    scene = whole.scene(("height",))
    box = (0.0, 0.0, 500.0, 700.0)
    once = whole.drive(look(scene, box, (70, 50)))
    monkeypatch.setattr("tilewright.kernels.vlm.looks.STRIP", 20_000)
    whole.largest = 0
    again = whole.drive(look(scene, box, (70, 50)))
    assert whole.largest <= 25_000
    np.testing.assert_allclose(once.pixels, again.pixels, rtol=1e-6)
    np.testing.assert_allclose(once.pixels[0, :, 0], np.arange(70) * 10 + 4.5)


def test_a_box_can_be_seen_finer_than_it_is() -> None:
    ramp = np.arange(40, dtype=np.float32)[None, None].repeat(20, axis=1)
    seen = Image(ramp, levels=1).drive(
        look(Image(ramp, levels=1).scene(("height",)), (10.0, 5.0, 20.0, 15.0), (20, 20))
    )
    inside = np.clip(10 + (np.arange(20) + 0.5) / 2 - 0.5, 10, 19)  # nothing from beyond the box
    np.testing.assert_allclose(seen.pixels[0, 0], inside, atol=1e-5)


def test_what_was_not_measured_is_black_and_has_no_weight() -> None:
    full = np.full((1, 64, 64), 2.0, np.float32)
    full[:, :, 32:] = np.nan
    valid = np.isfinite(full[0])
    image = Image(full, levels=1, valid=valid)
    scene = image.scene(("height",))
    seen = image.drive(look(scene, (0.0, 0.0, 64.0, 64.0), (8, 8)))
    assert (seen.pixels[0, :, :4] == 2).all()
    assert (seen.valid == (np.arange(8) < 4)).all()
    shown = Painter(scene, limits=(0, 2)).paint(seen)
    assert (shown[:, :4] == 255).all()
    assert (shown[:, 4:] == 0).all()


def test_many_boxes_are_read_together(image: Image) -> None:
    boxes = [(0.0, 0.0, 100.0, 100.0), (1000.0, 700.0, 1200.0, 800.0)]
    seen = image.drive(look_all(image.scene(), boxes, [(10, 10), (25, 50)]))
    assert [one.pixels.shape for one in seen] == [(3, 10, 10), (3, 25, 50)]
    assert (seen[1].pixels[0] == RED[0]).all()


def test_a_box_beyond_the_scene_is_refused(image: Image) -> None:
    with pytest.raises(KernelError, match="not within the scene"):
        next(look(image.scene(), (0, 0, 1401, 10), (1, 1)))


def test_all_pictures_of_a_scene_have_one_stretch() -> None:
    draw = np.random.default_rng(0)
    image = Image(draw.uniform(0, 3000, (3, 64, 64)).astype(np.float32), levels=1)
    scene = image.scene()
    painter = Painter(scene)
    painter.paint(image.drive(look(scene, (0, 0, 64, 64), (64, 64))))
    limits = painter.limits
    painter.paint(image.drive(look(scene, (0, 0, 8, 8), (8, 8))))
    assert painter.limits == limits
    assert limits is not None
    assert 0 < limits[0] < 200 < 2800 < limits[1] < 3000


def on_the_block(found: Evidence) -> bool:
    """Whether the middle of a box lies in the red block of the image."""
    col0, row0, col1, row1 = found.box
    return 1000 <= (col0 + col1) / 2 <= 1200 and 700 <= (row0 + row1) / 2 <= 800


class Colours:
    """An embedder of which a picture's vector is its mean colour, and a word's the colour that it names."""

    def __init__(self) -> None:
        tower = SimpleNamespace(side=16, input=SimpleNamespace(bands=("red", "green", "blue"), band_count=3))
        self.towers = {"image": tower}
        self.profile = SimpleNamespace(
            temperature=30.0, prompt="{}", tower_name=lambda asked: asked or "image"
        )

    def embed_images(self, pixels: Any, tower: str = "image") -> Any:
        import torch

        assert pixels.shape[1] == 3
        assert min(pixels.shape[2:]) == 16
        return torch.nn.functional.normalize(pixels.mean(dim=(2, 3)), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Any:
        import torch

        known = {"red roofs": RED, "lake": BLUE}
        return torch.nn.functional.normalize(
            torch.tensor([known.get(text, (1, 1, 1)) for text in texts], dtype=torch.float32), dim=1
        )


def test_the_patch_that_the_question_is_about_is_found_and_shown(image: Image) -> None:
    model = Scripted("['red roofs']", "two")
    policy: Any = Retrieval(Colours(), model)
    answer = image.drive(policy.ask("What are the red roofs?", image.scene()))
    assert answer.text == "two"
    assert on_the_block(answer.evidence[0])
    assert answer.evidence[0].label == "red roofs"
    assert answer.trace["path"] == "fast"
    assert answer.trace["keywords_from"] == "answerer"
    images, prompt = model.seen[1]
    assert len(images) == answer.trace["shown"] >= 2
    assert (images[1] == RED).all(axis=-1).mean() > 0.7
    assert "<box>[[" in prompt
    assert "What are the red roofs?" in prompt


def test_without_a_model_the_evidence_is_the_answer_and_says_so(image: Image) -> None:
    policy: Any = Retrieval(Colours(), keywords=("red roofs",))
    answer = image.drive(policy.ask("Where are red roofs?", image.scene()))
    assert answer.text.startswith("No language model was asked")
    assert "(red roofs)" in answer.text
    assert answer.evidence


def test_what_is_not_there_gives_no_evidence(image: Image) -> None:
    policy: Any = Retrieval(Colours(), keywords=("stone",))
    answer = image.drive(policy.ask("Is there stone?", image.scene()))
    assert answer.trace["path"] == "zero-shot"
    assert not answer.evidence
    assert "Nothing" in answer.text


def test_the_slow_path_compares_images_of_a_label(image: Image) -> None:
    grey = np.ones((1, 3), np.float32)
    store = LabelStore(["tiles of clay"], grey, [np.array([RED, RED], np.float32)])
    policy: Any = Retrieval(Colours(), keywords=("stone",), stores=(store,))
    answer = image.drive(policy.ask("Is there stone?", image.scene()))
    assert answer.trace["path"] == "slow"
    assert answer.evidence[0].label == "tiles of clay"
    assert on_the_block(answer.evidence[0])


def test_counting_is_shown_the_box_around_all_patches(image: Image) -> None:
    image.levels[0][:, 100:200, 0:140] = np.array(BLUE)[:, None, None]
    blue = Image(image.levels[0])
    model = Scripted("3")
    policy: Any = Retrieval(Colours(), model, keywords=("red roofs", "lake"), scale=60.0)
    answer = blue.drive(policy.ask("How many are there?", blue.scene()))
    assert len({one.box for one in answer.evidence}) > 1
    assert len(model.seen[0][0]) == 2


def test_unknown_ways_and_bands_are_refused(image: Image) -> None:
    policy: Any = Retrieval(Colours(), cut="gird")
    with pytest.raises(KernelError, match="did you mean 'grid'"):
        next(policy.ask("?", image.scene()))
    policy = Retrieval(Colours())
    with pytest.raises(KernelError, match="takes 3 bands"):
        next(policy.ask("?", image.scene(("height",))))
    with pytest.raises(KernelError, match="no band 'nir'"):
        Painter(image.scene(), ("nir", "red", "green"))


def test_keywords() -> None:
    assert keywords_of("Is the bridge over the river, or the railway?") == ["bridge", "river", "railway"]
    assert keywords_of("What is it?") == []
    assert said_list('Sure: ["a ship", "harbour"].') == ["a ship", "harbour"]
    assert said_list("[1, 2]") is None
    assert said_list("none") is None
    assert said_list("[unclosed") is None


def test_a_dialogue_becomes_one_prompt_for_those_that_know_no_dialogues() -> None:
    model = Scripted("x")
    picture = np.zeros((2, 2, 3), np.uint8)
    turns = [
        Turn("system", "Be short."),
        Turn("user", "What?", (picture,)),
        Turn("assistant", "Grass."),
        Turn("user", "And here?", (picture, picture)),
    ]
    converse(model, turns)
    images, prompt = model.seen[0]
    assert len(images) == 3
    assert prompt == (
        "Be short.\n\nuser: [image 1] What?\n\nassistant: Grass.\n\n"
        "user: [image 2] [image 3] And here?\n\nassistant:"
    )


def test_evidence_in_words() -> None:
    scene = Scene((LevelInfo(1, (100, 100)),), ("red",), 10.0)
    text = evidence_text("Where?", [Evidence((10, 20, 30, 40), 0.9, "lake")], scene)
    assert text == (
        "No language model was asked 'Where?'. One place stands out; the first (lake) is at columns 10-30, rows 20-40, "
        "200 x 200 m, score 0.9."
    )
    assert isinstance(Answer(text), Answer)
