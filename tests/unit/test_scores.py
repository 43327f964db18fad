"""Metrics: equal to the official evaluators, and defined where a class is absent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import InputError
from tilewright.evaluation.confusion import binary_scores, class_scores, confusion, kappa, per_class
from tilewright.evaluation.fidelity import luma, psnr, ssim
from tilewright.evaluation.semantic import (
    change_class_scores,
    damage_scores,
    sek37_scores,
    semantic_scores,
    transitions,
)

OFFICIAL = Path(__file__).parents[1] / "parity" / "official" / "metrics"
SEEDS = {"seed7": 7, "seed11": 11}
EPSILON = 1e-7
"""What evaluators that add 1e-7 to a denominator, or count in float32, may be off."""


def official(name: str) -> Any:
    return json.loads((OFFICIAL / f"{name}.json").read_text())


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def binary_case(name: str) -> np.ndarray:
    g = draw(SEEDS.get(name, 7))
    label = g.random((4, 64, 64)) < 0.2
    predicted = label ^ (g.random((4, 64, 64)) < 0.15)
    if name in ("nochange_pred", "empty"):
        predicted = np.zeros_like(label)
    if name == "empty":
        label = np.zeros_like(label)
    counts = np.zeros((2, 2), np.int64)
    for one, other in zip(label, predicted, strict=True):
        counts += confusion(one, other, 2)
    return counts


@pytest.mark.parametrize("name", ["seed7", "seed11", "nochange_pred", "empty"])
def test_binary_counts_are_the_official_ones(name: str) -> None:
    (tn, fp), (fn, tp) = binary_case(name).tolist()
    assert official("binary")["cases"][name]["counts"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}


BINARY = {
    "MambaCD": (
        {"f1": "F1", "iou": "IoU", "precision": "Pre", "recall": "Rec", "oa": "OA", "kappa": "Kappa"},
        1e-9,
    ),
    "ChangeViT": (
        {"f1": "F1", "iou": "IoU", "precision": "precision", "recall": "recall", "oa": "OA"},
        EPSILON,
    ),
    "TinyCD": ({"f1": "F1_1", "iou": "iou_1", "precision": "precision_1", "oa": "acc"}, EPSILON),
    "BIT": ({"f1": "F1_1", "iou": "iou_1", "recall": "recall_1", "oa": "acc"}, EPSILON),
    "ChangeFormer": ({"f1": "F1_1", "iou": "iou_1", "oa": "acc"}, EPSILON),
    "CFNet": ({"f1": "F1", "iou": "IoU", "precision": "Precision", "recall": "Recall"}, EPSILON),
    "BTC_torchmetrics": ({"f1": "F1", "iou": "IoU"}, EPSILON),
}


@pytest.mark.parametrize("evaluator", BINARY)
@pytest.mark.parametrize("name", SEEDS)
def test_binary_scores_equal_the_official_evaluators(name: str, evaluator: str) -> None:
    scores = binary_scores(binary_case(name))
    theirs = official("binary")["cases"][name]["official"][evaluator]
    names, tolerance = BINARY[evaluator]
    for ours, key in names.items():
        assert scores[ours] == pytest.approx(theirs.get("scores", theirs)[key], abs=tolerance), ours


@pytest.mark.parametrize("name", SEEDS)
def test_means_over_classes_equal_the_official_ones(name: str) -> None:
    scores = class_scores(binary_case(name))
    theirs = official("binary")["cases"][name]["official"]["BIT"]["scores"]
    assert scores["miou"] == pytest.approx(theirs["miou"], abs=1e-9)
    assert scores["mf1"] == pytest.approx(theirs["mf1"], abs=EPSILON)


def test_change_that_was_never_found_scores_zero_and_has_no_precision() -> None:
    scores = binary_scores(binary_case("nochange_pred"))
    assert (scores["f1"], scores["iou"], scores["recall"], scores["kappa"]) == (0, 0, 0, 0)
    assert math.isnan(scores["precision"])


def test_no_change_anywhere_has_no_score_of_change() -> None:
    scores = binary_scores(binary_case("empty"))
    assert scores.pop("oa") == 1
    assert all(math.isnan(value) for value in scores.values()), scores


def test_means_leave_out_classes_that_do_not_occur() -> None:
    counts = np.array([[5, 1, 0], [1, 3, 0], [0, 0, 0]])
    assert class_scores(counts)["miou"] == pytest.approx((5 / 7 + 3 / 5) / 2)
    assert math.isnan(per_class(counts)[2]["iou"])


def semantic_case(name: str) -> tuple[np.ndarray, ...]:
    g, shape = draw(SEEDS.get(name, 7)), (3, 64, 64)
    changed = g.random(shape) < 0.25
    first, second = g.integers(1, 7, shape), g.integers(1, 7, shape)
    found = changed ^ (g.random(shape) < 0.1)
    guesses = []
    for truth in (first, second):
        wrong = g.random(shape) < 0.3
        guesses.append(np.where(wrong, g.integers(1, 7, shape), truth))
    labels = [first * changed, second * changed]
    predicted = [guesses[0] * found, guesses[1] * found]
    if name == "perfect":
        predicted = labels
    if name == "pred_all_unchanged":
        predicted = [np.zeros(shape, int)] * 2
    if name == "label_all_unchanged_pred_some":
        labels = [np.zeros(shape, int)] * 2
    return (*labels, *predicted)


@pytest.mark.parametrize("name", [*SEEDS, "perfect", "pred_all_unchanged", "label_all_unchanged_pred_some"])
def test_semantic_change_equals_the_official_evaluator(name: str) -> None:
    label1, label2, map1, map2 = semantic_case(name)
    counts = confusion(label1, map1, 7) + confusion(label2, map2, 7)
    theirs = official("semantic_second")["cases"][name]
    assert np.array_equal(counts.T, theirs["hist_rows_pred_cols_label"])
    scores = semantic_scores(counts)
    for ours, key in {
        "miou": "mIoU",
        "sek7": "SeK",
        "f_scd": "Fscd",
        "score": "score_0p3mIoU_0p7SeK",
    }.items():
        assert scores[ours] == pytest.approx(float(theirs[key]), abs=1e-9, nan_ok=True), ours


@pytest.mark.parametrize("name", SEEDS)
def test_sek_of_transitions_is_another_number(name: str) -> None:
    label1, label2, map1, map2 = semantic_case(name)
    scores = sek37_scores(confusion(transitions(label1, label2), transitions(map1, map2), 37))
    theirs = official("semantic_second")["torchange_sek37"]["cases"][name]
    assert scores["sek37"] == pytest.approx(theirs["SECOND/Sek"], abs=1e-9)
    assert scores["score37"] == pytest.approx(theirs["SECOND/Score"], abs=1e-9)


@pytest.mark.parametrize("name", SEEDS)
def test_scs_equals_the_official_evaluator(name: str) -> None:
    g, shape = draw(SEEDS[name]), (3, 64, 64)
    label = g.integers(0, 6, shape)
    wrong = g.random(shape) < 0.3
    predicted = np.where(wrong, g.integers(0, 6, shape), label)
    change = g.random(shape) < 0.2
    found = change ^ (g.random(shape) < 0.1)
    counted = ~(g.random(shape) < 0.05)
    scores = change_class_scores(
        confusion(change, found, 2, counted),
        confusion(label, predicted, 6, counted & change),
        confusion(label, predicted, 6, counted),
    )
    theirs = official("hrscd_scs")["cases"][name]
    expected = {"bc": "BC", "sc": "SC", "scs": "SCS", "miou": "mIoU", "bc_recall": "BC_recall"}
    for ours, key in {**expected, "bc_precision": "BC_precision"}.items():
        assert scores[ours] == pytest.approx(theirs[key], abs=1e-9), ours


@pytest.mark.parametrize("name", SEEDS)
def test_damage_equals_the_official_evaluator(name: str) -> None:
    g, shape = draw(SEEDS[name]), (3, 64, 64)
    label = g.integers(0, 5, shape)
    wrong = g.random(shape) < 0.25
    predicted = np.where(wrong, g.integers(0, 5, shape), label)
    damage = confusion(label, predicted, 5, label > 0)
    theirs = official("xbd_damage")["cases"][name]
    assert damage.tolist() == theirs["clf_confusion"]
    scores = damage_scores(confusion(label > 0, predicted > 0, 2), damage)
    assert scores["location_f1"] == pytest.approx(theirs["loc_f1"], abs=1e-9)
    assert scores["damage_f1"] == pytest.approx(theirs["damage_f1_classes_1_4"], abs=EPSILON)
    assert scores["damage"] == pytest.approx(theirs["harmonic_mean"], abs=EPSILON)
    assert scores["overall"] == pytest.approx(theirs["oaf1_0p3_0p7"], abs=EPSILON)


def test_a_level_of_damage_that_does_not_occur_leaves_no_overall_score() -> None:
    damage = np.diag([0, 5, 5, 5, 0])
    assert math.isnan(damage_scores(np.diag([5, 15]), damage)["overall"])
    damage[4, 3] = 1
    assert damage_scores(np.diag([5, 16]), damage)["damage"] == 0


def test_psnr_and_ssim_equal_pyiqa() -> None:
    theirs = official("psnr_ssim")
    g, (high, wide) = draw(theirs["seed"]), (theirs["H"], theirs["W"])
    a = np.kron(g.random((1, 3, high // 4, wide // 4)), np.ones((4, 4)))
    b = np.clip(a + 0.05 * g.standard_normal(a.shape), 0, 1)
    first, second = (x.astype(np.float32)[0] for x in (a, b))
    assert luma(first)[0, ::4][:5] == pytest.approx(theirs["rgb2y_first5"], abs=1e-6)
    assert psnr(first, second) == pytest.approx(theirs["pyiqa_psnr_rgb"], abs=1e-4)
    assert psnr(luma(first), luma(second)) == pytest.approx(theirs["pyiqa_psnr_y_ycbcr"], abs=1e-4)
    assert ssim(luma(first), luma(second)) == pytest.approx(theirs["pyiqa_ssim_y_ycbcr"], abs=1e-6)
    assert psnr(luma(first), luma(first)) == pytest.approx(theirs["pyiqa_psnr_identical"])
    assert ssim(luma(first), luma(first)) == pytest.approx(theirs["pyiqa_ssim_identical"])
    assert math.isnan(ssim(np.zeros((10, 50)), np.zeros((10, 50))))


def test_what_is_of_no_class_is_refused() -> None:
    with pytest.raises(InputError, match="label 7 is none of the classes 0 to 1"):
        confusion(np.array([0, 7]), np.array([0, 1]), 2)
    with pytest.raises(InputError, match="prediction 3 is none"):
        confusion(np.array([0, 1]), np.array([3, 1]), 2)
    with pytest.raises(InputError, match="the label is 2, the prediction 3"):
        confusion(np.zeros(2, int), np.zeros(3, int), 2)
    assert confusion(np.array([0, 7]), np.array([0, 1]), 2, np.array([True, False])).tolist() == [
        [1, 0],
        [0, 0],
    ]


def test_kappa_of_nothing_does_not_exist() -> None:
    assert math.isnan(kappa(np.zeros((2, 2), int)))
    assert math.isnan(kappa(np.array([[4, 0], [0, 0]])))
