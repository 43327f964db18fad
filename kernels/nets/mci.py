"""MCI of Change-Agent: one encoder for two answers, what changed on a map and what changed in words.

Liu, C. et al. (2024): Change-Agent: Toward Interactive Comprehensive Remote Sensing Change Interpretation and
Analysis, https://arxiv.org/abs/2403.19646. Written from the paper and from the names and shapes of the published
weights. Maps are ``[N, C, H, W]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .caption import START, CaptionDecoder
from .forward import binary
from .mit import MixTransformer
from .parts import attend, map_of, tokens_of

__all__ = ["MCI"]

WIDTHS = (64, 128, 320, 512)
WIDE = WIDTHS[-1]
HEADS = 8
LAYERS = 3
SIDE = 16
"""Rows and columns for which there are positions: pictures of 512 px."""
WORDS, LONGEST = 468, 41
"""Size of the vocabulary, and the most words of a caption."""
PROBE = (START, *range(37, 408, 37))
"""Words whose continuations are returned where no caption is given: the start, and every 37th word."""


def _normed(channels: int, out: int, side: int, *, relu: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, side, padding=side // 2), nn.BatchNorm2d(out)]
    return [*layers, nn.ReLU()] if relu else layers


class _Local(nn.Module):
    """What lies around a place: in a square, in a row and in a column."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.d_conv_3x3 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.d_conv_1x5 = nn.Conv2d(width, width, (1, 5), padding=(0, 2), groups=width)
        self.d_conv_5x1 = nn.Conv2d(width, width, (5, 1), padding=(2, 0), groups=width)
        self.BN = nn.BatchNorm2d(3 * width)
        self.conv_1 = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        around = torch.cat((self.d_conv_3x3(x), self.d_conv_1x5(x), self.d_conv_5x1(x)), dim=1)
        return x + self.conv_1(functional.gelu(self.BN(around)))


class _Attention(nn.Module):
    """One date looks at where the other one differs from it.

    Where both are bit for bit the same it looks at the date itself. The official code asks that of a whole batch;
    here each pair is asked for itself, so that a result does not depend on the batch. ``Q_LN``, ``K_LN``, ``V_LN``
    and ``fuse_conv2`` are in the checkpoints and have no influence.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.Q_LN, self.K_LN, self.V_LN = (nn.LayerNorm(width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))
        self.fuse_conv = nn.Sequential(*_normed(width, width, 1))
        self.fuse_conv2 = nn.Sequential(*_normed(2 * width, width, 1))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        same = (x == other).flatten(1).all(1).view(-1, 1, 1, 1)
        differing = tokens_of(torch.where(same, other, self.fuse_conv(x * (other - x))))
        found = attend(self.to_q(tokens_of(x)), self.to_k(differing), self.to_v(differing), HEADS)
        return self.to_out(found)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The names count two layers of dropout.
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Block(nn.Module):
    """A date's features after a look at the other date's; ``PCM`` has no influence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.att = _Attention(width)
        self.feedforward = _FeedForward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.Q_d_conv = _Local(width)
        self.K_d_conv = _Local(width)
        self.PCM = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        own = self.Q_d_conv(x)
        tokens = self.norm1(self.att(own, self.K_d_conv(other)) + tokens_of(own))
        return map_of(self.norm2(self.feedforward(tokens) + tokens), x.shape[-2:])


