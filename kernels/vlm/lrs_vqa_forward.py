"""The forwards of the kernels of LRS-VQA: each tile is an image of its own, asked in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..ask import LevelInfo, Scene
from .arrays import ask_array, carry_out
from .dynamic_pyramid import TOKEN_SIDE
from .pixels import Picture
from .pruned import PrunedAnswerer, Pruning
from .sampling import Taps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .llava import Llava
    from .pruned import Look

__all__ = ["Relevance", "TileAnswers"]

BANDS = ("red", "green", "blue")


class _Asked(nn.Module):
    """Holds the network as a module, so that it moves and is hashed with the forward."""

    def __init__(self, model: Llava, answerer: PrunedAnswerer, question: str) -> None:
        super().__init__()
        self.published = model.network
        """The network with the official names; `Kernel.module` returns it."""
        self.question = question
        self.answerer = answerer


class Relevance(_Asked):
    """A raster: what the region focus module looks at in the first level of each tile."""

    def __init__(self, model: Llava, options: Mapping[str, Any]) -> None:
        answerer = PrunedAnswerer(model, picture=Picture((), options["low"], options["high"]))
        super().__init__(model, answerer, options["question"])

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """From ``[N, 3, H, W]`` and what of it is valid ``[N, 1, H, W]`` to relevance ``[N, 1, H, W]``."""
        made = [self._one(p.cpu().numpy(), v[0].cpu().numpy()) for p, v in zip(x, valid, strict=True)]
        return torch.from_numpy(np.stack(made))[:, None].to(x.device)

    def _one(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        rows, cols = valid.shape
        descent = self.answerer.descent(self.question, Scene((LevelInfo(1.0, (rows, cols)),), BANDS))
        carry_out(descent.run(steps=0), pixels, valid)
        look = descent.looks[0]
        if not look.tokens.shape[0] or not look.tokens.shape[1]:  # less than a token high or wide
            return np.full((rows, cols), 0.5, np.float32)
        attention = look.score.reshape(look.tokens.shape[0], look.tokens.width)[:, :-1]
        spread = _to_pixels(attention, look, (rows, cols))
        mean = attention.mean(dtype=np.float64)
        relative: NDArray[np.float32] = (spread / (spread + mean)).astype(np.float32)
        return relative


def _to_pixels(attention: NDArray[np.float32], look: Look, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a map of tokens ``[R, C]`` bilinearly to the pixels of the image."""
    down, right = (
        Taps.of(0, side, ratio / TOKEN_SIDE, count)
        for side, ratio, count in zip(shape, look.view.ratio, attention.shape, strict=True)
    )
    lines = attention[down.low] * (1 - down.weight[:, None]) + attention[down.high] * down.weight[:, None]
    spread = lines[:, right.low] * (1 - right.weight) + lines[:, right.high] * right.weight
    return spread.astype(np.float32)


class TileAnswers(_Asked):
    """Records: an answer for each tile, and what was kept for it."""

    def __init__(self, model: Llava, options: Mapping[str, Any]) -> None:
        pruning = Pruning(options["share"], options["descent"], options["fix_newline"], options["mask"])
        picture = Picture((), options["low"], options["high"])
        answerer = PrunedAnswerer(model, pruning, picture, options["answer_tokens"])
        super().__init__(model, answerer, options["question"])

    def forward(self, x: Tensor, valid: Tensor) -> dict[str, list[str]]:
        """From ``[N, 3, H, W]`` and what of it is valid ``[N, 1, H, W]`` to N answers and N traces."""
        answers, traces = [], []
        for pixels, measured in zip(x, valid, strict=True):
            found = ask_array(
                self.answerer, self.question, pixels.cpu().numpy(), measured[0].cpu().numpy(), bands=BANDS
            )
            answers.append(found.text)
            kept = found.trace["looks"][-1]
            count = {"kept": kept["kept"], "of": kept["of_tokens"]}
            traces.append(json.dumps({**count, "hash": found.trace["kept_hash"]}))
        return {"answer": answers, "trace": traces}
