"""Retrieval: of the patches of an image those that the question is about are found first, and shown to the model.

As in ImageRAG (https://arxiv.org/abs/2411.07688): keywords of the question are compared with patches of several sizes
by an image-text embedder (`tilewright.kernels.vlm.cues` has the two paths); the overview and the patches that were
found go to the answerer with their places. Written from the paper and from what the released code was found to do.
Ours are the keywords where no model gives them (the published fallback is KeyBERT), the words around the format of
the places, and that patches are read from the level that fits them instead of from the whole image.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tilewright.errors import KernelError, nearest_name
from tilewright.kernels.ask import Answer, Evidence

from .answerers import Answerer, Turn, converse, evidence_text, told
from .cues import THRESHOLD, Cue, LabelStore, fast_path, slow_path
from .looks import Box, Look, look, look_all
from .patches import PATCHES, KnownPatches, merged_box
from .renderings import Showing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Asking, Request, Scene, View
    from tilewright.kernels.embed.contract import ImageTextEmbedder

    from .answerers import Picture

__all__ = ["Retrieval", "keywords_of", "said_list"]

_TOGETHER = 64
"""Patches that are asked for and embedded at a time."""
_MOST_KEYWORDS = 5
_TRIALS = 3
"""Times that a model is asked for keywords before they are taken from the question."""
_IDLE = frozenset(
    re.findall(
        r"\w+",
        """
        a about all an and any are area around as at be been being between both by can color colour could do
        does due each for from given had has have here how i if image images in instead into is it its kind many
        me more most much near no not number of often on one only or other our out over part photo picture
        please region say scene see seen shape show shown situated so some such tell than that the their them
        then there these they this those to type under up upon us was we were what when where whether which who
        whose why will with would you your
        """,
    )
)
"""Words of questions that name nothing one could look for."""


def keywords_of(question: str, most: int = _MOST_KEYWORDS) -> list[str]:
    """Return what a question is about: its runs of words that name something, in order.

    >>> keywords_of("How many parked trucks are there near the swimming pool?")
    ['parked trucks', 'swimming pool']
    """
    runs: list[list[str]] = [[]]
    for piece in re.findall(r"[\w'-]+|[^\w\s]", question.lower()):
        if piece in _IDLE or not piece[0].isalnum():
            runs.append([])
        else:
            runs[-1].append(piece)
    return list(dict.fromkeys(" ".join(run) for run in runs if run))[:most]


def said_list(text: str) -> list[str] | None:
    """Return the first list of strings that a model wrote, as Python or JSON; None where it wrote none."""
    for found in re.finditer(r"\[[^\[\]]*\]", text):
        try:
            values = ast.literal_eval(found.group())
        except (ValueError, SyntaxError):
            continue
        if values and all(isinstance(value, str) and value.strip() for value in values):
            return [value.strip() for value in values]
    return None


@dataclass(frozen=True)
class Retrieval:
    """The policy: overview, patches, cues, answer."""

    embedder: ImageTextEmbedder
    """Compares words with patches."""
    answerer: Answerer | None = None
    """Puts the answer into words; without one the evidence is the answer, and is said to be."""
    cut: str | Callable[[int, int], Sequence[Sequence[int]]] = "grid"
    """How patches are cut: ``vit``, ``cc`` or ``grid`` of `PATCHES`, or (columns, rows) -> boxes."""
    threshold: float = THRESHOLD
    """Confidence above which a patch counts on the fast path; it belongs to ``cut``: it is a share of all patches."""
    scale: float | None = None
    """Factor of the cosines; None takes the embedder's."""
    keywords: tuple[str, ...] = ()
    """What to look for; without them the answerer is asked, and then the question itself."""
    known: KnownPatches | None = None
    """Patches that are embedded already, such as those of an index; ``cut`` says nothing then."""
    stores: tuple[LabelStore, ...] = ()
    """Where keywords are looked up when no patch is sure enough, one store after the other."""
    reducer: Literal["mean", "cluster", "rerank"] = "mean"
    """How many images of a label become one vector."""
    tower: str | None = None
    """The embedder's tower; None takes its first."""
    side: int = 448
    """Longest side in pixels of a picture that the answerer is shown."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    bands: tuple[str | int, ...] | None = None
    """Three bands to be shown; None takes red, green and blue."""
    limits: tuple[float, float] | None = None
    """Values shown as black and white, for images that are not bytes; None takes percentiles of the overview."""
    renderings: tuple[str, ...] = ()
    """Renderings that are shown instead of three bands, with words for their colours; see `renderings.RENDERINGS`."""
    reflectance_scale: float | None = None
    """Reflectance of the number 1, for renderings; None: see `Renderer`."""
    name: str = field(default="retrieval", init=False)
    """Name of the policy."""

    def ask(self, question: str, scene: Scene) -> Asking:
        """Begin to answer ``question``; raises `KernelError` where bands or the way of cutting are unknown."""
        whole: Box = (0.0, 0.0, float(scene.shape[1]), float(scene.shape[0]))
        boxes = self._boxes(scene) if self.known is None else list(self.known.boxes)
        channels = self._channels(scene) if self.known is None else []
        showing = Showing(scene, self.bands, self.limits, self.renderings, self.reflectance_scale)
        overview = showing.show((yield from look(scene, whole, self._shown(whole))))
        keywords, source = self._keywords(question, overview.pictures, scene)
        if self.known is None:
            vectors = yield from self._embedded(scene, boxes, channels)
        else:
            vectors = self.known.vectors
        cues, path = self._cues(vectors, keywords)
        evidence = [Evidence(boxes[cue.patch], cue.confidence, cue.label) for cue in cues]
        trace: dict[str, Any] = {
            "policy": self.name,
            "turns_before": len(scene.history),
            "keywords": keywords,
            "keywords_from": source,
            "patches": len(boxes),
            "embedded_before": self.known is not None,
            "path": path,
            "threshold": self.threshold,
            "cues": len(cues),
            "renderings": list(self.renderings),
        }
        if self.answerer is None:
            return Answer(evidence_text(question, evidence, scene), evidence, trace)
        places = _places(question, evidence)
        closer = yield from look_all(scene, places, [self._shown(box) for box in places])
        each = len(overview.pictures)
        pictures = [*overview.pictures, *(one for seen in closer for one in showing.show(seen).pictures)]
        prompt = _prompt(question, places, scene, each)
        asked = f"{overview.text}\n{prompt}" if overview.text else prompt
        turns = [*told(scene.history), Turn("user", asked, tuple(pictures))]
        text = converse(self.answerer, turns, self.max_tokens)
        return Answer(
            text.strip(), evidence, trace | {"answerer": self.answerer.name, "shown": len(pictures)}
        )

    def _boxes(self, scene: Scene) -> list[Box]:
        if isinstance(self.cut, str) and self.cut not in PATCHES:
            raise KernelError(
                f"unknown way {self.cut!r} of cutting patches; {nearest_name(self.cut, PATCHES)}",
                place=self.name,
            )
        cut = PATCHES[self.cut] if isinstance(self.cut, str) else self.cut
        rows, cols = scene.shape
        found = []
        for x0, y0, x1, y1 in cut(cols, rows):
            box = (float(max(x0, 0)), float(max(y0, 0)), float(min(x1, cols)), float(min(y1, rows)))
            if box[0] < box[2] and box[1] < box[3]:
                found.append(box)
        return found

    def _channels(self, scene: Scene) -> list[int]:
        """Return the channels that the embedder's tower takes: by name where both have names, else the first ones."""
        wanted = self.embedder.towers[self.embedder.profile.tower_name(self.tower)].input
        first = (scene.dates - 1) * len(scene.bands)
        if isinstance(wanted.bands, tuple) and set(wanted.bands) <= set(scene.bands):
            return [first + scene.bands.index(band) for band in wanted.bands]
        if len(scene.bands) < wanted.band_count:
            raise KernelError(
                f"the embedder takes {wanted.band_count} bands, the image has {len(scene.bands)}",
                place=self.name,
            )
        return [first + number for number in range(wanted.band_count)]

    def _shown(self, box: Box) -> tuple[int, int]:
        """Return rows and columns at which a box is shown; never finer than the image."""
        return _fitted(box, min(1.0, self.side / max(box[2] - box[0], box[3] - box[1])))

    def _keywords(self, question: str, overview: tuple[Picture, ...], scene: Scene) -> tuple[list[str], str]:
        """Return what is looked for, and who said so; of a question that names nothing, what those before it named."""
        if self.keywords:
            return list(self.keywords), "given"
        if self.answerer is not None:
            prompt = (
                f"Question about a satellite image: {question}\nWhich objects or kinds of ground must be found in the "
                f"image to answer it? Reply with a Python list of at most {_MOST_KEYWORDS} short strings, nothing else."
            )
            for _ in range(_TRIALS):
                turns = [*told(scene.history), Turn("user", prompt, overview)]
                said = said_list(converse(self.answerer, turns, 64))
                if said:
                    return said[:_MOST_KEYWORDS], "answerer"
        asked = [question, *(turn.question for turn in reversed(scene.history))]
        return next((words for words in map(keywords_of, asked) if words), [question]), "question"

    def _embedded(
        self, scene: Scene, boxes: list[Box], channels: list[int]
    ) -> Generator[list[Request], list[View], NDArray[np.float32]]:
        """Return the vectors ``[patches, D]``: patches are read with their short side at the tower's side."""
        import torch

        tower = self.embedder.profile.tower_name(self.tower)
        side = self.embedder.towers[tower].side
        shapes: dict[tuple[int, int], list[int]] = {}
        for number, box in enumerate(boxes):
            shape = _fitted(box, side / min(box[2] - box[0], box[3] - box[1]))
            shapes.setdefault(shape, []).append(number)
        vectors: dict[int, NDArray[np.float32]] = {}
        for shape, numbers in shapes.items():
            for start in range(0, len(numbers), _TOGETHER):
                part = numbers[start : start + _TOGETHER]
                seen: list[Look] = yield from look_all(
                    scene, [boxes[number] for number in part], [shape] * len(part)
                )
                pixels = np.stack([np.where(one.valid, one.pixels[channels], np.nan) for one in seen])
                made = self.embedder.embed_images(torch.from_numpy(pixels.astype(np.float32)), tower)
                vectors.update(zip(part, made.cpu().numpy(), strict=True))
        return np.stack([vectors[number] for number in range(len(boxes))])

    def _cues(self, vectors: NDArray[np.float32], keywords: list[str]) -> tuple[list[Cue], str]:
        profile = self.embedder.profile
        scale = profile.temperature if self.scale is None else self.scale
        words = self.embedder.embed_texts([profile.prompt.format(word) for word in keywords]).cpu().numpy()
        cues = fast_path(vectors, words, scale, self.threshold, keywords)
        if cues:
            return cues, "fast"
        for store in self.stores:
            near = store.near(words)
            if near:
                labels = [store.labels[number] for number in near]
                texts = np.stack([store.texts[number] for number in near])
                features = [store.features[number] for number in near]
                return slow_path(vectors, features, scale, self.reducer, texts, labels), "slow"
        return [], "zero-shot"