class _Neck(nn.Module):
    """The deepest features of both dates, after positions and three exchanges; and the decoder of the map."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDE // 2
        self.h_embedding, self.w_embedding = nn.Embedding(SIDE, half), nn.Embedding(SIDE, half)
        # The third of each has no influence.
        self.Dynamic_DIF_aware_TR = nn.ModuleList(
            nn.ModuleList((_Block(WIDE), _Block(WIDE), nn.Linear(2 * WIDE, WIDE))) for _ in range(LAYERS)
        )
        self.h_embedding_CD, self.w_embedding_CD = nn.Embedding(SIDE, half), nn.Embedding(SIDE, half)
        self.Transformer_aug_CD = nn.ModuleList(
            nn.ModuleList((_Block(WIDE), _Block(WIDE))) for _ in range(LAYERS)
        )
        self.conv_dif = nn.ModuleList(nn.Sequential(*_normed(w, w, 1, relu=False)) for w in WIDTHS)
        self.conv_fuse = nn.ModuleList(
            nn.Sequential(*_normed(3 * w, 2 * w, 3), nn.Conv2d(2 * w, 2 * w, 1)) for w in WIDTHS
        )
        self.to_fused = nn.ModuleList(
            nn.Sequential(*_normed(2 * w, 2 * w, 1), _doubled(2 * w, 2 * finer))
            for w, finer in zip(WIDTHS, (WIDTHS[0], *WIDTHS), strict=False)
        )
        self.to_seg = nn.Sequential(_doubled(2 * WIDTHS[0], WIDTHS[0]), nn.Conv2d(WIDTHS[0], 3, 1))

    def map_of_change(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the logits of the map. The second date looks at the first one as that has become."""
        one, two = (_placed(x[-1], self.h_embedding_CD, self.w_embedding_CD) for x in (a, b))
        for exchange in self.Transformer_aug_CD:
            first, second = exchange.children()
            one = first(one, two) + one
            two = second(two, one) + two
        return self._decoded([*a[:-1], one], [*b[:-1], two])

    def for_words(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features of both dates for the words. The dates look at each other as they were."""
        one, two = (_placed(x[-1], self.h_embedding, self.w_embedding) for x in (a, b))
        for exchange in self.Dynamic_DIF_aware_TR:
            first, second, _ = exchange.children()
            one, two = first(one, two), second(two, one)
        return one, two

    def _decoded(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        x: Tensor | None = None
        for i in reversed(range(len(WIDTHS))):
            alike = functional.cosine_similarity(a[i], b[i], dim=1).unsqueeze(1)
            differing = self.conv_dif[i](b[i] - a[i]) + alike
            here = self.conv_fuse[i](torch.cat((a[i], differing, b[i]), dim=1))
            x = self.to_fused[i](here if x is None else here + x)
        return self.to_seg(x)


def _doubled(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)


def _placed(x: Tensor, columns: nn.Embedding, rows: nn.Embedding) -> Tensor:
    """Add positions: the table named after the height holds the columns, and the other way round."""
    height, width = x.shape[-2:]
    across = columns.weight[:width].T.unsqueeze(1).expand(-1, height, -1)
    down = rows.weight[:height].T.unsqueeze(2).expand(-1, -1, width)
    return x + torch.cat((across, down))


class _Segformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.segformer = MixTransformer(WIDTHS, (2, 2, 2, 2), heads=(1, 2, 5, 8))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.segformer(x)


class _Encoder(nn.Module):
    """The names of the official encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = _Segformer()

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.cnn(x)


class MCI(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 32 up to 512 -> a map, features, and words.

    They are logits ``[N, 3, H, W]`` of nothing, road and building; features ``[N, 512, H / 32, W / 32]`` of both
    dates for the words; and logits ``[N, L, 468]`` of what follows each word of a caption ``[N, L]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.encoder_trans = _Neck()
        self.decoder = CaptionDecoder(WIDE, WORDS, LONGEST, HEADS)

    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logits of the map alone, without what only the words need."""
        return self.encoder_trans.map_of_change(self.encoder(a), self.encoder(b))

    def forward(self, a: Tensor, b: Tensor, words: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return all four; without ``words`` the last one is for `PROBE`, good for comparison only."""
        one, two = self.encoder(a), self.encoder(b)
        said = self.encoder_trans.for_words(one, two)
        if words is None:
            words = torch.tensor([PROBE], device=a.device).expand(a.shape[0], -1)
        return self.encoder_trans.map_of_change(one, two), *said, self.decoder(*said, words)


def maps_of_mci(network: MCI, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> score of change, and probabilities of nothing, road and building; nothing is put into words."""
    kinds = network.logits(*inputs["image"].unbind(1)).softmax(1)
    return {**binary(1 - kinds[:, :1]), "kinds": kinds[:, 1:], "mask": kinds}
