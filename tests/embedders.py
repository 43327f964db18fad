"""A tiny network that embeds pictures and texts, and weights by the rule of the official numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from official import filled
from torch import Tensor, nn

from tilewright.kernels.contract import InputSpec
from tilewright.kernels.embed import Profile, Tower

COLOURS = ("red", "green", "blue")


class Colours(nn.Module):
    """Vectors are the mean colour; texts are names of colours; the map has a vector for each 4 px."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain]))

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        return pixels.mean((2, 3)) * self.gain

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        return nn.functional.avg_pool2d(pixels, 4) * self.gain

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        rows = [[3.0 * float(colour in text) for colour in COLOURS] for text in texts]
        return torch.tensor(rows)


def colours(name: str = "colours", side: int = 8) -> Profile:
    image = InputSpec(bands=COLOURS, units="8-bit", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    return Profile(
        name=name,
        description="mean colours",
        network="embedders:Colours",
        towers={"image": Tower(image, side, (0.0, 255.0))},
        dim=3,
        citation="",
        licence="",
        dense=True,
    )


def weights_by_rule(
    module: nn.Module, special: Mapping[str, Tensor] | None = None, keep: tuple[str, ...] = ()
) -> None:
    """Fill a network as the official numbers were filled; ``keep`` are ends of names that stay as built."""
    state = module.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not name.endswith(keep or ("\0",)):
            values = torch.from_numpy(filled(name, tuple(tensor.shape), None, 1.0))
            tensor.copy_((special or {}).get(name, values))


def shapes(module: nn.Module) -> dict[str, list[object]]:
    return {
        name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in module.state_dict().items()
    }
