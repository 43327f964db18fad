"""How well a search ranks: recall at k, average precision, nDCG, and classes by their names (zero-shot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "average_precision",
    "class_vectors",
    "like_scores",
    "ndcg",
    "recall_at",
    "retrieval_scores",
    "zero_shot",
]

_BLOCK = 512
"""Queries that are compared with everything at a time."""


def recall_at(scores: NDArray[Any], right: NDArray[np.bool_], k: int) -> float:
    """Return the share of queries that have a right answer among their first ``k``.

    Parameters
    ----------
    scores
        ``[queries, candidates]``, larger is more alike. Of equal ones the first counts as ranked first.
    right
        The same shape: True where the candidate answers the query.
    """
    if scores.shape != right.shape or scores.ndim != 2 or k < 1:
        raise InputError(f"scores {scores.shape}, right answers {right.shape}, k={k}", place="recall")
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, first, axis=1).any(axis=1).mean())


def retrieval_scores(
    images: NDArray[Any], texts: NDArray[Any], image_of_text: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return recall in percent in both directions, ``i2t_R@k`` and ``t2i_R@k``, and the mean of all.

    Parameters
    ----------
    images, texts
        Vectors ``[images, D]`` and ``[texts, D]`` of length 1.
    image_of_text
        For each text the number of its image.
    """
    alike = np.asarray(images, np.float32) @ np.asarray(texts, np.float32).T
    right = np.asarray(image_of_text)[None] == np.arange(len(images))[:, None]
    found = {f"i2t_R@{k}": 100 * recall_at(alike, right, k) for k in ks}
    found |= {f"t2i_R@{k}": 100 * recall_at(alike.T, right.T, k) for k in ks}
    return found | {"mean_recall": float(np.mean(list(found.values())))}


def ndcg(relevance: NDArray[Any], scores: NDArray[Any], k: int | None = None) -> NDArray[np.float64]:
    """Return for each query the discounted gain of its ranking over that of the best one; 0 where nothing is relevant.

    Gain is the relevance itself, the discount of rank r is 1 / log2(r + 1). Candidates with equal scores share their
    gain, as if all their orders were averaged; so does scikit-learn.

    Parameters
    ----------
    relevance, scores
        ``[queries, candidates]``, 0 or more, and larger is more alike.
    k
        Ranks that count; None takes all.
    """
    gains, alike = np.asarray(relevance, np.float64), np.asarray(scores, np.float64)
    if gains.shape != alike.shape or gains.ndim != 2 or (gains < 0).any():
        raise InputError(
            f"relevance {gains.shape}, scores {alike.shape}; relevance is 0 or more", place="nDCG"
        )
    discounts = 1 / np.log2(np.arange(gains.shape[1]) + 2)
    discounts[gains.shape[1] if k is None else k :] = 0
    return np.array([_ndcg(*pair, discounts) for pair in zip(gains, alike, strict=True)])


def _ndcg(gains: NDArray[np.float64], scores: NDArray[np.float64], discounts: NDArray[np.float64]) -> float:
    best = float(np.sort(gains)[::-1] @ discounts)
    if best == 0:
        return 0.0
    _, group, sizes = np.unique(-scores, return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=gains) / sizes
    ends = np.cumsum(sizes)
    sums = np.concatenate([[0.0], np.cumsum(discounts)])
    return float(shared @ (sums[ends] - sums[ends - sizes])) / best


def class_vectors(prompts: Sequence[NDArray[Any]], *, normalise_first: bool = False) -> NDArray[np.float32]:
    """Return a vector of length 1 for each class, ``[classes, D]``, from those of its prompts ``[prompts, D]``.

    The rule of RS5M averages them as they are, so that a longer vector counts more. ``normalise_first`` is CLIP's own:
    each prompt counts alike.
    """
    means = []
    for one in prompts:
        rows = np.asarray(one, np.float32)
        if normalise_first:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        means.append(rows.mean(axis=0))
    found = np.stack(means)
    shaped: NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return shaped