def _fitted(box: Box, zoom: float) -> tuple[int, int]:
    return max(1, round((box[3] - box[1]) * zoom)), max(1, round((box[2] - box[0]) * zoom))


def _places(question: str, evidence: Sequence[Evidence]) -> list[Box]:
    """Return what is shown beside the overview: the patches and the box around them; to count, that box alone."""
    boxes = list(dict.fromkeys(one.box for one in evidence))
    if len(boxes) < 2:
        return boxes
    around: Box = merged_box(boxes)
    counting = re.search(r"\b(how many|number of|count)\b", question.lower())
    return [around] if counting else [*boxes, around]


def _prompt(question: str, places: Sequence[Box], scene: Scene, each: int = 1) -> str:
    """Return the question with the places of the pictures after the first, in thousandths of the image.

    ``each`` is in how many renderings the image and every place is shown.
    """
    if not places:
        return question
    rows, cols = scene.shape
    lines = []
    for number, box in enumerate(places, 1):
        shares = [round(1000 * edge / side) for edge, side in zip(box, (cols, rows) * 2, strict=True)]
        first, last = number * each + 1, (number + 1) * each
        shown = f"image {first}" if each == 1 else f"images {first} to {last}, in the same renderings"
        lines.append(f"Sub-patch {number} at location <box>[[{', '.join(map(str, shares))}]]</box>: {shown}")
    whole = "Image 1 is the whole." if each == 1 else f"Images 1 to {each} are the whole."
    return f"{whole}\nAdditional information:\n" + "\n".join(lines) + f"\n{question}"
