"""Which patches of an image a question is about: the two paths of ImageRAG (https://arxiv.org/abs/2411.07688).

*Fast*: each keyword of the question is compared with all patches. *Slow*, where nothing is sure enough: keywords are
looked up among texts of a store of labelled images, and the images behind the hits are compared with the patches
instead of the words. Confidence is a softmax over the patches, so it depends on how many there are: a threshold holds
for one way of cutting only. Vectors are rows; they are brought to length 1 here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "REDUCERS",
    "Cue",
    "LabelStore",
    "candidates",
    "confidence",
    "fast_path",
    "reduce_features",
    "slow_path",
]

THRESHOLD = 0.5
"""Confidence above which a patch is a cue on the fast path."""
TOP = 2
"""Patches a keyword names, and how many of those named most often are taken whatever their keyword."""
EPS, LEAST = 0.3, 2
"""Euclidean distance at which vectors are neighbours, and how many make a cluster."""
RERANKED = 3
"""Images of a label that are kept when they are ranked by its text."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A patch that a question is about."""

    patch: int
    """Its number in the order of the patches."""
    confidence: float
    """Its share of the softmax."""
    label: str = ""
    """The keyword or label that named it first."""


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return vectors ``[n, D]`` of length 1; zeros stay zeros."""
    found = np.asarray(vectors, np.float32)
    length = np.linalg.norm(found, axis=-1, keepdims=True)
    shaped: NDArray[np.float32] = (found / np.where(length > 0, length, 1)).astype(np.float32)
    return shaped


def confidence(patches: NDArray[Any], queries: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return the softmax over the patches of ``scale`` times the cosine, ``[queries, patches]``."""
    return _shares(patches, unit(queries), scale)


def _shares(patches: NDArray[Any], queries: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    logits = scale * (queries @ unit(patches).T)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def candidates(shares: NDArray[np.float32], labels: Sequence[str] = ()) -> list[Cue]:
    """Return the patches that queries name, in the published order.

    First the two that are among the first two of most queries, each with its largest share (of equally frequent ones
    the first named); then the first of each query, unless it is among those. A patch that is first for several
    queries is named by each of them.
    """
    names = labels or [""] * len(shares)
    ranked = np.argsort(-shares, axis=1, kind="stable")[:, :TOP]
    best: dict[int, Cue] = {}
    counted: Counter[int] = Counter()
    for share, order, name in zip(shares, ranked, names, strict=True):
        for patch in (int(one) for one in order):
            counted[patch] += 1
            old = best.get(patch)
            if old is None or share[patch] > old.confidence:
                best[patch] = Cue(patch, float(share[patch]), name)
    frequent = [best[patch] for patch, _ in counted.most_common(TOP)]
    taken = {cue.patch for cue in frequent}
    firsts = [
        Cue(int(order[0]), float(share[order[0]]), name)
        for share, order, name in zip(shares, ranked, names, strict=True)
    ]
    return [*frequent, *(cue for cue in firsts if cue.patch not in taken)]


def fast_path(
    patches: NDArray[Any],
    keywords: NDArray[Any],
    scale: float,
    threshold: float = THRESHOLD,
    labels: Sequence[str] = (),
) -> list[Cue]:
    """Return the patches that keywords name with more than ``threshold``, the surest first.

    Parameters
    ----------
    patches, keywords
        Vectors ``[patches, D]`` and ``[keywords, D]``.
    scale
        Factor of the cosines, the model's logit scale.
    labels
        The keywords, to be named in the cues.
    """
    named = candidates(confidence(patches, keywords, scale), labels)
    return sorted((cue for cue in named if cue.confidence > threshold), key=lambda cue: -cue.confidence)


def reduce_features(
    features: NDArray[Any],
    text: NDArray[Any] | None = None,
    how: Literal["mean", "cluster", "rerank"] = "mean",
) -> NDArray[np.float32]:
    """Return one vector ``[D]`` for the images of a label ``[n, D]``; see `REDUCERS`. ``rerank`` needs ``text`` [D]."""
    return REDUCERS[how](unit(features), text)


def _mean(features: NDArray[np.float32], text: NDArray[Any] | None = None) -> NDArray[np.float32]:
    found: NDArray[np.float32] = features.mean(axis=0)
    return found


def _largest_cluster(features: NDArray[np.float32], text: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Mean of the largest cluster of DBSCAN; as two make a cluster, clusters are the connected groups of neighbours."""
    from scipy.sparse.csgraph import connected_components

    gaps = np.linalg.norm(features[:, None] - features[None], axis=-1)
    _, groups = connected_components(gaps <= EPS, directed=False)
    sizes = np.bincount(groups)
    if sizes.max() < LEAST:
        return _mean(features)
    return _mean(features[groups == int(sizes.argmax())])


def _reranked(features: NDArray[np.float32], text: NDArray[Any] | None) -> NDArray[np.float32]:
    assert text is not None, "rerank compares with the label's text"
    near = np.argsort(-(features @ unit(text[None])[0]), kind="stable")[:RERANKED]
    return _mean(features[near])


REDUCERS: dict[str, Callable[[NDArray[np.float32], NDArray[Any] | None], NDArray[np.float32]]] = {
    "mean": _mean,
    "cluster": _largest_cluster,
    "rerank": _reranked,
}
"""Many images of a label to one vector: the mean of all, of their largest cluster, of the three nearest its text."""


def slow_path(
    patches: NDArray[Any],
    features: Sequence[NDArray[Any]],
    scale: float,
    how: Literal["mean", "cluster", "rerank"] = "mean",
    texts: NDArray[Any] | None = None,
    labels: Sequence[str] = (),
) -> list[Cue]:
    """Return the patches that the images of labels name, in the order of `candidates`, however unsure.

    As published, a mean of unit vectors is not brought back to length 1: the more a label's images differ, the flatter
    is its softmax.

    Parameters
    ----------
    patches
        Vectors ``[patches, D]``.
    features
        For each label the vectors ``[n, D]`` of its images.
    how
        How many images of a label become one vector; see `REDUCERS`.
    texts
        For each label the vector of its text ``[labels, D]``, for ``rerank``.
    """
    reduced = [
        reduce_features(one, None if texts is None else texts[number], how)
        for number, one in enumerate(features)
    ]
    return candidates(_shares(patches, np.stack(reduced), scale), labels)


@dataclass(frozen=True)
class LabelStore:
    """Texts with the images that they describe, for the slow path."""

    labels: Sequence[str]
    """The texts."""
    texts: NDArray[Any]
    """Their vectors ``[labels, D]``."""
    features: Sequence[NDArray[Any]]
    """For each the vectors ``[n, D]`` of its images, in the space of the patches."""

    def near(self, vectors: NDArray[Any], most: int = 3, distance: float = 0.7) -> list[int]:
        """Return the numbers of labels within a squared distance of any of ``vectors`` ``[k, D]``, nearest first."""
        found: list[int] = []
        own = unit(self.texts)
        for vector in unit(vectors):
            gaps = ((own - vector) ** 2).sum(axis=1)
            order = np.argsort(gaps, kind="stable")[:most]
            found += [int(number) for number in order if gaps[number] <= distance]
        return list(dict.fromkeys(found))
