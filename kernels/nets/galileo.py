"""Galileo: one transformer over groups of bands of several sensors; here its encoder, for one date of Sentinel-2 or -1.

Tseng, G. et al. (2025): Galileo: Learning Global & Local Features of Many Remote Sensing Modalities,
https://arxiv.org/abs/2502.09356; https://github.com/nasaharvest/galileo. Names of the parameters are the official ones,
those of the inputs that are not used here included. Inputs that are not there have no tokens: hiding them is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Galileo"]

_SPACE_TIME = {
    "S1": ("vv", "vh"),
    "S2_RGB": ("blue", "green", "red"),
    "S2_Red_Edge": ("rededge1", "rededge2", "rededge3"),
    "S2_NIR_10m": ("nir",),
    "S2_NIR_20m": ("nir08",),
    "S2_SWIR": ("swir16", "swir22"),
    "NDVI": ("ndvi",),
}
"""Groups of bands that share tokens, in the official order."""
_SPACE = {"SRTM": 2, "DW": 9, "WC": 5}
_TIME = {"ERA5": 2, "TC": 3, "VIIRS": 1}
_STATIC = {"LS": 1, "location": 3, "DW_static": 9, "WC_static": 5}

_S1 = {"vv": (-11.728724389184965, 4.887145774840316), "vh": (-18.85558188024017, 5.730270320384293)}
_S2 = {
    "blue": (1395.3408730676722, 917.7041440370853),
    "green": (1338.4026921784578, 913.2988423581528),
    "red": (1343.09883810357, 1092.678723527555),
    "rededge1": (1543.8607982512297, 1047.2206083460424),
    "rededge2": (2186.2022069512263, 1048.0101611156767),
    "rededge3": (2525.0932853316694, 1143.6903026819996),
    "nir": (2410.3377187373408, 1098.979177731649),
    "nir08": (2750.2854646886753, 1204.472755085893),
    "swir16": (2234.911100061487, 1145.9774063078878),
    "swir22": (1474.5311266077113, 980.2429840007796),
}
"""Mean and standard deviation of each band where it was pretrained: decibels; reflectance times 10,000."""
_DN = 10_000.0
_GROUND = 10.0
"""Metres a pixel for which places are counted."""


def _waves(width: int, positions: Tensor) -> Tensor:
    """Sines, then cosines, of positions ``[n]``, ``[n, width]``; the frequencies fall four times as slowly as usual."""
    rates = 1.0 / 10_000 ** (torch.arange(width // 2, device=positions.device) / width / 2.0)
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _months(width: int) -> Tensor:
    """A sine, then a cosine, of the month of the year, each ``width / 2`` times, ``[12, width]``."""
    angles = torch.arange(12) / (12 / (2 * torch.pi))
    half = (1, width // 2)
    return torch.cat([angles.sin()[:, None].repeat(half), angles.cos()[:, None].repeat(half)], dim=1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _MLP(width, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Patches(nn.Module):
    def __init__(self, bands: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(bands, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Galileo(nn.Module):
    """The encoder."""

    def __init__(
        self, width: int = 128, depth: int = 4, heads: int = 8, ratio: int = 4, patch: int = 8, month: int = 6
    ) -> None:
        """Build it.

        Parameters
        ----------
        width, depth, heads, ratio
            Of the transformer.
        patch
            Side in pixels of a patch, the largest of those it was trained with.
        month
            Month, 1 to 12, that pictures are said to be of: a picture does not know its own.
        """
        super().__init__()
        self.width, self.patch, self.month = width, patch, month
        part = width // 4
        self.pos_embed = nn.Parameter(_waves(part, torch.arange(24)))
        self.s_t_channel_embed = nn.Parameter(torch.zeros(len(_SPACE_TIME), part))
        self.sp_channel_embed = nn.Parameter(torch.zeros(len(_SPACE), part))
        self.t_channel_embed = nn.Parameter(torch.zeros(len(_TIME), part))
        self.st_channel_embed = nn.Parameter(torch.zeros(len(_STATIC), part))
        self.blocks = nn.ModuleList(_Block(width, heads, ratio) for _ in range(depth))
        self.month_embed = nn.Embedding.from_pretrained(_months(part))
        self.space_time_embed = nn.ModuleDict(
            {name: _Patches(len(bands), width, patch) for name, bands in _SPACE_TIME.items()}
        )
        self.space_embed = nn.ModuleDict({n: _Patches(bands, width, patch) for n, bands in _SPACE.items()})
        self.time_embed = nn.ModuleDict({n: nn.Linear(bands, width) for n, bands in _TIME.items()})
        self.static_embed = nn.ModuleDict({n: nn.Linear(bands, width) for n, bands in _STATIC.items()})
        self.norm = nn.LayerNorm(width)

    def tokens(self, bands: dict[str, Tensor], resolution: float = _GROUND) -> Tensor:
        """Return the tokens of a date, ``[N, rows, columns, groups, width]``.

        Parameters
        ----------
        bands
            Name of the band -> normalised values ``[N, H, W]``; groups without all of their bands are hidden.
        resolution
            Metres a pixel.
        """
        groups = [
            (place, name, torch.stack([bands[band] for band in members], dim=1))
            for place, (name, members) in enumerate(_SPACE_TIME.items())
            if all(band in bands for band in members)
        ]
        made = torch.stack([self.space_time_embed[name](values) for _, name, values in groups], dim=3)
        rows, cols = made.shape[1:3]
        part, device = self.width // 4, made.device
        step = resolution * self.patch / _GROUND
        half = part // 2
        across = _waves(half, torch.arange(cols, device=device) * step)[None, :, None].expand(
            rows, -1, len(groups), -1
        )
        down = _waves(half, torch.arange(rows, device=device) * step)[:, None, None].expand(
            -1, cols, len(groups), -1
        )
        which = self.s_t_channel_embed[[place for place, _, _ in groups]].expand(rows, cols, -1, -1)
        first = self.pos_embed[0].expand(rows, cols, len(groups), -1)
        month = self.month_embed.weight[self.month - 1].expand(rows, cols, len(groups), -1)
        x = (made + torch.cat([which, first, month, across, down], dim=3)).flatten(1, 3)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).unflatten(1, (rows, cols, len(groups)))

    def image_vectors(self, pixels: Tensor, tower: str = "s2") -> Tensor:
        """Return the mean of all tokens, ``[N, width]``.

        Parameters
        ----------
        pixels
            Of ``s2`` reflectance of ten bands, blue to swir22 ``[N, 10, H, W]``; of ``s1`` VV and VH in decibels.
        tower
            Which of the two.
        """
        return self.tokens(_normalised(pixels, tower)).flatten(1, 3).mean(1)

    def dense_vectors(self, pixels: Tensor, tower: str = "s2") -> Tensor:
        """Return the mean of each patch's tokens, ``[N, width, h, w]``; arguments as for `image_vectors`."""
        return self.tokens(_normalised(pixels, tower)).mean(3).permute(0, 3, 1, 2)


def _normalised(pixels: Tensor, tower: str) -> dict[str, Tensor]:
    """Bands from two standard deviations below their mean to two above as 0 to 1; the NDVI as it is."""
    facts, scale = (_S1, 1.0) if tower == "s1" else (_S2, _DN)
    values = dict(zip(facts, (pixels * scale).unbind(1), strict=True))
    bands = {
        name: (value - (facts[name][0] - 2 * facts[name][1])) / (4 * facts[name][1])
        for name, value in values.items()
    }
    if tower != "s1":
        total = values["nir"] + values["red"]
        ndvi = (values["nir"] - values["red"]) / torch.where(total == 0, torch.ones_like(total), total)
        bands["ndvi"] = ndvi
    return bands