def zero_shot(
    images: NDArray[Any], classes: NDArray[Any], truth: Sequence[int]
) -> tuple[NDArray[np.int64], float]:
    """Return the most alike class of each image, and the share of them that is right."""
    chosen = np.argmax(np.asarray(images, np.float32) @ np.asarray(classes, np.float32).T, axis=1)
    return chosen, float(np.mean(chosen == np.asarray(truth)))


def average_precision(ranked: NDArray[np.bool_], relevant: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return for each query the mean of the precisions at the ranks of its relevant hits; NaN where nothing is.

    Parameters
    ----------
    ranked
        ``[queries, k]``, best first: True where the hit is relevant. With k less than all candidates this is AP@k,
        divided by what could be reached: the relevant candidates, or k where they are more.
    relevant
        ``[queries]``: relevant candidates in all.
    """
    precision = ranked.cumsum(axis=1) / np.arange(1, ranked.shape[1] + 1)
    reach = np.minimum(np.asarray(relevant, np.float64), ranked.shape[1])
    sums: NDArray[np.float64] = (precision * ranked).sum(axis=1)
    found = np.full(len(ranked), np.nan)
    np.divide(sums, reach, out=found, where=reach > 0)
    return found


def like_scores(
    vectors: NDArray[Any], labels: NDArray[Any], ks: Sequence[int] = (1, 10, 100)
) -> dict[str, float]:
    """Return how well pictures of a class find each other: ``P@k``, ``mAP@k``, ``nDCG@k``, 0 to 1; at 1 all are one.

    Each picture is a query, all others are candidates, and those of its class are relevant. Of equal scores the first
    candidate ranks first. A picture that is alone in its class is no query.

    Parameters
    ----------
    vectors
        ``[pictures, D]`` of length 1.
    labels
        ``[pictures]``.
    ks
        Ranks that count; those of no fewer than all candidates are left out.
    """
    vectors, labels = np.asarray(vectors, np.float32), np.asarray(labels)
    ks = [k for k in ks if k < len(vectors)]
    most = max(ks, default=0)
    discounts = 1 / np.log2(np.arange(most) + 2)
    best = np.concatenate([[0.0], np.cumsum(discounts)])
    sums: dict[str, float] = {
        f"{name}@{k}": 0.0 for name in ("P", "mAP", "nDCG") for k in ks if k > 1 or name == "P"
    }
    queries = 0
    for start in range(0, len(vectors) if ks else 0, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(vectors)))
        relevant = (labels[rows][:, None] == labels[None]).sum(axis=1) - 1
        rows, relevant = rows[relevant > 0], relevant[relevant > 0]
        ranked = labels[_ranked_others(vectors, rows, most)] == labels[rows][:, None]
        queries += len(rows)
        for k in ks:
            first = ranked[:, :k]
            sums[f"P@{k}"] += first.mean(axis=1).sum()
            if k == 1:
                continue
            sums[f"mAP@{k}"] += average_precision(first, relevant).sum()
            sums[f"nDCG@{k}"] += ((first * discounts[:k]).sum(axis=1) / best[np.minimum(relevant, k)]).sum()
    return {name: float(value) / queries for name, value in sums.items()} if queries else {}


def _ranked_others(vectors: NDArray[np.float32], rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return for each row its ``most`` most alike others, best first, ``[rows, most]``."""
    alike = vectors[rows] @ vectors.T
    alike[np.arange(len(rows)), rows] = -np.inf
    least = -np.partition(-alike, most - 1, axis=1)[:, most - 1 : most]
    found = np.empty((len(rows), most), np.int64)
    for row, scores, limit in zip(found, alike, least[:, 0], strict=True):
        near = np.flatnonzero(scores >= limit)
        row[:] = near[np.argsort(-scores[near], kind="stable")[:most]]
    return found
