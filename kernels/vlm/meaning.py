"""What a question to an embedder means, by a few rules: the thing, the kind of answer, and the part of the image.

An embedder understands things, not sentences. These are all the rules:

- *Kind*: "how many ...", "count ...", "number of ..." ask for a count; "how large ...", "how much area ...", "what area
  ...", "size of ..." for an area; all else asks where.
- *Thing*: what is left when the words of the question are gone. "it", "they", "them", "ones" are the thing of the
  turn before, in its part of the image.
- *Follow-up*: after "and ...", "what about ...", "how about ..." a bare thing is asked for in the kind and the part of
  the turn before.
- *Part*: "the first one" (to the tenth, or the last), "in the second forest" is that place of the turn before;
  "there", "in it", "in them", "in these" are all its places.

"The nearest one", "larger than", "between" are not understood: those words are part of the thing then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from tilewright.kernels.ask import Exchange

    from .measures import Box

__all__ = ["Kind", "Meaning", "kind_of", "meaning_of", "named_thing"]

Kind = Literal["where", "count", "area"]

_COUNT = r"(how many( of)?( (are|is|were))?|count( up)?|(what is )?(the )?number of)"
_AREA = (
    r"(how (large|big|wide|extensive)( (is|are|was|were))?"
    r"|how much( (area|ground|land|space))?( (is|are))?( there)?( of)?"
    r"|(what|which) area (is|are|does|do)( covered by)?"
    r"|(what is )?(the )?(total |whole )?(area|size|extent) of)"
)
_LEADS = (
    r"(please\s+)?(can|could) you\s+(please\s+)?(find|show|tell)\s*(me)?",
    r"(please\s+)?(find|show|locate|search|look)\s*(me|for)?",
    r"where\s+(is|are|do you see|can i see|was|were)(\s+there)?",
    r"(is|are)\s+there",
    r"which\s+(part|place|area)s?\s+(of\s+the\s+image\s+)?(is|are|shows?)",
    r"what\s+looks\s+like",
)
_TAILS = (
    r"\s*\b(in|on|of) (the|this) (whole )?(image|picture|scene|map|photo)",
    r"\s*\b(are|is|do you see|can (you|i) see)( there)?( together| in all)?",
    r"\s*\b(take up|cover|in all|together)",
)
_ARTICLES = r"^(all|any|some|a|an|the|of)\s+"
_FOLLOWS = r"^(and\s+)?(what|how) about\b[\s,]*|^and\b[\s,]*"
_THINGS = {"", "it", "they", "them", "these", "those", "that", "this", "one", "ones", "there", "where"}
"""What is left of a question that names no thing."""
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_WHICH = "|".join([*_ORDINALS, "last"])
_ONE = re.compile(
    rf"\b((in|inside|within|of|on) )?(the )?(?P<which>{_WHICH}) (one|place|box)\b"
    rf"|\b(in|inside|within) the (?P<other>{_WHICH})( \w+)?"
)
_ALL = re.compile(
    r"\b(in|inside|within) (it|them|these|those|that( one| place)?|these places|there)$"
    r"|(?<!\bis )(?<!\bare )(?<!^)\bthere$"
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a question asks for."""

    thing: str
    """What an embedder can look for."""
    kind: Kind = "where"
    """What the answer should say of it."""
    within: tuple[Box, ...] | None = None
    """Boxes ``(col0, row0, col1, row1)`` in full-resolution pixels that it is looked for in; None is everywhere."""


def named_thing(question: str) -> str:
    """Return what a question asks for: "Where is the forest?" gives "forest"; a text without such words is kept."""
    return _bare(_plain(question)) or question


def meaning_of(question: str, history: Sequence[Exchange] = ()) -> Meaning:
    """Return what a question means after the turns before it; see the rules of this module.

    Raises
    ------
    KernelError
        It names no thing and no turn before does, or a place that the turn before did not name.
    """
    before, turn = None, None
    for earlier in history:
        before, turn = _meaning(earlier.question, before, turn), earlier
    return _meaning(question, before, turn)


def _meaning(question: str, before: Meaning | None, turn: Exchange | None) -> Meaning:
    """Return what a question means after one that meant ``before`` and was answered as ``turn`` says."""
    text = _plain(question)
    follows = re.match(_FOLLOWS, text, re.IGNORECASE)
    text = text[follows.end() :] if follows else text
    text, within = _parted(text, turn) if turn is not None else (text, None)
    kind, thing, bare = _kind(text), _bare(text), not _leads(text)
    if thing.lower() in _THINGS and before is None:
        raise KernelError(
            f"{question.strip()!r} names nothing to look for",
            place="ask",
            remedy="name the thing: where is the lake?",
        )
    if before is None:
        return Meaning(thing, kind, within)
    named = thing.lower() not in _THINGS
    if named and not follows:
        return Meaning(thing, kind, within)
    if not named or bare:
        within = before.within if within is None else within
    if kind == "where" and bare:
        kind = before.kind
    return Meaning(thing if named else before.thing, kind, within)


def _plain(question: str) -> str:
    return " ".join(question.split()).rstrip("?.! ")


def kind_of(question: str) -> Kind:
    """Return what a question by itself wants to know."""
    return _kind(_plain(question))


def _kind(text: str) -> Kind:
    if re.match(_COUNT + r"\b", text, re.IGNORECASE):
        return "count"
    return "area" if re.match(_AREA + r"(\s|$)", text, re.IGNORECASE) else "where"


def _leads(text: str) -> bool:
    """Tell whether a text begins as a question of its own."""
    return text.lower() == "where" or any(re.match(rf"{lead}\b", text, re.IGNORECASE) for lead in _LEADS)


def _bare(text: str) -> str:
    """Return a text without the words that make it a question."""
    asked = _kind(text)
    if asked == "where":
        for lead in _LEADS:
            text = re.sub(rf"^{lead}\b\s*", "", text, flags=re.IGNORECASE)
    else:
        text = re.sub(
            rf"^{_COUNT}\b\s*" if asked == "count" else rf"^{_AREA}(\s+|$)", "", text, flags=re.IGNORECASE
        )
        for tail in _TAILS:
            text = re.sub(rf"{tail}$", "", text, flags=re.IGNORECASE)
    for _ in range(3):
        text = re.sub(_ARTICLES, "", text, flags=re.IGNORECASE)
    return text.strip()


def _parted(text: str, turn: Exchange) -> tuple[str, tuple[Box, ...] | None]:
    """Return a text without the words that name places of the turn before, and their boxes."""
    places = [found.box for found in turn.answer.evidence if found.properties.get("found", True)]
    one = _ONE.search(text.lower())
    all_ = None if one else _ALL.search(text.lower())
    found = one or all_
    if found is None:
        return text, None
    if not places:
        raise KernelError(
            f"{found.group().strip()!r}: the turn before found no place",
            place="ask",
            remedy="ask about the whole image",
        )
    rest = " ".join((text[: found.start()] + text[found.end() :]).split()).strip(", ")
    if one is None:
        return rest, tuple(places)
    which = one["which"] or one["other"]
    number = len(places) - 1 if which == "last" else _ORDINALS.index(which)
    if number >= len(places):
        raise KernelError(
            f"there is no {which} place: the turn before found {len(places)}",
            place="ask",
            remedy="name one of those that it listed",
        )
    return rest, (places[number],)
