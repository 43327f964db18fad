"""How far a pixel of a segmentation network really sees, measured: the number for ``reach``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Kernel

__all__ = ["measure_reach"]

_BLOCK = 4
"""Half the side of the block in the middle whose change is looked at."""


def measure_reach(
    kernel: Kernel, *, tile: int | None = None, eps: float = 0.01, seed: int = 0, draws: int = 3
) -> int | None:
    """Return the distance in pixels beyond which all other pixels together change a score by less than ``eps``.

    Everything farther than the distance from a block in the middle of a tile is replaced by other random pixels; the
    distance grows by the stride. None where it is above a quarter of the tile: then blend.

    Parameters
    ----------
    kernel
        With weights: an untrained network sees less far or farther than a trained one.
    tile
        Side of the tile; None takes the kernel's own.
    eps
        The change that counts as none, as a share of the score's range.
    seed, draws
        Which random pixels, and how often others are drawn.

    Raises
    ------
    KernelError
        The kernel has another input than one picture, or its side does not fit.
    """
    import torch

    from ..contract import Context

    spec = kernel.spec
    if list(spec.inputs) != ["image"] or spec.inputs["image"].date_range != (1, 1):
        raise KernelError("it takes more than one picture", place=f"kernel {spec.name}")
    side = tile or spec.tile.fixed or spec.tile.default or 256
    step = math.lcm(spec.stride, spec.tile.multiple)
    if side % step:
        raise KernelError(f"a tile of {side} px is no multiple of {step}", place=f"kernel {spec.name}")
    context = Context(
        origin=torch.zeros(1, 2, dtype=torch.int64),
        times=torch.zeros(1, 1, dtype=torch.int64),
        lonlat=torch.zeros(1, 2, dtype=torch.float64),
        resolution=spec.inputs["image"].resolution or 1.0,
    )
    valid = {"image": torch.ones(1, 1, 1, side, side, dtype=torch.bool)}
    generator = torch.Generator().manual_seed(seed)
    middle = side // 2

    def drawn() -> Tensor:
        return torch.randn(1, 1, spec.inputs["image"].band_count, side, side, generator=generator)

    def block(x: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = next(iter(kernel.apply({"image": x}, valid, context).values()))
        return found[..., middle - _BLOCK : middle + _BLOCK, middle - _BLOCK : middle + _BLOCK]

    pairs = [(drawn(), drawn()) for _ in range(draws)]
    for px in range(spec.stride, side // 4 + 1, spec.stride):
        near = slice(middle - _BLOCK - px, middle + _BLOCK + px)
        if all(_change(block, a, b, near) < eps for a, b in pairs):
            return px
    return None


def _change(block: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, near: slice) -> float:
    mixed = b.clone()
    mixed[..., near, near] = a[..., near, near]
    return float((block(a) - block(mixed)).abs().max())
