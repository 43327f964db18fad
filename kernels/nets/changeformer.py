"""ChangeFormer: a siamese Mix Transformer, differences that are learned at four scales, and a light decoder.

Bandara, W. G. C., Patel, V. M. (2022): A Transformer-Based Siamese Network for Change Detection,
https://arxiv.org/abs/2201.01293, version 6 of the authors' code. Written from the paper and from the names and shapes
of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .forward import binary
from .mit import MixTransformer
from .parts import resize

__all__ = ["ChangeFormer"]

WIDTHS = (64, 128, 320, 512)
LEVELS = (4, 3, 2, 1)
"""Numbers of the four levels, coarsest first: the order in which all is made and returned."""


class _Linear(nn.Module):
    """The same linear map at every pixel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _convs(channels: int, out: int, *end: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(out),
        nn.Conv2d(out, out, 3, padding=1),
        *end,
    )


class _Conv(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(x)


class _Up(nn.Module):
    """To twice the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv2d = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(x)


class _Residual(nn.Module):
    """Two convolutions, of whose result a tenth is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Conv(width, width)
        self.conv2 = _Conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.conv2(functional.relu(self.conv1(x)))


class _Decoder(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        for i in LEVELS:
            setattr(self, f"linear_c{i}", _Linear(WIDTHS[i - 1], width))
        for i in LEVELS:
            setattr(self, f"diff_c{i}", _convs(2 * width, width, nn.ReLU()))
        for i in LEVELS:
            setattr(self, f"make_pred_c{i}", _convs(width, classes))
        self.linear_fuse = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width))
        self.convd2x = _Up(width)
        self.dense_2x = nn.Sequential(_Residual(width))
        self.convd1x = _Up(width)
        self.dense_1x = nn.Sequential(_Residual(width))
        self.change_probability = _Conv(width, classes)

    def _differences(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
        """Return what differs at each level, coarsest first; each one is added to the next finer one."""
        found: list[Tensor] = []
        for i in LEVELS:
            linear, diff = self.get_submodule(f"linear_c{i}"), self.get_submodule(f"diff_c{i}")
            x = diff(torch.cat((linear(a[i - 1]), linear(b[i - 1])), dim=1))
            found.append(x + resize(found[-1], x.shape[-2:]) if found else x)
        return found

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of both dates, finest first -> logits at the four levels, then those of the pixels."""
        levels = self._differences(a, b)
        side = levels[-1].shape[-2:]
        x = self.linear_fuse(torch.cat([*(resize(level, side) for level in levels[:-1]), levels[-1]], dim=1))
        x = self.dense_2x(self.convd2x(x))
        x = self.dense_1x(self.convd1x(x))
        early = (
            self.get_submodule(f"make_pred_c{i}")(level) for i, level in zip(LEVELS, levels, strict=True)
        )
        return (*early, self.change_probability(x))


class ChangeFormer(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 32 -> five logits ``[N, 2, h, w]``.

    The first four are those of the training, at strides of 32, 16, 8 and 4 px; the last one is the result: no change,
    change, ``[N, 2, H, W]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Tenc_x2 = MixTransformer(WIDTHS, (3, 3, 4, 3), sides=(7, 7, 7, 7))
        self.TDec_x2 = _Decoder(256, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, coarsest first."""
        return self.TDec_x2(self.Tenc_x2(a), self.Tenc_x2(b))


def score_of_changeformer(network: nn.Module, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change, from the last of the outputs."""
    return binary(network(*inputs["image"].unbind(1))[-1].softmax(1)[:, 1:2])
