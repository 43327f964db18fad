"""LRS-VQA against the official code: geometry of the pyramid, selection, and the region focus module end to end."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from official import ROOT, filled, stream
from torch import Tensor, nn

from tilewright.kernels.ask import LevelInfo, Scene
from tilewright.kernels.vlm.arrays import carry_out
from tilewright.kernels.vlm.dynamic_pyramid import DynamicPyramid
from tilewright.kernels.vlm.pruned import Descent, Prompt, PrunedAnswerer, Pruning
from tilewright.kernels.vlm.selection import TokenMap, kept_tokens, tiles_below

FOLDER = ROOT / "lrs_vqa"
GEOMETRY = json.loads((FOLDER / "public_dip_geometry.json").read_text())["cases"]
SELECTION = json.loads((FOLDER / "public_selection.json").read_text())["cases"]


def size(case: dict[str, Any]) -> str:
    return "x".join(map(str, case["image_wh"]))


@pytest.mark.parametrize("case", [c for c in GEOMETRY if "error" not in c], ids=size)
def test_geometry(case: dict[str, Any]) -> None:
    width, height = case["image_wh"]
    pyramid = DynamicPyramid.of(height, width)
    assert list(pyramid.overview.size) == case["global_resized_hw"]
    assert list(pyramid.tile_counts) == case["image_num_split"]
    assert len(pyramid.levels) == case["n_local_levels"]
    assert pyramid.below(0) == case["next_level_index_used"]
    for view, fact in zip(pyramid.levels, case["levels_coarse_to_fine"], strict=True):
        assert list(view.size) == fact["resize_hw"]
        assert list(view.padded) == fact["padded_hw"]
        assert list(view.tiles) == fact["tiles_hw"]
        assert list(view.ratio) == fact["resize_ratio_hw"]
        assert list(view.token_shape(first=True)) == fact["unpad_hw_by_image_size"]
        assert list(view.token_shape(first=False)) == fact["unpad_hw_by_resize_hw"]
        second = TokenMap.whole(view.token_shape(first=False))
        assert [second.shape[0], second.width] == fact["next_level_map_hw_with_newline"]
        assert len(second) == second.size == fact["next_level_local_tokens"]
    first = TokenMap.whole(pyramid.levels[0].token_shape(first=True))
    assert 577 + len(first) == case["levels_coarse_to_fine"][0]["first_pass_image_tokens_total"]


def test_the_case_that_fails_officially_is_like_its_neighbour() -> None:
    failing = [c["image_wh"] for c in GEOMETRY if "error" in c]
    assert failing == [[336, 336]]
    pyramid, smaller = DynamicPyramid.of(336, 336), DynamicPyramid.of(335, 335)
    assert pyramid.tile_counts == smaller.tile_counts == (1, 1)
    assert pyramid.levels[0].size == smaller.levels[0].size == (336, 336)


def made_scores(case: dict[str, Any], draw: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    down, right, spread = case["blob"]
    rows, cols = shape[0], shape[1] + 1
    noise = draw.random((rows, cols))
    y = (np.arange(rows)[:, None] + 0.5) / rows
    x = (np.arange(cols) + 0.5) / cols
    hill = np.exp(-((y - down) ** 2 + (x - right) ** 2) / (2 * spread**2))
    return (hill + 0.05 * noise).astype(np.float32).ravel()


@pytest.mark.parametrize("case", SELECTION, ids=size)
def test_selection(case: dict[str, Any]) -> None:
    width, height = case["image_wh"]
    pyramid, draw = DynamicPyramid.of(height, width), stream(case["seed"])
    first = TokenMap.whole(pyramid.levels[0].token_shape(first=True))
    kept = kept_tokens(first, made_scores(case, draw, first.shape), case["pruning_ratio"])
    assert kept.tolist() == case["selected_indices"]
    view = pyramid.levels[pyramid.below(0)]
    tiles = tiles_below(first, kept, view.tiles, newlines=True)
    assert [list(t) for t in tiles] == case["tiles_rc"]
    fixed = tiles_below(first, kept, view.tiles, newlines=False)
    assert [list(t) for t in fixed] == case["tiles_rc_without_newline_tokens"]
    second = TokenMap.of_tiles(view.token_shape(first=False), tiles, all_newlines=True)
    score = made_scores(case, draw, second.shape)[second.places]
    assert len(second) == case["n_valid"]
    kept = kept_tokens(second, score, case["pruning_ratio"])
    assert second.places[kept].tolist() == case["kept_indices"]
    assert 577 + len(kept) == case["visual_tokens_to_llm"]


class Tower(nn.Module):
    """What the official run had for a vision tower: means of 14 x 14 px through a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(16, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 14).flatten(2).mT @ self.weight.mT


class Projector(nn.Module):
    def __init__(self, kind: str) -> None:
        from transformers import LlamaConfig, Qwen2Config

        from tilewright.kernels.vlm.region_focus import RegionFocus

        super().__init__()
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 50}
        more = {"rms_norm_eps": 1e-6, "num_key_value_heads": 2 if kind == "qwen2" else 4}
        theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6 if kind == "qwen2" else 1e4}}
        config = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](**sizes, **more, **theta)
        self.mlp_projector = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
        self.token_pruner = RegionFocus(config, 4)


