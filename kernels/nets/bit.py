"""BIT: a few semantic tokens of each date speak to each other, and the pixels listen to their date's tokens.

Chen, H., Qi, Z., Shi, Z. (2021): Remote Sensing Image Change Detection with Transformers,
https://arxiv.org/abs/2103.00208, configuration ``base_transformer_pos_s4_dd8``: four tokens a date, one encoder and
eight decoder layers. Written from the paper and from the names and shapes of the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from .resnet import resnet_maps

__all__ = ["BIT"]

WIDTH, TOKENS, HEADS, HEAD_WIDTH, HIDDEN, DECODERS = 32, 4, 8, 64, 64, 8


def _split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all heads, whose scores are scaled by the width of the tokens, not of a head."""
    weights = (_split(q) @ _split(k).transpose(-1, -2) * WIDTH**-0.5).softmax(-1)
    return (weights @ _split(v)).transpose(1, 2).flatten(2)


def _out() -> nn.Sequential:
    return nn.Sequential(nn.Linear(HEADS * HEAD_WIDTH, WIDTH), nn.Dropout(0))


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.to_out = _out()

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(_attend(*self.to_qkv(x).chunk(3, dim=-1)))


class _CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.to_k = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.to_v = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.to_out = _out()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return self.to_out(_attend(self.to_q(x), self.to_k(tokens), self.to_v(tokens)))


class _FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Dropout(0), nn.Linear(HIDDEN, WIDTH), nn.Dropout(0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Normed(nn.Module):
    """One normalisation before ``fn``, for all its arguments."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fn = fn

    def forward(self, *x: Tensor) -> Tensor:
        return self.fn(*(self.norm(one) for one in x))


class _Added(nn.Module):
    """``fn`` added to its first argument."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = _Normed(fn)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return x + self.fn(x, *others)


class _Layers(nn.Module):
    """Attention and feed-forward, so many times; ``others`` are what cross attention listens to."""

    def __init__(self, depth: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([_Added(attention()), _Added(_FeedForward())]) for _ in range(depth)
        )

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed = layer.children()
            x = feed(attention(x, *others))
        return x


class BIT(nn.Module):
    """Two dates ``[N, 3, H, W]``, normalised, sides multiples of 8 -> logits ``[N, 2, H, W]``: no change, change."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, 2 * TOKENS, WIDTH))
        self.resnet = resnet18(weights=None)  # with layer4 and fc, which nothing reads
        self.resnet.layer3[0].conv1.stride = self.resnet.layer3[0].downsample[0].stride = (1, 1)
        self.classifier = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2, 3, padding=1),
        )
        self.conv_pred = nn.Conv2d(256, WIDTH, 3, padding=1)
        self.conv_a = nn.Conv2d(WIDTH, TOKENS, 1, bias=False)
        self.transformer = _Layers(1, _SelfAttention)
        self.transformer_decoder = _Layers(DECODERS, _CrossAttention)

    def _features(self, x: Tensor) -> Tensor:
        return self.conv_pred(functional.interpolate(resnet_maps(self.resnet, x, 3)[-1], scale_factor=2))

    def _tokens(self, x: Tensor) -> Tensor:
        where = self.conv_a(x).flatten(2).softmax(-1)
        return where @ x.flatten(2).transpose(1, 2)

    def _heard(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = self.transformer_decoder(x.flatten(2).transpose(1, 2), tokens)
        return pixels.transpose(1, 2).unflatten(-1, x.shape[-2:])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the logits of no change and of change."""
        a, b = self._features(a), self._features(b)
        tokens = torch.cat((self._tokens(a), self._tokens(b)), dim=1) + self.pos_embedding
        tokens_a, tokens_b = self.transformer(tokens).chunk(2, dim=1)
        difference = (self._heard(a, tokens_a) - self._heard(b, tokens_b)).abs()
        up = functional.interpolate(difference, scale_factor=4, mode="bilinear", align_corners=False)
        return self.classifier(up)
