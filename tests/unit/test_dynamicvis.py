"""DynamicVis: which tokens are read, what loads into it, and that it learns what colours do not tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from embedders import colours, weights_by_rule
from torch import Tensor
from torch.nn import functional

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.embed.dynamicvis import DYNAMICVIS_B, DYNAMICVIS_L, selection
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.dynamicvis import DynamicVis, SparseMixer
from tilewright.testing import check_kernel

TINY = {"widths": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "side": 64}
PROFILE = replace(DYNAMICVIS_B, arguments=TINY, dim=24, variants={})
SIDE = 64
STEPS = 160


def tiny() -> DynamicVis:
    torch.manual_seed(0)
    network = DynamicVis(**TINY).eval()
    weights_by_rule(network)
    return network


@pytest.mark.parametrize("side", [33, 64, 100, 160])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_stage_reads_its_share_and_another_for_another_picture(side: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    kept = tiny().selection(torch.randn(2, 3, side, side + 7, generator=draw))
    assert [one.shape[1] for one in kept] == [1, 2, 1, 1]
    for of, one in zip((8, 4, 2, 1), kept, strict=True):
        tokens = one.shape[2] * one.shape[3]
        assert (one.sum((2, 3)) == tokens // of).all()
    assert not torch.equal(kept[0][0], kept[0][1])


def test_of_equal_tokens_the_first_are_read_in_the_order_of_the_picture() -> None:
    """All alike, then one that the gate prefers: it stands at the head of the scan, the others behind it."""
    torch.manual_seed(0)
    mixer = SparseMixer(8, 4, 0.1).eval()
    x = torch.ones(1, 20, 8)
    assert mixer(x, 2)[1].tolist() == [[0, 1, 2, 3, 4]]
    x[0, 13] += mixer.spatial_gate.weight.detach()[0].sign()
    assert mixer(x, 2)[1].tolist() == [[13, 0, 1, 2, 3]]


def test_tokens_that_are_not_read_pass_by() -> None:
    """Each is added to itself by its weight; those that are read hear of it by the means over all tokens alone."""
    torch.manual_seed(0)
    mixer = SparseMixer(8, 4, 0.1).eval()
    weights_by_rule(mixer)
    x = torch.randn(1, 24, 8)
    gate = mixer.spatial_gate.weight.detach()[0]
    aside = torch.randn(8)
    aside -= (aside @ gate) / (gate @ gate) * gate  # the gate does not see this direction
    with torch.inference_mode():
        found, kept = mixer(x, 0)
        weight = mixer.spatial_gate(x).softmax(1)
        passed = sorted(set(range(24)) - set(kept[0].tolist()))
        torch.testing.assert_close(found[:, passed], (x * (1 + weight))[:, passed])
        other = x.clone()
        other[0, passed[0]] += 5 * aside
        assert mixer(other, 0)[1].tolist() == kept.tolist()
        torch.testing.assert_close(mixer(other, 0)[0][:, kept[0]], found[:, kept[0]], atol=1e-6, rtol=0)
        heard = mixer(other, 3)[0][:, kept[0]] - mixer(x, 3)[0][:, kept[0]]
        assert heard.abs().max() > 1e-3


def test_noise_disturbs_the_choice_in_training_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 400, 8)
    noisy, silent = SparseMixer(8, 8, 5.0), SparseMixer(8, 8, 0.0)
    for mixer, same in ((noisy, False), (silent, True)):
        mixer.train()
        assert (mixer(x, 0)[1].tolist() == mixer(x, 0)[1].tolist()) is same
        mixer.eval()
        assert mixer(x, 0)[1].tolist() == mixer(x, 0)[1].tolist()


def test_vectors_are_means_of_the_map_and_do_not_ask_who_else_is_in_the_batch() -> None:
    embedder = PROFILE.embedder(tiny().state_dict())
    pixels = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(5)) * 255
    vectors = embedder.embed_images(pixels)
    assert vectors.shape == (3, 24)
    assert embedder.embed_dense(pixels).shape == (3, 24, 3, 3)
    torch.testing.assert_close(vectors[1:2], embedder.embed_images(pixels[1:2]), atol=1e-5, rtol=0)
    assert float((vectors @ vectors.T - torch.eye(3)).abs().max()) > 1e-4
    with pytest.raises(KernelError, match="search by a picture"):
        embedder.embed_texts(["a harbour"])


def test_the_selection_of_pictures_as_they_are() -> None:
    embedder = PROFILE.embedder(tiny().state_dict())
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 255
    pixels[0, :, :8] = torch.nan
    found = selection(embedder, pixels)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    seen = ((pixels - mean) / std).nan_to_num(0)
    assert [one.shape for one in found] == [(1, 1, 16, 16), (1, 2, 8, 8), (1, 1, 4, 4), (1, 1, 2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(found, embedder.network.selection(seen), strict=True))
    with pytest.raises(KernelError, match=r"expected \[N, 3, H, W\]"):
        selection(embedder, pixels[0])
    with pytest.raises(KernelError, match="selects no tokens"):
        selection(colours().embedder({"gain": torch.tensor([2.0])}), pixels)


_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_published_checkpoints_load_and_others_are_refused(tmp_path: Path) -> None:
    """As they were saved: the backbone under its name, beside what only pretraining needed."""
    state = tiny().state_dict()
    published = {f"backbone.{name}": tensor for name, tensor in state.items()}
    extra = {"pre_neck.fpn.weight": torch.zeros(1), "head.fc.bias": torch.zeros(63)}
    path = tmp_path / "epoch_200.pth"
    torch.save({"meta": {"epoch": 200}, "state_dict": published | extra}, path)
    loaded = PROFILE.embedder(str(path)).network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    gate = "backbone.layers.0.1.0.spatial_gate.weight"
    with pytest.raises(WeightsError, match=r"1 missing: layers\.0\.1\.0\.spatial_gate\.weight"):
        _ = PROFILE({n: t for n, t in published.items() if n != gate}).module
    with pytest.raises(WeightsError, match=r"1 unexpected: post_meanpool_norm\.weight"):
        _ = PROFILE(published | {"backbone.post_meanpool_norm.weight": torch.ones(24)}).module


def test_weights_of_the_other_size_are_named() -> None:
    small = load_kernel("dynamicvis-b").module.state_dict()
    with pytest.raises(WeightsError, match="they fit the kernel dynamicvis-b better"):
        _ = DYNAMICVIS_L(small).module


def test_the_kernel_is_what_it_says() -> None:
    network = tiny()
    assert check_kernel(PROFILE(network.state_dict()), tile=64).errors == ()
    spec = load_kernel("dynamicvis-b").spec
    assert spec.mapping == "map_tiles"
    assert spec.tile.default == 512


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_base_size_is_what_it_says() -> None:
    """On tiles of 96 px; the learned places are reduced to them."""
    module = load_kernel("dynamicvis-b").module
    with torch.no_grad():
        weights_by_rule(module)
    assert check_kernel(load_kernel("dynamicvis-b", weights=module.state_dict()), tile=96).errors == ()


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures ``[N, 3, H, W]`` and classes ``[N]``: somewhere a quarter is ruled across (0) or up and down (1).

    The lines have the mean of the ground, which is smooth, has a colour of its own in each picture, and is noisy.
    """
    draw = torch.Generator().manual_seed(seed)
    ground = functional.interpolate(torch.rand(count, 3, 5, 5, generator=draw), (SIDE, SIDE), mode="bilinear")
    x = 0.35 + 0.3 * ground + 0.02 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    label = torch.randint(0, 2, (count,), generator=draw)
    side = SIDE // 2
    for one, kind in zip(x, label, strict=True):
        row, col = (torch.rand(2, generator=draw) * side).int().tolist()
        bars = ((torch.arange(side) // 2) % 2 * 2.0 - 1).roll(int(torch.randint(0, 4, (1,), generator=draw)))
        lines = bars.expand(side, side)
        one[:, row : row + side, col : col + side] += 0.2 * (lines if kind else lines.T)
    return (x - 0.5) / 0.25, label


def colour_facts(x: Tensor) -> Tensor:
    """Of each picture what its colours tell: mean, spread and nine quantiles of each band, ``[N, 34]``."""
    flat = x.flatten(2)
    levels = torch.linspace(0.1, 0.9, 9)
    found = [flat.mean(2), flat.std(2), *flat.quantile(levels, dim=2)]
    return torch.cat([*found, torch.ones(len(x), 1)], 1)


def test_colours_do_not_tell_the_classes() -> None:
    """The best linear rule on them, fitted to 1,000 pictures, is no better than chance on 400 others."""
    x, label = scenes(1_000, 1)
    rule = torch.linalg.lstsq(colour_facts(x), label[:, None] * 2.0 - 1).solution
    other, truth = scenes(400, 2)
    right = ((colour_facts(other) @ rule)[:, 0] > 0) == truth.bool()
    assert float(right.float().mean()) < 0.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_what_colours_do_not_tell() -> None:
    """Trained for 160 steps of 16 pictures, accuracy on 256 others; a minute of one core."""
    torch.manual_seed(0)
    network = DynamicVis((16, 24, 32, 48), (2, 2, 2, 2), side=SIDE)
    head = torch.nn.Linear(48, 2)
    parameters = [*network.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS)
    for step in range(STEPS):
        x, label = scenes(16, 10 + step)
        loss = functional.cross_entropy(head(network.image_vectors(x)), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x, truth = scenes(256, 9_999)
    with torch.inference_mode():
        found = head(network.eval().image_vectors(x)).argmax(1)
    assert float((found == truth).float().mean()) > 0.9
