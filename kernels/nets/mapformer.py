"""MapFormer: two dates mixed in ways that the map of the first date chooses between, place by place.

Bernhard, M., Strauß, N., Schubert, M. (2023): MapFormer: Boosting Change Detection by Using Pre-change Information,
https://arxiv.org/abs/2303.17859. Written from the paper and from the names and shapes of the official network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .forward import binary
from .mit import MixTransformer
from .parts import resize

__all__ = ["MapFormer", "MapFormerSCD"]

WIDTHS = (64, 128, 320, 512)
CHANNELS = 256
MIXTURES = 10
"""Ways of mixing the dates, between which the map chooses for each place and channel."""
MAP = 32
"""Channels of the encoded map."""
STRIDE = 4
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and standard deviation of 8-bit red, green and blue."""


class _Conv(nn.Module):
    """Convolution without bias, normalisation, and ReLU where there is one."""

    def __init__(self, channels: int, out: int, side: int = 1, *, groups: int = 1, relu: bool = True) -> None:
        super().__init__()
        # Wide convolutions look at every second pixel.
        gap = 1 if side == 1 else 2
        padding = gap * (side // 2)
        self.conv = nn.Conv2d(channels, out, side, padding=padding, dilation=gap, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return functional.relu(x) if self.relu else x


class _MapEncoder(nn.Module):
    """Labels ``[N, H, W]``, of which ``classes`` is unknown -> ``[N, MAP, H / 4, W / 4]``."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layer1 = nn.Conv2d(classes + 1, MAP, 1)
        self.layer2 = _Conv(MAP, MAP, 5)
        self.layer3 = _Conv(MAP, MAP, 5)

    def forward(self, labels: Tensor, size: Sequence[int]) -> Tensor:
        each = functional.one_hot(labels.long(), self.classes + 1).permute(0, 3, 1, 2)
        x = resize(each.to(self.layer1.weight.dtype), size)
        return self.layer3(self.layer2(self.layer1(x)))


class _Fusion(nn.Module):
    """Both dates and the map -> the mixtures ``[N, MIXTURES, CHANNELS, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = MIXTURES * CHANNELS
        self.conv1 = _Conv(2 * channels + MAP, wide)
        self.conv2 = _Conv(wide, wide, groups=MIXTURES)

    def forward(self, a: Tensor, b: Tensor, known: Tensor) -> Tensor:
        mixed = self.conv2(self.conv1(torch.cat((a, b, known), dim=1)))
        return mixed.unflatten(1, (MIXTURES, CHANNELS))


class _Contrast(nn.Module):
    """A segmentation head that only the training uses; the checkpoints hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(CHANNELS, MAP, 1)
        self.convs = nn.ModuleList(_Conv(width, CHANNELS) for width in WIDTHS)
        self.fusion_conv = _Conv(len(WIDTHS) * CHANNELS, CHANNELS)


class _Head(nn.Module):
    """Maps of both dates, finest first, and labels -> one map of 256 channels, and its classifiers.

    ``classifiers`` has their names and numbers of classes, in the order of the results.
    """

    def __init__(self, classes: int, classifiers: Mapping[str, int]) -> None:
        super().__init__()
        self.classifiers = tuple(classifiers)
        for name, count in classifiers.items():
            self.add_module(name, nn.Conv2d(CHANNELS, count, 1))
        self.map_encoder = _MapEncoder(classes)
        self.temporal_fusion_modules = nn.ModuleList(_Fusion(width) for width in WIDTHS)
        self.attention_weights = nn.ModuleList(nn.Conv2d(MAP, MIXTURES * CHANNELS, 1) for _ in WIDTHS)
        self.fusion_conv = _Conv(len(WIDTHS) * CHANNELS, CHANNELS)
        self.contrastive_img_forward = _Contrast()

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        size = a[0].shape[-2:]
        known = self.map_encoder(labels, [side // STRIDE for side in labels.shape[-2:]])
        levels = []
        for one, two, mix, choose in zip(
            a, b, self.temporal_fusion_modules, self.attention_weights, strict=True
        ):
            here = resize(known, one.shape[-2:])
            share = choose(here).unflatten(1, (MIXTURES, CHANNELS)).softmax(1)
            levels.append(resize((mix(one, two, here) * share).sum(1), size))
        x = self.fusion_conv(torch.cat(levels, dim=1))
        return [self.get_submodule(name)(x) for name in self.classifiers]


class _Backbone(nn.Module):
    """One encoder for both dates."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MixTransformer(WIDTHS, (3, 4, 6, 3), heads=(1, 2, 5, 8))

    def forward(self, a: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = [x.chunk(2) for x in self.backbone(torch.cat((a, b)))]
        return [one for one, _ in maps], [two for _, two in maps]


class _Change(nn.Module):
    """The names of the official head for change alone, whose second part, for classes, has no tensors."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bc_head = _Head(classes, {"conv_seg": 2})

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        return self.bc_head(a, b, labels)


class MapFormer(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, and labels ``[N, H, W]`` of the first -> logits of no change and change.

    They come twice: ``[N, 2, H, W]``, resized, and ``[N, 2, H / 4, W / 4]``. A label of ``classes`` is unknown.
    """

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.decode_head = self._head(classes)

    def _head(self, classes: int) -> nn.Module:
        return _Change(classes)

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the pixels, then all logits at a stride of 4 px."""
        low = self.decode_head(*self.backbone(a, b), labels)
        return (resize(low[0], a.shape[-2:]), *low)


class MapFormerSCD(MapFormer):
    """`MapFormer` that gives in the end the logits ``[N, classes, H / 4, W / 4]`` of the second date, too."""

    def _head(self, classes: int) -> nn.Module:
        return _Head(classes, {"conv_seg_bc": 2, "conv_seg_sem": classes})


def _raw(network: nn.Module, inputs: Mapping[str, Tensor], classes: int) -> tuple[Tensor, ...]:
    """Clip pictures to what 8 bits hold, as the official loader does, and take labels that are none as unknown."""
    image, labels = inputs["image"], inputs["map"][:, 0, 0].round()
    mean, std = (image.new_tensor(row).view(-1, 1, 1) for row in IMAGENET)
    image = torch.minimum(torch.maximum(image, -mean / std), (255 - mean) / std)
    known = (labels >= 0) & (labels < classes)
    return network(*image.unbind(1), torch.where(known, labels, float(classes)))


def score_of_mapformer(
    network: nn.Module, inputs: Mapping[str, Tensor], *, classes: int, **_: object
) -> dict[str, Tensor]:
    """Two dates and a map -> score of change."""
    return binary(_raw(network, inputs, classes)[0].softmax(1)[:, 1:2])


def maps_of_mapformer(
    network: nn.Module, inputs: Mapping[str, Tensor], *, classes: int, **_: object
) -> dict[str, Tensor]:
    """Two dates and a map -> score of change, and probabilities of the classes at the second date."""
    change, _low, cover = _raw(network, inputs, classes)
    after = resize(cover, change.shape[-2:]).softmax(1)
    return {**binary(change.softmax(1)[:, 1:2]), "after": after}
