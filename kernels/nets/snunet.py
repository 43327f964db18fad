"""SNUNet-CD: a nested U-Net over both dates, whose four finest maps are weighed by channel attention.

Fang, S., Li, K., Shao, J., Li, Z. (2021): SNUNet-CD: A Densely Connected Siamese Network for Change Detection of VHR
Images, https://doi.org/10.1109/LGRS.2021.3056416, with ECAM and a width of 32. Written from the paper and from the
names and shapes of the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SNUNet"]

DEPTH = 4


class _Block(nn.Module):
    """Two convolutions; the first one's result, not yet normalised, goes around the second."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(x)))))


class _Up(nn.Module):
    """To twice the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)


class _ChannelAttention(nn.Module):
    """A weight for each channel ``[N, C, 1, 1]``, from its mean and its maximum over the tile."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.fc2 = nn.Conv2d(narrow, channels, 1, bias=False)

    def _weigh(self, x: Tensor) -> Tensor:
        return self.fc2(functional.relu(self.fc1(x)))

    def forward(self, x: Tensor) -> Tensor:
        means, peaks = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (self._weigh(means) + self._weigh(peaks)).sigmoid()


class SNUNet(nn.Module):
    """Two dates ``[N, 3, H, W]``, sides multiples of 16 -> logits ``[N, 2, H, W]``: no change, change.

    The dates are not alike: what comes up from coarser levels is of the second one only, and only this one is seen at
    the coarsest level.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(DEPTH + 1)]
        for level, out in enumerate(widths):
            self.add_module(f"conv{level}_0", _Block(widths[level - 1] if level else 3, out))
            if level:
                self.add_module(f"Up{level}_0", _Up(out))
        for column in range(1, DEPTH + 1):
            for level in range(DEPTH + 1 - column):
                channels = (column + 1) * widths[level] + widths[level + 1]
                self.add_module(f"conv{level}_{column}", _Block(channels, widths[level]))
                if level:
                    self.add_module(f"Up{level}_{column}", _Up(widths[level]))
        self.ca = _ChannelAttention(DEPTH * width, DEPTH * width // 16)
        self.ca1 = _ChannelAttention(width, width // 4)
        self.conv_final = nn.Conv2d(DEPTH * width, 2, 1)

    def _encoded(self, x: Tensor, levels: int) -> list[Tensor]:
        maps: list[Tensor] = []
        for level in range(levels):
            x = functional.max_pool2d(maps[-1], 2) if maps else x
            maps.append(self.get_submodule(f"conv{level}_0")(x))
        return maps

    def _finest(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """Return the maps at full size of the four columns, each of which is one level shorter than that before."""
        rows = [[x, y] for x, y in zip(a, b[:DEPTH], strict=True)]
        below = b
        for column in range(1, DEPTH + 1):
            made = []
            for level in range(DEPTH + 1 - column):
                up = self.get_submodule(f"Up{level + 1}_{column - 1}")(below[level + 1])
                x = self.get_submodule(f"conv{level}_{column}")(torch.cat((*rows[level], up), dim=1))
                rows[level].append(x)
                made.append(x)
            below = made
        return rows[0][2:]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logits of no change and of change."""
        columns = self._finest(self._encoded(a, DEPTH), self._encoded(b, DEPTH + 1))
        together = torch.cat(columns, dim=1)
        inner = self.ca1(torch.stack(columns).sum(0)).repeat(1, DEPTH, 1, 1)
        return self.conv_final(self.ca(together) * (together + inner))
