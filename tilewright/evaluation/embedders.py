"""`evaluate_embedder`: an embedder over labelled or captioned pictures, judged by classes and by what finds what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError, KernelError, WeightsError

from .confusion import mean, per_class
from .evaluate import Progress, output_folder, plain
from .ranking import average_precision, class_vectors, like_scores, retrieval_scores
from .scenes import Captions, PictureFiles, Scenes, caption_file, class_words, open_captions, open_scenes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.embed.contract import ImageTextEmbedder

__all__ = ["EmbedderEvaluation", "evaluate_embedder", "is_embedder"]

BATCH = 64
"""Pictures that are embedded at a time where nothing else is asked for."""
LAYOUTS = ("scenes", "captions")
_TEXTS = 256


@dataclass(frozen=True)
class EmbedderEvaluation:
    """What was found: the content of ``metrics.json``."""

    kernel: str
    """Name of the embedder."""
    weights: str | None
    """Where its weights came from."""
    weights_sha256: str | None
    """Their checksum."""
    untrained: bool
    """True where it had none and random ones stood in: the scores then mean nothing."""
    options: Mapping[str, Any]
    """Options of the embedder."""
    dataset: str
    """The folder or file."""
    layout: str
    """``scenes`` or ``captions``."""
    split: str | None
    """The split; None for all there is."""
    task: str
    """``zero-shot`` where classes are named by texts, ``like`` where the embedder has no texts, ``retrieval`` of
    captions."""
    images: int
    """Pictures."""
    texts: int
    """Texts: prompts of the classes, or captions."""
    scores: Mapping[str, float]
    """The scores of the whole set; NaN for one that does not exist. Recalls of captions are in percent, as everybody
    writes them; the others are 0 to 1."""
    classes: tuple[str, ...]
    """Names of the classes."""
    prompts: Mapping[str, Sequence[str]]
    """Class -> the texts that stand for it."""
    per_class: tuple[Mapping[str, float], ...]
    """Of each class: accuracy (the share of its pictures that is named right), precision, F1, average precision of its
    text over all pictures, and how many pictures it has (support)."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows are labels, columns the classes that were named."""
    per_image: tuple[Mapping[str, Any], ...]
    """Of each picture that was named wrong: name, label, answer, the rank of the right class, from 1, and by how much
    the cosine with the answer is larger than that with the label, the largest first."""
    seconds: float
    """Wall time."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: None for a score that does not exist."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def is_embedder(kernel: object) -> bool:
    """Return True for the name of a kernel that embeds pictures."""
    from tilewright.kernels.embed.contract import profile_of

    if not isinstance(kernel, str):
        return False
    try:
        profile_of(kernel)
    except KernelError:
        return False
    return True


def evaluate_embedder(
    embedder: str | ImageTextEmbedder,
    dataset: str | Path,
    *,
    layout: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    words: str | Path | None = None,
    prompts: Sequence[str] = (),
    batch: int | None = None,
    device: str | None = None,
    untrained: bool = False,
    worst: int = 6,
    progress: Progress | None = None,
) -> EmbedderEvaluation:
    """Embed labelled or captioned pictures, and say how right the embedder is about them.

    Scores are defined in docs/guides/eval.md.

    Parameters
    ----------
    embedder
        Name of an embedding kernel, or a loaded one.
    dataset
        A folder or zip file with a folder for each class; or captions: ``dataset_*.json``, or the folder that holds it.
    layout
        ``scenes`` or ``captions``; None finds out.
    split
        Of captions the one to take, ``test`` unless given; of scenes a folder above the classes, or ``held-back``.
    limit
        At most so many pictures; of scenes evenly over the classes.
    out
        Folder for ``metrics.json``, ``confusion.csv``, ``confusion.png`` and ``worst-tiles.png``.
    weights, options
        For an embedder by name; the option ``tower`` says which of its towers sees the pictures.
    bands
        1-based numbers of the bands that the tower is shown.
    words
        YAML with ``class: word`` or ``class: [word, ...]`` for classes whose folders do not say what they are.
    prompts
        Sentences with ``{}`` for the word; None takes the embedder's own. Of several the vectors are averaged.
    batch
        Pictures embedded at a time.
    device
        Where to compute; None takes the CPU.
    untrained
        Allow an embedder without weights.
    worst
        How many of the pictures that were named wrong are drawn: those that are most more like another class.
    progress
        Called with pictures done, how many there are, and the name of the last.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change.
    """
    began = perf_counter()
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}", place="--limit", remedy="give a number of at least 1")
    _check_prompts(prompts)
    folder = output_folder(out)
    data = _open(Path(dataset), layout, split, limit)
    given = dict(options or {})
    tower = given.pop("tower", None)
    loaded = _loaded(embedder, weights, given, untrained)
    shown = _Shown(loaded, loaded.profile.tower_name(tower), _numbers(bands), batch or BATCH, progress)
    if device is not None:
        loaded.to(device)
    images = shown.vectors(data.files, data.names)
    facts: dict[str, Any]
    if isinstance(data, Captions):
        facts = _retrieval(loaded, images, data)
    else:
        facts = _classes(loaded, images, data, None if words is None else Path(words), prompts)
    found = EmbedderEvaluation(
        kernel=loaded.profile.name,
        weights=loaded.weights,
        weights_sha256=loaded.weights_sha256,
        untrained=loaded.untrained,
        options=dict(options or {}),
        dataset=str(Path(dataset).resolve()),
        split=data.split,
        images=len(images),
        seconds=round(perf_counter() - began, 3),
        **facts,
    )
    if folder is not None:
        from .written import write_pictures, write_scores

        write_scores(found, folder)
        write_pictures(found, shown.pictures(data.files, found.per_image[:worst]), folder / "worst-tiles.png")
    return found


def _open(path: Path, layout: str | None, split: str | None, limit: int | None) -> Scenes | Captions:
    if layout is not None and layout not in LAYOUTS:
        raise InputError(
            f"layout {layout!r} is not for embedders", place="--layout", remedy=f"use {' or '.join(LAYOUTS)}"
        )
    file = None if layout == "scenes" else caption_file(path)
    if file is not None:
        return open_captions(file, split, limit)
    if layout == "captions":
        raise InputError(
            "holds no captions",
            place=str(path),
            remedy="name a dataset_*.json or its folder; unpack archives",
        )
    return open_scenes(path, split, limit)


def _check_prompts(prompts: Sequence[str]) -> None:
    for prompt in prompts:
        if prompt.count("{}") != 1 or prompt.replace("{}", "").count("{"):
            raise InputError(
                f"{prompt!r} has no place for the class",
                place="--prompt",
                remedy='write {} once, such as "an aerial image of {}"',
            )


def _numbers(bands: Sequence[str | int] | None) -> list[int] | None:
    if bands is None:
        return None
    try:
        found = [int(band) for band in bands]
    except ValueError as error:
        raise InputError(
            f"{', '.join(map(str, bands))} are no numbers",
            place="--bands",
            remedy="pictures of scenes have numbered bands, from 1",
        ) from error
    if min(found) < 1:
        raise InputError(f"band {min(found)} is asked for", place="--bands", remedy="count from 1")
    return found


def _loaded(
    embedder: str | ImageTextEmbedder, weights: Any, options: Mapping[str, Any], untrained: bool
) -> ImageTextEmbedder:
    from tilewright.kernels.embed.contract import load_embedder

    loaded = load_embedder(embedder, weights, **options) if isinstance(embedder, str) else embedder
    if loaded.untrained and not untrained:
        raise WeightsError(
            "has no weights, so its scores would mean nothing",
            place=loaded.profile.name,
            remedy="give --weights (a path or hf://owner/name@revision), or --untrained to see what it costs",
        )
    return loaded


@dataclass(frozen=True)
class _Shown:
    """How pictures come before an embedder."""

    embedder: ImageTextEmbedder
    tower: str
    bands: list[int] | None
    batch: int
    progress: Progress | None

    def vectors(self, files: PictureFiles, names: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of pictures, ``[n, dim]``; pictures of one size that follow each other go together."""
        wanted = self.embedder.towers[self.tower].input.band_count
        if self.bands is not None and len(self.bands) != wanted:
            raise InputError(
                f"{len(self.bands)} bands for {wanted} of {self.embedder.profile.name}", place="--bands"
            )
        found = np.empty((len(names), self.embedder.profile.dim), np.float32)
        at = 0
        for pixels, last in self._batches(files, names, wanted):
            found[at : at + len(pixels)] = self._embedded(pixels, last)
            at += len(pixels)
            if self.progress is not None:
                self.progress(at, len(names), last)
        return found

    def pictures(
        self, files: PictureFiles, facts: Sequence[Mapping[str, Any]]
    ) -> list[tuple[str, NDArray[Any]]]:
        """Return pictures that were named wrong, as they are shown, with a text each."""
        wanted = self.embedder.towers[self.tower].input.band_count
        return [
            (f"{one['label']}, called {one['answer']}", files.pixels(one["name"], self.bands, wanted))
            for one in facts
        ]

    def _batches(
        self, files: PictureFiles, names: Sequence[str], wanted: int
    ) -> Iterator[tuple[NDArray[np.float32], str]]:
        held: list[NDArray[np.float32]] = []
        last = ""
        for name in names:
            pixels = files.pixels(name, self.bands, wanted).astype(np.float32)
            if held and (len(held) == self.batch or held[0].shape != pixels.shape):
                yield np.stack(held), last
                held = []
            held.append(pixels)
            last = name
        if held:
            yield np.stack(held), last

    def _embedded(self, pixels: NDArray[np.float32], last: str) -> NDArray[np.float32]:
        import torch

        try:
            made = self.embedder.embed_images(torch.from_numpy(pixels), self.tower).cpu().numpy()
        except (RuntimeError, ValueError) as error:
            rows, cols = pixels.shape[2:]
            raise KernelError(
                f"cannot embed a picture of {rows} x {cols} px: {str(error).splitlines()[0]}",
                place=f"{self.embedder.profile.name}, {last}",
            ) from error
        vectors: NDArray[np.float32] = made
        return vectors


