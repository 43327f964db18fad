"""BTC: a siamese Swin transformer, the signed difference of its features, and UPerNet.

Rolih, B., Fučka, M., Wolf, F., Čehovin Zajc, L. (2025): Be the Change You Want to See: Revisiting Remote Sensing
Change Detection Practices, https://arxiv.org/abs/2507.03367. Written from the paper and from the names and shapes of
the published weights, whose encoder has the names of transformers' Mask2Former.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .forward import binary
from .parts import UPerNet, resize
from .swin import SwinBackbone

__all__ = ["BTC"]

SIDE = 256


class _Encoder(nn.Module):
    """Features after the four stages, at strides of 4, 8, 16 and 32 px."""

    def __init__(self, width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> None:
        super().__init__()
        self.backbone = SwinBackbone(width, depths, heads, window)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.backbone(x)


class BTC(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised -> one logit a pixel ``[N, 1, 256, 256]``, whatever the size of the input.

    The difference is the first date minus the second, so the dates are not alike.
    """

    def __init__(self, width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> None:
        super().__init__()
        self.enc = _Encoder(width, depths, heads, window)
        self.dec = UPerNet([width * 2**i for i in range(4)], 512, 1)

    def logit(self, a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
        """Return the logit of change at a size of its own."""
        maps = [x - y for x, y in (f.chunk(2) for f in self.enc(torch.cat((a, b))))]
        return resize(self.dec(maps), size)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logit of change at the size to which the official decoder brings everything."""
        return self.logit(a, b, (SIDE, SIDE))


def score_of_btc(network: BTC, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change, at the size of the tile."""
    before, after = inputs["image"].unbind(1)
    return binary(network.logit(before, after, before.shape[-2:]).sigmoid())
