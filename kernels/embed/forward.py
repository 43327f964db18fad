"""Tiles to vectors: how an embedding kernel calls its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .contract import OUTPUT, unit

if TYPE_CHECKING:
    from torch import Tensor

    from .contract import Tower

__all__ = ["vectors_of_tiles"]


def vectors_of_tiles(
    network: Any, inputs: Mapping[str, Tensor], *, name: str, tower: Tower, **_: object
) -> dict[str, Tensor]:
    """Return vectors ``[N, D]`` of length 1 for normalised tiles ``[N, 1, C, H, W]`` of the input ``name``."""
    return {OUTPUT: unit(network.image_vectors(tower.fitted(inputs[name][:, 0]), tower=name))}