def _text_vectors(embedder: ImageTextEmbedder, texts: Sequence[str]) -> NDArray[np.float32]:
    parts = [
        embedder.embed_texts(texts[start : start + _TEXTS]).cpu().numpy()
        for start in range(0, len(texts), _TEXTS)
    ]
    return np.concatenate(parts)


def _retrieval(embedder: ImageTextEmbedder, images: NDArray[np.float32], data: Captions) -> dict[str, Any]:
    """Return what is found by captions, and which captions are found."""
    texts = _text_vectors(embedder, data.texts)
    scores = retrieval_scores(images, texts, data.image_of_text)
    first = {"mean_recall": scores.pop("mean_recall")}
    return {
        "layout": "captions",
        "task": "retrieval",
        "texts": len(texts),
        "scores": first | scores,
        "classes": (),
        "prompts": {},
        "per_class": (),
        "confusion": (),
        "per_image": (),
    }


def _classes(
    embedder: ImageTextEmbedder,
    images: NDArray[np.float32],
    data: Scenes,
    words: Path | None,
    templates: Sequence[str],
) -> dict[str, Any]:
    """Return what is named right by the words of the classes, and how well pictures find their like."""
    like = like_scores(images, data.labels)
    facts: dict[str, Any] = {"layout": "scenes", "classes": data.classes}
    if not embedder.profile.text:
        if words is not None or templates:
            raise InputError(
                "embeds no texts", place=embedder.profile.name, remedy="leave --words and --prompt out"
            )
        nothing: dict[str, Any] = {
            "texts": 0,
            "prompts": {},
            "per_class": (),
            "confusion": (),
            "per_image": (),
        }
        return facts | nothing | {"task": "like", "scores": like}
    prompts = {
        name: tuple(template.format(word) for template in (templates or (embedder.profile.prompt,)) for word in some)
        for name, some in class_words(data.classes, words).items()
    }  # fmt: skip
    flat = _text_vectors(embedder, [text for some in prompts.values() for text in some])
    ends = np.cumsum([len(some) for some in prompts.values()])
    named = class_vectors(np.split(flat, ends[:-1]), normalise_first=True)
    return facts | {
        "task": "zero-shot",
        "texts": len(flat),
        "prompts": prompts,
        **_named(images @ named.T, data, like),
    }


