"""Batches for the training: pictures turned, brightened, seen from farther away, and laid beside each other.

The tower is read on the levels of a pyramid and cell by cell, so it is taught both. A *mosaic* is ground of one class
as a coarser level shows it: many pictures, averaged in blocks of 2, 4, 8 or 16 px as overviews are made. A *mixture*
lays a part of another picture over a picture, and each cell keeps the label of what lies there (Yun et al. 2019,
https://arxiv.org/abs/1905.04899, with labels for cells).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Ground", "Mix", "block_means"]

_SMALLEST = 4
"""Least side in pixels to which a picture of a mosaic shrinks."""


@dataclass(frozen=True)
class Mix:
    """How often, and how far, pictures are changed."""

    mosaics: float = 0.15
    """Share of the samples that are mosaics."""
    mixtures: float = 0.35
    """Share of the samples that are mixtures."""
    gain: float = 0.1
    """Standard deviation of the logarithm of a factor for all bands."""
    gain_band: float = 0.03
    """The same for each band by itself."""
    shift: float = 4.0
    """Standard deviation of an addend for all bands, in grey levels of 255."""
    shift_band: float = 3.0
    """The same for each band by itself: haze is blue."""
    gamma: float = 0.08
    """Standard deviation of the logarithm of an exponent on values of 0 to 1."""


@dataclass(frozen=True)
class Batch:
    """Samples of one size."""

    pixels: Tensor
    """``[N, 3, side, side]`` float32, 0 to 255, not normalised."""
    cells: Tensor
    """``[N, side / cell, side / cell]`` int64: the class of each cell."""


class Ground:
    """Labelled pictures, and their block means, from which samples are made."""

    def __init__(self, pixels: Tensor, labels: Tensor, cell: int, device: torch.device | str = "cpu") -> None:
        self.labels = labels.to(device)
        self.cell = cell
        self.side = pixels.shape[-1]
        factors = [n for n in (1, 2, 4, 8, 16) if self.side // n >= _SMALLEST]
        self.levels = {n: block_means(pixels, n).to(device) for n in factors}
        """Factor -> pictures ``[N, 3, side / factor, side / factor]`` uint8."""
        self.members = [torch.nonzero(labels == n).flatten() for n in range(int(labels.max()) + 1)]
        self.device = self.labels.device

    def mosaic(self, label: int, factor: int, draw: torch.Generator, *, aligned: bool = False) -> Tensor:
        """Return ground of one class as the level of ``factor`` shows it, ``[3, side, side]`` uint8.

        Pictures are drawn with replacement. The window lies anywhere, so that it cuts through pictures, unless it is
        ``aligned`` to them.
        """
        block = self.side // factor
        members = self.members[label]
        count = factor if aligned else factor + 1
        chosen = members[torch.randint(len(members), (count * count,), generator=draw)]
        parts = self.levels[factor][chosen.to(self.device)].view(count, count, 3, block, block)
        whole = parts.permute(2, 0, 3, 1, 4).reshape(3, count * block, count * block)
        if aligned:
            return whole
        top, left = torch.randint(block, (2,), generator=draw).tolist()
        return whole[:, top : top + self.side, left : left + self.side]

    def batch(self, places: Tensor, side: int, mix: Mix, draw: torch.Generator) -> Batch:
        """Return the samples that begin with the pictures ``places``, cut to ``side`` px; chance is ``draw``'s."""
        labels = self.labels[places.to(self.device)]
        pixels = self.levels[1][places.to(self.device)].clone()
        factors = list(self.levels)
        for n in torch.nonzero(torch.rand(len(places), generator=draw) < mix.mosaics).flatten().tolist():
            factor = factors[int(torch.randint(len(factors), (), generator=draw))]
            pixels[n] = self.mosaic(int(labels[n]), factor, draw)
        if side < self.side:
            top, left = torch.randint(self.side - side + 1, (2,), generator=draw).tolist()
            pixels = pixels[:, :, top : top + side, left : left + side]
        seen = _lit(_turned(pixels, draw).float(), mix, draw)
        cells = labels[:, None, None].expand(-1, side // self.cell, side // self.cell)
        return self._mixed(Batch(seen, cells), mix.mixtures, draw)

    def _mixed(self, batch: Batch, share: float, draw: torch.Generator) -> Batch:
        pixels, cells = batch.pixels.clone(), batch.cells.clone()
        count, grid = len(pixels), cells.shape[-1]
        partner = torch.randperm(count, generator=draw).tolist()
        for n in torch.nonzero(torch.rand(count, generator=draw) < share).flatten().tolist():
            rows, cols = (_span(grid, draw) for _ in range(2))
            cells[n, rows, cols] = batch.cells[partner[n], rows, cols]
            rows, cols = (slice(s.start * self.cell, s.stop * self.cell) for s in (rows, cols))
            pixels[n, :, rows, cols] = batch.pixels[partner[n], :, rows, cols]
        return Batch(pixels, cells)


def _span(grid: int, draw: torch.Generator) -> slice:
    """A random stretch of cells, a quarter of the grid to all of it."""
    length = int(torch.randint(max(grid // 4, 1), grid + 1, (), generator=draw))
    start = int(torch.randint(grid - length + 1, (), generator=draw))
    return slice(start, start + length)


def block_means(pixels: Tensor, factor: int) -> Tensor:
    """Return means over blocks of ``factor`` squared pixels, ``[N, 3, H, W]`` uint8 -> uint8, rounded."""
    if factor == 1:
        return pixels
    parts = [
        torch.nn.functional.avg_pool2d(part.float(), factor).round().to(torch.uint8)
        for part in pixels.split(512)
    ]
    return torch.cat(parts)


def _turned(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Each picture in one of the eight positions of a square."""
    ways = torch.randint(8, (len(pixels),), generator=draw)
    turned = pixels.clone()
    for way in range(1, 8):
        chosen = torch.nonzero(ways == way).flatten().to(pixels.device)
        if len(chosen):
            seen = pixels[chosen].rot90(way % 4, (2, 3))
            turned[chosen] = seen.flip(3) if way >= 4 else seen
    return turned


def _lit(pixels: Tensor, mix: Mix, draw: torch.Generator) -> Tensor:
    """Brightness, contrast of bands, haze and gamma of each picture changed a little; values stay in 0 to 255."""

    def normal(bands: int, spread: float) -> Tensor:
        return (torch.randn(len(pixels), bands, 1, 1, generator=draw) * spread).to(pixels.device)

    factor = (normal(1, mix.gain) + normal(3, mix.gain_band)).exp()
    addend = normal(1, mix.shift) + normal(3, mix.shift_band)
    exponent = normal(1, mix.gamma).exp()
    lit = (pixels * factor + addend).clamp(0, 255)
    return (lit / 255).pow(exponent) * 255
