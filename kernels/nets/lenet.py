"""LENet: two streams of Swin V2 that weight each other by their difference, and pyramids that exchange levels.

Dong, S. et al. (2025): A Remote Sensing Image Change Detection Method Integrating Layer Exchange and Channel-Spatial
Differences, https://arxiv.org/abs/2501.10905. Written in our own words from the paper, the names and shapes of the
official network, and, where these are silent, the order of its steps. Its features are timm's
``swinv2_base_window8_256``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import timm
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from .forward import binary
from .parts import resize

__all__ = ["LENet", "score_of_lenet"]

SIDE = 256
"""The only side: windows and positions of the decoder are laid out for it."""
WIDTHS = (128, 256, 512, 1024)
"""Channels of the features at strides of 4, 8, 16 and 32 px."""
INNER = 256
Pair = tuple[Tensor, Tensor]


class _Weighting(nn.Module):
    """Both dates under weights that are small where they agree: by place over channels, by channel over places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convA = BasicBlock(channels, channels)
        self.convB = BasicBlock(channels, channels)

    def forward(self, a: Tensor, b: Tensor) -> Pair:
        """Two maps ``[N, C, H, W]`` -> two of the same shape."""
        places = functional.cosine_similarity(a, b, dim=1)[:, None]
        channels = functional.cosine_similarity(a.flatten(2), b.flatten(2), dim=2)[:, :, None, None]
        weights = (-places).sigmoid() * (-channels).sigmoid()
        return a + self.convA(a * weights), b + self.convB(b * weights)


