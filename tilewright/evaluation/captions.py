"""How like captions are to what people wrote: BLEU, ROUGE-L and CIDEr, as papers on captions report them.

All three split a caption at blanks and do nothing else to it: lower case and punctuation are the caller's. The numbers
are those of coco-caption, which nearly everybody reports: BLEU over the whole set with the closest reference length
(https://aclanthology.org/P02-1040), ROUGE-L with beta 1.2 (https://aclanthology.org/W04-1013), and CIDEr in its form
D (https://arxiv.org/abs/1411.5726). The rarity of words in CIDEr comes from the references of the set itself, so its
value belongs to that set; a set of one picture has 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.errors import InputError

__all__ = ["CaptionScores", "bleu", "caption_scores", "cider", "rouge_l"]

_MOST = 4
"""Longest run of words that is compared."""
_TINY, _SMALL = 1e-15, 1e-9
"""Added to matches and to counts: no match is almost, but not quite, 0."""
_BETA = 1.2
_SIGMA = 6.0
"""How fast CIDEr falls with the difference in length."""

type Runs = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions, and of each in its order."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of the set, which is not the mean of those of the captions."""
    bleu_each: tuple[tuple[float, ...], ...]
    """For each of the four the values of the captions."""
    rouge_l: float
    """Mean over the captions."""
    rouge_l_each: tuple[float, ...]
    """Of each caption."""
    cider: float
    """Mean over the captions."""
    cider_each: tuple[float, ...]
    """Of each caption."""


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Return all scores of captions, each with its references.

    Raises
    ------
    InputError
        There are no captions, one has no reference, or they are not as many as the references.
    """
    whole, each = bleu(captions, references)
    rouge = rouge_l(captions, references)
    ciders = cider(captions, references)
    return CaptionScores(
        (whole[0], whole[1], whole[2], whole[3]), each, _mean(rouge), rouge, _mean(ciders), ciders
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(captions) != len(references) or not captions:
        raise InputError(
            f"{len(captions)} captions and {len(references)} sets of references", place="captions"
        )
    for number, one in enumerate(references):
        if not one or isinstance(one, str):
            raise InputError("a list of references is wanted for each caption", place=f"caption {number}")


def _runs(words: Sequence[str], length: int) -> Runs:
    return Counter(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Return BLEU-1 to BLEU-4 of the set, and for each of the four the values of the captions."""
    _check(captions, references)
    right, told = [0] * _MOST, [0] * _MOST
    length = wanted = 0
    each: list[tuple[float, ...]] = []
    for caption, known in zip(captions, references, strict=True):
        words, others = caption.split(), [reference.split() for reference in known]
        closest = min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        hits, counts = [], []
        for n in range(1, _MOST + 1):
            most: Runs = Counter()
            for other in others:
                most |= _runs(other, n)
            hits.append((_runs(words, n) & most).total())
            counts.append(max(0, len(words) - n + 1))
        each.append(_bleu(hits, counts, len(words), closest))
        right = [a + b for a, b in zip(right, hits, strict=True)]
        told = [a + b for a, b in zip(told, counts, strict=True)]
        length, wanted = length + len(words), wanted + closest
    return _bleu(right, told, length, wanted), tuple(zip(*each, strict=True))


def _bleu(right: Sequence[int], told: Sequence[int], length: int, wanted: int) -> tuple[float, ...]:
    """Return the geometric means of the shares of right runs, less where a caption is shorter than its reference."""
    ratio = (length + _TINY) / (wanted + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    found, product = [], 1.0
    for n, (hits, count) in enumerate(zip(right, told, strict=True), 1):
        product *= (hits + _TINY) / (count + _SMALL)
        found.append(product ** (1 / n) * brevity)
    return tuple(found)


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Return ROUGE-L of each caption: from its best precision and best recall, whichever references they are of."""
    _check(captions, references)
    return tuple(_rouge(one, known) for one, known in zip(captions, references, strict=True))


def _rouge(caption: str, references: Sequence[str]) -> float:
    words = caption.split(" ")
    others = [reference.split(" ") for reference in references]
    common = [_longest_common(words, other) for other in others]
    precision = max(n / len(words) for n in common)
    recall = max(n / len(other) for n, other in zip(common, others, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest subsequence of both."""
    last = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for n, other in enumerate(second):
            row.append(last[n] + 1 if word == other else max(last[n + 1], row[n]))
        last = row
    return last[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Return CIDEr-D of each caption; 10 is one that equals its only reference."""
    _check(captions, references)
    known = [[_all_runs(reference) for reference in one] for one in references]
    spread = Counter(run for one in known for run in {run for runs in one for run in runs})
    whole = math.log(len(references))
    scores = []
    for caption, others in zip(captions, known, strict=True):
        own = _Weighed(_all_runs(caption), spread, whole)
        likeness = [own.like(_Weighed(other, spread, whole)) for other in others]
        scores.append(10 * _mean(likeness))
    return tuple(scores)


def _all_runs(text: str) -> Runs:
    words = text.split()
    runs: Runs = Counter()
    for n in range(1, _MOST + 1):
        runs.update(_runs(words, n))
    return runs


class _Weighed:
    """The runs of a caption, each weighed by how rare it is among the references of the set."""

    def __init__(self, runs: Runs, spread: Counter[tuple[str, ...]], whole: float) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_MOST)]
        for run, count in runs.items():
            self.weights[len(run) - 1][run] = count * (whole - math.log(max(1, spread[run])))
        self.norms = [math.sqrt(sum(weight**2 for weight in of.values())) for of in self.weights]
        self.pairs = sum(count for run, count in runs.items() if len(run) == 2)
        """Runs of two words; their difference is the difference in length."""

    def like(self, reference: _Weighed) -> float:
        """Return the mean over the lengths of runs of a clipped cosine, less the more the lengths differ."""
        found = []
        for own, other, norm in zip(self.weights, reference.weights, self._norms(reference), strict=True):
            shared = sum(min(weight, other[run]) * other[run] for run, weight in own.items() if run in other)
            found.append(shared / norm if norm else shared)
        gap = self.pairs - reference.pairs
        return _mean(found) * math.exp(-(gap**2) / (2 * _SIGMA**2))

    def _norms(self, other: _Weighed) -> list[float]:
        return [a * b for a, b in zip(self.norms, other.norms, strict=True)]
