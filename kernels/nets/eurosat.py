"""A small dual encoder: tiles by a convolutional tower, texts by a sentence encoder and one linear map.

The tower is fully convolutional: a vector for each cell of 16 px, whose mean is the vector of the tile. So a tile that
holds two things has a vector between theirs, and the cells say where each is. Its parts are those of He et al. 2015
(https://arxiv.org/abs/1512.03385), with the normalisation of Ioffe and Szegedy 2015 (https://arxiv.org/abs/1502.03167)
while it is trained; `folded` merges that into the convolutions, so what is shipped and mapped has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..embed.minilm import WIDTH, sentence_encoder

__all__ = ["CELL", "DualEncoder", "TileTower", "folded"]

CELL = 16
"""Side in pixels of the cells of a tile."""

DISPLAY_MEAN = (88.3, 97.2, 103.6)
"""Mean of red, green and blue over EuroSAT's pictures, which are bytes."""
DISPLAY_STD = (51.4, 34.9, 29.6)
"""Their standard deviation."""


class Unit(nn.Module):
    """A convolution, normalised over the batch where ``norm`` is True."""

    def __init__(self, channels: int, out: int, side: int = 3, stride: int = 1, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, side, stride, side // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W]`` -> ``[N, out, H / stride, W / stride]``, not yet rectified."""
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.first = Unit(channels, channels, norm=norm)
        self.second = Unit(channels, channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class TileTower(nn.Module):
    """Red, green and blue ``[N, 3, H, W]`` of any size -> vectors of cells or of whole tiles.

    1.2 M parameters, 42 million multiplications for a tile of 64 px.
    """

    def __init__(self, dim: int, *, norm: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.to_half = Unit(3, 32, stride=2, norm=norm)
        self.to_quarter = Unit(32, 48, stride=2, norm=norm)
        self.quarter_block = Residual(48, norm=norm)
        self.to_eighth = Unit(48, 96, stride=2, norm=norm)
        self.eighth_block = Residual(96, norm=norm)
        self.to_cells = Unit(96, 192, stride=2, norm=norm)
        self.cells_block = Residual(192, norm=norm)
        self.wide = Unit(192, 256, 1, norm=norm)
        self.head = nn.Linear(256, dim)

    def features(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]``, normalised -> ``[N, 256, H / 16, W / 16]``, rounded up.

        Values are clipped to those that a byte can have, for EuroSAT's pictures were. Channels lie last in memory while
        they are convolved: an eighth less time on a CPU.
        """
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (DISPLAY_MEAN, DISPLAY_STD))
        x = pixels.clamp(-mean / std, (255.0 - mean) / std).contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.to_half(x))
        x = self.quarter_block(functional.relu(self.to_quarter(x)))
        x = self.eighth_block(functional.relu(self.to_eighth(x)))
        x = self.cells_block(functional.relu(self.to_cells(x)))
        return functional.relu(self.wide(x))

    def cells(self, pixels: Tensor) -> Tensor:
        """Return the vectors of cells, ``[N, dim, H / 16, W / 16]``."""
        return functional.conv2d(self.features(pixels), self.head.weight[:, :, None, None], self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the vectors of tiles ``[N, dim]``, the means of their cells."""
        return self.head(self.features(pixels).mean((2, 3)))


def folded(trained: TileTower) -> TileTower:
    """Return the tower without normalisation that gives what ``trained`` gives in evaluation, to rounding."""
    plain = TileTower(trained.dim)
    plain.head.load_state_dict(trained.head.state_dict())
    theirs = dict(trained.named_modules())
    for name, unit in plain.named_modules():
        if isinstance(unit, Unit):
            _fold(theirs[name], unit)
    return plain.eval().requires_grad_(False)


def _fold(trained: nn.Module, into: Unit) -> None:
    norm, conv = trained.norm, trained.conv
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    into.conv.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})


class DualEncoder(nn.Module):
    """The tower, and the linear map from sentences' vectors into the same space.

    The sentence encoder lies in a package of its own and is no part of the ``state_dict``; it is loaded when the first
    text comes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.image = TileTower(dim)
        self.text = nn.Linear(WIDTH, dim)

    def image_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return ``[N, dim]`` for normalised tiles ``[N, 3, H, W]``; all towers are this one."""
        return self.image(pixels)

    def dense_vectors(self, pixels: Tensor, tower: str = "image") -> Tensor:
        """Return ``[N, dim, H / 16, W / 16]`` for normalised tiles ``[N, 3, H, W]``."""
        return self.image.cells(pixels)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return ``[n, dim]`` for texts; raises `WeightsError` where the sentence encoder is not installed."""
        weight = self.text.weight
        with torch.inference_mode():
            return self.text(sentence_encoder()(texts).to(weight.device, weight.dtype))