class _Conv(nn.Module):
    """Convolution, and batch normalisation where ``normed``."""

    def __init__(self, channels: int, out: int, kernel: int = 1, *, normed: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=not normed)
        if normed:
            self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class _Pyramid(nn.Module):
    """Feature pyramid, after Lin et al. 2016, https://arxiv.org/abs/1612.03144."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_Conv(width, INNER) for width in WIDTHS)
        self.fpn_convs = nn.ModuleList(_Conv(INNER, INNER, 3) for _ in WIDTHS)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``, finest first -> as many of one width."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + functional.interpolate(levels[i + 1], size=levels[i].shape[-2:])
        return [conv(x) for conv, x in zip(self.fpn_convs, levels, strict=True)]


class _Windows(nn.Module):
    """Two blocks of Swin V2, the second with shifted windows, on ``[N, C, side, side]``."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinTransformerV2Block(INNER, side, heads, window_size=8, shift_size=shift) for shift in (0, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Excitation(nn.Module):
    """Squeeze and excitation, and half as many channels from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Conv(2 * INNER, INNER // 8)
        self.conv2 = _Conv(INNER // 8, 2 * INNER)
        self.conv3 = _Conv(2 * INNER, INNER, normed=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.conv1(x.mean((2, 3), keepdim=True)))
        return functional.hardsigmoid(self.conv3(x * functional.hardsigmoid(self.conv2(inner))))


def _numbered(parts: Sequence[nn.Module]) -> nn.Sequential:
    """Parts with the numbers 1, 2, ... as the official names have them."""
    return nn.Sequential(nn.Identity(), *parts)


def _exchanged(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Give every other level, from the first, to the other date."""
    pairs = [(x, y) if i % 2 else (y, x) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    return [x for x, _ in pairs], [y for _, y in pairs]


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("swinv2_base_window8_256", pretrained=False, features_only=True)
        self.fpnA = _Pyramid()
        self.fpnB = _Pyramid()
        sides = [SIDE // 4 // 2**i for i in range(4)]
        self.decode_layersA = _numbered([_Windows(side, 4 * 2**i) for i, side in enumerate(sides)])
        self.decode_layersB = _numbered([_Windows(side, 4 * 2**i) for i, side in enumerate(sides)])
        self.channelA = _numbered([_Excitation() for _ in sides])
        self.channelB = _numbered([_Excitation() for _ in sides])
        self.re_weight3 = _Weighting(INNER)
        self.re_weight2 = _Weighting(INNER)
        self.re_weight1 = _Weighting(INNER)
        self.rwe = nn.Sequential(*(_Weighting(width) for width in (WIDTHS[0], *WIDTHS)))

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Return maps of both dates ``[N, 512, h, w]`` at strides of 8, 4 and 4 px."""
        levels_a, levels_b = self._features(a, b)
        a, b = self._decoded(4, levels_a[3], levels_b[3])
        a, b = _twice(a), _twice(b)
        found = []
        for level in (3, 2, 1):
            a, b = self._decoded(level, levels_a[level - 1] + b, levels_b[level - 1] + a)
            if level > 1:
                a, b = _twice(a), _twice(b)
            a, b = self.get_submodule(f"re_weight{level}")(a, b)
            found.append(torch.cat((a, b), dim=1))
        return found

    def _features(self, a: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both pyramids, finest first."""
        of_a, of_b = [], []
        for stage, weighting in zip(self.model.children(), self.rwe, strict=True):
            pair = weighting(stage(a).permute(0, 3, 1, 2), stage(b).permute(0, 3, 1, 2))
            a, b = (x.permute(0, 2, 3, 1) for x in pair)
            of_a.append(pair[0])
            of_b.append(pair[1])
        of_a, of_b = _exchanged(of_a[1:], of_b[1:])
        return _exchanged(self.fpnA(of_a), self.fpnB(of_b))

    def _decoded(self, level: int, a: Tensor, b: Tensor) -> Pair:
        """Each date after its windows beside the other one before them."""
        of_a = torch.cat((self.decode_layersA[level](a), b), dim=1)
        of_b = torch.cat((self.decode_layersB[level](b), a), dim=1)
        return self.channelA[level](of_a), self.channelB[level](of_b)


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(INNER, 2, 1)
        self.convs = nn.Sequential(_Conv(2 * INNER, INNER, 3, normed=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(functional.relu(self.convs(x)))


class _UnreadAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        order = (13 * torch.arange(7)[:, None] + torch.arange(7)).flatten()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(13 * 13, heads))
        self.register_buffer("relative_position_index", order[:, None] - order + 84)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


def _unread_block(width: int, heads: int) -> nn.ModuleDict:
    inner = nn.Sequential(nn.Linear(width, 4 * width))
    return nn.ModuleDict(
        {
            "norm1": nn.LayerNorm(width),
            "attn": nn.ModuleDict({"w_msa": _UnreadAttention(width, heads)}),
            "norm2": nn.LayerNorm(width),
            "ffn": nn.ModuleDict({"layers": nn.ModuleList([inner, nn.Linear(4 * width, width)])}),
        }
    )


def _unread_stage(width: int, depth: int, heads: int, *, last: bool) -> nn.ModuleDict:
    parts: dict[str, nn.Module] = {"blocks": nn.ModuleList(_unread_block(width, heads) for _ in range(depth))}
    if not last:
        reduction = nn.Linear(4 * width, 2 * width, bias=False)
        parts["downsample"] = nn.ModuleDict({"norm": nn.LayerNorm(4 * width), "reduction": reduction})
    return nn.ModuleDict(parts)


def _unread_backbone() -> nn.ModuleDict:
    """A Swin-T that the official configuration builds and nothing calls: it is in the checkpoints, and that is all."""
    depths, heads = (2, 2, 6, 2), (3, 6, 12, 24)
    widths = [96 * 2**i for i in range(4)]
    patches = {"projection": nn.Conv2d(3, widths[0], 4, stride=4), "norm": nn.LayerNorm(widths[0])}
    stages = [_unread_stage(widths[i], depths[i], heads[i], last=i == 3) for i in range(4)]
    norms = {f"norm{i}": nn.LayerNorm(width) for i, width in enumerate(widths)}
    return nn.ModuleDict({"patch_embed": nn.ModuleDict(patches), "stages": nn.ModuleList(stages), **norms})


class LENet(nn.Module):
    """Two dates ``[N, 3, 256, 256]``, normalised.

    Returns logits of no change and of change: ``[N, 2, 256, 256]``, the same before they were resized
    ``[N, 2, 64, 64]``, and those of the two heads that help in training, ``[N, 2, 32, 32]`` and ``[N, 2, 64, 64]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _unread_backbone()
        self.decode_head = _Classifier()
        self.model = _Network()
        self.auxiliary_head = nn.ModuleList([_Classifier(), _Classifier()])

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits, finest first as said above."""
        coarse, middle, fine = self.model(a, b)
        logits = self.decode_head(fine)
        help_coarse, help_middle = self.auxiliary_head
        return resize(logits, a.shape[-2:]), logits, help_coarse(coarse), help_middle(middle)


def score_of_lenet(network: LENet, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change. argmax is a score of 0.5 and more."""
    return binary(network(*inputs["image"].unbind(1))[0].softmax(1)[:, 1:2])
