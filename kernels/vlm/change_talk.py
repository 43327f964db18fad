"""`change`: what has changed between two dates, where, how many places and how large? By tools, coarse to fine.

The policy has four tools: ``change`` maps change with a kernel (`tilewright.kernels.vlm.change_map`), ``count`` joins
the map into places and ``area`` measures them (`change_places`), ``caption`` says it in a sentence (`change_words`). It
maps a coarse level whole first, then only the places that changed there, as fine as its limit of pixels allows. With an
embedder each place is also said to have turned from one class into another. With an answerer the results go to it as
text beside a picture of each date, and it phrases the answer; without one the caption is the answer.

Every count and area comes from the tools, never from a model.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.ask import Answer, BudgetSpentError, Evidence

from .answerers import Answerer, Turn, converse, told
from .change_map import ChangeMap
from .change_places import ChangedPlace, join_places
from .change_survey import Surveyor
from .change_words import caption, kind_of, kinds_words, listed, topic_of
from .looks import Box, look, look_all
from .renderings import Showing
from .retrieval import keywords_of

if TYPE_CHECKING:
    from tilewright.kernels.ask import Asking, Request, Scene, View
    from tilewright.kernels.contract import Kernel
    from tilewright.kernels.embed.contract import ImageTextEmbedder

    from .answerers import Picture
    from .change_survey import Survey
    from .change_words import Kind

__all__ = ["LABELS", "ChangeTalk"]

LABELS = (
    "crop fields", "forest", "herbaceous vegetation", "a highway", "industrial buildings", "pasture",
    "orchards and vineyards", "a residential area", "a river", "a lake or sea",
)  # fmt: skip
"""Classes that are told apart by the embedder that comes with the package, in words."""

_CHANGE_WORDS = frozenset(
    ("after", "anything", "before", "between", "change", "changed", "changes", "changing", "date", "dates", "describe",
     "difference", "differences", "different", "else", "everything", "happened", "has", "lost", "new", "nothing", "now",
     "past", "place", "places", "since", "something", "spots", "then", "time")
)  # fmt: skip
"""Words of questions about change that name no class."""
_PRONOUNS = r"\b(it|they|them|these|those)\b"
"""Words that stand for what the turn before was about."""
_UNIT_WORDS = frozenset(
    ("acres", "area", "big", "cent", "ha", "hectares", "km2", "kilometres", "large", "m2", "metres", "per", "percent",
     "percentage", "share", "square", "total")
)  # fmt: skip


@dataclass(frozen=True)
class ChangeTalk:
    """The policy."""

    kernel: Kernel | str = "change-vector"
    """What maps change: a kernel with several dates and an output ``change``, or its name."""
    kernel_weights: Any = None
    """Weights of a kernel by name."""
    kernel_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of a kernel by name."""
    answerer: Answerer | None = None
    """Phrases the answer; without one the caption is the answer, and is said to be."""
    embedder: ImageTextEmbedder | None = None
    """Ranks the classes of each place before and after."""
    labels: tuple[str, ...] = LABELS
    """The classes."""
    tower: str = "image"
    """The embedder's tower that sees the image."""
    scan: int = 4_000_000
    """Most pixels of the level that is mapped whole."""
    fine: int = 8_000_000
    """Most pixels of the second look, which is as fine as they allow."""
    least: float = 4.0
    """Robust standard deviations over the scene's middle that a pixel must stand out, with kernels that draw their
    line through the scene's own sample and therefore always find some change; others have a line of their own."""
    smallest: int = 9
    """Pixels of the level that was looked at that a place must have."""
    best: int = 20
    """Most places in the evidence, the largest first; classes are ranked for these."""
    side: int = 672
    """Longest side in pixels of a picture that the answerer is shown."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    bands: tuple[str | int, ...] | None = None
    """Three bands to be shown; None takes red, green and blue."""
    limits: tuple[float, float] | None = None
    """Values shown as black and white, for images that are not bytes; None takes percentiles of the first date."""
    renderings: tuple[str, ...] = ()
    """Renderings that are shown instead of three bands, with words for their colours; see `renderings.RENDERINGS`."""
    reflectance_scale: float | None = None
    """Reflectance of the number 1, for renderings; None: see `Renderer`."""
    name: str = field(default="change", init=False)
    """Name of the policy."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Begin to answer; raises `KernelError` where dates, bands or the kernel do not fit."""
        tool = ChangeMap(self._kernel(scene), scene)
        survey = yield from Surveyor(scene, tool, self.scan, self.fine, self.least, self.smallest).survey()
        places = join_places(scene, survey.pieces, self.smallest, self.best)
        by = self._classify_by_kernel(places, tool)
        if not by and self.embedder is not None and places:
            by = yield from self._classify(scene, places[: self.best])
        about = _about(question, scene)
        kind = kind_of(question)
        named, chosen, topic = self._selected(about, places, tool)
        vague = not named and _names_something(about)
        told_text = self._told(scene, kind, chosen, survey, topic, by, vague=vague)
        trace = self._trace(tool, survey, places, chosen, kind, named)
        trace["turns_before"] = len(scene.history)
        evidence = [self._evidence(place, tool) for place in chosen[: self.best]]
        if self.answerer is None:
            said = self._plainly(tool, survey, scene, vague=vague)
            return Answer(f"{told_text} {said}", evidence, trace)
        text = yield from self._phrased(question, scene, told_text, chosen, tool)
        return Answer(text, evidence, trace | {"answerer": self.answerer.name, "caption": told_text})

    # -- the tool change -------------------------------------------------------------------------------

    def _kernel(self, scene: Scene) -> Kernel:
        from ..contract import Kernel
        from ..load import load_for_bands

        if scene.dates < 2:
            raise KernelError(
                "the image has one date, and change is between two",
                place=f"policy {self.name}",
                remedy="name the rasters of both dates, the older first",
            )
        if isinstance(self.kernel, Kernel):
            return self.kernel
        return load_for_bands(self.kernel, scene.bands, self.kernel_weights, self.kernel_options)

    # -- what was there, and what is there now -----------------------------------------------------------

    def _classify_by_kernel(self, places: Sequence[ChangedPlace], tool: ChangeMap) -> str:
        """Give each place its commonest classes, where the kernel maps them; return who says so."""
        if tool.kinds is None:
            return ""
        before, after = tool.kinds
        for place in places:
            if place.kinds:
                number = place.kinds.most_common(1)[0][0]
                place.classes = (before[number // len(after)], after[number % len(after)])
        return f"By the classes of {tool.kernel.spec.name}"

    def _classify(
        self, scene: Scene, places: Sequence[ChangedPlace]
    ) -> Generator[list[Request], list[View], str]:
        """Give each place the class that the embedder ranks first at each date; return who says so."""
        import torch

        embedder = self.embedder
        assert embedder is not None
        side = embedder.towers[self.tower].side
        boxes = [_square(place.box, float(side), scene.shape) for place in places]
        try:
            seen = yield from look_all(scene, boxes, [(side, side)] * len(boxes))
        except BudgetSpentError:
            return ""
        prompt = embedder.profile.prompt or "{}"
        texts = embedder.embed_texts([prompt.format(label) for label in self.labels]).cpu()
        first = []
        for date in (0, scene.dates - 1):
            channels = self._channels(scene, date)
            pixels = np.stack([np.where(one.valid, one.pixels[channels], np.nan) for one in seen])
            vectors = embedder.embed_images(torch.from_numpy(pixels.astype(np.float32)), self.tower)
            first.append((vectors.cpu() @ texts.T).argmax(dim=1).tolist())
        for place, before, after in zip(places, *first, strict=True):
            place.classes = (self.labels[before], self.labels[after])
        return f"Ranked by the embedder {embedder.profile.name}, not measured"

    def _channels(self, scene: Scene, date: int) -> list[int]:
        """Return the channels of a date that the embedder's tower takes: by name, else in order."""
        assert self.embedder is not None
        wanted = self.embedder.towers[self.tower].input
        first = date * len(scene.bands)
        if isinstance(wanted.bands, tuple) and set(wanted.bands) <= set(scene.bands):
            return [first + scene.bands.index(band) for band in wanted.bands]
        if len(scene.bands) != wanted.band_count:
            raise KernelError(
                f"the embedder takes {wanted.band_count} bands, the image has {', '.join(scene.bands)}",
                place=self.name,
                remedy="choose or name them by --bands, or leave --embedder out",
            )
        return list(range(first, first + wanted.band_count))

    # -- the answer ------------------------------------------------------------------------------------

    def _selected(
        self, question: str, places: list[ChangedPlace], tool: ChangeMap
    ) -> tuple[tuple[str, ...], list[ChangedPlace], str]:
        """Return the classes that a question names, their places, and words for them."""
        known = [place for place in places if place.classes]
        classes = self.labels if tool.kinds is None else tuple(dict.fromkeys(sum(tool.kinds, ())))
        named, when = topic_of(question, classes)
        if not known or not named:
            return (), places, ""
        dates = {"from": (0,), "to": (1,), "any": (0, 1)}[when]
        chosen = [
            place
            for place in known
            if place.classes
            and place.classes[0] != place.classes[1]
            and any(place.classes[date] in named for date in dates)
        ]
        words = {"from": "from", "to": "to", "any": "from or to"}[when]
        return named, chosen, f" {words} {' or '.join(named)}"

    def _told(
        self,
        scene: Scene,
        kind: Kind,
        places: Sequence[ChangedPlace],
        survey: Survey,
        topic: str,
        by: str,
        *,
        vague: bool,
    ) -> str:
        if not survey.looked:
            return "Nothing was measured at both dates."
        text = caption(scene, places, survey.looked, topic, first="area" if kind == "area" else "count")
        if kind == "whether":
            text = f"{('Something did' if vague else 'Yes') if places else 'No'}. {text}"
        if kind == "where" and places:
            text = (
                f"{text} They are: {listed(scene, places)}"
                if len(places) > 1
                else f"{text} {listed(scene, places)}"
            )
        classes = kinds_words(places, by)
        return f"{text} {classes}" if classes and kind != "where" else text

    def _plainly(self, tool: ChangeMap, survey: Survey, scene: Scene, *, vague: bool) -> str:
        """Say who has answered, and what could not be told."""
        factor = scene.levels[survey.level].factor
        fine = "at full resolution" if factor == 1 else f"at {factor:g} px a pixel"
        said = f"No language model was asked: {tool.kernel.spec.name} compared the dates, {fine}"
        if survey.spent:
            said += ", for the budget ended the closer look"
        if survey.beyond:
            said += "; places that run on beyond what was read are cut"
        return f"{said}; changes of all kinds are meant." if vague else f"{said}."

    def _evidence(self, place: ChangedPlace, tool: ChangeMap) -> Evidence:
        facts: dict[str, Any] = {"place_pixels": place.pixels}
        if place.area is not None:
            facts["area_m2"] = round(place.area, 1)
        label = "changed"
        if place.classes:
            facts |= {"before": place.classes[0], "after": place.classes[1]}
            label = f"{place.classes[0]} -> {place.classes[1]}"
        return Evidence(place.box, round(place.strength, 6), label, facts, place.outline)

    def _trace(
        self,
        tool: ChangeMap,
        survey: Survey,
        places: Sequence[ChangedPlace],
        chosen: Sequence[ChangedPlace],
        kind: Kind,
        named: tuple[str, ...],
    ) -> dict[str, Any]:
        areas = [place.area for place in places if place.area is not None]
        tools: list[dict[str, Any]] = [
            {"tool": "change", "kernel": tool.kernel.spec.name, "level": survey.scanned},
            {"tool": "count", "places": len(places)},
            {"tool": "area", "square_metres": round(sum(areas), 1) if areas else None},
            {"tool": "caption"},
        ]
        if survey.level != survey.scanned:
            tools.insert(1, {**tools[0], "level": survey.level, "pieces": len(survey.pieces)})
        return {
            "policy": self.name,
            "question_kind": kind,
            "classes_named": list(named),
            "tools": tools,
            "threshold": tool.threshold,
            "least_strength": survey.bar if np.isfinite(survey.bar) else None,
            "scanned_level": survey.scanned,
            "answered_level": survey.level,
            "budget_ended": survey.spent,
            "cells_not_followed": survey.beyond,
            "places": len(places),
            "places_meant": len(chosen),
            "embedder": None if self.embedder is None else self.embedder.profile.name,
        }

    def _phrased(
        self, question: str, scene: Scene, caption_text: str, places: Sequence[ChangedPlace], tool: ChangeMap
    ) -> Generator[list[Request], list[View], str]:
        """Show the answerer both dates and the results of the tools, and return what it says."""
        assert self.answerer is not None
        try:
            shown, opening = yield from self._shown(scene)
        except BudgetSpentError:
            shown, opening = (), "No picture could be read, for the budget has ended."
        rows, cols = scene.shape
        results = [f"caption: {caption_text}", f"count: {len(places)}"]
        for number, place in enumerate(places[: self.best], start=1):
            shares = [
                round(1000 * edge / length) for edge, length in zip(place.box, (cols, rows) * 2, strict=True)
            ]
            results.append(
                f"place {number}: {listed(scene, [place])[3:-1]}, <box>[[{', '.join(map(str, shares))}]]</box>"
            )
        prompt = (
            f"{opening}\nTools have compared both dates ({tool.kernel.spec.name}). Their results, boxes in thousandths "
            "of the image:\n"
            + "\n".join(results)
            + "\nAnswer the question in one or two sentences. Take every number from the results.\n"
            + question
        )
        turns = [*told(scene.history), Turn("user", prompt, shown)]
        return converse(self.answerer, turns, self.max_tokens).strip()

    def _shown(self, scene: Scene) -> Generator[list[Request], list[View], tuple[tuple[Picture, ...], str]]:
        """Return pictures of the first and of the last date, alike in stretch, and words that say which they are."""
        rows, cols = scene.shape
        zoom = min(1.0, self.side / max(rows, cols))
        shape = max(1, round(rows * zoom)), max(1, round(cols * zoom))
        seen = yield from look(scene, (0.0, 0.0, float(cols), float(rows)), shape)
        first = Showing(scene, self.bands, self.limits, self.renderings, self.reflectance_scale, date=0)
        before = first.show(seen)
        last = Showing(scene, self.bands, first.painter.limits, self.renderings, self.reflectance_scale)
        after = last.show(seen)
        count = len(before.pictures)
        if count == 1:
            opening = "Image 1 shows a piece of ground, image 2 the same piece at a later date."
        else:
            opening = (
                f"Images 1 to {count} show a piece of ground, images {count + 1} to {2 * count} the same piece at a "
                "later date, in the same order."
            )
        return before.pictures + after.pictures, f"{opening}\n{before.text}".strip()


def _about(question: str, scene: Scene) -> str:
    """Return the question that says what is meant: for "how large is it?" the last one without such a word."""
    asked = [question, *(turn.question for turn in reversed(scene.history))]
    return next((one for one in asked if not re.search(_PRONOUNS, one.lower())), question)


def _names_something(question: str) -> bool:
    """Tell whether a question names more than change itself, such as "houses"; an area's unit does not count."""
    words = {word for run in keywords_of(question) for word in re.findall(r"\w+", run)}
    return bool(words - _CHANGE_WORDS - _UNIT_WORDS)


def _square(box: Box, least: float, shape: tuple[int, int]) -> Box:
    """Return a square around a box, at least ``least`` wide, moved and cut into the scene."""
    rows, cols = shape
    side = max(box[2] - box[0], box[3] - box[1], least)
    spans = []
    for low, high, length in ((box[0], box[2], cols), (box[1], box[3], rows)):
        size = min(side, float(length))
        start = min(max(0.0, (low + high - size) / 2), length - size)
        spans.append((start, start + size))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]
