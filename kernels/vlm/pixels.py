"""What a vision tower sees of a scene: three of its bands as a picture, normalised with the statistics of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tilewright.errors import KernelError

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
    """Names of three bands; none takes red, green and blue where there are such, else the first three."""
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
        wanted = self.bands or (("red", "green", "blue") if {"red", "green", "blue"} <= set(bands) else ())
        missing = [name for name in wanted if name not in bands]
        if missing:
            raise KernelError(
                f"no band {missing[0]!r}", place="picture", remedy=f"there are {', '.join(bands)}"
            )
        found = [list(bands).index(name) for name in wanted] if wanted else list(range(min(len(bands), 3)))
        if len(found) == 1:
            return found * 3
        if len(found) != 3:
            raise KernelError(
                f"{len(found)} bands for a picture", place="picture", remedy="name three of them"
            )
        return found

    def normalised(self, tiles: Sequence[PixelTile], channels: Sequence[int]) -> Tensor:
        """Return tiles as ``[n, 3, TILE, TILE]`` float32; zero beyond the image and where nothing was measured.

        Values below black and above white are cut, which those of 8 bits never are.
        """
        values = np.stack([tile.pixels[list(channels)] for tile in tiles])
        known = np.stack([tile.weight > 0 for tile in tiles])[:, None]
        share = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
        return torch.from_numpy(np.where(known, (share - mean) / std, 0).astype(np.float32))
