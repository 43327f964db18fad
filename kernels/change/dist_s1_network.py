"""The transformer of DIST-S1, and how its small windows are laid over a raster and averaged.

Written from the description in Hardiman-Mostow et al. 2025 (https://arxiv.org/abs/2501.09129) and from the
names and shapes of the published weights, which load key by key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewright.errors import KernelError

if TYPE_CHECKING:
    from .dist_s1 import Architecture

__all__ = ["DistS1Forward", "DistS1Network", "average_windows", "despeckle_tv", "logit"]

TOKENS_A_CHUNK = 8192
"""Most tokens that go through the network at once, so that its memory does not depend on the tile. The windows
of a tile are dealt into chunks of one size, the last one padded, so bits do not depend on the batch."""

LEAST, MOST = 1e-7, 1.0 - 2.0**-23
"""Power is clipped to these before the logit; the upper one is the second largest float32 below 1, where the
logit is 15.9."""

TV_WEIGHT, TV_EPS, TV_FILL_DB = 0.2, 1e-3, -23.0
"""Total-variation despeckling as DIST-S1 sets it: weight of the data term, stopping rule, dB of holes."""


def logit(power: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` of linear power, clipped to [`LEAST`, `MOST`] first."""
    p = power.clamp(LEAST, MOST)
    return torch.log(p / (1 - p))


class _Attention(nn.Module):
    """Multi-head attention whose parameters are named like those of ``torch.nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, asking: Tensor, tokens: Tensor) -> Tensor:
        width = tokens.shape[-1]
        q = functional.linear(asking, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = functional.linear(tokens, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return result


class _Layer(nn.Module):
    """Encoder layer that normalises after each half (Vaswani et al. 2017), for the last ``count`` tokens."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.self_attn = _Attention(arch.width, arch.heads)
        self.linear1 = nn.Linear(arch.width, arch.hidden)
        self.linear2 = nn.Linear(arch.hidden, arch.width)
        self.norm1 = nn.LayerNorm(arch.width)
        self.norm2 = nn.LayerNorm(arch.width)

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        asking = tokens[:, -count:]
        asking = self.norm1(asking + self.self_attn(asking, tokens))
        result: Tensor = self.norm2(asking + self.linear2(functional.relu(self.linear1(asking))))
        return result


class _Encoder(nn.Module):
    """The layers; the last one computes the last ``count`` tokens only."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(arch) for _ in range(arch.layers))

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        for place, layer in enumerate(self.layers, start=1):
            tokens = layer(tokens, count if place == len(self.layers) else tokens.shape[1])
        return tokens


class DistS1Network(nn.Module):
    """Predicts the next image from those before it: a normal distribution for every pixel and band.

    Takes ``[B, T, 2, side, side]`` logits of power, co-polarised band first, oldest date first, and returns
    mean and log-variance, ``[B, 2, side, side]`` each. Dates are given by their order alone; the newest one
    always has the same place, so fewer than ``context`` may come.

    Only the tokens of the newest date are read out, so the last layer computes no others. That changes
    no result and saves nearly half of the time.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        values = 2 * arch.patch**2
        self.spatial_pos_embed = nn.Parameter(torch.zeros(1, 1, arch.patches, arch.width))
        self.temporal_pos_embed = nn.Parameter(torch.zeros(1, arch.context, 1, arch.width))
        self.embedding = nn.Linear(values, arch.width)
        self.transformer_encoder = _Encoder(arch)
        self.mean_out = _head(arch, values)
        self.logvar_out = _head(arch, values)

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        arch, dates = self.arch, stack.shape[1]
        tokens = self.embedding(_to_patches(stack, arch.patch)) + self.spatial_pos_embed
        tokens = (tokens + self.temporal_pos_embed[:, arch.context - dates :]).flatten(1, 2)
        newest = self.transformer_encoder(tokens, arch.patches)
        return _to_image(self.mean_out(newest), arch.patch), _to_image(self.logvar_out(newest), arch.patch)


def _head(arch: Architecture, values: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(arch.width, arch.hidden), nn.ReLU(), nn.Linear(arch.hidden, values))


def _to_patches(stack: Tensor, patch: int) -> Tensor:
    """``[B, T, C, H, W]`` -> ``[B, T, patches, C * patch * patch]``, patches row by row."""
    cells = stack.unfold(3, patch, patch).unfold(4, patch, patch)
    return cells.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)


