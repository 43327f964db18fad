"""Training of the small dual encoder: `tilewright train-embedder`.

Pictures are drawn to the texts of their class and away from those of the others: in every step each class is
represented by sentences chosen by chance, so that no single wording is learned (the contrast of Radford et al. 2021,
https://arxiv.org/abs/2103.00020, over a closed set of classes). The sentence encoder stays as it is, and the linear map
behind it is made from words before (`fit_text_map`): only the tower learns. AdamW with one cycle of the learning rate
(Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101; Smith and Topin 2017, https://arxiv.org/abs/1708.07120).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tilewright.errors import InputError

from ..nets.eurosat import CELL, DISPLAY_MEAN, DISPLAY_STD, DualEncoder, TileTower, folded
from .ground import Batch, Ground, Mix
from .judging import Judge, share_of
from .pictures import RULE, Pictures
from .words import HELD_BACK, PROMPT, SENTENCES, TextMap, fit_text_map, words_of

__all__ = ["Course", "Trained", "train"]

Say = Callable[[str], None]
Encode = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class Course:
    """What a training does; with the pictures and the number of threads it decides every bit of the result."""

    epochs: int = 36
    """How often each picture is taken."""
    batch: int = 64
    """Samples a step."""
    rate: float = 3e-3
    """Highest learning rate."""
    decay: float = 0.05
    """Weight decay."""
    dim: int = 128
    """Length of the vectors."""
    temperature: float = 20.0
    """Factor of cosines in the softmax over classes."""
    smoothing: float = 0.05
    """Share of a label that is spread over all classes, so that vectors stay near their text."""
    cells: float = 0.3
    """Weight of the cells beside the whole."""
    pull: float = 0.3
    """Weight of the distance to the own text alone."""
    short: float = 0.5
    """Share of the course, at its beginning, in which samples are cut to three quarters of their side: a step costs
    little more than half."""
    small: float = 0.1
    """Share of the later steps whose samples are cut to half their side."""
    validate: bool = True
    """False trains on the validation part, too: for the last training, when nothing is left to choose."""
    mix: Mix = field(default_factory=Mix)
    """How pictures are changed."""
    seed: int = 0
    """Of weights, order and chance."""
    threads: int = 1
    """Of torch."""

    def check(self) -> None:
        """Raise `InputError` where a number makes no sense."""
        for name, least in (("epochs", 1), ("batch", 2), ("dim", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} {getattr(self, name)}", place="training", remedy=f"give at least {least}"
                )


@dataclass(frozen=True)
class Trained:
    """What a training leaves."""

    network: DualEncoder
    """The network as it is mapped, without normalisation."""
    report: Mapping[str, Any]
    """Data, split, course, accuracies: plain numbers and words."""


def train(
    pictures: Pictures,
    encode: Encode,
    course: Course | None = None,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    device: str = "cpu",
    say: Say = print,
) -> Trained:
    """Train a tower on the training part, and judge it by the others.

    Parameters
    ----------
    pictures
        All of them; the parts follow from their names.
    encode
        Sentences -> vectors ``[n, width]``.
    course
        What to do.
    words
        Class -> words for it; those of EuroSAT's classes are known, others are called as their folder.
    device
        Where the tower is trained. Bits repeat on a CPU with as many threads.
    say
        Is given a line about each epoch.

    Raises
    ------
    InputError
        The course makes no sense, or a part lacks a class.
    """
    course = course or Course()
    course.check()
    started = time.perf_counter()
    named = words_of(pictures.classes, words)
    with _one_way(course):
        texts = fit_text_map(named, encode, course.dim)
        parts = {part: pictures.part(part) for part in ("train", "validation", "test")}
        training = parts["train"] if course.validate else parts["train"].with_(parts["validation"])
        ground = Ground(training.pixels, training.labels, CELL, device)
        tower = _fit(ground, texts, course, device, say)
        network = DualEncoder(course.dim)
        network.image.load_state_dict(folded(tower.cpu()).state_dict())
        network.text.load_state_dict({"weight": texts.weight, "bias": texts.bias})
        network.eval().requires_grad_(False)
        judged = _judged(network, parts, texts, encode, named, course)
    report = {
        "data": {
            "classes": list(pictures.classes),
            "pictures": len(pictures.names),
            "side": pictures.pixels.shape[-1],
            "sha256": pictures.sha256,
            "split": RULE,
            **{part: len(found.names) for part, found in parts.items()},
        },
        "course": asdict(course),
        "words": {name: list(found) for name, found in named.items()},
        "sentences": list(SENTENCES),
        "torch": torch.__version__,
        "device": device,
        "seconds": round(time.perf_counter() - started, 1),
        **judged,
    }
    return Trained(network, report)


@contextlib.contextmanager
def _one_way(course: Course) -> Iterator[None]:
    """Fix threads and chance for a while; nobody else's are disturbed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(course.threads)
    torch.set_flush_denormal(True)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(course.seed)
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def _fit(ground: Ground, texts: TextMap, course: Course, device: str, say: Say) -> TileTower:
    tower: TileTower = TileTower(course.dim, norm=True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    many = [p for p in tower.parameters() if p.ndim > 1]
    few = [p for p in tower.parameters() if p.ndim <= 1]
    groups = [{"params": many, "weight_decay": course.decay}, {"params": few, "weight_decay": 0.0}]
    steps = max(len(ground.labels) // course.batch, 1)
    optimiser = torch.optim.AdamW(groups, lr=course.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, course.rate, total_steps=steps * course.epochs, pct_start=0.15, div_factor=10
    )
    draw = torch.Generator().manual_seed(course.seed)
    prompts = texts.prompts.to(device)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (DISPLAY_MEAN, DISPLAY_STD))
    for epoch in range(course.epochs):
        began, total = time.perf_counter(), 0.0
        order = torch.randperm(len(ground.labels), generator=draw)
        for step in range(steps):
            places = order[step * course.batch : (step + 1) * course.batch]
            side = _side(ground.side, (epoch + step / steps) / course.epochs, course, draw)
            batch = ground.batch(places, side, course.mix, draw)
            seen = ((batch.pixels - mean) / std).to(memory_format=torch.channels_last)
            loss = _loss(tower.cells(seen), batch, _chosen(prompts, draw), course)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - began
        say(f"epoch {epoch + 1} of {course.epochs}: loss {total / steps:.3f}, {seconds:.1f} s")
    tower.eval()
    return tower


def _side(side: int, done: float, course: Course, draw: torch.Generator) -> int:
    """Return the side in pixels of a step's samples, in whole cells; ``done`` is the share of the course."""
    small = float(torch.rand((), generator=draw)) < course.small
    share = 0.75 if done < course.short else 0.5 if small else 1.0
    return max(int(side * share) // CELL, 1) * CELL


def _chosen(prompts: Tensor, draw: torch.Generator) -> Tensor:
    """Return two sentences of each class by chance, ``[2, classes, D]``."""
    classes, count, _ = prompts.shape
    chosen = torch.randint(count, (2, classes), generator=draw).to(prompts.device)
    return prompts[torch.arange(classes, device=prompts.device), chosen]


def _loss(cells: Tensor, batch: Batch, texts: Tensor, course: Course) -> Tensor:
    """Loss of a step.

    Parameters
    ----------
    cells
        Vectors ``[N, D, h, w]`` of any length.
    batch
        The classes of the cells.
    texts
        ``[sentences, classes, D]`` of length 1.
    course
        The weights of its parts.
    """
    classes = texts.shape[1]
    share = functional.one_hot(batch.cells, classes).float().mean((1, 2))
    whole = functional.normalize(cells.mean((2, 3)), dim=1)
    cosines = torch.einsum("nd,skd->snk", whole, texts)
    smooth = share * (1 - course.smoothing) + course.smoothing / classes
    contrast = -(smooth * (course.temperature * cosines).log_softmax(2)).sum(2).mean()
    pull = 1 - (share * cosines).sum(2).mean()
    parts = torch.einsum("ndhw,kd->nkhw", functional.normalize(cells, dim=1), texts[0])
    each = functional.cross_entropy(course.temperature * parts, batch.cells, label_smoothing=course.smoothing)
    return contrast + course.pull * pull + course.cells * each


def _judged(
    network: DualEncoder,
    parts: Mapping[str, Pictures],
    texts: TextMap,
    encode: Encode,
    words: Mapping[str, Sequence[str]],
    course: Course,
) -> dict[str, Any]:
    """Accuracies on pictures that were not trained on."""
    prompts = texts(encode([PROMPT.format(found[0]) for found in words.values()]))
    judge = Judge(network.image, prompts, DISPLAY_MEAN, DISPLAY_STD)
    test, validation = parts["test"], parts["validation"]
    unseen = Ground(test.pixels, test.labels, CELL)
    scales = judge.by_scale(unseen, 50, course.seed)
    new = {word: n for n, name in enumerate(words) for word in HELD_BACK.get(name, ())}
    seen = share_of(judge.answers(validation.pixels) == validation.labels)
    vectors = texts(encode([PROMPT.format(word) for word in new])) if new else torch.empty(0, course.dim)
    return {
        "prompt": PROMPT,
        "accuracy": {
            "test": scales["1"],
            "validation": seen if course.validate else None,
            "by_scale": scales,
            "by_cell": judge.by_cell(unseen, 50, course.seed),
        },
        "confusion": judge.confusion(test.pixels, test.labels),
        "held_back_words": judge.by_word(test.pixels, test.labels, dict(zip(new, vectors, strict=True)), new),
    }
