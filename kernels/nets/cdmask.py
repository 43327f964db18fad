"""CDMaskFormer: a few queries, each with a mask and the chance that its mask is change.

Ma, X. et al. (2024): Rethinking Remote Sensing Change Detection With A Mask View, https://arxiv.org/abs/2406.15320.
Written in our own words from the paper, the names and shapes of the official network, and, where these are silent, the
order of its steps. Queries read the maps by masked attention as in Mask2Former, and at every fourth layer the finest
map along its rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .deformable import DeformableEncoder
from .forward import binary
from .parts import resize
from .seaformer import SeaFormer

__all__ = ["CDMask", "score_of_cdmask"]

WIDTH, HEADS, INNER, QUERIES, LAYERS, LEVELS = 256, 8, 1024, 5, 13, 4
CHANNELS = (64, 128, 192, 256)
"""Of the maps of the backbone, finest first."""
LEAST = 0.15
"""A query does not read where its mask is below this."""


def _separable(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, out, 1),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class _ChannelWeights(nn.Module):
    """A weight for each channel from its mean, through four small branches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 32
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Sequential(nn.Linear(channels, inner, bias=False), nn.ReLU()) for _ in range(4)
        )
        self.fc = nn.Sequential(nn.Linear(4 * inner, channels, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, 1, 1]``."""
        mean = x.mean((2, 3))
        inner = [branch(mean) for branch in (self.fc1, self.fc2, self.fc3, self.fc4)]
        return self.fc(torch.cat(inner, dim=1))[:, :, None, None]


class _Difference(nn.Module):
    """One map of both dates: each weighted by place and by channel as their difference tells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.catconvA = _separable(2 * channels, channels)
        self.catconvB = _separable(2 * channels, channels)
        self.catconv = _separable(2 * channels, channels)
        self.convA = nn.Conv2d(channels, 1, 1)
        self.convB = nn.Conv2d(channels, 1, 1)
        self.senetv2 = _ChannelWeights(channels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference = a - b
        channels = self.senetv2(difference)
        of_a = self.convA(self.catconvA(torch.cat((difference, a), dim=1))).sigmoid()
        of_b = self.convB(self.catconvB(torch.cat((difference, b), dim=1))).sigmoid()
        return self.catconv(torch.cat((of_a * a * channels, of_b * b * channels), dim=1))


def _projected(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 1), nn.GroupNorm(32, WIDTH))


class _PixelDecoder(nn.Module):
    """The three coarse maps read each other by deformable attention; the finest is added to what they know."""

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(_projected(channels) for channels in reversed(CHANNELS))
        self.pos_linear = nn.ModuleList(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH) for _ in range(LEVELS)
        )
        self.transformer = DeformableEncoder(WIDTH, INNER, depth=4, levels=3, heads=HEADS)
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, 1)
        self.adapter_1 = nn.Sequential(*_projected(CHANNELS[0]), nn.ReLU())
        self.layer_1 = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(32, WIDTH), nn.ReLU()
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``maps``, finest first -> what the masks are made of, the four maps and their positions, coarsest first."""
        inner = [project(x) for project, x in zip(self.input_proj, reversed(maps), strict=True)]
        positions = [conv(x) for conv, x in zip(self.pos_linear, inner, strict=True)]
        levels = self.transformer(inner[:-1], positions[:-1])
        fine = self.adapter_1(maps[0])
        levels.append(self.layer_1(fine + resize(levels[-1], fine.shape[-2:])))
        return self.mask_features(levels[-1]), levels, positions


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        placed = x + positions
        return self.norm(x + self.self_attn(placed, placed, x, need_weights=False)[0])


class _CrossAttention(nn.Module):
    """Queries read a map where their masks allow it."""

    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, positions: Tensor, tokens: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """``hidden`` ``[N, queries, tokens]`` is true where a query does not read."""
        mask = hidden.repeat_interleave(HEADS, dim=0)
        read = self.multihead_attn(x + positions, tokens + places, tokens, attn_mask=mask, need_weights=False)
        return self.norm(x + read[0])


def _waves(x: Tensor) -> Tensor:
    """``[N]`` -> ``[N, WIDTH]``: sines and cosines of the values at many frequencies."""
    pairs = torch.arange(WIDTH // 2, device=x.device, dtype=x.dtype)
    angles = x[:, None] * 2 * math.pi / 10000 ** (2 * pairs / WIDTH)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class _Axes(nn.Module):
    """Weights along the columns times weights along the rows, instead of one weight for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(5 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.lin = nn.Linear(WIDTH, WIDTH)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, y: Tensor, image: Tensor, places: Tensor) -> Tensor:
        """Queries ``[N, queries, C]`` by column and by row, map and positions ``[N, C, H, W]``."""
        project = list(zip(self.in_proj_weight.chunk(5), self.in_proj_bias.chunk(5), strict=True))
        gate = self.lin(image.mean((2, 3))).sigmoid().unsqueeze(1)
        image, places = image.movedim(1, -1), places.movedim(1, -1)
        along_x = functional.linear((image + places).mean(1), *project[2]) * gate
        along_y = functional.linear((image + places).mean(2), *project[3]) * gate
        cols = _weights(functional.linear(x, *project[0]), along_x)
        rows = _weights(functional.linear(y, *project[1]), along_y)
        values = functional.linear(image, *project[4]).unflatten(-1, (HEADS, -1))
        read = torch.einsum("nkqw,nkqh,nhwkc->nqkc", cols, rows, values)
        return self.out_proj(read.flatten(2))


