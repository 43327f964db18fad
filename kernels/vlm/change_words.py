"""Words about change by rules: what kind of question it is, where a place lies, and the caption of what was found.

The rules are few, so that they can be known. A question is about

- *area*, where it asks for a share or a unit ("how much", "how large", "how many hectares", "what percentage"),
- *count*, where it has "how many" or "number of",
- *whether*, where it begins with a form of to be, to do or to have,
- *where*, where it has "where", "which part", "show" and the like,
- and else *what*.

It is about a class where it has one of the class's words, in singular or plural ("Has the forest ...?"); about what
was there before where it says lost, cut, gone and the like, about what is there now where it says new, built, grown.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from .measures import area_words

if TYPE_CHECKING:
    from tilewright.kernels.ask import Scene

    from .change_places import ChangedPlace

__all__ = [
    "Kind",
    "Topic",
    "area_words",
    "caption",
    "direction",
    "kind_of",
    "kinds_words",
    "listed",
    "topic_of",
]

type Kind = Literal["area", "count", "whether", "where", "what"]
"""What a question wants to know."""

_UNITS = r"(hectares?|ha|acres?|square|km2|km²|m2|m²|sq|percent|%)"
_RULES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        "area",
        (
            r"\bhow (much|large|big|wide|extensive)\b",
            rf"\bhow many {_UNITS}",
            r"\bwhat (is the )?(total )?(area|share|percentage|proportion|fraction)\b",
        ),
    ),
    ("count", (r"\bhow many\b", r"\b(number|count) of\b", r"^count\b")),
    ("whether", (r"^(has|have|had|is|are|was|were|do|does|did|any|anything)\b",)),
    (
        "where",
        (
            r"\bwhere\b",
            r"\bwhich (part|place|area|region|side|corner)s?\b",
            r"^(show|find|locate|point|list|mark)\b",
        ),
    ),
)
_LOST = (
    r"\b(lost|loss|gone|disappear\w*|vanish\w*|cut|cleared|clearing|removed|destroyed|demolished|shr[aiu]nk\w*"
    r"|burnt|burned|less|fewer)\b"
)
_NEW = r"\b(new|newly|built|construct\w*|appear\w*|gain\w*|grown|grew|added|expand\w*|more|planted)\b"
_GENERIC = frozenset(
    ("area", "areas", "land", "place", "places", "and", "or", "the", "of", "other", "ground", "with")
)
_COMPASS = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
_SIDES = ("top", "top right", "right", "bottom right", "bottom", "bottom left", "left", "top left")
MOST_LISTED = 5
"""Places that are told one by one."""

type Topic = tuple[tuple[str, ...], Literal["from", "to", "any"]]
"""The classes that a question names, and whether it means them before, now, or either."""


def kind_of(question: str) -> Kind:
    """Return what a question wants to know, by the first rule that fits."""
    text = " ".join(question.lower().split())
    return next((kind for kind, rules in _RULES if any(re.search(rule, text) for rule in rules)), "what")


def topic_of(question: str, classes: Sequence[str]) -> Topic:
    """Return which of the classes a question names, and at which date it means them."""
    text = question.lower()
    words = {_singular(word) for word in re.findall(r"[a-z]+", text)}
    named = tuple(name for name in classes if words & _words_of(name))
    lost, new = re.search(_LOST, text), re.search(_NEW, text)
    return named, "from" if lost and not new else "to" if new and not lost else "any"


def _words_of(name: str) -> set[str]:
    return {_singular(word) for word in re.findall(r"[a-z]+", name.lower()) if word not in _GENERIC}


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def direction(scene: Scene, place: tuple[float, float]) -> str:
    """Return in which part of the scene a place (row, column) lies, by thirds: "in the north-east", "in the middle".

    Where the scene does not know where on Earth it is, the words are those of the picture: "at the top right".
    """
    down, right = (
        0 if 1 / 3 <= at / length <= 2 / 3 else (-1 if at < length / 2 else 1)
        for at, length in zip(place, scene.shape, strict=True)
    )
    if not down and not right:
        return "in the middle"
    angle = math.degrees(math.atan2(right, -down))
    north = _bearing_of_up(scene)
    if north is None:
        return f"at the {_SIDES[round(angle / 45) % 8]}"
    return f"in the {_COMPASS[round((angle + north) / 45) % 8]}"


def _bearing_of_up(scene: Scene) -> float | None:
    """Return the bearing of the picture's upward direction at its middle, in degrees clockwise from north."""
    if scene.locate is None:
        return None
    rows, cols = scene.shape
    low, high = scene.locate(np.array([[rows / 2 + 0.5, cols / 2], [rows / 2 - 0.5, cols / 2]]))
    east = ((high[0] - low[0] + 180) % 360 - 180) * math.cos(math.radians(low[1]))
    bearing = math.degrees(math.atan2(east, high[1] - low[1]))
    return bearing if math.isfinite(bearing) else None


def caption(
    scene: Scene, places: Sequence[ChangedPlace], looked: float, topic: str = "", *, first: str = "count"
) -> str:
    """Return what changed in a sentence.

    Parameters
    ----------
    scene
        Of which it is told.
    places
        The places, the largest first.
    looked
        Square metres that were compared; pixels where the scene does not know the size of its pixels.
    topic
        Put behind "changed", such as " from forest".
    first
        ``count`` begins with how many places they are, ``area`` with how large they are.
    """
    if not places:
        return f"Nothing changed{topic} that stands out."
    sizes = [_size(place) for place in places]
    total = sum(sizes)
    known = places[0].area is not None
    told = area_words(total) if known else f"{total:,.0f} px"
    share = f"{100 * total / looked:.2g} % of what was compared" if looked else ""
    where = direction(scene, places[0].centre)
    if len(places) == 1:
        if first == "area":
            return f"{told} changed{topic}, {share}, in one place {where}."
        return f"1 place changed{topic}: {told} ({share}), {where}."
    largest = f"{area_words(sizes[0]) if known else f'{sizes[0]:,.0f} px'} {where}"
    if first == "area":
        return f"{told} changed{topic}, {share}, in {len(places)} places, the largest {largest}."
    return f"{len(places)} places changed{topic}, together {told} ({share}), the largest {largest}."


def _size(place: ChangedPlace) -> float:
    return place.area if place.area is not None else float(place.pixels)


def listed(scene: Scene, places: Sequence[ChangedPlace]) -> str:
    """Return the largest places one by one, for "where"."""
    told = []
    for number, place in enumerate(places[:MOST_LISTED], start=1):
        size = area_words(place.area) if place.area is not None else f"{place.pixels:,} px"
        col0, row0, col1, row1 = (round(edge) for edge in place.box)
        told.append(
            f"{number}. {direction(scene, place.centre)}, {size}, columns {col0}-{col1}, rows {row0}-{row1}"
            + (f" ({_arrow(place.classes)})" if place.classes else "")
        )
    rest = len(places) - len(told)
    return "; ".join(told) + (f"; and {rest} more." if rest else ".")


def _arrow(classes: tuple[str, str]) -> str:
    return " -> ".join(classes) if classes[0] != classes[1] else f"still {classes[0]}"


def kinds_words(places: Sequence[ChangedPlace], by: str) -> str:
    """Return from what to what the places changed, and who says so: empty where nobody does."""
    counts = Counter(_arrow(place.classes) for place in places if place.classes)
    if not counts:
        return ""
    told = ", ".join(f"{arrow} ({count})" if count > 1 else arrow for arrow, count in counts.most_common())
    return f"{by}: {told}."
