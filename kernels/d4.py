"""Test-time augmentation: a kernel sees each tile turned and mirrored in all eight ways, and the results are averaged.

The eight ways are the symmetries of a square, the dihedral group D4. They map pixels onto pixels, so nothing is
resampled, and radius, stride and tile stay those of the kernel: a tile is a square of which each side is a multiple of
the stride, so its turned lattice is the lattice.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from .contract import Kernel
    from .nets.averaged import Averaged

__all__ = ["averaged", "d4"]


def d4(member: str, weights: Any = None, **options: Any) -> Kernel:
    """Any kernel of rasters, averaged over the eight turned and mirrored views of each tile: ``d4:NAME``.

    Parameters
    ----------
    member
        The kernel's name, as `load_kernel` takes it.
    weights, options
        Its weights and options.

    Raises
    ------
    KernelError
        See `averaged`.
    """
    from .load import load_kernel

    return averaged(load_kernel(member, weights, **options))


def averaged(kernel: Kernel) -> Kernel:
    """Return ``kernel`` averaged over the eight views; it costs eight forwards, one after another.

    Scores, values and the votes for classes are averaged; a class map of one channel with a threshold is the mean of
    what is compared with it.

    Raises
    ------
    KernelError
        The kernel gives records, or labels without votes, which have no mean; or draws noise by position, which
        is not turned with the tile.
    """
    spec = kernel.spec
    place = f"kernel {spec.name}"
    if spec.mapping != "map_pixels":
        raise KernelError("records are not averaged over turned tiles", place=place)
    if spec.seed is not None:
        raise KernelError("its noise belongs to the ground and is not turned with the tile", place=place)
    for name, output in spec.outputs.items():
        votes = output.classes and output.threshold is None
        if output.kind == "class" and output.threshold is None and not votes:
            raise KernelError(f"output {name!r} is labels, which have no mean", place=place)
    described = spec.model_copy(
        update={
            "name": f"d4:{spec.name}",
            "description": f"{spec.description.rstrip('.')}. Averaged over eight turned and mirrored views.",
        }
    )
    return replace(
        kernel, spec=described, build=partial(_build, kernel), options={**kernel.options, "views": "d4"}
    )


def _build(kernel: Kernel) -> Averaged:
    from .nets.averaged import Averaged

    return Averaged(kernel.spec, kernel.function, kernel.fit)
