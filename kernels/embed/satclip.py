"""``satclip``: what a place on Earth is like, as a vector made of its longitude and latitude alone.

Klemmer, K. et al. (2023): SatCLIP: Global, General-Purpose Location Embeddings with Satellite Imagery,
https://arxiv.org/abs/2311.17179; https://github.com/microsoft/satclip. Spherical harmonics of the place
(`tilewright.kernels.nets.harmonics`) go through a network of sines: Sitzmann, V. et al. (2020), Implicit Neural
Representations with Periodic Activation Functions, https://arxiv.org/abs/2006.09661.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import KernelError

from ..contract import InputSpec, Kernel, KernelSpec, OutputSpec
from ..published import Published, make_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Context

__all__ = ["satclip", "vectors_of_places"]

_PLACE = "satclip"
_WIDTH = 256
_NETWORK = "tilewright.kernels.nets.satclip:LocationEncoder"


def _location(name: str) -> str | None:
    """The location encoder's part of a training checkpoint, without what stands before it."""
    return name[name.index("nnet.") :] if "nnet." in name else None


def satclip(
    weights: Any = None,
    *,
    degrees: Literal[10, 40] = 40,
    harmonics: Literal["analytic", "closed-form", "exact"] = "analytic",
    bands: int = 1,
    raw: bool = False,
) -> Kernel:
    """Return the kernel that embeds where each tile's centre lies; it does not look at the pixels.

    Parameters
    ----------
    weights
        One of the authors' ``.ckpt``, or the location encoder's tensors. None leaves the network untrained.
    degrees
        Degrees of the spherical harmonics, the number after ``L`` in the name of the checkpoint.
    harmonics
        How they are computed; the published models were trained with ``analytic``.
    bands
        Bands of the image, which only says where tiles lie.
    raw
        True for the official vectors, False for such of length 1.

    Raises
    ------
    KernelError
        An option is out of its range; when called: the image has no place on Earth.
    WeightsError
        The weights are absent or others.
    """
    if bands < 1:
        raise KernelError(f"bands={bands}", place=_PLACE, remedy="give 1 or more")
    variants = {f"{_PLACE} with degrees={n}": {"degrees": n} for n in (10, 40) if n != degrees}
    network = Published(
        _NETWORK,
        "tilewright.kernels.embed.satclip:vectors_of_places",
        {"degrees": degrees, "harmonics": harmonics},
        {"raw": raw},
        rename=_location,
        variants=variants,
    )
    spec = KernelSpec(
        name=_PLACE,
        description="SatCLIP: an embedding of the place on Earth of each tile",
        inputs={"image": InputSpec(bands=bands)},
        outputs={
            "embedding": OutputSpec(
                kind="vector", bands=_WIDTH, description="Embedding of the place; its values have no units"
            )
        },
        radius=0,
        autocast=False,
        licence="Apache-2.0 (this code); official code and weights: MIT",
        citation="Klemmer et al. 2023, https://arxiv.org/abs/2311.17179",
        status="parity",
    )
    options = {"degrees": degrees, "harmonics": harmonics, "bands": bands, "raw": raw}
    return make_kernel(network, spec, weights, options)


def vectors_of_places(
    network: Any, inputs: Mapping[str, Tensor], *, context: Context, raw: bool, **_: object
) -> dict[str, Tensor]:
    """Return the vectors ``[N, 256]`` of the centres of tiles."""
    import torch

    lonlat = context.lonlat
    if bool(torch.isnan(lonlat).any()):
        raise KernelError(
            "no longitude and latitude", place=_PLACE, remedy="give an image with a CRS and a transform"
        )
    vectors = network(lonlat.to(inputs["image"].device, torch.float64))
    return {"embedding": vectors if raw else torch.nn.functional.normalize(vectors, dim=1)}
