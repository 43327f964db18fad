"""``dynamicvis-b``, ``-l``: a vector of a picture in colour, by Mamba blocks that read a share of its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tilewright.errors import KernelError

from .contract import Profile
from .profiles import picture

if TYPE_CHECKING:
    from torch import Tensor

    from .contract import ImageTextEmbedder

__all__ = ["DYNAMICVIS_B", "DYNAMICVIS_B_ALL", "DYNAMICVIS_L", "DYNAMICVIS_L_ALL", "selection"]

_SIDE = 512
_TOWER = replace(picture(_SIDE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), resize="none")
_SIZES: dict[str, dict[str, Any]] = {
    "b": {"widths": (96, 192, 384, 768), "depths": (2, 4, 16, 4)},
    "l": {"widths": (128, 256, 512, 1024), "depths": (2, 4, 32, 4)},
}
_ALL: dict[str, Any] = {"keep": (1, 1, 1, 1), "overall": False}
"""How the backbone was trained for comparison, without a selection."""
_BACKBONE = "backbone."
_PRETRAINING = ("pre_neck.", "neck.", "head.", "data_preprocessor.")


def backbone_name(name: str) -> str | None:
    """Return the network's name of a tensor in a published checkpoint; None for what only pretraining needed."""
    if name.startswith(_PRETRAINING):
        return None
    return name.removeprefix(_BACKBONE)


def _profile(size: str, *, every: bool) -> Profile:
    suffix = "-all" if every else ""
    return Profile(
        name=f"dynamicvis-{size}{suffix}",
        description="DynamicVis: a vector of a picture in colour, by Mamba blocks that read "
        + ("all of its tokens" if every else "a share of its tokens"),
        network="tilewright.kernels.nets.dynamicvis:DynamicVis",
        towers={"image": _TOWER},
        dim=_SIZES[size]["widths"][-1],
        citation="Chen et al. 2025, https://arxiv.org/abs/2503.16426",
        licence="Apache-2.0 (this code); official code and weights: Apache-2.0",
        arguments=_SIZES[size] | (_ALL if every else {}),
        text=False,
        dense=True,
        extra="models",
        rename=backbone_name,
        variants={
            f"dynamicvis-{other}{suffix}": arguments | (_ALL if every else {})
            for other, arguments in _SIZES.items()
            if other != size
        },
    )


DYNAMICVIS_B = _profile("b", every=False)
DYNAMICVIS_L = _profile("l", every=False)
DYNAMICVIS_B_ALL = _profile("b", every=True)
DYNAMICVIS_L_ALL = _profile("l", every=True)


def selection(embedder: ImageTextEmbedder, pixels: Tensor) -> list[Tensor]:
    """Return which tokens of pictures the blocks of a DynamicVis read.

    Parameters
    ----------
    embedder
        One of this module's, from `load_embedder`.
    pixels
        ``[N, 3, H, W]`` as for `ImageTextEmbedder.embed_images`.

    Returns
    -------
    list
        For each of the four stages, at strides of 4, 8, 16 and 32 px, ``[N, blocks, h, w]`` bool: True where the block
        read the token. The mean over the blocks is a map of what the stage attends to.

    Raises
    ------
    KernelError
        Pictures of another number of bands, or an embedder that selects no tokens.
    """
    import torch

    tower = embedder.towers.get("image")
    if tower is None or not hasattr(embedder.network, "selection"):
        raise KernelError("selects no tokens", place=embedder.profile.name, remedy="load dynamicvis-b or -l")
    if pixels.ndim != 4 or pixels.shape[1] != tower.input.band_count:
        raise KernelError(
            f"pixels of shape {tuple(pixels.shape)}, expected [N, {tower.input.band_count}, H, W]",
            place=embedder.profile.name,
        )
    with torch.inference_mode():
        seen = tower.fitted(tower.normalised(pixels.to(embedder.device, torch.float32)))
        found: list[Tensor] = embedder.network.selection(seen)
    return found