def _to_image(values: Tensor, patch: int) -> Tensor:
    """``[B, patches, C * patch * patch]`` -> ``[B, C, H, W]`` of a square of patches."""
    across = int(values.shape[1] ** 0.5)
    cells = values.reshape(len(values), across, across, -1, patch, patch)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def average_windows(
    network: DistS1Network, stack: Tensor, stride: int, usable: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Average the predictions of all windows that cover a pixel.

    Parameters
    ----------
    network
        Predicts one window.
    stack
        ``[T, 2, H, W]`` logits.
    stride
        Windows start at multiples of this from the first pixel and lie wholly inside.
    usable
        ``[rows, columns]`` of bool over the windows; those that are False give nothing. None takes all.

    Returns
    -------
    mean, logvar
        ``[2, H, W]`` each; NaN where no window reaches. Sums run over the windows of a row first and then
        from the first row to the last, so they do not depend on how a raster is cut.
    """
    side, (height, width) = network.arch.side, stack.shape[-2:]
    windows = stack.unfold(2, side, stride).unfold(3, side, stride)
    rows, columns = windows.shape[2:4]
    weight = stack.new_ones(rows, columns) if usable is None else usable.to(stack)
    total = stack.new_zeros(5, height, width)
    waiting, row = stack.new_zeros(0, 4, side, side), 0
    limit = max(1, TOKENS_A_CHUNK // (stack.shape[0] * network.arch.patches))
    size = math.ceil(rows * columns / math.ceil(rows * columns / limit))
    order = torch.arange(rows * columns, device=stack.device)
    for part in torch.split(order, size):
        padded = functional.pad(part, (0, size - len(part)), value=int(part[-1]))
        chunk = windows[:, :, padded // columns, padded % columns].permute(2, 0, 1, 3, 4)
        predicted = torch.cat(network(chunk), dim=1)[: len(part)]
        waiting = torch.cat([waiting, predicted.to(stack.dtype)])
        while len(waiting) >= columns:
            strip = _fold_row(waiting[:columns], weight[row], width, stride)
            total[:, row * stride : row * stride + side] += strip
            waiting, row = waiting[columns:], row + 1
    averaged = torch.where(total[4:] > 0, total[:4] / total[4:], torch.nan)
    return averaged[:2], averaged[2:]


def _fold_row(predicted: Tensor, weight: Tensor, width: int, stride: int) -> Tensor:
    """Add the windows of one row ``[columns, 4, side, side]`` into ``[5, side, width]``; the fifth counts."""
    side = predicted.shape[-1]
    counted = functional.pad(predicted, (0, 0, 0, 0, 0, 1), value=1.0) * weight[:, None, None, None]
    flat = counted.flatten(1).t()[None]
    return functional.fold(flat, (side, width), (side, side), stride=(side, stride))[0]


def despeckle_tv(power: Tensor, valid: Tensor) -> Tensor:
    """Despeckle each image ``[..., H, W]`` of linear power by total variation in dB (split Bregman).

    The operational DIST-S1 does this before the transformer (Goldstein and Osher 2009; scikit-image's
    ``denoise_tv_bregman``). ``valid`` broadcasts against ``power``; holes count as -23 dB meanwhile.
    """
    import numpy as np
    from skimage.restoration import denoise_tv_bregman

    decibel = 10 * torch.log10(power.clamp(LEAST, 1.0))
    decibel = torch.where(valid, decibel, TV_FILL_DB)
    images = decibel.cpu().numpy().reshape(-1, *power.shape[-2:])
    smooth = [denoise_tv_bregman(i, weight=TV_WEIGHT, isotropic=True, eps=TV_EPS) for i in images]
    result = torch.from_numpy(np.stack(smooth)).to(power).reshape(power.shape)
    return torch.pow(10.0, result / 10)


def _refuse_decibels(rtc: Tensor, valid: Tensor) -> None:
    """Thermal noise is subtracted from gamma0, so values a little below zero are real; below -1 they are not."""
    least = float(torch.where(valid, rtc, 0.0).amin())
    if least < -1:
        raise KernelError(
            f"input rtc holds {least:.3g}, which is no linear power",
            place="dist-s1",
            remedy="give gamma0 in linear power, not in dB",
        )


class DistS1Forward(nn.Module):
    """The kernel's forward: a stack of power to the metric and what else was asked for.

    Parameters
    ----------
    network
        With its weights.
    stride, low, high, max_nodata, missing, despeckle, fill
        See `tilewright.kernels.change.dist_s1.dist_s1`.
    """

    def __init__(
        self,
        network: DistS1Network,
        *,
        stride: int,
        low: float,
        high: float,
        max_nodata: float,
        missing: Literal["mask", "fill"],
        despeckle: Literal["none", "tv"],
        fill: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        self.low, self.high = low, high
        self.max_nodata = max_nodata
        self.missing = missing
        self.despeckle = despeckle
        self.fill = fill

    def forward(self, rtc: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """``rtc [N, T, 2, H, W]`` power, ``valid [N, T, 1, H, W]`` -> name -> ``[N, C, H, W]`` float32."""
        _refuse_decibels(rtc, valid)
        with torch.autocast(rtc.device.type, enabled=False):  # a logit near 0 or 1 needs float32
            if self.despeckle == "tv":
                rtc = torch.where(valid, despeckle_tv(rtc, valid), self.fill)
            logits = logit(rtc.float())
        pairs = [self._normal(x, ok) for x, ok in zip(logits[:, :-1], valid[:, :-1, 0], strict=True)]
        mean = torch.stack([pair[0] for pair in pairs])
        sigma = torch.exp(torch.stack([pair[1] for pair in pairs]) / 2)
        metric = ((logits[:, -1] - mean).abs() / sigma).amax(dim=1, keepdim=True)
        outputs = {"metric": metric, "disturbance": self._status(metric), "mean": mean, "sigma": sigma}
        has_result = valid[:, -1] if self.missing == "fill" else valid.all(dim=1)
        return {name: torch.where(has_result, x, torch.nan) for name, x in outputs.items()}

    def _normal(self, logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        usable = None
        if self.max_nodata < 1:
            side = self.network.arch.side
            missing = (~valid.all(dim=0)).to(logits)
            share = functional.avg_pool2d(missing[None, None], side, self.stride)[0, 0]
            usable = share <= self.max_nodata
        return average_windows(self.network, logits, self.stride, usable)

    def _status(self, metric: Tensor) -> Tensor:
        """Codes of GEN-DIST-STATUS-ACQ: 0, 1 from ``low``, 4 from ``high``; NaN stays."""
        code = (metric >= self.low).to(metric) + 3.0 * (metric >= self.high).to(metric)
        return torch.where(metric.isnan(), metric, code)
