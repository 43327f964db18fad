"""Patches, cues and boxes against the numbers of ImageRAG's released code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.kernels.vlm import cues, patches

NUMBERS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "official" / "imagerag" / "public.json").read_text()
)
WAYS: dict[str, Any] = {
    "vit_patch_size448": patches.vit_patches,
    "cc_c_denom20": lambda wide, high: patches.cc_patches(wide, high, 20),
    "cc_c_denom10": patches.cc_patches,
    "grid_max_grid10": patches.grid_patches,
    "grid_max_grid3_enlarge_factor1.5": lambda wide, high: patches.grid_patches(wide, high, 3, 1.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_patches(way: str) -> None:
    assert len(NUMBERS["patchify"]) == 8
    for row in NUMBERS["patchify"]:
        expected = row[way]
        found = [list(box) for box in WAYS[way](*row["image_wh"])]
        assert len(found) == expected["n"], row["image_wh"]
        assert found[:6] == expected["first6"]
        assert hashlib.sha256(json.dumps(found).encode()).hexdigest() == expected["sha256_of_json_list"]


def drawn(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64(case["seed"]))
    parts = draw.standard_normal((case["n_patch"], 32)).astype(np.float32)
    words = draw.standard_normal((case["n_keywords"], 32)).astype(np.float32)
    for number, (patch, share) in enumerate(case["boost"]):
        words[number % len(words)] += share * parts[patch]
    return parts, words


GRID = patches.grid_patches(4000, 4000)


@pytest.mark.parametrize("case", NUMBERS["fast_path"], ids=lambda case: case["seed"])
def test_fast_path(case: dict[str, Any]) -> None:
    parts, words = drawn(case)
    shares = cues.confidence(parts, words, case["logit_scale_exp"])
    for share, top in zip(shares, case["top2_per_keyword"], strict=True):
        np.testing.assert_allclose(share[top["idx"]], top["val"], rtol=1e-4)
        assert list(np.argsort(-share)[: len(top["idx"])]) == top["idx"]
    named = cues.candidates(shares)
    assert [list(GRID[cue.patch]) for cue in named] == [one["box"] for one in case["candidates_in_order"]]
    np.testing.assert_allclose(
        [cue.confidence for cue in named], [one["sim"] for one in case["candidates_in_order"]], rtol=1e-4
    )
    found = cues.fast_path(parts, words, case["logit_scale_exp"])
    assert bool(found) == (case["path"] == "Fast")
    boxes = [GRID[cue.patch] for cue in found]
    assert [list(box) for box in boxes] == case["selected_boxes"]
    np.testing.assert_allclose([cue.confidence for cue in found], case["selected_conf"], rtol=1e-4)
    if "merged_box_true_union" in case:
        assert list(patches.merged_box(boxes)) == case["merged_box_true_union"]
        assert list(patches.merged_box(boxes, official=True)) == case["merged_box_official_BUGGY"]


@pytest.mark.parametrize("case", NUMBERS["slow_path"], ids=lambda case: case["reduce_fn"])
def test_slow_path(case: dict[str, Any]) -> None:
    draw = np.random.Generator(np.random.PCG64(case["seed"]))

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    parts = normal(case["n_patch"], 32)
    features = []
    for _ in range(case["n_label"]):
        count = int(draw.integers(1, 9))
        base = normal(1, 32)
        near = base + 0.15 * normal(count // 2 + 1, 32)
        features.append(np.concatenate([near, normal(count, 32)]).astype(np.float32))
    assert [len(one) for one in features] == case["n_feats"]
    words = normal(2, 32)
    texts = words[[number % 2 for number in range(case["n_label"])]]
    how = case["reduce_fn"]
    for number, one in enumerate(features):
        reduced = cues.reduce_features(one, texts[number], how)
        np.testing.assert_allclose(
            reduced[:4], case["reduced_first4"][f"label{number}"], rtol=1e-4, atol=1e-6
        )
    found = cues.slow_path(parts, features, 100.0, how, texts)
    assert [list(GRID[cue.patch]) for cue in found] == case["boxes"]
    np.testing.assert_allclose([cue.confidence for cue in found], case["sims"], rtol=1e-4)


def test_all_noise_is_averaged() -> None:
    far = np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(cues.reduce_features(far, how="cluster"), far.mean(axis=0))


def test_boxes() -> None:
    misc = NUMBERS["misc"]
    for row in misc["bbox_location"]:
        assert patches.location(row["box"], row["wh"]) == row["out"]
    for row in misc["enlarge_roibox"]:
        found = patches.scaled_box(row["box"], row["f"], (0, 0, *row["wh"]))
        assert [int(edge) for edge in found] == row["out"]
    for row in misc["get_patch_scale_bbox"]:
        low, high = row["lower"], row["upper"]
        found = patches.scaled_box(row["box"], row["scale"], (low, low, high, high))
        np.testing.assert_allclose(found, row["out"], rtol=1e-14)
    for row in misc["obb2minhbb"]:
        np.testing.assert_allclose(patches.enclosing_box(row["obb"]), row["out_cxcywh"], rtol=1e-12)
    for row in misc["merged"]:
        assert list(patches.merged_box(row["boxes"], official=True)) == row["official"]
