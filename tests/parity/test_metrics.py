"""Metrics of captions, masks, rankings and boxes against the numbers of the code that papers report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import InputError
from tilewright.evaluation.captions import caption_scores
from tilewright.evaluation.overlap import MaskTally, box_accuracy, box_iou, said_box
from tilewright.evaluation.ranking import class_vectors, ndcg, retrieval_scores, zero_shot

FOLDER = Path(__file__).parent / "official"
NUMBERS: dict[str, Any] = json.loads((FOLDER / "metrics" / "public_metrics.json").read_text())
CAPTIONS: dict[str, Any] = json.loads((FOLDER / "metrics" / "public_caption.json").read_text())
BOXES: dict[str, Any] = json.loads((FOLDER / "rscovlm" / "public.json").read_text())
CASES = {"twenty": CAPTIONS, **CAPTIONS["edge_cases"]}


@pytest.mark.parametrize("name", CASES)
def test_captions(name: str) -> None:
    case = CASES[name]
    captions = [case["res"][key][0] for key in case["gts"]]
    found = caption_scores(captions, list(case["gts"].values()))
    official = case["official"]
    np.testing.assert_allclose(found.bleu, official["Bleu"], rtol=1e-10)
    np.testing.assert_allclose(found.bleu_each, official["Bleu_per"], rtol=1e-10)
    np.testing.assert_allclose(found.rouge_l, official["ROUGE_L"], rtol=1e-12)
    np.testing.assert_allclose(found.rouge_l_each, official["ROUGE_L_per"], rtol=1e-12)
    np.testing.assert_allclose(found.cider, official["CIDEr"], rtol=1e-12)
    np.testing.assert_allclose(found.cider_each, official["CIDEr_per"], rtol=1e-12)


def test_captions_in_numbers_of_words() -> None:
    case = json.loads((FOLDER / "metrics" / "public_caption_cd.json").read_text())
    found = caption_scores([hyp[0] for hyp in case["hyps"]], case["refs"])
    np.testing.assert_allclose(found.bleu, case["BLEU"], rtol=1e-12)
    np.testing.assert_allclose([found.rouge_l, found.cider], [case["ROUGE_L"], case["CIDEr"]], rtol=1e-12)
    np.testing.assert_allclose(found.rouge_l_each, case["ROUGE_per_item"], rtol=1e-12)
    np.testing.assert_allclose(found.cider_each, case["CIDEr_per_item"], rtol=1e-12)


def test_captions_without_references_are_refused() -> None:
    for captions, references in (([], []), (["a"], []), (["a"], [[]]), (["a"], ["b"])):
        with pytest.raises(InputError):
            caption_scores(captions, references)


def check_masks(tally: MaskTally, official: dict[str, Any]) -> None:
    found = tally.scores()
    names = {"giou": "gIoU", "ciou": "cIoU", "ciou_background": "bg_cIoU"}
    for name, theirs in names.items():
        assert found[name] == pytest.approx(official[theirs], abs=1e-6), name
    for threshold, share in official["P"].items():
        assert found[f"p@{threshold}"] == pytest.approx(share)
    np.testing.assert_allclose(tally.each, [pair[1] for pair in official["per_image_bg_fg"]], atol=1e-6)


def test_masks() -> None:
    case = NUMBERS["segmentation_SegEarthR1"]
    tally = MaskTally()
    for y, x, h, w, dy, dx in case["boxes_y_x_h_w_dy_dx"]:
        truth, mask = (np.zeros((case["H"], case["W"]), np.uint8) for _ in range(2))
        truth[y : y + h, x : x + w] = 1
        mask[max(y + dy, 0) : y + dy + h, max(x + dx, 0) : x + dx + w] = 1
        tally.add(mask, truth)
    check_masks(tally, case["official"])


@pytest.mark.parametrize("name", ["both_empty", "gt_empty_pred_not", "pred_empty", "perfect"])
def test_empty_masks(name: str) -> None:
    official = NUMBERS["segmentation_SegEarthR1"]["edge"][name]
    background = official["per_image_bg_fg"][0][0]
    pixels = 800
    some = np.arange(pixels) < round((1 - background) * pixels)
    if name == "perfect":
        some = np.arange(pixels) < 200
    none = np.zeros(pixels, bool)
    pair = {
        "both_empty": (none, none),
        "gt_empty_pred_not": (some, none),
        "pred_empty": (none, some),
        "perfect": (some, some),
    }[name]
    tally = MaskTally()
    tally.add(*pair)
    check_masks(tally, official)


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="beside a truth"):
        MaskTally().add(np.zeros((2, 2)), np.zeros((2, 3)))


def test_recall() -> None:
    case = NUMBERS["retrieval_clip_benchmark"]
    draw = np.random.Generator(np.random.PCG64(case["seed"]))
    count, per = case["n_images"], case["captions_per_image"]
    images = draw.standard_normal((count, 16)).astype(np.float32)
    texts = np.repeat(images, per, 0) * 0.6 + draw.standard_normal((count * per, 16)).astype(np.float32)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (images, texts)]
    found = retrieval_scores(unit[0], unit[1], np.repeat(np.arange(count), per))
    assert found == pytest.approx(case["official"], rel=1e-6)


def test_zero_shot() -> None:
    case = NUMBERS["zeroshot_rs5m"]
    draw = np.random.Generator(np.random.PCG64(case["seed"]))
    prompts = (draw.standard_normal((6, 4, 16)) * draw.uniform(0.2, 3, (6, 4, 1))).astype(np.float32)
    images = draw.standard_normal((30, 16)).astype(np.float32)
    truth = draw.integers(0, 6, 30)
    classes = class_vectors(list(prompts))
    np.testing.assert_allclose(classes, case["classifier"], atol=2e-7)
    chosen, share = zero_shot(images, classes, truth)
    assert list(chosen) == case["argmax"]
    assert 100 * share == pytest.approx(case["acc"])
    chosen, _ = zero_shot(images, class_vectors(list(prompts), normalise_first=True), truth)
    assert list(chosen) == case["argmax_if_each_prompt_were_normalised_first"]


def test_ndcg() -> None:
    case = NUMBERS["ndcg_NOT_OFFICIAL_sklearn"]
    relevance, scores = np.array(case["relevance"]), np.array(case["scores"])
    for k in (1, 5, 10, 12):
        np.testing.assert_allclose(ndcg(relevance, scores, k), case[f"sklearn_ndcg@{k}"], rtol=1e-12)
    equal = ndcg(np.array([[1, 0, 0, 0]]), np.zeros((1, 4)))
    np.testing.assert_allclose(equal, (1 / np.log2(np.arange(4) + 2)).mean())
    assert ndcg(np.zeros((1, 4)), np.zeros((1, 4)))[0] == 0


def test_boxes() -> None:
    for row in BOXES["grounding_iou"]:
        assert box_iou(row["a"], row["b"]) == pytest.approx(row["iou"], rel=1e-12), row
    half = [([0, 0, 100, 100], [0, 0, 100, 50]), ([0, 0, 100, 100], [0, 0, 100, 51])]
    assert box_accuracy([a for a, _ in half], [b for _, b in half]) == 0.5
    for row in BOXES["bbox_extract"]:
        box, shares = said_box(row["text"], row["prompt_type"])
        assert list(box) == pytest.approx(row["bbox"]), row
        assert shares == row["normalized"]