def _named(alike: NDArray[np.float32], data: Scenes, like: Mapping[str, float]) -> dict[str, Any]:
    """Return scores of classes from the cosines ``[pictures, classes]``; of equal ones the first class is meant."""
    count = len(data.classes)
    order = np.argsort(-alike, axis=1, kind="stable")
    ranks = (order == data.labels[:, None]).argmax(axis=1) + 1
    answers = order[:, 0]
    counts = np.bincount(data.labels * count + answers, minlength=count * count).reshape(count, count)
    support = counts.sum(axis=1)
    by_text = (data.labels[np.argsort(-alike, axis=0, kind="stable")] == np.arange(count)).T
    precisions = average_precision(by_text, support)
    rows = [
        {"accuracy": row["recall"], "precision": row["precision"], "f1": row["f1"], "ap": float(ap)}
        | {"support": row["support"]}
        for row, ap in zip(per_class(counts), precisions, strict=True)
    ]
    scores = {"top1": float((ranks == 1).mean())}
    if count > 5:
        scores["top5"] = float((ranks <= 5).mean())
    scores["mean_class_accuracy"] = mean([row["accuracy"] for row in rows])
    scores["text_mAP"] = mean([row["ap"] for row in rows])
    rows_of = np.arange(len(alike))
    margins = alike[rows_of, answers] - alike[rows_of, data.labels]
    wrong = np.flatnonzero(ranks > 1)
    wrong = wrong[np.argsort(-margins[wrong], kind="stable")]
    return {
        "scores": scores | dict(like),
        "per_class": tuple(rows),
        "confusion": tuple(tuple(row) for row in counts.tolist()),
        "per_image": tuple(
            {
                "name": data.names[n],
                "label": data.classes[data.labels[n]],
                "answer": data.classes[answers[n]],
                "rank": int(ranks[n]),
                "margin": round(float(margins[n]), 6),
            }
            for n in wrong
        ),
    }
