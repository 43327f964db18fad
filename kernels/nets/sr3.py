"""SR3's U-Net and its schedule of noise: a denoiser whose inner maps are features of the image that went in.

Saharia, C. et al. (2021): Image Super-Resolution via Iterative Refinement, https://arxiv.org/abs/2104.07636; Ho, J.,
Jain, A., Abbeel, P. (2020): Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239. Without a
condition, as DDPM-CD trains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Diffusion", "UNet"]

GROUPS = 32


class _LevelEncoding(nn.Module):
    """A noise level as sines and cosines of ``width // 2`` frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count = width // 2

    def forward(self, level: Tensor) -> Tensor:
        step = torch.arange(self.count, dtype=level.dtype, device=level.device) / self.count
        angle = level[:, None] * torch.exp(-math.log(1e4) * step)
        return torch.cat((angle.sin(), angle.cos()), dim=1)


class _LevelBias(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(width, channels))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x + self.noise_func(level)[:, :, None, None]


class _Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Identity(),  # dropout in training
            nn.Conv2d(channels, out, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, level_width: int) -> None:
        super().__init__()
        self.noise_func = _LevelBias(level_width, out)
        self.block1 = _Block(channels, out)
        self.block2 = _Block(out, out)
        self.res_conv = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.block2(self.noise_func(self.block1(x), level)) + self.res_conv(x)


class _Attention(nn.Module):
    """Attention of all pixels of the map, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        heard = functional.scaled_dot_product_attention(q, k, v)
        return self.out(heard.transpose(1, 2).unflatten(2, x.shape[-2:])) + x


class _Stage(nn.Module):
    """A residual block, and attention where the map is small."""

    def __init__(self, channels: int, out: int, level_width: int, *, attend: bool) -> None:
        super().__init__()
        self.res_block = _Residual(channels, out, level_width)
        if attend:
            self.attn = _Attention(out)
        self.attend = attend

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = self.res_block(x, level)
        return self.attn(x) if self.attend else x


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2))


class UNet(nn.Module):
    """``[N, 3, H, W]``, sides multiples of 16, and noise levels ``[N]`` -> maps of the encoder and of the decoder.

    The encoder's maps begin with that of the first convolution; the decoder's are those after its residual blocks,
    last one first. Attention is in the deepest level, whatever the size of the image.
    """

    def __init__(self, width: int = 128, multiples: Sequence[int] = (1, 2, 4, 8, 8), blocks: int = 2) -> None:
        super().__init__()
        self.noise_level_mlp = nn.Sequential(
            _LevelEncoding(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.init_conv = nn.Conv2d(3, width, 3, padding=1)
        deepest = len(multiples) - 1
        channels, skipped = width, [width]
        self.downs = nn.ModuleList()
        for i, multiple in enumerate(multiples):
            for _ in range(blocks):
                self.downs.append(_Stage(channels, width * multiple, width, attend=i == deepest))
                channels = width * multiple
                skipped.append(channels)
            if i < deepest:
                self.downs.append(_Down(channels))
                skipped.append(channels)
        self.mid = nn.ModuleList(_Stage(channels, channels, width, attend=attend) for attend in (True, False))
        self.ups = nn.ModuleList()
        for i, multiple in reversed(list(enumerate(multiples))):
            for _ in range(blocks + 1):
                out = width * multiple
                self.ups.append(_Stage(channels + skipped.pop(), out, width, attend=i == deepest))
                channels = out
            if i > 0:
                self.ups.append(_Up(channels))
        self.final_conv = _Block(channels, 3)

    def forward(
        self, x: Tensor, level: Tensor, needed: int | None = None
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Return the encoder's maps, and the decoder's by number, 0 for the last block.

        With ``needed``, no block after the decoder's map of that number is computed.
        """
        code = self.noise_level_mlp(level)
        x = self.init_conv(x)
        encoded = [x]
        for layer in self.downs:
            x = layer(x, code) if isinstance(layer, _Stage) else layer(x)
            encoded.append(x)
        for layer in self.mid:
            x = layer(x, code)
        skipped, decoded = list(encoded), {}
        number = sum(isinstance(layer, _Stage) for layer in self.ups)
        for layer in self.ups:
            if not isinstance(layer, _Stage):
                x = layer(x)
                continue
            x = layer(torch.cat((x, skipped.pop()), dim=1), code)
            number -= 1
            decoded[number] = x
            if number == needed:
                break
        return encoded, decoded


class Diffusion(nn.Module):
    """The denoiser and its schedule: variances of the added noise that rise linearly.

    The schedule lies in buffers because the published checkpoints have it.
    """

    def __init__(self, steps: int = 2000, first: float = 1e-6, last: float = 1e-2) -> None:
        super().__init__()
        betas = np.linspace(first, last, steps)
        kept = np.cumprod(1 - betas)
        before = np.append(1.0, kept[:-1])
        variance = betas * (1 - before) / (1 - kept)
        self.levels: list[float] = np.sqrt(np.append(1.0, kept)).tolist()
        """Share of the image's amplitude that is left after so many steps."""
        schedule = {
            "betas": betas,
            "alphas_cumprod": kept,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": np.sqrt(kept),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
            "log_one_minus_alphas_cumprod": np.log(1 - kept),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(before) / (1 - kept),
            "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
        }
        for name, values in schedule.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.denoise_fn = UNet()

    def features(
        self, x: Tensor, noise: Tensor, step: int, needed: int | None = None
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Return the maps of the denoiser for ``x`` under so many steps of ``noise``; see `UNet`."""
        level = self.levels[step]
        noisy = level * x + math.sqrt(1 - level**2) * noise
        return self.denoise_fn(noisy, x.new_full((x.shape[0],), level), needed)
