"""SEN2SR with convolutional networks: ten bands of Sentinel-2 at 2.5 m, their low frequencies held to the input's.

Aybar, C. et al.: A radiometrically and spatially consistent super-resolution framework for Sentinel-2 (SEN2SR); the
networks are short forms of SPAN, Wan, C. et al. (2023): Swift Parameter-free Attention Network for Efficient
Super-Resolution, https://arxiv.org/abs/2311.12770. Written from the facts of the released models: names, shapes, and
the order of the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CNNSR", "Sen2SR", "bands_of_values", "constrain", "low_pass"]

COARSE = (3, 4, 5, 7, 8, 9)
"""Bands of 20 m among the ten."""
FINE = (0, 1, 2, 6)
"""Bands of 10 m: blue, green, red, near infrared."""
_RGBN = (2, 1, 0, 3)
"""`FINE` to red, green, blue, near infrared, and back."""


class Conv3XC(nn.Module):
    """A convolution of 3 x 3 that was trained as three of 1, 3, 1 with a shortcut of 1 x 1; none has an activation."""

    def __init__(self, channels: int, out: int, gain: int = 2) -> None:
        super().__init__()
        self.sk = nn.Conv2d(channels, out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels * gain, 1),
            nn.Conv2d(channels * gain, out * gain, 3),
            nn.Conv2d(out * gain, out, 1),
        )
        # Kept for its name: the official forward overwrites it by what `merged` returns, whatever a file holds.
        self.eval_conv = nn.Conv2d(channels, out, 3, padding=1)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias of the one convolution that equals the four."""
        (first, b1), (middle, b2), (last, b3) = (_tensors(conv) for conv in self.conv)
        short, b4 = _tensors(self.sk)
        inner = torch.einsum("om,mkyx,ki->oiyx", last[..., 0, 0], middle, first[..., 0, 0])
        bias = last[..., 0, 0] @ (middle.sum((2, 3)) @ b1 + b2) + b3 + b4
        return inner + functional.pad(short, (1, 1, 1, 1)), bias

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, out, H, W]``."""
        return functional.conv2d(x, *self.merged(), padding=1)


def _tensors(conv: nn.Module) -> tuple[Tensor, Tensor]:
    return conv.get_parameter("weight"), conv.get_parameter("bias")


class SPAB(nn.Module):
    """Three convolutions and an attention without parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r = Conv3XC(channels, channels)
        self.c2_r = Conv3XC(channels, channels)
        self.c3_r = Conv3XC(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output, and what its first convolution gave after its activation."""
        first = functional.silu(self.c1_r(x))
        last = self.c3_r(functional.silu(self.c2_r(first)))
        return (last + x) * (last.sigmoid() - 0.5), first


class CNNSR(nn.Module):
    """``[N, channels, H, W]`` -> ``[N, out, H * scale, W * scale]``.

    Each block is given the first features, not the output of the block before, as in the released code: only the
    first block and the last one have an effect, and the others are left out here.
    """

    def __init__(self, channels: int, out: int, features: int, blocks: int, scale: int) -> None:
        super().__init__()
        self.conv_1 = Conv3XC(channels, features)
        self.blocks = nn.ModuleList(SPAB(features) for _ in range(blocks))
        self.conv_cat = nn.Conv2d(4 * features, features, 1)
        self.conv_2 = Conv3XC(features, features)
        self.upsampler = nn.Sequential(
            nn.Conv2d(features, out * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged bands."""
        features = self.conv_1(x)
        head, _ = self.blocks[0](features)
        tail, inside = self.blocks[-1](features)
        return self.upsampler(self.conv_cat(torch.cat((features, self.conv_2(tail), head, inside), 1)))


def low_pass(rows: int, cols: int, scale: int, order: int = 6) -> Tensor:
    """Return a low-pass mask ``[rows, cols]`` with the zero frequency in its middle.

    A Butterworth filter of ``order``; its radius is that of the frequencies which an image ``scale`` times coarser can
    hold.
    """
    radius = min(rows, cols) // 2 // scale
    y = torch.arange(rows, dtype=torch.float64)[:, None] - rows // 2
    x = torch.arange(cols, dtype=torch.float64) - cols // 2
    distance = (y**2 + x**2).sqrt()
    return (1 / (1 + (distance / radius) ** (2 * order))).float()


def constrain(coarse: Tensor, fine: Tensor, mask: Tensor) -> Tensor:
    """Return ``fine`` with its low frequencies replaced by those of ``coarse``, ``mask`` saying which those are."""
    wanted = functional.interpolate(coarse, fine.shape[-2:], mode="bicubic", antialias=True)
    low = torch.fft.ifftshift(mask).to(fine.dtype)
    return torch.fft.ifft2(torch.fft.fft2(wanted) * low + torch.fft.fft2(fine) * (1 - low)).real


class Sen2SR(nn.Module):
    """Ten bands ``[N, 10, H, W]`` of reflectance on 10 m -> the same at 2.5 m ``[N, 10, 4 H, 4 W]``.

    Bands are B2, B3, B4, B5, B6, B7, B8, B8A, B11, B12; those of 20 m are read at every second pixel. ``side`` is that
    of the tiles whose masks a checkpoint holds; None makes masks by `low_pass` for every size: the state has none.
    """

    def __init__(self, features: int = 24, blocks: int = 6, side: int | None = 128) -> None:
        super().__init__()
        self.f2 = CNNSR(10, 6, features, blocks, 1)
        self.sr = CNNSR(4, 4, features, blocks, 4)
        self.f4 = CNNSR(10, 6, features, blocks, 1)
        self.side = side
        if side is not None:
            self.register_buffer("f2_mask", low_pass(side, side, 2))
            self.register_buffer("sr_mask", low_pass(4 * side, 4 * side, 4))
            self.register_buffer("f4_mask", low_pass(4 * side, 4 * side, 4))

    def _mask(self, name: str, fine: Tensor, scale: int) -> Tensor:
        if self.side is not None:
            return self.get_buffer(f"{name}_mask")
        rows, cols = fine.shape[-2:]
        return low_pass(rows, cols, scale).to(fine.device)

    def to_10m(self, x: Tensor) -> Tensor:
        """Return the bands of 20 m on 10 m ``[N, 6, H, W]``."""
        coarse = functional.interpolate(x[:, COARSE], scale_factor=0.5, mode="nearest")
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", antialias=True)
        found = self.f2(torch.cat((coarse, x[:, FINE]), 1)).clamp(min=0)
        return constrain(coarse, found, self._mask("f2", found, 2))

    def enlarge(self, x: Tensor) -> Tensor:
        """Return red, green, blue and near infrared ``[N, 4, H, W]`` four times as large."""
        found = self.sr(x).clamp(min=0)
        return constrain(x, found, self._mask("sr", found, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the ten bands at 2.5 m, in the order of the input."""
        coarse = self.to_10m(x)
        fine = self.enlarge(x[:, FINE][:, _RGBN])[:, _RGBN]
        smooth = functional.interpolate(coarse, scale_factor=4.0, mode="bilinear", antialias=True)
        sharp = self.f4(torch.cat((smooth, fine), 1)).clamp(min=0)
        sharp = constrain(coarse, sharp, self._mask("f4", sharp, 4))
        place = [*FINE, *COARSE]
        return torch.cat((fine, sharp), 1)[:, [place.index(band) for band in range(10)]]


def bands_of_values(network: nn.Module, inputs: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
    """One date in, its bands on the finer grid."""
    return {"image": network(inputs["image"][:, 0])}
