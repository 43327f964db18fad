"""A policy carried out over an array in memory: its requests are slices of it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from ..ask import Answer, AskKernel, LevelInfo, Request, Scene, View

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ask_array", "carry_out", "views_of"]


def ask_array(
    policy: AskKernel,
    question: str,
    pixels: NDArray[np.generic],
    valid: NDArray[np.bool_] | None = None,
    *,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    resolution: float | None = None,
) -> Answer:
    """Ask a policy about an image of one level.

    Parameters
    ----------
    policy
        The kernel.
    question
        In words.
    pixels
        ``[C, H, W]``.
    valid
        ``[H, W]``; None where all pixels were measured.
    bands
        Names of the channels.
    resolution
        Side of a pixel in metres.
    """
    if pixels.shape[0] != len(bands):
        raise KernelError(f"{pixels.shape[0]} channels and {len(bands)} names of bands", place="ask")
    measured = np.ones(pixels.shape[1:], bool) if valid is None else valid
    scene = Scene((LevelInfo(1.0, (pixels.shape[1], pixels.shape[2])),), bands, resolution)
    answer: Answer = carry_out(policy.ask(question, scene), pixels, measured)
    return answer


def carry_out(
    asking: Generator[list[Request], list[View], Any], pixels: NDArray[np.generic], valid: NDArray[np.bool_]
) -> Any:
    """Send a generator the views that it asks for, of level 0 alone, and return what it returns."""
    try:
        requests = next(asking)
        while True:
            requests = asking.send(views_of(requests, pixels, valid))
    except StopIteration as end:
        return end.value


def views_of(requests: list[Request], pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> list[View]:
    """Return the views of requests for level 0 of an array."""
    found = []
    for request in requests:
        window = slice(request.row0, request.row1), slice(request.col0, request.col1)
        found.append(View(request, pixels[:, window[0], window[1]], valid[window]))
    return found