def _weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Return ``[N, heads, queries, keys]``."""
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (queries, keys))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


class _AxialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multihead_attn = _Axes()
        self.norm = nn.LayerNorm(WIDTH)
        self.adapt_pos1d = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, points: Tensor, image: Tensor, places: Tensor) -> Tensor:
        """``points`` ``[queries, 2]``: the place of each query, x and y."""
        by_x, by_y = (x + self.adapt_pos1d(_waves(axis)) for axis in points.unbind(1))
        return self.norm(x + self.multihead_attn(by_x, by_y, image, places))


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WIDTH, INNER)
        self.linear2 = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(functional.relu(self.linear1(x))))


class _MaskVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.layers
        return third(functional.relu(second(functional.relu(first(x)))))


class _Predictor(nn.Module):
    """Thirteen layers in which the queries read the maps; after each, the masks say where the next one reads."""

    def __init__(self) -> None:
        super().__init__()
        layers = range(LAYERS)
        self.transformer_self_attention_layers = nn.ModuleList(_SelfAttention() for _ in layers)
        self.transformer_cross_attention_layers = nn.ModuleList(
            _AxialAttention() if i % LEVELS == LEVELS - 1 else _CrossAttention() for i in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(_FeedForward() for _ in layers)
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.query_feat = nn.Embedding(QUERIES, WIDTH)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.query_pos_embed = nn.Embedding(QUERIES, 2)
        self.level_embed = nn.Embedding(LEVELS, WIDTH)
        self.class_embed = nn.Linear(WIDTH, 2)
        self.mask_embed = _MaskVector()

    def forward(
        self, content: Tensor, maps: Sequence[Tensor], places: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of no change and of change ``[N, 5, 2]`` and those of the masks ``[N, 5, H/4, W/4]``."""
        maps = [x + level[:, None, None] for x, level in zip(maps, self.level_embed.weight, strict=True)]
        x = self.query_feat.weight.expand(content.shape[0], -1, -1)
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross, among, feed) in enumerate(layers):
            level = i % LEVELS
            if level == LEVELS - 1:
                x = cross(x, self.query_pos_embed.weight, maps[level], places[level])
            else:
                hidden = self._hidden(self._masks(x, content), maps[level].shape[-2:])
                tokens, where = (one[level].flatten(2).transpose(1, 2) for one in (maps, places))
                x = cross(x, self.query_embed.weight, tokens, where, hidden)
            x = feed(among(x, self.query_embed.weight))
        return self.class_embed(self.decoder_norm(x)), self._masks(x, content)

    def _masks(self, x: Tensor, content: Tensor) -> Tensor:
        return torch.einsum("nqc,nchw->nqhw", self.mask_embed(self.decoder_norm(x)), content)

    def _hidden(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        """Return where a query does not read; one that would read nothing reads everything."""
        hidden = resize(masks, size).sigmoid().flatten(2) < LEAST
        return hidden & ~hidden.all(-1, keepdim=True)


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixel_decoder = _PixelDecoder()
        self.predictor = _Predictor()


class _DecoderHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tff1, self.tff2, self.tff3, self.tff4 = (_Difference(channels) for channels in CHANNELS)
        self.sem_seg_head = _Head()

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        both = zip((self.tff1, self.tff2, self.tff3, self.tff4), a, b, strict=True)
        head = self.sem_seg_head
        return head.predictor(*head.pixel_decoder([fuse(x, y) for fuse, x, y in both]))


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = SeaFormer()


def _stretched(x: Tensor) -> Tensor:
    """Return each map of ``[N, C, H, W]`` from its own least to its own largest value as 0 to 1."""
    least, most = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - least) / (most - least)


class CDMask(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 32.

    Returns, as the official network, the sum of the masks **stretched to 0 to 1 picture by picture**
    ``[N, 1, H, W]``, the logits of the queries ``[N, 5, 2]`` (no change, change) and those of their masks
    ``[N, 5, H/4, W/4]``. `scores` gives the sum before it is stretched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.decoderhead = _DecoderHead()

    def queries(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the queries and of their masks."""
        return self.decoderhead(self.backbone.backbone(a), self.backbone.backbone(b))

    def scores(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return ``[N, 1, H, W]``: chance of change times mask, summed over the queries, 0 to 5."""
        up = functional.interpolate(masks, scale_factor=4, mode="bilinear", align_corners=False)
        return torch.einsum("nq,nqhw->nhw", logits.softmax(-1)[..., 1], up.sigmoid()).unsqueeze(1)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return stretched scores, logits of the queries, logits of the masks."""
        logits, masks = self.queries(a, b)
        return _stretched(self.scores(logits, masks)), logits, masks


def score_of_cdmask(network: CDMask, inputs: Mapping[str, Tensor], **_: object) -> dict[str, Tensor]:
    """Two dates -> sum of the masks as they are: stretched to 0 to 1, every tile would hold some change."""
    return binary(network.scores(*network.queries(*inputs["image"].unbind(1))))
