"""Networks of segmentation-models-pytorch, untrained, and what their logits say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp

from tilewright.errors import KernelError, nearest_name

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["encoder_statistics", "known_architectures", "make_network", "outputs_of_logits"]

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
_STATISTICS = {"xception": _HALF, "inceptionv4": _HALF, "inceptionresnetv2": _HALF, "dpn": _DPN}
"""Of the encoders whose ImageNet weights were made with other statistics than torchvision's, by their first letters."""


def known_architectures() -> list[str]:
    """Return the names of the decoders, in small letters."""
    return sorted(smp.MODEL_ARCHITECTURES_MAPPING)


def encoder_statistics(encoder: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of red, green and blue (0 to 1) that an encoder's ImageNet weights expect.

    smp itself asks a server for them. Of timm's encoders (``tu-``) timm knows them.
    """
    if encoder.startswith("tu-"):
        import timm

        found = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        return (found.mean, found.std) if found is not None else _IMAGENET
    return next((given for start, given in _STATISTICS.items() if encoder.startswith(start)), _IMAGENET)


def make_network(
    architecture: str,
    encoder: str,
    in_channels: int,
    classes: int,
    stride: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the network with random weights; nothing is fetched.

    Parameters
    ----------
    architecture
        Name of the decoder in small letters, such as ``unet``.
    encoder
        Name of the encoder, ``tu-`` before those of timm.
    in_channels, classes
        Channels of input and output.
    stride
        Stride of the deepest level that was declared; None takes any.
    arguments
        Further arguments of the network's class.

    Raises
    ------
    KernelError
        An unknown name or argument, or another stride.
    """
    place = f"smp:{architecture}/{encoder}"
    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise KernelError(
            f"unknown architecture {architecture!r}",
            place=place,
            remedy=nearest_name(architecture, known_architectures()),
        )
    names = smp.encoders.get_encoder_names()
    if encoder not in names and not encoder.startswith(("tu-", "timm-")):
        raise KernelError(f"unknown encoder {encoder!r}", place=place, remedy=nearest_name(encoder, names))
    try:
        network: nn.Module = smp.create_model(
            architecture, encoder, None, in_channels, classes, **(arguments or {})
        )
    except (KeyError, ValueError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KernelError(f"segmentation-models-pytorch refuses it: {first}", place=place) from error
    found = _stride(network)
    if stride is not None and found != stride:
        raise KernelError(f"its encoder has the stride {found}, {stride} was declared", place=place)
    return network


def _stride(network: nn.Module) -> int:
    return int(network.encoder.output_stride)  # type: ignore[union-attr,arg-type]


def outputs_of_logits(
    network: nn.Module, inputs: Mapping[str, Tensor], *, task: str, **_: object
) -> dict[str, Tensor]:
    """One date to votes and probabilities of the classes that exclude each other, or to a score for each."""
    found = network(inputs["image"][:, 0])
    logits = (
        found[0] if isinstance(found, tuple) else found
    )  # an auxiliary head gives a label of the tile beside it
    if task == "classes":
        shares = logits.softmax(1)
        return {"classes": shares, "probability": shares}
    scores = logits.sigmoid()
    return {"score": scores, "classes": scores}