class Model(nn.Module):
    """The tiny model of the official run, by the names of its tensors."""

    def __init__(self, kind: str, gain: float, ids: list[int], separator: int) -> None:
        super().__init__()
        self.image_newline = nn.Parameter(torch.empty(64))
        self.vision_tower = Tower()
        self.mm_projector = Projector(kind)
        self.embed_tokens = nn.Embedding(50, 64)
        keys = json.loads((FOLDER / f"keys_rfm_{kind}.json").read_text())
        assert {name: [list(t.shape), "float32"] for name, t in self.state_dict().items()} == keys
        state = {
            name: torch.from_numpy(filled(name, tuple(shape), None, gain))
            for name, (shape, _) in keys.items()
        }
        self.load_state_dict(state)
        self.requires_grad_(requires_grad=False)
        self.ids, self.separator = ids, separator
        self.scores: list[np.ndarray] = []

    @property
    def focus(self) -> Any:
        return self.mm_projector.token_pruner

    @property
    def newline(self) -> Tensor:
        return self.image_newline

    def tokens(self, pixels: Tensor) -> Tensor:
        return self.mm_projector.mlp_projector(self.vision_tower(pixels))

    def prompt(self, question: str) -> Prompt:
        at = self.ids.index(-200)
        before, separator, after = (
            torch.tensor(i) for i in (self.ids[:at], [self.separator], self.ids[at + 1 :])
        )
        return Prompt(self.embed_tokens(before), self.embed_tokens(separator), self.embed_tokens(after))

    def answer(self, sequence: Tensor, most: int) -> str:
        raise AssertionError("no answer is asked for")

    def flops(self, part: Literal["vision", "focus", "language"], count: int) -> float:
        return float(count)


class Given:
    """A region focus module whose first scores are given."""

    def __init__(self, inner: Any, score: np.ndarray) -> None:
        self.inner, self.score, self.calls = inner, score, 0

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        return torch.from_numpy(self.score) if self.calls == 1 else self.inner(*args)


@cache
def case_of(name: str) -> dict[str, Any]:
    content = np.load(FOLDER / f"public_rfm_{name}.npz")
    return {**{key: content[key] for key in content.files}, "meta": json.loads(str(content["meta"]))}


def picture(meta: dict[str, Any]) -> np.ndarray:
    width, height = meta["image_wh"]
    cells = stream(meta["seed"]).integers(0, 256, (-(-height // 20), -(-width // 20), 3), np.uint8)
    image = cells.repeat(20, 0).repeat(20, 1)[:height, :width].transpose(2, 0, 1).copy()
    if "only inside rect" in meta["image_rule"]:
        inside = image[:, :1900, :1900].copy()
        image[:] = 30
        image[:, :1900, :1900] = inside
    return image


def descended(name: str, mask: str) -> tuple[Descent, Tensor, dict[str, Any]]:
    case = case_of(name)
    meta = case["meta"]
    model: Any = Model(meta["kind"], meta["gain"], meta["input_ids"], meta["colon_token"])
    image = picture(meta)
    answerer = PrunedAnswerer(model, Pruning(mask=mask))  # type: ignore[arg-type]
    scene = Scene((LevelInfo(1.0, image.shape[1:]),), ("red", "green", "blue"))  # type: ignore[arg-type]
    descent = answerer.descent("", scene)
    if "pass1_scores" in meta:
        model.mm_projector.__dict__["token_pruner"] = Given(model.focus, case["score_pass1"])
        model.mm_projector._modules.pop("token_pruner")
    front = carry_out(descent.run(), image, np.ones(image.shape[1:], bool))
    return descent, front, case


CASES = ("qwen2", "llama", "4000_llama", "partial_tiles_qwen2", "partial_tiles_llama")


def close(got: np.ndarray, expected: np.ndarray, gain: float) -> None:
    """Within 1e-5 of the mean; scores of gain 2 are peaked, and within 1e-4 of the largest."""
    bound = 1e-5 * np.abs(expected).mean() if gain == 1 else 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=bound)


@pytest.mark.parametrize("name", CASES)
def test_region_focus_keeps_the_official_tokens(name: str) -> None:
    descent, front, case = descended(name, "released")
    meta, after = case["meta"], descent.prompt.after
    first, second = descent.looks
    start = torch.cat((front, first.vectors, after)).mean(1).numpy()
    np.testing.assert_allclose(start, case["inputs_embeds_pass1_meanrow"], atol=2e-5)
    close(first.score, case["score_pass1"], meta["gain"])
    assert first.kept.tolist() == case["sel_pass1"].tolist()
    assert [list(tile) for tile in second.tiles] == case["tiles"].tolist()
    mask = np.zeros(second.tokens.size, np.uint8)
    mask[second.tokens.places] = 1
    assert (mask == case["mask_pass2"]).all()
    close(second.score, case["score_pass2"][second.tokens.places], meta["gain"])
    assert second.tokens.places[second.kept].tolist() == case["kept_pass2"].tolist()
    final = torch.cat((front, second.vectors[torch.from_numpy(second.kept)], after)).mean(1).numpy()
    assert len(final) == meta["seq_len_out"]
    np.testing.assert_allclose(final, case["final_embeds_meanrow"], atol=2e-5)


@pytest.mark.parametrize("name", CASES[3:])
def test_the_corrected_mask_keeps_others(name: str) -> None:
    descent, _, case = descended(name, "corrected")
    second = descent.looks[1]
    expected = case["score_pass2_correct_mask"]
    close(second.score, expected[second.tokens.places], case["meta"]["gain"])
    kept = second.tokens.places[second.kept].tolist()
    assert kept == case["kept_pass2_correct_mask"].tolist()
    assert kept != case["kept_pass2"].tolist()
    hidden = np.setdiff1d(np.arange(len(expected)), second.tokens.places)
    assert len(hidden)
    assert not expected[hidden].any()
