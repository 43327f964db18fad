"""The forward of a published network, and the ways in which raw outputs become scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from tilewright.kernels.contract import Context

__all__ = [
    "PublishedForward",
    "Unfilled",
    "binary",
    "maps_of_logits",
    "score_of_logit",
    "score_of_logits",
    "score_of_probability",
    "votes_where_changed",
]

Read = Callable[..., dict[str, Tensor]]


class Unfilled(TorchFunctionMode):
    """While it is on, no random numbers are drawn for parameters: 435 M of them take seconds.

    Only for those, since a checkpoint must name every one of them; buffers may not be in it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the parameter as it is instead of filling it."""
        given = kwargs or {}
        filled = args[0] if args else given.get("tensor")  # a method of it, or a function of torch.nn.init
        if getattr(func, "__name__", "") in ("uniform_", "normal_") and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **given)


class PublishedForward(nn.Module):
    """Calls a network by the function that knows its inputs and outputs."""

    def __init__(self, published: nn.Module, read: Read) -> None:
        super().__init__()
        self.published = published
        """The network with the official names; `Kernel.module` returns it."""
        self.read = read

    def forward(
        self, inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """Return the outputs by name; ``inputs`` and ``valid`` as `Kernel.apply` has them."""
        return self.read(self.published, inputs, valid=valid, context=context)


def _dates(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return inputs["image"].unbind(1)


def binary(score: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a binary kernel; the map of change is the score against its threshold."""
    return {"score": score, "change": score}


def score_of_logit(network: nn.Module, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates; the network gives one logit a pixel."""
    return binary(network(*_dates(inputs)).sigmoid())


def score_of_logits(network: nn.Module, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates; the network gives logits of no change and of change. argmax is a score of 0.5 and more."""
    return binary(network(*_dates(inputs)).softmax(1)[:, 1:2])


def score_of_probability(network: nn.Module, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates; the network gives the probability of change."""
    return binary(network(*_dates(inputs)))


def votes_where_changed(classes: Tensor, score: Tensor, threshold: float) -> Tensor:
    """Return votes for classes, of which 0 wins wherever the score is below the threshold.

    The votes are the probabilities where there is change, and one for class 0 elsewhere, times the distance of the
    score from the threshold: their argmax is the published rule, the label where there is change and 0 elsewhere,
    but they do not jump at the threshold. So tiles can be blended, and a tile that is in doubt has little to say.

    Parameters
    ----------
    classes
        Probabilities ``[N, classes, H, W]``.
    score
        Score of change ``[N, 1, H, W]``.
    threshold
        Score from which it is change.
    """
    nothing = torch.zeros_like(classes)
    nothing[:, 0] = 1
    return torch.where(score >= threshold, classes, nothing) * (score - threshold).abs().clamp(min=1e-6)


def maps_of_logits(
    network: nn.Module, inputs: Mapping[str, Tensor], *, threshold: float, **_: object
) -> dict[str, Tensor]:
    """Two dates; logits of no change and of change, and of classes before and after, 0 where nothing changed."""
    change, before, after = network(*_dates(inputs))
    score = change.softmax(1)[:, 1:2]
    maps = {
        name: votes_where_changed(logits.softmax(1), score, threshold)
        for name, logits in (("before", before), ("after", after))
    }
    return {**binary(score), **maps}
