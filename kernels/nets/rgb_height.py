"""Colour and height of the same ground, read by two streams that meet in tokens at each level.

In the manner of the TIMF module of GAMUS (Xiong et al. 2023, https://arxiv.org/abs/2305.14914), whose code is not
released: fusion between the levels of two encoders, by attention, rather than of their inputs or results. The sizes
and the exact form of the exchange are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import ConvNormAct, attend, map_of, resize, tokens_of

__all__ = ["RgbHeight", "TokenExchange", "classes_of_both"]


class Stage(nn.Module):
    """Halves the side, then a residual block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.block = nn.Sequential(ConvNormAct(out, out, 3), nn.Conv2d(out, out, 3, padding=1, bias=False))
        self.block_norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, out, H / 2, W / 2]``."""
        x = functional.relu(self.norm(self.down(x)))
        return functional.relu(x + self.block_norm(self.block(x)))


class TokenExchange(nn.Module):
    """A few learned tokens read both streams, and each pixel of each stream reads the tokens.

    So a stream takes what the other one saw anywhere in the tile, at the price of tokens times pixels.
    """

    def __init__(self, width: int, tokens: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.read = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.ask = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.answer = nn.Linear(width, 2 * width)
        self.write = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """Return both streams ``[N, C, H, W]``, each with what the tokens tell it."""
        size = streams[0].shape[-2:]
        seen = [norm(tokens_of(x)) for norm, x in zip(self.norms, streams, strict=True)]
        keys, values = torch.cat([read(x) for read, x in zip(self.read, seen, strict=True)], 1).chunk(2, -1)
        tokens = self.tokens.expand(len(keys), -1, -1)
        tokens = tokens + attend(tokens, keys, values, self.heads)
        told_keys, told = self.answer(tokens).chunk(2, -1)
        return [
            x + map_of(write(attend(ask(s), told_keys, told, self.heads)), size)
            for x, s, ask, write in zip(streams, seen, self.ask, self.write, strict=True)
        ]


class RgbHeight(nn.Module):
    """Two encoders of three levels, an exchange at each, and a pyramid over the sum of both.

    Parameters
    ----------
    classes
        Number of classes.
    width
        Channels of the first level; they double twice.
    tokens
        Tokens of an exchange.
    """

    def __init__(self, classes: int, width: int = 32, tokens: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.image = nn.ModuleList(Stage(c, out) for c, out in zip([3, *widths], widths, strict=False))
        self.height = nn.ModuleList(Stage(c, out) for c, out in zip([2, *widths], widths, strict=False))
        self.exchange = nn.ModuleList(TokenExchange(out, tokens) for out in widths)
        self.lateral = nn.ModuleList(ConvNormAct(2 * out, width, 1) for out in widths)
        self.smooth = ConvNormAct(width, width, 3)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor, height: Tensor, known: Tensor) -> Tensor:
        """Return logits ``[N, classes, H, W]``.

        Parameters
        ----------
        image
            Normalised red, green, blue ``[N, 3, H, W]``.
        height
            Height above ground in units of about 1, ``[N, 1, H, W]``; anything where it is not known, NaN too.
        known
            Where the height was measured, bool ``[N, 1, H, W]``.
        """
        known = known & height.isfinite()
        streams = [image, torch.cat((torch.where(known, height, 0), known.to(image.dtype)), 1)]
        levels: list[Tensor] = []
        for of_image, of_height, exchange, lateral in zip(
            self.image, self.height, self.exchange, self.lateral, strict=True
        ):
            streams = exchange([of_image(streams[0]), of_height(streams[1])])
            levels.append(lateral(torch.cat(streams, 1)))
        top = levels[-1]
        for level in reversed(levels[:-1]):
            top = level + resize(top, level.shape[-2:])
        return resize(self.classifier(self.smooth(top)), image.shape[-2:])


def classes_of_both(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    valid: Mapping[str, Tensor],
    scale: float,
    **_: object,
) -> dict[str, Tensor]:
    """Image and height of one date; no result where the image is missing, one without a height where that is."""
    image, height = inputs["image"][:, 0], inputs["height"][:, 0]
    shares = network(image, height / scale, valid["height"][:, 0]).softmax(1)
    shares = torch.where(valid["image"][:, 0], shares, torch.nan)
    return {"classes": shares, "probability": shares}
