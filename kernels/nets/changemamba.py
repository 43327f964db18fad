"""ChangeMamba: two dates woven into one map in three ways, so that a scan of it goes through space and time.

Chen, H. et al. (2024): ChangeMamba, https://arxiv.org/abs/2404.03425: MambaBCD for binary and MambaSCD for semantic
change, on VMamba. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import resize
from .vmamba import ToFirst, ToLast, VMamba, VSSBlock

__all__ = ["ChangeDecoder", "MambaBCD", "MambaSCD", "ResBlock"]

WIDTH = 128


class ResBlock(nn.Module):
    """Two convolutions of 3 x 3 with normalisation, and the input added before the last ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(hidden)) + x)


def _block(*before: nn.Module) -> nn.Sequential:
    return nn.Sequential(*before, ToLast(), VSSBlock(WIDTH), ToFirst())


def _mixed(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())


class ChangeDecoder(nn.Module):
    """Maps of both dates, finest first -> one map of 128 channels at the size of the finest."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        levels = list(enumerate(channels, start=1))[::-1]
        for level, count in levels:
            for way, wide in enumerate((2 * count, count, count), start=1):
                self.add_module(f"st_block_{level}{way}", _block(nn.Conv2d(wide, WIDTH, 1)))
        for level, _ in levels:
            self.add_module(f"fuse_layer_{level}", _mixed(5 * WIDTH))
        for level, _ in levels[1:]:
            self.add_module(f"smooth_layer_{level}", ResBlock(WIDTH))

    def _level(self, a: Tensor, b: Tensor, level: int) -> Tensor:
        """Both dates in one: as channels, as columns that take turns, and side by side."""
        stacked, turns, beside = (self.get_submodule(f"st_block_{level}{way}") for way in (1, 2, 3))
        taken = turns(torch.stack((a, b), dim=-1).flatten(-2))
        found = [
            stacked(torch.cat((a, b), dim=1)),
            taken[..., ::2],
            taken[..., 1::2],
            *beside(torch.cat((a, b), dim=-1)).chunk(2, dim=-1),
        ]
        return self.get_submodule(f"fuse_layer_{level}")(torch.cat(found, dim=1))

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the map of the finest level."""
        x: Tensor | None = None
        for level in range(len(a), 0, -1):
            here = self._level(a[level - 1], b[level - 1], level)
            if x is not None:
                here = self.get_submodule(f"smooth_layer_{level}")(here + resize(x, here.shape[-2:]))
            x = here
        assert x is not None
        return x


class MambaBCD(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised -> logits ``[N, 2, H, W]``: no change, change."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = VMamba(width, depths)
        self.decoder = ChangeDecoder([width * 2**i for i in range(len(depths))])
        self.main_clf = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logits of no change and of change."""
        maps = self.encoder(torch.cat((a, b)))
        found = self.decoder(*zip(*(x.chunk(2) for x in maps), strict=True))
        return resize(self.main_clf(found), a.shape[-2:])


class SemanticDecoder(nn.Module):
    """Maps of one date, finest first -> one map of 128 channels at the size of the finest."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        *finer, last = enumerate(channels, start=1)
        self.add_module(f"st_block_{last[0]}_semantic", _block(nn.Conv2d(last[1], WIDTH, 1)))
        for level, _ in reversed(finer):
            self.add_module(f"st_block_{level}_semantic", _block())
        for level, count in reversed(finer):
            self.add_module(f"trans_layer_{level}", _mixed(count))
        for level in range(len(finer), -1, -1):
            self.add_module(f"smooth_layer_{level}_semantic", ResBlock(WIDTH))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map of the finest level."""
        x = self.get_submodule(f"st_block_{len(maps)}_semantic")(maps[-1])
        for level in range(len(maps) - 1, 0, -1):
            here = self.get_submodule(f"trans_layer_{level}")(maps[level - 1])
            here = self.get_submodule(f"smooth_layer_{level}_semantic")(here + resize(x, here.shape[-2:]))
            x = self.get_submodule(f"st_block_{level}_semantic")(here)
        return self.get_submodule("smooth_layer_0_semantic")(x)


class MambaSCD(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised -> logits of change ``[N, 2, H, W]`` and of the classes at each date.

    The classes are ``[N, classes, H, W]``; class 0 is "unchanged".
    """

    def __init__(self, width: int, depths: Sequence[int], classes: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(len(depths))]
        self.encoder = VMamba(width, depths)
        self.decoder_bcd = ChangeDecoder(channels)
        self.decoder_T1 = SemanticDecoder(channels)
        self.decoder_T2 = SemanticDecoder(channels)
        self.main_clf_cd = nn.Conv2d(WIDTH, 2, 1)
        self.aux_clf = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of change, and of the classes before and after."""
        pairs = [x.chunk(2) for x in self.encoder(torch.cat((a, b)))]
        first, second = [x for x, _ in pairs], [y for _, y in pairs]
        change = self.main_clf_cd(self.decoder_bcd(first, second))
        before, after = (
            self.aux_clf(decoder(maps))
            for decoder, maps in ((self.decoder_T1, first), (self.decoder_T2, second))
        )
        size = a.shape[-2:]
        return resize(change, size), resize(before, size), resize(after, size)
