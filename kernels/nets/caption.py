"""The decoder of Change-Agent's MCI that puts a change into words.

Liu, C. et al. (2024): Change-Agent, https://arxiv.org/abs/2403.19646. A transformer decoder of one layer over the
features of both dates. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .parts import tokens_of

__all__ = ["NULL", "START", "CaptionDecoder"]

NULL, START, END = 0, 2, 3
"""Numbers of the words that fill up, begin and end a sentence."""


class _Residual(nn.Module):
    """Three convolutions and the input; ReLU in the end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.left = nn.Sequential(
            nn.Conv2d(width, half, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, width, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.left(x) + x)


class _Layer(nn.Module):
    """Words look at earlier words, then at the features; the words themselves are added once more at the end.

    ``fc_alpha*`` are in the checkpoints and have no influence.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.fc_alpha1, self.fc_alpha2, self.fc_alpha3 = (nn.Linear(2 * width, width) for _ in range(3))

    def forward(self, words: Tensor, seen: Tensor, later: Tensor, absent: Tensor) -> Tensor:
        heard, _ = self.self_attn(
            words, words, words, attn_mask=later, key_padding_mask=absent, need_weights=False
        )
        x = self.norm1(words + heard)
        looked, _ = self.multihead_attn(x, seen, seen, need_weights=False)
        x = self.norm2(x + looked)
        return self.norm3(x + self.linear2(functional.relu(self.linear1(x)))) + words


class _Stack(nn.Module):
    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(count))

    def forward(self, words: Tensor, seen: Tensor, later: Tensor, absent: Tensor) -> Tensor:
        for layer in self.layers:
            words = layer(words, seen, later, absent)
        return words


class _Positions(nn.Module):
    """Sines and cosines of the place of a word; ``embedding_1D`` is in the checkpoints and has no influence."""

    pe: Tensor

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        place = torch.arange(longest).unsqueeze(1)
        speed = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        waves = torch.stack(((place * speed).sin(), (place * speed).cos()), dim=-1).flatten(1)
        self.register_buffer("pe", waves.unsqueeze(1))
        self.embedding_1D = nn.Embedding(52, width)

    def forward(self, words: Tensor) -> Tensor:
        return words + self.pe[: words.shape[1], 0]


class CaptionDecoder(nn.Module):
    """Features ``[N, width, h, w]`` of both dates, words ``[N, L]`` -> logits of each next word ``[N, L, words]``."""

    def __init__(self, width: int, words: int, longest: int, heads: int = 8, layers: int = 1) -> None:
        super().__init__()
        self.Conv1 = nn.Conv2d(2 * width, width, 1)
        self.LN = _Residual(width)
        self.vocab_embedding = nn.Embedding(words, width)
        self.transformer = _Stack(width, heads, layers)
        self.position_encoding = _Positions(width, longest)
        self.wdc = nn.Linear(width, words)

    def forward(self, a: Tensor, b: Tensor, words: Tensor) -> Tensor:
        """Return the logits; words that fill up or end a sentence are not looked at."""
        seen = tokens_of(self.LN(self.Conv1(torch.cat((a, b), dim=1))))
        later = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool, device=words.device).triu(1)
        absent = (words == NULL) | (words == END)
        x = self.position_encoding(self.vocab_embedding(words))
        return self.wdc(self.transformer(x, seen, later, absent))
