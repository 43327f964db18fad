"""Mamba-FCS: the spectra of both dates beside their features, and classes that look where it changed.

Wijenayake, B. et al. (2025): Mamba-FCS, https://arxiv.org/abs/2508.08232, on VMamba. Written from the paper, from what
the official implementation is known to do, and from the names and shapes of the published weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .changemamba import ResBlock
from .parts import resize
from .vmamba import ToFirst, ToLast, VMamba, VSSBlock

__all__ = ["MambaFCS"]

REDUCTION = 16


def _gate(channels: int) -> nn.Sequential:
    """Weights of channels from their means (or maxima); there may be fewer than 16 channels, and then no hidden one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors without elements
        return nn.Sequential(
            nn.Linear(channels, channels // REDUCTION),
            nn.ReLU(),
            nn.Linear(channels // REDUCTION, channels),
            nn.Sigmoid(),
        )


class _Excited(nn.Module):
    """Squeeze and excitation: channels weighed by their means over the tile."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excitation = _gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excitation(x.mean((-2, -1)))[..., None, None]


class _ExcitedBlock(ResBlock):
    """A residual block with squeeze and excitation before the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.se = _Excited(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(self.se(hidden) + x)


class _ChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = _gate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.fc(x.mean((-2, -1))) + self.fc(x.amax((-2, -1))))[..., None, None]


class _SpatialAttention(nn.Module):
    """Weights of places from the mean and the maximum of their channels; ``first`` is which of these comes first."""

    def __init__(self, *, bias: bool, mean_first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=bias)
        self.mean_first = mean_first

    def forward(self, x: Tensor) -> Tensor:
        found = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        return x * self.conv(torch.cat(found if self.mean_first else found[::-1], dim=1)).sigmoid()


class _Neighbours(nn.Module):
    """Channels weighed by their means and those of the four next to them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 5, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((-2, -1))[:, None]).sigmoid().transpose(1, 2)[..., None]


def _normed(*convolutions: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.BatchNorm2d(convolutions[-1].out_channels), nn.ReLU())


class _Pyramid(nn.Module):
    """Other channels by windows of 1, 3 and 5 px, weighed by channel and by place, and the input projected."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(channels, out, 1)
        self.branch1 = _normed(nn.Conv2d(channels, out, 1))
        self.branch3 = _normed(nn.Conv2d(channels, out, 3, padding=1))
        self.branch5 = _normed(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.Conv2d(channels, out, 1)
        )
        self.channel_att = _ChannelAttention(3 * out)
        self.spatial_att = _SpatialAttention(bias=True, mean_first=True)
        self.final_conv = _normed(nn.Conv2d(3 * out, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.cat((self.branch1(x), self.branch3(x), self.branch5(x)), dim=1)
        return self.final_conv(self.spatial_att(self.channel_att(found))) + self.shortcut(x)


class _Spectrum(nn.Module):
    """The amplitudes of the tile's spectrum, in logarithms, as if they were a map of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = _normed(nn.Conv2d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return self.proj(torch.fft.fft2(exact, norm="ortho").abs().log1p())


class _Unused(nn.Module):
    """Attention between the dates, in the checkpoints and without influence: the official forward never calls it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)


class _Fusion(nn.Module):
    """Both dates, their spectra and their difference in one map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fft_pre = _Spectrum(channels)
        self.fft_post = _Spectrum(channels)
        self.reduce_conv = nn.Conv2d(5 * channels, channels, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(channels)
        self.ch_gate = _Neighbours()
        self.sp_gate = _SpatialAttention(bias=False, mean_first=False)
        self.cross_attn = _Unused(channels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found = torch.cat((a, self.fft_pre(a), b, self.fft_post(b), (a - b).abs()), dim=1)
        return self.sp_gate(self.ch_gate(functional.relu(self.reduce_bn(self.reduce_conv(found)))))


class _Decoder(nn.Module):
    """What the decoders of change and of classes share: from level to level, coarsest first.

    The names count levels from the finest, those of the steps between them from the coarsest.
    """

    suffix = ""
    blocks = "st_block_{level}1"

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        levels = range(len(channels), 0, -1)
        for level in levels:
            block = nn.Sequential(ToLast(), VSSBlock(channels[level - 1]), ToFirst())
            self.add_module(self.blocks.format(level=level), block)
        self.add_fusion()
        for step, level in enumerate(levels[:-1], start=1):
            self.add_module(f"down_sample_{step}", _Pyramid(channels[level - 1], channels[level - 2]))
        for level in levels[1:]:
            self.add_module(f"smooth_layer_{level}{self.suffix}", _ExcitedBlock(channels[level - 1]))

    def add_fusion(self) -> None:
        """Add the modules that come after the blocks."""

    def level(self, level: int, x: Tensor, coarser: Tensor | None) -> Tensor:
        """Return a level from its own map and the one below, if there is one."""
        if coarser is not None:
            down = self.get_submodule(f"down_sample_{len(self.channels) - level}")
            smooth = self.get_submodule(f"smooth_layer_{level}{self.suffix}")
            x = smooth(x + resize(down(coarser), x.shape[-2:]))
        return self.get_submodule(self.blocks.format(level=level))(x)


class _ChangeDecoder(_Decoder):
    def add_fusion(self) -> None:
        for step, channels in enumerate(reversed(self.channels), start=1):
            self.add_module(f"fuse_layer_{step}", _Fusion(channels))

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of all levels, finest first."""
        found: list[Tensor] = []
        for level in range(len(self.channels), 0, -1):
            fused = self.get_submodule(f"fuse_layer_{len(self.channels) + 1 - level}")(
                a[level - 1], b[level - 1]
            )
            found.append(self.level(level, fused, found[-1] if found else None))
        return found[::-1]


class _SemanticDecoder(_Decoder):
    suffix = "_semantic"
    blocks = "st_block_{level}_semantic"

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels)
        self.smooth_layer_0_semantic = _ExcitedBlock(channels[0])

    def forward(self, maps: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
        """Return the finest map of one date; ``changes`` are the maps of the decoder of change."""
        x: Tensor | None = None
        for level in range(len(self.channels), 0, -1):
            x = self.level(level, maps[level - 1] * changes[level - 1].sigmoid(), x)
        return self.smooth_layer_0_semantic(x)


class MambaFCS(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised -> logits of change ``[N, 2, H, W]`` and of the classes at each date.

    The classes are ``[N, classes, H, W]``; class 0 is "unchanged".
    """

    def __init__(self, width: int, depths: Sequence[int], classes: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(len(depths))]
        self.encoder = VMamba(width, depths)
        self.decoder_bcd = _ChangeDecoder(channels)
        self.decoder_T1 = _SemanticDecoder(channels)
        self.decoder_T2 = _SemanticDecoder(channels)
        self.main_clf_cd = _Pyramid(width, 2)
        self.aux_clf = _Pyramid(width, classes)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of change, and of the classes before and after."""
        pairs = [x.chunk(2) for x in self.encoder(torch.cat((a, b)))]
        first, second = [x for x, _ in pairs], [y for _, y in pairs]
        changes = self.decoder_bcd(first, second)
        before = self.aux_clf(self.decoder_T1(first, changes))
        after = self.aux_clf(self.decoder_T2(second, changes))
        size = a.shape[-2:]
        return resize(self.main_clf_cd(changes[0]), size), resize(before, size), resize(after, size)
