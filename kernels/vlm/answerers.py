"""Who puts an answer into words: one small contract, whatever model stands behind it.

A policy decides what is looked at; an `Answerer` is given the pictures and the question. `converse` carries a dialogue
of several turns to answerers that know dialogues, and writes it as one prompt for those that do not. Without any
answerer the evidence is the answer, and `evidence_text` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from .meaning import kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Evidence, Exchange, Scene

__all__ = ["Answerer", "Picture", "Talker", "Turn", "converse", "evidence_text", "told"]

type Picture = NDArray[np.uint8]
"""``[rows, columns, 3]``: red, green and blue of 0 to 255."""


class Answerer(Protocol):
    """Something that looks at pictures and answers a prompt."""

    @property
    def name(self) -> str:
        """What it is, for traces; never a secret."""
        ...

    def answer(self, images: Sequence[Picture], prompt: str, max_tokens: int = 256) -> str:
        """Return the answer to ``prompt`` about ``images``.

        Raises `KernelError` in one line where there is none: unreachable, refused, timed out, malformed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    text: str
    """What is said."""
    images: tuple[Picture, ...] = ()
    """What is shown before it is said."""


@runtime_checkable
class Talker(Protocol):
    """An answerer that keeps turns apart."""

    def converse(self, turns: Sequence[Turn], max_tokens: int = 256) -> str:
        """Return what the assistant says after ``turns``; errors as for `Answerer.answer`."""
        ...


def converse(answerer: Answerer, turns: Sequence[Turn], max_tokens: int = 256) -> str:
    """Return what ``answerer`` says after ``turns``; one that knows no dialogues is given them as one prompt."""
    if isinstance(answerer, Talker):
        return answerer.converse(turns, max_tokens)
    images = [image for turn in turns for image in turn.images]
    if [turn.role for turn in turns] in (["user"], ["system", "user"]):
        return answerer.answer(images, "\n\n".join(turn.text for turn in turns), max_tokens)
    said = []
    shown = 0
    for turn in turns:
        numbers = range(shown + 1, shown + len(turn.images) + 1)
        shown += len(turn.images)
        seen = "".join(f"[image {number}] " for number in numbers)
        said.append(f"{turn.role}: {seen}{turn.text}" if turn.role != "system" else turn.text)
    return answerer.answer(images, "\n\n".join([*said, "assistant:"]), max_tokens)


def told(history: Sequence[Exchange]) -> list[Turn]:
    """Return the turns of a dialogue that are over as a model is told them: words, without their pictures."""
    return [
        turn
        for exchange in history
        for turn in (Turn("user", exchange.question), Turn("assistant", exchange.answer.text))
    ]


def evidence_text(question: str, evidence: Sequence[Evidence], scene: Scene) -> str:
    """Return evidence in a sentence, for want of a language model; says that no model has answered."""
    opening = f"No language model was asked {question!r}."
    if not evidence:
        return f"{opening} Nothing in the image stands out for it."
    best = evidence[0]
    col0, row0, col1, row1 = (round(edge) for edge in best.box)
    size = ""
    if scene.resolution is not None:
        wide, high = (
            (b - a) * scene.resolution for a, b in ((best.box[0], best.box[2]), (best.box[1], best.box[3]))
        )
        size = f", {wide:,.0f} x {high:,.0f} m"
    label = f" ({best.label})" if best.label else ""
    count = "One place stands" if len(evidence) == 1 else f"{len(evidence)} places stand"
    asked = {"count": "counted", "area": "measured"}.get(kind_of(question))
    caveat = f" They are patches, not things, and are not {asked}." if asked else ""
    return (
        f"{opening} {count} out; the first{label} is at columns {col0}-{col1}, rows {row0}-{row1}{size}, "
        f"score {best.score:.3g}.{caveat}"
    )
