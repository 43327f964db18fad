"""DDPM-CD around its network: weights of two files, noise that belongs to the ground, options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official import ROOT
from safetensors.torch import save_file
from torch import nn

from tilewright.errors import KernelError, WeightsError
from tilewright.kernels.change.ddpm_cd import DDPM_CD, official_name
from tilewright.kernels.contract import Context, InputSpec, KernelSpec, OutputSpec
from tilewright.kernels.nets.ddpm_cd import score_of_ddpm_cd
from tilewright.kernels.nets.forward import Unfilled
from tilewright.kernels.published import Published, make_kernel

SPEC = KernelSpec(
    name="two-parts", inputs={"image": InputSpec(dates=2)}, outputs={"score": OutputSpec(kind="score")}
)


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.netG = nn.Linear(3, 2)
        self.netCD = nn.ModuleDict({"decoder": nn.Linear(2, 1)})


TWO_PARTS = Published(f"{__name__}:TwoParts", f"{__name__}:read", rename=official_name)


def read(network: nn.Module, inputs: dict[str, torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
    return {"score": inputs["image"][:, 0]}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """A network as two files, whose names lack the part of the network that they belong to."""
    paths = (tmp_path / "gen.safetensors", tmp_path / "head.safetensors")
    save_file({"weight": torch.full((2, 3), 2.0), "bias": torch.zeros(2)}, paths[0])
    save_file({"decoder.weight": torch.full((1, 2), 3.0), "decoder.bias": torch.ones(1)}, paths[1])
    return paths


def test_weights_of_two_files_are_put_together(parts: tuple[Path, Path]) -> None:
    kernel = make_kernel(TWO_PARTS, SPEC, parts)
    assert not kernel.untrained
    assert kernel.weights == f"{parts[0]} + {parts[1]}"
    state = kernel.module.state_dict()
    assert state["netG.weight"].unique().tolist() == [2.0]
    assert state["netCD.decoder.weight"].unique().tolist() == [3.0]


def test_checksum_follows_each_file(parts: tuple[Path, Path]) -> None:
    other = parts[1].with_name("other.safetensors")
    save_file({"decoder.weight": torch.zeros(1, 2), "decoder.bias": torch.ones(1)}, other)
    sums = {
        make_kernel(TWO_PARTS, SPEC, files).weights_sha256 for files in (parts, (parts[0], other), parts[0])
    }
    assert len(sums) == 3


def test_half_of_the_weights_is_refused(parts: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match=r"2 missing: netCD\.decoder"):
        _ = make_kernel(TWO_PARTS, SPEC, parts[0]).module


def test_the_same_part_twice_is_refused(parts: tuple[Path, Path]) -> None:
    with pytest.raises(WeightsError, match="in another file too: bias, weight"):
        _ = make_kernel(TWO_PARTS, SPEC, (parts[0], parts[0])).module


def test_parameters_are_left_as_they_were_and_buffers_are_not() -> None:
    values = nn.Parameter(torch.full((4,), 7.0))
    with Unfilled():
        nn.init.normal_(values)
        nn.init.uniform_(values, -1.0, 1.0)
        buffer = torch.full((4,), 7.0).normal_()
    assert values.tolist() == [7.0] * 4
    assert buffer.tolist() != [7.0] * 4


def test_names_of_both_files() -> None:
    names = list(json.loads((ROOT / "ddpm_cd" / "keys.json").read_text()))
    in_files = [name.partition(".")[2] for name in names]
    assert [official_name(name) for name in in_files] == names
    assert [official_name(name) for name in names] == names


class Watched(nn.Module):
    """Stands in for the network and keeps the noise that it was given."""

    steps = (50, 100)

    def logits(self, a: torch.Tensor, b: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
        self.noise = noise
        return torch.cat((a[:, :1], b[:, :1]), dim=1)


def noise_at(row: int, col: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    network = Watched()
    context = Context(
        origin=torch.tensor([[row, col]]),
        times=torch.zeros(1, 2, dtype=torch.int64),
        lonlat=torch.zeros(1, 2, dtype=torch.float64),
        resolution=1.0,
        seed=seed,
    )
    score_of_ddpm_cd(network, {"image": torch.zeros(1, 2, 3, 32, 32)}, context=context)  # type: ignore[arg-type]
    return network.noise


def test_noise_belongs_to_the_ground() -> None:
    here, there, other = noise_at(0, 0), noise_at(16, -8), noise_at(0, 0, seed=1)
    assert len(here) == 4
    for a, b, c in zip(here, there, other, strict=True):
        assert torch.equal(a[..., 16:, :24], b[..., :16, 8:])
        assert not torch.equal(a, c)
    assert len({one.flatten()[0].item() for one in here}) == 4  # each date and strength has its own


def test_options() -> None:
    kernel = DDPM_CD(steps=(50, 100, 400), seed=3)
    assert (kernel.spec.seed, kernel.options["steps"], kernel.untrained) == (3, [50, 100, 400], True)
    with pytest.raises(KernelError, match="steps"):
        DDPM_CD(steps=(0,))
    with pytest.raises(KernelError, match="a head without the denoiser"):
        DDPM_CD(head="head.pth")
