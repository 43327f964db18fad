"""DualUNet of HySCDG: a U-Net for each date's land cover, and one for the change that sees what those two disagree on.

Benidir, Y., Gonthier, N., Mallet, C. (2025): The Change You Want To Detect, https://arxiv.org/abs/2503.15683. Written
from the paper and from the names and shapes of the published weights; the U-Nets are those of
segmentation-models-pytorch, as the authors' are.
"""

from __future__ import annotations

from collections.abc import Mapping

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from .forward import binary

__all__ = ["DualUNet"]


def _unet(channels: int, classes: int) -> smp.Unet:
    """Return a U-Net whose residual blocks start small, so that untrained ones stay in the range of float32.

    The start is that of Goyal et al. 2017, https://arxiv.org/abs/1706.02677, who begin at zero.
    """
    unet = smp.Unet("resnet50", encoder_weights=None, in_channels=channels, classes=classes)
    for name, parameter in unet.encoder.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.25)
    return unet


class DualUNet(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 32 -> logits, each ``[N, classes, H, W]``.

    They are those of no change and change, and of the land cover at the first and at the second date.
    """

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        self.model = _unet(6, 2)
        self.seg_model = _unet(3, classes)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of change, of the first and of the second date."""
        covers = [self.seg_model.encoder(date) for date in (a, b)]
        pair, *levels = self.model.encoder(torch.cat((a, b), dim=1))
        # The level before the encoder is the pictures themselves; it gets no difference, and no decoder reads it.
        mixed = [x + one - two for x, one, two in zip(levels, covers[0][1:], covers[1][1:], strict=True)]
        change = self.model.segmentation_head(self.model.decoder([pair, *mixed]))
        first, second = (self.seg_model.segmentation_head(self.seg_model.decoder(cover)) for cover in covers)
        return change, first, second


def maps_of_dual_unet(network: nn.Module, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change, and probabilities of the land cover at each, everywhere."""
    change, before, after = network(*inputs["image"].unbind(1))
    return {**binary(change.softmax(1)[:, 1:2]), "before": before.softmax(1), "after": after.softmax(1)}
