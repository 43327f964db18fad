"""Token pruning over lazily read scenes: pixels, pruned against unpruned, budgets, checkpoints, kernels."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import ArraySource
from torch.nn.functional import interpolate

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.ask import Answer, BudgetSpentError, LevelInfo, Request, Scene, View
from tilewright.kernels.load import load_kernel
from tilewright.kernels.vlm.arrays import ask_array, carry_out
from tilewright.kernels.vlm.checkpoint import Checkpoint, open_llava
from tilewright.kernels.vlm.dynamic_pyramid import TILE, DynamicPyramid
from tilewright.kernels.vlm.evidence import evidence_of
from tilewright.kernels.vlm.lrs_vqa import lrs_vqa, relevance, tile_answers
from tilewright.kernels.vlm.pixels import CLIP_MEAN, CLIP_STD, Picture
from tilewright.kernels.vlm.pruned import PrunedAnswerer, Pruning
from tilewright.kernels.vlm.sampling import TileReader
from tilewright.kernels.vlm.selection import TokenMap
from tilewright.kernels.vlm.tiny import tiny_checkpoint, tiny_llava
from tilewright.pipeline.lazy import map_pixels
from tilewright.pipeline.tiles import map_tiles

QUESTION = "How many ships are there?"
BANDS = ("red", "green", "blue")


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of some sizes: what a pyramid can lose and keep."""
    draw = np.random.default_rng(seed)
    made = np.zeros((3, height, width))
    for cell in (4, 16, 64):
        cells = draw.integers(0, 86, (3, -(-height // cell), -(-width // cell)))
        made += cells.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return made.astype(np.uint8)


def plain_scene(pixels: np.ndarray) -> Scene:
    return Scene((LevelInfo(1.0, (pixels.shape[1], pixels.shape[2])),), BANDS)


class Stored:
    """A scene with overviews that were averaged, and what was asked of it."""

    def __init__(self, pixels: np.ndarray, levels: int) -> None:
        self.levels = [pixels.astype(np.float32)]
        for _ in range(levels - 1):
            fine = self.levels[-1]
            even = fine[:, : fine.shape[1] // 2 * 2, : fine.shape[2] // 2 * 2]
            self.levels.append(even.reshape(3, even.shape[1] // 2, 2, even.shape[2] // 2, 2).mean((2, 4)))
        infos = [LevelInfo(float(2**n), one.shape[1:]) for n, one in enumerate(self.levels)]  # type: ignore[arg-type]
        self.scene = Scene(tuple(infos), BANDS)
        self.asked: list[Request] = []

    def views(self, requests: list[Request]) -> list[View]:
        self.asked += requests
        found = []
        for r in requests:
            pixels = self.levels[r.level][:, r.row0 : r.row1, r.col0 : r.col1]
            assert pixels.shape[1:] == r.shape, "beyond the level"
            found.append(View(r, pixels, np.ones(r.shape, bool)))
        return found

    def carry_out(self, asking: Generator[list[Request], list[View], Any], steps: int | None = None) -> Any:
        """Answer requests; after ``steps`` of them there is no budget left."""
        try:
            requests, count = next(asking), 0
            while True:
                if steps is not None and count >= steps:
                    requests = asking.throw(BudgetSpentError("spent", place="test"))
                else:
                    requests, count = asking.send(self.views(requests)), count + 1
        except StopIteration as end:
            return end.value


# -- pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(700, 333), (336, 336), (90, 2500)])
@pytest.mark.parametrize("most", [2**23, 5000])
def test_tiles_equal_those_of_the_whole_image(shape: tuple[int, int], most: int) -> None:
    pixels = image(*shape)
    pyramid = DynamicPyramid.of(*shape)
    whole = torch.from_numpy(pixels).float()[None]
    for view in (pyramid.overview, *pyramid.levels):
        shrunk = interpolate(whole, view.size, mode="bilinear", align_corners=False)[0].numpy()
        padded = np.zeros((3, *view.padded), np.float32)
        padded[:, : view.size[0], : view.size[1]] = shrunk
        tiles = [(row, col) for row in range(view.tiles[0]) for col in range(view.tiles[1])]
        reader = TileReader(plain_scene(pixels), view, most)
        found = carry_out(reader.read(tiles), pixels, np.ones(shape, bool))
        for (row, col), tile in zip(tiles, found, strict=True):
            expected = padded[:, row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE]
            np.testing.assert_allclose(tile.pixels, expected, atol=0.03)  # positions are float32
            assert int((tile.weight > 0).sum()) == tile.shape[0] * tile.shape[1]


def test_no_more_is_asked_than_allowed_and_from_the_coarsest_level_that_does() -> None:
    stored = Stored(image(3000, 4000), 4)
    pyramid = DynamicPyramid.of(3000, 4000)
    for view, level in ((pyramid.overview, 3), (pyramid.levels[0], 1), (pyramid.levels[-1], 0)):
        reader = TileReader(stored.scene, view, most=60_000)
        assert reader.stored == level
        stored.asked.clear()
        tile = (view.tiles[0] - 1, view.tiles[1] - 1)
        found = stored.carry_out(reader.read([tile]))
        sizes = [r.shape[0] * r.shape[1] for r in stored.asked]
        assert max(sizes) <= 60_000
        assert sum(sizes) == reader.cost(tile)
        near = reader.level.token_box(0, 0)
        assert near[0] == near[1] == 0
        top, left = (n * TILE for n in tile)
        rows = ((np.arange(top, top + found[0].shape[0]) + 0.5) / view.ratio[0]).astype(int)
        cols = ((np.arange(left, left + found[0].shape[1]) + 0.5) / view.ratio[1]).astype(int)
        expected = stored.levels[0][:, rows[:, None], cols]
        got = found[0].pixels[:, : len(rows), : len(cols)]
        assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.7


def test_what_was_not_measured_has_no_part() -> None:
    pixels = np.full((3, 500, 500), 200.0, np.float32)
    valid = np.ones((500, 500), bool)
    valid[100:200, 50:300] = False
    pixels[:, ~valid] = np.nan
    view = DynamicPyramid.of(500, 500).levels[0]
    tiles = carry_out(TileReader(plain_scene(pixels), view).read([(0, 0)]), pixels, valid)
    assert np.isfinite(tiles[0].pixels).all()
    known = tiles[0].weight > 0
    assert 0.5 < known.mean() < 1
    np.testing.assert_allclose(tiles[0].pixels[:, known], 200, atol=1e-3)
    normalised = Picture().normalised(tiles, [0, 1, 2])[0]
    assert not normalised[:, torch.from_numpy(~known)].any()
    expected = (200 / 255 - CLIP_MEAN[0]) / CLIP_STD[0]
    assert normalised[0, torch.from_numpy(known)].numpy() == pytest.approx(expected, abs=1e-4)


def test_bands_become_a_picture() -> None:
    assert Picture().channels(("nir", "blue", "green", "red")) == [3, 2, 1]
    assert Picture().channels(("a", "b", "c", "d")) == [0, 1, 2]
    assert Picture().channels(("vv",)) == [0, 0, 0]
    assert Picture(("nir", "red", "green")).channels(("nir", "blue", "green", "red")) == [0, 3, 2]
    with pytest.raises(KernelError, match="no band 'swir'"):
        Picture(("swir", "red", "green")).channels(("red", "green"))
    with pytest.raises(KernelError, match="2 bands for a picture"):
        Picture().channels(("vv", "vh"))
    with pytest.raises(KernelError, match="not below"):
        Picture(low=3, high=3)


# -- the model ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_llava(request.param, seed=3)


@pytest.mark.parametrize("shape", [(1100, 800), (200, 150)])
def test_pruned_equals_unpruned_where_nothing_is_pruned(model: Any, shape: tuple[int, int]) -> None:
    pixels = image(*shape)
    kept = ask_array(PrunedAnswerer(model, Pruning(share=1.0), most=8), QUESTION, pixels)
    whole = ask_array(PrunedAnswerer(model, Pruning(prune=False), most=8), QUESTION, pixels)
    some = ask_array(PrunedAnswerer(model, most=8), QUESTION, pixels)
    assert kept.trace["kept_hash"] == whole.trace["kept_hash"] != some.trace["kept_hash"]
    assert kept.trace["sequence"] == whole.trace["sequence"] > some.trace["sequence"]
    assert kept.text == whole.text
    assert kept.trace["flops"]["prefill"] == whole.trace["flops"]["prefill"]
    assert whole.trace["flops"]["focus"] == 0 < some.trace["flops"]["focus"]


class Recorder:
    """A model that keeps what it is asked to continue."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.heard: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def answer(self, sequence: torch.Tensor, most: int) -> str:
        self.heard.append(sequence)
        return ""


def test_the_unpruned_sequence_is_what_a_plain_reading_gives(model: Any) -> None:
    """The whole image at once, without tiles, strips, maps of places: the way LLaVA describes it."""
    pixels = image(700, 1000)
    view = DynamicPyramid.of(700, 1000).levels[0]
    recorder: Any = Recorder(model)
    ask_array(PrunedAnswerer(recorder, Pruning(prune=False)), QUESTION, pixels)

    def encoded(size: tuple[int, int], tiles: tuple[int, int]) -> torch.Tensor:
        shrunk = interpolate(torch.from_numpy(pixels).float()[None], size, mode="bilinear")[0] / 255
        normal = (shrunk - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        canvas = torch.zeros(3, tiles[0] * TILE, tiles[1] * TILE)
        canvas[:, : size[0], : size[1]] = normal
        cut = canvas.reshape(3, tiles[0], TILE, tiles[1], TILE).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return model.tokens(cut)

    with torch.inference_mode():
        overview = encoded(DynamicPyramid.of(700, 1000).overview.size, (1, 1))[0]
        grid = encoded(view.size, view.tiles).reshape(*view.tiles, 24, 24, -1)
        whole = grid.permute(4, 0, 2, 1, 3).reshape(1, -1, view.tiles[0] * 24, view.tiles[1] * 24)
        small = interpolate(whole, scale_factor=0.5, mode="bilinear")[0].permute(1, 2, 0)
        rows, cols = view.token_shape(first=False)
        small = torch.cat((small[:rows, :cols], model.newline.expand(rows, 1, -1)), 1).flatten(0, 1)
        prompt = model.prompt(QUESTION)
        expected = torch.cat((prompt.before, overview, prompt.separator, small, prompt.after))
    assert recorder.heard[0].shape == expected.shape
    torch.testing.assert_close(recorder.heard[0], expected, atol=2e-4, rtol=1e-4)


def test_visual_tokens_equal_those_of_transformers(model: Any) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**model.sizes.vision),
        text_config=model.sizes.language_config(),
        vision_feature_layer=-2,
        projector_hidden_act="gelu",
    )
    other = LlavaForConditionalGeneration(config).eval()
    inner = model.network.model
    tower = other.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(
        inner.vision_tower.vision_tower.vision_model.state_dict()
    )
    state = inner.mm_projector.mlp_projector.state_dict()
    projector = other.model.multi_modal_projector
    projector.linear_1.load_state_dict({k[2:]: v for k, v in state.items() if k.startswith("0.")})
    projector.linear_2.load_state_dict({k[2:]: v for k, v in state.items() if k.startswith("2.")})
    tiles = torch.randn(2, 3, TILE, TILE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = other.model.get_image_features(tiles)
        features = getattr(found, "pooler_output", found)
        expected = torch.stack(list(features))
        torch.testing.assert_close(model.tokens(tiles), expected, atol=1e-5, rtol=1e-5)


def test_hidden_tokens_have_no_part_where_the_mask_is_corrected(model: Any) -> None:
    draw = torch.Generator().manual_seed(2)
    before, local, after = (torch.randn(n, 64, generator=draw) for n in (5, 30, 4))
    places = torch.arange(0, 60, 2)
    with torch.inference_mode():
        corrected = model.focus(before, local, after, places, 60, "corrected")
        released = model.focus(before, local, after, places, 60, "released")
        whole = model.focus(before, local, after, torch.arange(30), 30)
    assert corrected.sum() == pytest.approx(1, abs=1e-5)
    assert released.sum() < 0.9
    assert not torch.allclose(corrected, whole)  # the places count
    torch.testing.assert_close(whole, model.focus(before, local, after, torch.arange(30), 30, "corrected"))


# -- descent, budgets --------------------------------------------------------------------------------------


def looked(stored: Stored, model: Any, pruning: Pruning, steps: int | None = None) -> tuple[Any, Answer]:
    answerer = PrunedAnswerer(model, pruning, most=2)
    descent = answerer.descent(QUESTION, stored.scene)
    stored.asked.clear()
    answer = stored.carry_out(answerer.answered(descent), steps)
    return descent, answer


@pytest.fixture(scope="module")
def stored() -> Stored:
    return Stored(image(2100, 2500), 3)


@pytest.fixture(scope="module")
def small_model() -> Any:
    return tiny_llava("qwen2", seed=3)


def test_released_goes_one_level_down_and_full_to_the_last(stored: Stored, small_model: Any) -> None:
    levels = len(DynamicPyramid.of(*stored.scene.shape).levels)
    descent, answer = looked(stored, small_model, Pruning())
    assert [look.number for look in descent.looks] == [0, 1]
    budget = 144 * 6
    descent, answer = looked(stored, small_model, Pruning(descent="full", budget_tokens=budget))
    assert [look.number for look in descent.looks] == list(range(levels))
    assert all(len(look.tiles) <= 6 for look in descent.looks[1:])
    last = descent.looks[-1]
    assert last.stored == 0
    rows = np.unique(last.tokens.rows)
    assert last.tokens.newline.sum() == len(rows) < last.tokens.shape[0]
    assert answer.trace["visual_tokens"] == 577 + len(last.kept)
    assert not answer.trace["cut_by_budget"]
    json.dumps(dict(answer.trace))
    full = stored.scene.shape[0] * stored.scene.shape[1]
    assert sum(r.shape[0] * r.shape[1] for r in stored.asked if r.level == 0) < full / 2


def test_tiles_of_newlines_are_left_out(stored: Stored, small_model: Any) -> None:
    released, _ = looked(stored, small_model, Pruning(share=0.02))
    fixed, _ = looked(stored, small_model, Pruning(share=0.02, fix_newline=True))
    right = released.looks[1].view.tiles[1] - 1
    column = {(row, right) for row in range(released.looks[1].view.tiles[0])}
    assert column <= set(released.looks[1].tiles)
    assert set(fixed.looks[1].tiles) < set(released.looks[1].tiles)
    assert not column <= set(fixed.looks[1].tiles)


@pytest.mark.slow
def test_bytes_are_a_budget(stored: Stored, small_model: Any) -> None:
    unbound, _ = looked(stored, small_model, Pruning(descent="full"))
    least = unbound.free
    for more in (0, 3_000_000, 10_000_000):
        descent, answer = looked(stored, small_model, Pruning(descent="full", budget_bytes=more))
        assert least <= descent.spent <= least + more < unbound.spent
        assert descent.spent == answer.trace["bytes_of_views"]
    assert len(descent.looks) > 1


def test_a_loop_that_has_no_bytes_left_gets_an_answer(stored: Stored, small_model: Any) -> None:
    whole, _ = looked(stored, small_model, Pruning(descent="full"))
    assert len(whole.looks) > 2
    descent, answer = looked(stored, small_model, Pruning(descent="full"), steps=4)
    assert answer.trace["cut_by_budget"]
    assert 1 <= len(descent.looks) < len(whole.looks)
    with pytest.raises(BudgetSpentError):
        looked(stored, small_model, Pruning(), steps=1)


def test_a_strip_less_than_a_token_high_is_answered(small_model: Any) -> None:
    pixels = image(60, 9000)
    descent = PrunedAnswerer(small_model).descent(QUESTION, plain_scene(pixels))
    carry_out(descent.run(), pixels, np.ones(pixels.shape[1:], bool))
    assert len(descent.looks[0].tokens) == 0
    assert len(descent.looks[1].tiles) == np.prod(descent.looks[1].view.tiles)
    assert ask_array(PrunedAnswerer(small_model, most=2), QUESTION, image(2, 900)).evidence == []


def test_evidence_is_a_box_a_group() -> None:
    view = DynamicPyramid.of(2016, 2016).levels[0]
    shape = view.token_shape(first=True)
    tokens = TokenMap.whole(shape)
    flat = [r * tokens.width + c for r, c in ((2, 3), (2, 4), (3, 4), (10, 20), (5, shape[1]))]
    score = np.zeros(len(tokens), np.float32)
    score[flat] = (0.1, 0.1, 0.2, 0.3, 0.3)
    found = evidence_of(view, tokens, np.array(sorted(flat)), score, 5)
    side = 28 * 2016 / view.size[0]
    assert [e.box for e in found] == [
        pytest.approx((3 * side, 2 * side, 5 * side, 4 * side)),
        pytest.approx((20 * side, 10 * side, 21 * side, 11 * side)),
    ]
    assert [e.score for e in found] == pytest.approx([0.4, 0.3])
    assert evidence_of(view, tokens, np.array(sorted(flat)), score, 1) == found[:1]


@pytest.mark.parametrize(
    "wrong", [{"share": 0}, {"share": 1.1}, {"budget_tokens": 143}, {"budget_bytes": -1}], ids=str
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(KernelError, match=next(iter(wrong))):
        lrs_vqa(**wrong)


# -- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("llava") / "tiny", seed=5)


def test_a_checkpoint_in_llava_format_loads(checkpoint: Path) -> None:
    from safetensors import safe_open

    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        "model.image_newline",
        "model.mm_projector.mlp_projector.0.weight",
        "model.mm_projector.token_pruner.layers.3.self_attn.q_proj.bias",
        "model.mm_projector.token_pruner.norm.weight",
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
        "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.embed_tokens.weight",
        "lm_head.weight",
    } <= names
    loaded, made = open_llava(checkpoint), tiny_llava(seed=5)
    assert set(loaded.network.state_dict()) == names
    assert loaded.focus.depth == 4
    pixels = image(600, 500)
    answers = [ask_array(PrunedAnswerer(one, most=6), QUESTION, pixels) for one in (loaded, made)]
    assert answers[0].text == answers[1].text
    assert dict(answers[0].trace) == dict(answers[1].trace)
    assert answers[0].trace["kept_hash"] != ask_array(lrs_vqa(), QUESTION, pixels).trace["kept_hash"]


def test_a_tower_of_its_own_file_and_old_buffers(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(checkpoint / "model.safetensors")
    tower = "model.vision_tower.vision_tower."
    clip = {n.removeprefix(tower): t for n, t in state.items() if n.startswith(tower)}
    clip |= {"logit_scale": torch.zeros(()), "text_model.final_layer_norm.weight": torch.zeros(4)}
    clip["vision_model.embeddings.position_ids"] = torch.arange(577)
    rest = {n: t for n, t in state.items() if not n.startswith(tower)}
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    names = sorted(rest)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({n: rest[n] for n in part}, tmp_path / file)
    index = {"weight_map": {n: file for file, part in parts.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(clip, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=r"missing: model\.vision_tower"):
        open_llava(tmp_path)
    whole = open_llava(tmp_path, vision=tmp_path / "clip.safetensors").network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.items())


def test_what_is_no_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no tensors"):
        open_llava(tmp_path)
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llava_mistral"}))
    with pytest.raises(KernelError, match="Qwen2 and Llama are known"):
        open_llava(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.2"):
        open_llava(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match="holds a list"):
        open_llava(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(KernelError, match="dtype=int8"):
        open_llava(tmp_path, dtype="int8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        open_llava(tmp_path)


# -- kernels -----------------------------------------------------------------------------------------------


def test_a_map_of_relevance(checkpoint: Path) -> None:
    pixels = image(700, 500).astype(np.float32)
    kernel = load_kernel("lrs-vqa-relevance", weights=str(checkpoint), question=QUESTION)
    assert kernel.weights_sha256 == Checkpoint(str(checkpoint)).sha256
    assert not kernel.untrained
    other = load_kernel("lrs-vqa-relevance", weights=str(checkpoint), question="Where is the airport?")
    assert kernel.digest == relevance(checkpoint, question=QUESTION).digest != other.digest
    tile = torch.from_numpy(pixels[:, :400, :400])
    with torch.inference_mode():
        found = kernel(tile[None], torch.ones(1, 1, 400, 400, dtype=torch.bool))
        asked = other(tile[None], torch.ones(1, 1, 400, 400, dtype=torch.bool))
    assert found.shape == (1, 1, 400, 400)
    assert 0 < found.min() < 0.5 < found.max() < 1
    assert not torch.equal(found, asked)
    answerer = PrunedAnswerer(open_llava(checkpoint, suffix=kernel.options["suffix"]))
    descent = answerer.descent(QUESTION, plain_scene(pixels[:, :400, :400]))
    carry_out(descent.run(steps=0), pixels[:, :400, :400], np.ones((400, 400), bool))
    look = descent.looks[0]
    score = look.score.reshape(look.tokens.shape[0], -1)[:, :-1]
    row, col = np.unravel_index(score.argmax(), score.shape)
    left, top, right, bottom = look.view.token_box(int(row), int(col))
    best = found[0, 0, int(top + bottom) // 2, int(left + right) // 2]
    assert best == pytest.approx(float(score.max() / (score.max() + score.mean())), abs=0.03)


def test_an_answer_for_each_tile_and_a_map(checkpoint: Path) -> None:
    source = ArraySource(image(450, 300).astype(np.float32)[None], bands=BANDS)
    kernel = load_kernel("lrs-vqa-answer", weights=str(checkpoint), question=QUESTION, answer_tokens=3)
    wishes = {"device": "cpu", "tile": 300, "threads": 1}
    tables = [map_tiles(kernel, source, **wishes, shard=shard, batch=b) for shard, b in ((300, 1), (900, 3))]
    assert tables[0].drop(columns="geometry").equals(tables[1].drop(columns="geometry"))
    for text in tables[0].trace:
        counts = json.loads(text)
        assert 0 < counts["kept"] < counts["of"]
    assert len({json.loads(t)["hash"] for t in tables[0].trace}) > 1
    mapped = relevance(checkpoint, question=QUESTION)
    found = map_pixels(mapped, source, **wishes, shard=900)["relevance"].values
    assert found.shape[-2:] == (450, 300)
    assert 0 < found.min() < 0.5 < found.max() < 1


def test_descriptions_need_no_weights() -> None:
    kernel = tile_answers()
    assert kernel.untrained
    assert kernel.spec.mapping == "map_tiles"
    assert relevance().spec.mapping == "map_pixels"
    with pytest.raises(KernelError, match="the question is empty"):
        relevance(question=" ")
