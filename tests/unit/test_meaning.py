"""What questions mean to an embedder, alone and after others."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, Evidence, Exchange
from tilewright.kernels.vlm.meaning import meaning_of, named_thing

BOXES = [(float(n), 0.0, float(n + 10), 10.0) for n in (0, 100, 200)]


def answered(question: str, *found: bool) -> Exchange:
    """Return a turn that named the first of `BOXES`, which stood out or did not."""
    evidence = [Evidence(box, 1.0, "", {"found": one}) for box, one in zip(BOXES, found, strict=False)]
    return Exchange(question, Answer("", evidence))


@pytest.mark.parametrize(
    ("question", "thing", "kind"),
    [
        ("Where is the forest?", "forest", "where"),
        ("find all the ships", "ships", "where"),
        ("Is there a highway?", "highway", "where"),
        ("residential area", "residential area", "where"),
        ("How many lakes are there?", "lakes", "count"),
        ("how many ships do you see in the image?", "ships", "count"),
        ("Count the lakes", "lakes", "count"),
        ("What is the number of ships?", "ships", "count"),
        ("How large is the forest?", "forest", "area"),
        ("How big are the lakes together?", "lakes", "area"),
        ("How much area is there of forest?", "forest", "area"),
        ("how much forest is there?", "forest", "area"),
        ("What is the total area of the lakes in the image?", "lakes", "area"),
        ("what area does the forest cover?", "forest", "area"),
        ("And the rivers?", "rivers", "where"),
        ("country road", "country road", "where"),
        ("is there a boat in the first one?", "boat in the first one", "where"),
    ],
)
def test_a_question_alone(question: str, thing: str, kind: str) -> None:
    meant = meaning_of(question)
    assert (meant.thing, meant.kind, meant.within) == (thing, kind, None)


@pytest.mark.parametrize(
    ("question", "thing", "kind", "within"),
    [
        ("and the rivers?", "rivers", "count", None),
        ("What about the forests?", "forests", "count", None),
        ("how about forests in the first one?", "forests", "count", [0]),
        ("and where are the rivers?", "rivers", "where", None),
        ("and how large are they?", "lakes", "area", None),
        ("how large?", "lakes", "area", None),
        ("where are they?", "lakes", "where", None),
        ("and where?", "lakes", "where", None),
        ("is there a river in the second one?", "river", "where", [1]),
        ("In the second lake, is there an island?", "island", "where", [1]),
        ("How large is the first one?", "lakes", "area", [0]),
        ("what about the last one?", "lakes", "count", [1]),
        ("Is there a river there?", "river", "where", [0, 1]),
        ("are there houses in them?", "houses", "where", [0, 1]),
        ("Where is the forest?", "forest", "where", None),
        ("How many forests are there?", "forests", "count", None),
    ],
)
def test_a_question_after_another(question: str, thing: str, kind: str, within: list[int] | None) -> None:
    history = [answered("Where is the sea?", True), answered("How many lakes are there?", True, True, False)]
    meant = meaning_of(question, history)
    assert (meant.thing, meant.kind) == (thing, kind)
    assert meant.within == (None if within is None else tuple(BOXES[n] for n in within))


def test_a_follow_up_stays_in_the_part_of_the_turn_before() -> None:
    history = [answered("Where are the lakes?", True, True), answered("ships in the second one?", True)]
    assert meaning_of("and houses?", history).within == (BOXES[1],)
    assert meaning_of("how many are they?", history).within == (BOXES[1],)
    assert meaning_of("where are houses?", history).within is None


@pytest.mark.parametrize(
    ("question", "history", "words"),
    [
        ("how many are there?", [], "names nothing to look for"),
        ("Where?", [], "names nothing to look for"),
        ("lakes in the third one?", [answered("forest", True, True)], "no third place: the turn before found 2"),
        ("lakes in it?", [answered("forest", False)], "the turn before found no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(question: str, history: list[Exchange], words: str) -> None:
    with pytest.raises(KernelError, match=words):
        meaning_of(question, history)


@given(st.text(max_size=60), st.lists(st.text(max_size=30), max_size=3))
def test_any_text_means_something_or_is_refused(question: str, before: list[str]) -> None:
    history: list[Any] = []
    for earlier in before:
        try:
            meaning_of(earlier, history)
        except KernelError:
            continue
        history.append(answered(earlier, True))
    with contextlib.suppress(KernelError):
        assert meaning_of(question, history).thing
    assert isinstance(named_thing(question), str)


def test_a_long_dialogue_is_no_recursion() -> None:
    history = [
        answered("Where is the lake?", True),
        *(answered("and the forest?", True) for _ in range(3000)),
    ]
    assert meaning_of("how many are there?", history).thing == "forest"
