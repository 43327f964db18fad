"""Maps of classes beside a score of change: the published rule, and how tiles are blended by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tilewright.errors import KernelError
from tilewright.kernels.change.semantic import MAMBA_SCD_TINY, SECOND, Semantic
from tilewright.kernels.contract import InputSpec
from tilewright.kernels.load import load_kernel
from tilewright.kernels.nets.forward import maps_of_logits, votes_where_changed


class Logits(nn.Module):
    """Returns what it was made with."""

    def __init__(self, *raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, *_: Tensor) -> tuple[Tensor, ...]:
        return self.raw


def random_logits(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, channels, 40, 40) for channels in (2, 7, 7)]
    change, before, after = (3 * torch.randn(shape, generator=draw) for shape in shapes)
    return change, before, after


def test_labels_are_the_class_times_the_mask_of_change() -> None:
    change, before, after = random_logits()
    image = torch.zeros(2, 2, 3, 40, 40)
    found = maps_of_logits(Logits(change, before, after), {"image": image}, threshold=0.5)
    mask = change.argmax(1)
    assert torch.equal((found["score"] >= 0.5)[:, 0].long(), mask)
    assert torch.equal(found["before"].argmax(1), before.argmax(1) * mask)
    assert torch.equal(found["after"].argmax(1), after.argmax(1) * mask)


def test_another_threshold_masks_other_pixels() -> None:
    change, before, after = random_logits(1)
    image = torch.zeros(2, 2, 3, 40, 40)
    found = maps_of_logits(Logits(change, before, after), {"image": image}, threshold=0.9)
    mask = (change.softmax(1)[:, 1] >= 0.9).long()
    assert 0 < int(mask.sum()) < int(change.argmax(1).sum())
    assert torch.equal(found["before"].argmax(1), before.argmax(1) * mask)


def test_votes_do_not_jump_at_the_threshold() -> None:
    classes = torch.tensor([0.1, 0.2, 0.7]).view(1, 3, 1, 1)
    below, above = (
        votes_where_changed(classes, torch.full((1, 1, 1, 1), score), 0.5) for score in (0.499, 0.501)
    )
    assert below.argmax() == 0
    assert above.argmax() == 2
    assert (above - below).abs().max() < 2e-3


def test_a_tile_in_doubt_gives_way_to_a_tile_that_is_sure() -> None:
    doubt, sure = torch.full((1, 1, 1, 1), 0.45), torch.full((1, 1, 1, 1), 0.9)
    tree = torch.tensor([0.1, 0.2, 0.7]).view(1, 3, 1, 1)
    votes = votes_where_changed(tree, doubt, 0.5) + votes_where_changed(tree, sure, 0.5)
    assert (doubt + sure) / 2 >= 0.5
    assert votes.argmax() == 2


def test_describes_its_maps() -> None:
    spec = load_kernel("mamba-scd-tiny", threshold=0.7).spec
    assert list(spec.outputs) == ["score", "change", "before", "after"]
    assert spec.outputs["before"].classes == SECOND
    assert spec.outputs["before"].forward_channels == (1, 7)
    assert spec.outputs["score"].threshold == 0.7
    assert "0.7" in spec.outputs["after"].description


def test_gives_the_network_the_threshold_it_was_asked_for() -> None:
    image = torch.zeros(1, 2, 3, 40, 40)
    raw = tuple(x[:1] for x in random_logits(2))
    share = {}
    for threshold in (0.1, 0.9):
        network = MAMBA_SCD_TINY._network(threshold)
        found = maps_of_logits(Logits(*raw), {"image": image}, **network.options)
        share[threshold] = float((found["before"].argmax(1) > 0).float().mean())
    assert share[0.1] > share[0.9] + 0.2


def test_takes_further_inputs_and_other_maps() -> None:
    described = Semantic(
        name="other",
        about="",
        published=MAMBA_SCD_TINY.published,
        norm=MAMBA_SCD_TINY.norm,
        tile=MAMBA_SCD_TINY.tile,
        stride=32,
        reach=MAMBA_SCD_TINY.reach,
        citation="",
        licence="",
        classes=("land", "water"),
        maps={"after": "Cover at the second date"},
        masked=False,
        layers={"map": InputSpec(bands=("class",))},
    )
    spec = described(low=0, high=1).spec
    assert list(spec.inputs) == ["image", "map"]
    assert list(spec.outputs) == ["score", "change", "after"]
    assert spec.outputs["after"].description == "Cover at the second date"


def test_refuses_a_threshold_that_is_no_score() -> None:
    with pytest.raises(KernelError, match="threshold=2 is no score"):
        load_kernel("mamba-scd-tiny", threshold=2)
