"""What a vision tower sees of a scene: three of its bands as a picture, normalised with the statistics of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tilewright.errors import KernelError

from .looks import colour_channels, shares_between

if TYPE_CHECKING:
    from torch import Tensor

    from .sampling import PixelTile

__all__ = ["CLIP_MEAN", "CLIP_STD", "Picture"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Picture:
    """Which bands are red, green and blue, and which of their values are black and white."""

    bands: tuple[str, ...] = ()
    """Names of three bands, or of one; none takes red, green and blue where there are such, else the first three."""
    low: float = 0.0
    """Value that is black."""
    high: float = 255.0
    """Value that is white."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise KernelError(f"low={self.low:g} is not below high={self.high:g}", place="picture")

    def channels(self, bands: Sequence[str]) -> list[int]:
        """Return the channels that are red, green and blue; one band alone is all three.

        Raises `KernelError` where a wanted band is not there.
        """
        if not self.bands and len(bands) == 2:
            raise KernelError("2 bands for a picture", place="picture", remedy="name one of them")
        return colour_channels(bands, self.bands)

    def normalised(self, tiles: Sequence[PixelTile], channels: Sequence[int]) -> Tensor:
        """Return tiles as ``[n, 3, TILE, TILE]`` float32; zero beyond the image and where nothing was measured.

        Values below black and above white are cut, which those of 8 bits never are.
        """
        values = np.stack([tile.pixels[list(channels)] for tile in tiles])
        known = np.stack([tile.weight > 0 for tile in tiles])[:, None]
        share = shares_between(values, self.low, self.high)
        mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        return torch.from_numpy(np.where(known, (share - mean) / std, 0).astype(np.float32))
