"""Policies and answerers by name, and what they make of a dialogue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Server, said
from embedders import colours
from tiny_llava import save_tiny_llava

from tilewright.errors import InputError, KernelError, WeightsError
from tilewright.kernels.ask import Answer, Asking, Evidence, Exchange, LevelInfo, Scene
from tilewright.kernels.vlm.answerers import Turn, told
from tilewright.kernels.vlm.arrays import carry_out
from tilewright.kernels.vlm.find import Find
from tilewright.kernels.vlm.load_answerer import load_answerer
from tilewright.kernels.vlm.local_answerer import TransformersAnswerer
from tilewright.kernels.vlm.openai_answerer import OpenAIAnswerer
from tilewright.kernels.vlm.patches import KnownPatches
from tilewright.kernels.vlm.policies import POLICIES, load_policy, options_of
from tilewright.kernels.vlm.retrieval import Retrieval
from tilewright.kernels.vlm.zoom import ZoomIn

BLUE = (20, 20, 220)
RGB = ("red", "green", "blue")


class Scripted:
    """Says what it was told to say, and keeps the turns that it was given."""

    name = "scripted"

    def __init__(self, *said: str) -> None:
        self.said = list(said)
        self.turns: list[list[Turn]] = []

    def answer(self, images: Sequence[np.ndarray], prompt: str, max_tokens: int = 256) -> str:
        return self.converse([Turn("user", prompt, tuple(images))], max_tokens)

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        self.turns.append(list(turns))
        return self.said.pop(0)


def colour_embedder() -> Any:
    import torch

    return colours(side=16).embedder({"gain": torch.ones(1)})


PARTS: dict[str, dict[str, Any]] = {
    "find": {"embedder": colour_embedder},
    "retrieval": {"embedder": colour_embedder, "answerer": Scripted},
    "change": {},
    "zoom-in": {"answerer": Scripted},
    "lrs-vqa": {"untrained": lambda: True},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_policy_has_the_name_that_stands_in_its_traces(name: str) -> None:
    if name == "lrs-vqa":
        pytest.importorskip("transformers")
    made = load_policy(name, **{part: make() for part, make in PARTS[name].items()})
    assert made.name == name
    assert set(PARTS) == set(POLICIES)
    assert options_of(name)
    assert not {"embedder", "answerer", "weights", "known", "stores", "name"} & set(options_of(name))
    assert POLICIES[name].about


def test_options_are_read_as_their_types() -> None:
    made: Any = load_policy(
        "retrieval",
        embedder=colour_embedder(),
        options={"keywords": "[lake, sea]", "threshold": "0.25", "limits": "[0, 3000]", "reducer": "rerank"},
    )
    assert (made.keywords, made.threshold, made.limits) == (("lake", "sea"), 0.25, (0.0, 3000.0))
    zoom: Any = load_policy("zoom-in", answerer=Scripted(), options={"bands": "nir, 2,1", "limits": "0,3000"})
    assert (zoom.bands, zoom.limits) == (("nir", 2, 1), (0.0, 3000.0))
    whole: Any = load_policy(
        "zoom-in", answerer=Scripted(), options={"bands": "[nir, 2, 1]", "limits": "null"}
    )
    assert (whole.bands, whole.limits) == (("nir", 2, 1), None)
    with pytest.raises(KernelError, match="option reducer: 'median'"):
        load_policy("retrieval", embedder=colour_embedder(), options={"reducer": "median"})


def test_an_untrained_embedder_does_not_answer_unasked() -> None:
    with pytest.raises(WeightsError, match=r"noise; give --weights .* or --untrained"):
        load_policy("find", embedder="remoteclip-rn50")


def test_an_answerer_is_written_in_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    assert load_answerer("none") is None
    made = load_answerer(
        "openai:org/model:7b@fp8@http://localhost:8000/v1", {"timeout": "3", "key_variable": "MY_KEY"}
    )
    assert isinstance(made, OpenAIAnswerer)
    assert (made.model, made.base_url) == ("org/model:7b@fp8", "http://localhost:8000/v1")
    assert (made.timeout, made.key_variable) == (3.0, "MY_KEY")
    assert "secret" not in repr(made)


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    constants = pytest.importorskip("huggingface_hub.constants")
    commit = "1234567890abcdef1234567890abcdef12345678"
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    save_tiny_llava(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    made = load_answerer("hf://someone/tiny@main")
    assert isinstance(made, TransformersAnswerer)
    assert made.name == "tiny@main"
    assert made.answer([np.zeros((40, 50, 3), np.uint8)], "how many ships ?", 3)
    with pytest.raises(WeightsError, match="neither on the hub nor in the local cache"):
        load_answerer("hf://someone/other")


def test_a_model_that_fails_says_so_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = save_tiny_llava(tmp_path / "tiny")
    with pytest.raises(KernelError, match=r"cannot be put on cuda:9: .*; cpu, cuda or cuda:N") as caught:
        TransformersAnswerer(folder, device="cuda:9").answer([], "how many ?", 3)
    assert "\n" not in str(caught.value)


def history() -> tuple[Exchange, ...]:
    return (Exchange("How many lakes are there?", Answer("two", [Evidence((0, 0, 64, 64), 1.0, "lake")])),)


def picture() -> np.ndarray:
    """Green ground with two blue blocks of 64 px."""
    pixels = np.zeros((3, 256, 320), np.uint8)
    pixels[1] = np.random.default_rng(0).integers(110, 130, (256, 320))
    for row, col in ((0, 0), (128, 192)):
        pixels[:, row : row + 64, col : col + 64] = np.array(BLUE)[:, None, None]
    return pixels


def drive(asking: Asking, pixels: np.ndarray) -> Answer:
    answer: Answer = carry_out(asking, pixels, np.ones(pixels.shape[1:], bool))
    return answer


def scene(pixels: np.ndarray, **facts: Any) -> Scene:
    return Scene((LevelInfo(1.0, pixels.shape[1:]),), RGB, **facts)


def test_a_model_is_told_the_turns_before() -> None:
    pixels = picture()
    model = Scripted("grass")
    policy = ZoomIn(model, max_pixels=50_000)
    answer = drive(policy.ask("And rivers?", scene(pixels, history=history())), pixels)
    (turns,) = model.turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert [turn.text for turn in turns[1:3]] == ["How many lakes are there?", "two"]
    assert [len(turn.images) for turn in turns] == [0, 0, 0, 1]
    assert answer.trace["turns_before"] == 1
    assert told(()) == []


def test_retrieval_looks_for_what_the_dialogue_is_about() -> None:
    pixels = picture()
    model = Scripted("no list", "no list", "no list", "two")
    policy = Retrieval(colour_embedder(), model)
    before = (Exchange("Where is the blue water?", Answer("there")),)
    answer = drive(policy.ask("How many are there?", scene(pixels, history=before)), pixels)
    assert (answer.trace["keywords"], answer.trace["keywords_from"]) == (["blue water"], "question")
    assert all([turn.role for turn in turns] == ["user", "assistant", "user"] for turns in model.turns)


def test_known_patches_are_not_embedded_again() -> None:
    class Words:
        """An embedder that can only read."""

        def __init__(self) -> None:
            made = colour_embedder()
            self.profile, self.towers, self.embed_texts = made.profile, made.towers, made.embed_texts

    pixels = picture()
    known = KnownPatches(
        [(0.0, 0.0, 64.0, 64.0), (64.0, 0.0, 128.0, 64.0)], np.eye(3, dtype=np.float32)[[2, 1]]
    )
    policy: Any = Retrieval(Words(), keywords=("blue",), known=known, scale=20.0)
    answer = drive(policy.ask("Where?", scene(pixels)), pixels)
    assert answer.trace["patches"] == 2
    assert [found.box for found in answer.evidence] == [(0.0, 0.0, 64.0, 64.0)]
    counted = drive(policy.ask("How many blue things are there?", scene(pixels)), pixels)
    assert "They are patches, not things, and are not counted." in counted.text


@pytest.mark.parametrize(
    ("facts", "words", "area"),
    [
        ({"resolution": 10.0}, "81.9 ha", 2 * 640.0**2),
        ({}, "8,192 px, of a size that the image does not say", None),
        ({"areas": lambda window: np.full(window.shape, 4.0)}, "3.28 ha", 2 * 128.0**2),
    ],
)
def test_counts_and_areas_are_those_of_the_boxes(
    facts: dict[str, Any], words: str, area: float | None
) -> None:
    pixels = picture()
    policy = Find(colour_embedder(), candidates=6, references=8)
    count = drive(policy.ask("How many blue squares are there?", scene(pixels, **facts)), pixels)
    assert count.text.startswith("2 places stand out as 'blue squares', by ")
    assert f"the boxes around them cover together {words}" in count.text
    assert "no language model was asked" in count.text
    assert [found.box for found in sorted(count.evidence, key=lambda one: one.box)] == [
        (0, 0, 64, 64),
        (192, 128, 256, 192),
    ]
    size = drive(policy.ask("How large is the blue square?", scene(pixels, **facts)), pixels)
    assert size.text.startswith(f"{words} are covered by boxes, not outlines: 2 places")
    assert size.trace["area_m2"] == (None if area is None else pytest.approx(area))


def test_a_count_has_more_evidence_than_a_list_of_places() -> None:
    pixels = np.zeros((3, 512, 512), np.uint8)
    pixels[1] = np.random.default_rng(0).integers(110, 130, (512, 512))
    corners = [(row, col) for row in (32, 224, 416) for col in (32, 224, 416)]
    for row, col in corners:
        pixels[:, row : row + 32, col : col + 32] = np.array(BLUE)[:, None, None]
    policy = Find(colour_embedder(), references=8)
    assert len(drive(policy.ask("Where is blue?", scene(pixels)), pixels).evidence) == 5
    assert len(drive(policy.ask("How many blue things?", scene(pixels)), pixels).evidence) == len(corners)
    few = Find(colour_embedder(), references=8, candidates=4)
    assert "At least 4 places" in drive(few.ask("How many blue things?", scene(pixels)), pixels).text


def test_find_stays_in_the_part_that_is_meant() -> None:
    pixels = picture()
    policy = Find(colour_embedder(), candidates=6, references=8)
    first = drive(policy.ask("Where is blue?", scene(pixels)), pixels)
    turn = Exchange("Where is blue?", first)
    again = drive(policy.ask("is there blue in the second one?", scene(pixels, history=(turn,))), pixels)
    assert [found.box for found in again.evidence] == [first.evidence[1].box]
    assert "1 place stands out as 'blue' in that part" in again.text
    assert again.trace["within"] == (first.evidence[1].box,)


def test_a_dialogue_in_python(tmp_path: Path) -> None:
    from commands import write_tif

    import tilewright
    from tilewright.asking import policy_of

    image = write_tif(tmp_path / "a.tif", picture(), names=RGB)
    policy = policy_of(image, Find(colour_embedder(), candidates=6, references=8))
    first = tilewright.ask(image, "How many blue things are there?", policy=policy)
    second = tilewright.ask(image, "and the green ones?", policy=policy, history=[first])
    assert second.answer.trace["asked"] == "count"
    assert second.trace()["turns_before"] == 1
    with pytest.raises(InputError, match="made already takes no answerer"):
        tilewright.ask(image, "Where?", policy=policy, answerer=Scripted())
    with pytest.raises(InputError, match="options of an answerer, and none is named"):
        tilewright.ask(image, "Where?", answerer_options={"timeout": 3})


def test_an_answerer_object_and_a_name_are_the_same(tmp_path: Path) -> None:
    from commands import write_tif

    import tilewright

    image = write_tif(tmp_path / "a.tif", picture(), names=RGB)
    server = Server()
    try:
        server.replies = [said("two")]
        named = tilewright.ask(image, "How many?", policy="zoom-in", answerer=f"openai:tiny@{server.url}")
        made = tilewright.ask(image, "How many?", policy="zoom-in", answerer=server.answerer(said("two")))
    finally:
        server.close()
    assert named.answer.text == made.answer.text == "two"
    bodies = [json.dumps(body) for _, _, body in server.requests]
    assert bodies[0] == bodies[1]
