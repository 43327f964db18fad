"""Presto: a small transformer over one pixel's months of radar, optical, weather and terrain.

Tseng, G. et al. (2023): Lightweight, Pre-trained Transformers for Remote Sensing Timeseries,
https://arxiv.org/abs/2304.14065. Written from the paper and from the names and shapes of the published weights. Every
group of bands is a token a date; terrain is one token, and so is the place on Earth. Hidden tokens are left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewright.errors import KernelError

__all__ = ["ABSENT", "BANDS", "GROUPS", "Presto"]

GROUPS = {
    "S1": (0, 1),
    "S2_RGB": (2, 3, 4),
    "S2_Red_Edge": (5, 6, 7),
    "S2_NIR_10m": (8,),
    "S2_NIR_20m": (9,),
    "S2_SWIR": (10, 11),
    "ERA5": (12, 13),
    "SRTM": (14, 15),
    "NDVI": (16,),
}
"""Groups of bands in the order of their tokens -> their bands."""
BANDS = 17
"""Bands of the input: VV, VH, B2 to B8, B8A, B11, B12, temperature, precipitation, elevation, slope, NDVI."""
ABSENT = 9
"""Class of Dynamic World that stands for no observation; 0 to 8 are its classes."""

_STORED = ("S1", "S2_RGB", "S2_NIR_10m", "S2_NIR_20m", "S2_Red_Edge", "S2_SWIR", "ERA5", "SRTM", "NDVI")
"""The groups as the published weights list them."""
_STATIC = "SRTM"
_LAND = "dynamic_world"
_WIDTH, _HEADS, _DEPTH, _LONGEST = 128, 8, 2, 24


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        mask = None if keep is None else keep[:, None, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.fc2 = nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attn = _Attention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp = _Mlp()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), keep)
        return x + self.mlp(self.norm2(x))


def _waves(width: int) -> Tensor:
    """Sines (even columns) and cosines (odd ones) of the number of the date, ``[1, dates, width]``."""
    column = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(_LONGEST, dtype=torch.float64)[:, None] / 1000 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()[None]


def _year(width: int) -> Tensor:
    """The place of each month in the year, ``[12, width]``: its sine in the first half, its cosine in the second."""
    angle = torch.arange(12, dtype=torch.float64)[:, None] * (2 * math.pi / 12)
    return torch.cat([angle.sin().expand(-1, width // 2), angle.cos().expand(-1, width // 2)], dim=1).float()


def _months(month: Tensor | int, count: int, dates: int, device: torch.device) -> Tensor:
    """Return the months 0 to 11 of each date, ``[count, dates]``, of a first month (one, or one a sample) or of all."""
    first = torch.as_tensor(month, device=device)
    if first.ndim == 2:
        return first
    return (first.reshape(-1, 1) + torch.arange(dates, device=device)).remainder(12).expand(count, dates)


def _stamps(when: Tensor, of_month: Tensor, of_group: Tensor, of_date: Tensor) -> Tensor:
    """Return what is added to the tokens to say month, group and number of the date: ``[B, groups, T, width]``.

    ``when`` ``[B, T]`` months; ``of_month`` ``[12, a]``, ``of_group`` ``[groups, b]``, ``of_date`` ``[1, 24, c]``.
    """
    count, dates = when.shape
    shape = (count, len(of_group), dates, -1)
    parts = (of_month[when][:, None], of_group[None, :, None], of_date[:, None, :dates])
    return torch.cat([part.expand(shape) for part in parts], dim=-1)


def _static(stamps: Tensor, group: int, before: int, after: int) -> Tensor:
    """Return the stamp of a group without dates, ``[B, 1, width]``: of its ``width`` only the middle is set."""
    stamp = stamps[:, group, :1].clone()
    stamp[..., :before] = 0
    stamp[..., -after:] = 0
    return stamp


class _Encoder(nn.Module):
    """Tokens of what was observed, and the embedding of a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(_waves(_WIDTH // 2), requires_grad=False)
        self.eo_patch_embed = nn.ModuleDict({name: nn.Linear(len(GROUPS[name]), _WIDTH) for name in _STORED})
        self.dw_embed = nn.Embedding(ABSENT + 1, _WIDTH)
        self.latlon_embed = nn.Linear(3, _WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(_WIDTH)
        self.month_embed = nn.Embedding.from_pretrained(_year(_WIDTH // 4), freeze=True)
        self.channel_embed = nn.Embedding(len(GROUPS) + 1, _WIDTH // 4)

    def tokens(
        self,
        x: Tensor,
        dynamic_world: Tensor,
        mask: Tensor | None,
        month: Tensor | int,
        groups: Collection[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return tokens ``[B, L, width]`` and which of them are hidden, ``[B, L]`` bool.

        Only of ``groups``, where they are named: those that no pixel has need not be embedded.
        """
        count, dates = x.shape[:2]
        when = _months(month, count, dates, x.device)
        stamps = _stamps(when, self.month_embed.weight, self.channel_embed.weight, self.pos_embed)
        tokens, hidden = [], []
        for number, (name, bands) in enumerate(GROUPS.items()):
            if groups is not None and name not in groups:
                continue
            part = slice(0, 1) if name == _STATIC else slice(None)
            stamp = stamps[:, number]
            if name == _STATIC:
                stamp = _static(stamps, number, _WIDTH // 4, _WIDTH // 2)
            tokens.append(self.eo_patch_embed[name](x[:, part, bands]) + stamp)
            hides = x.new_zeros(1).bool().expand(tokens[-1].shape[:2])
            hidden.append(hides if mask is None else mask[:, part, bands].bool().any(-1))
        if groups is None or _LAND in groups:
            tokens.append(self.dw_embed(dynamic_world) + stamps[:, len(GROUPS)])
            hidden.append(dynamic_world == ABSENT)
        return torch.cat(tokens, dim=1), torch.cat(hidden, dim=1)

    def place(self, latlons: Tensor) -> Tensor:
        """Return the token of latitude and longitude ``[B, 2]`` in degrees, as a point of the unit sphere."""
        lat, lon = torch.deg2rad(latlons).unbind(-1)
        point = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=-1)
        return self.latlon_embed(point)[:, None]

    def forward(
        self,
        x: Tensor,
        dynamic_world: Tensor,
        latlons: Tensor,
        mask: Tensor | None = None,
        month: Tensor | int = 0,
        groups: Collection[str] | None = None,
    ) -> Tensor:
        """Return the embedding of each pixel, ``[B, 128]``: the normalised mean of its tokens."""
        tokens, hidden = self.tokens(x, dynamic_world, mask, month, groups)
        keep = torch.cat([torch.ones_like(hidden[:, :1]), ~hidden], dim=1)
        tokens = torch.cat([self.place(latlons), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, keep)
        counted = keep[..., None].to(tokens)
        return self.norm((tokens * counted).sum(1) / counted.sum(1))

    def kept(
        self, x: Tensor, dynamic_world: Tensor, latlons: Tensor, mask: Tensor | None, month: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens that are not hidden, that of the place first, each normalised, and the numbers of the
        kept and of the hidden ones, ``[B, kept]`` and ``[B, hidden]``."""
        tokens, hidden = self.tokens(x, dynamic_world, mask, month)
        numbers = hidden.sum(1)
        if int(numbers.min()) != int(numbers.max()):
            raise KernelError(
                f"samples of one batch hide {int(numbers.min())} to {int(numbers.max())} tokens",
                place="presto",
                remedy="reconstruct samples that hide as many together; embeddings have no such limit",
            )
        order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
        kept, removed = order.split([hidden.shape[1] - int(numbers[0]), int(numbers[0])], dim=1)
        seen = tokens.gather(1, kept[..., None].expand(-1, -1, _WIDTH))
        seen = torch.cat([self.place(latlons), seen], dim=1)
        for block in self.blocks:
            seen = block(seen)
        return self.norm(seen), kept, removed


class _Decoder(nn.Module):
    """From tokens back to the bands, hidden ones too."""

    def __init__(self, channel_embeddings: nn.Embedding) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(_WIDTH))
        rest = (_WIDTH - channel_embeddings.embedding_dim) // 2
        self.pos_embed = nn.Parameter(_waves(rest), requires_grad=False)
        self.decoder_embed = nn.Linear(_WIDTH, _WIDTH)
        self.decoder_blocks = nn.ModuleList(_Block() for _ in range(_DEPTH))
        self.decoder_norm = nn.LayerNorm(_WIDTH)
        self.eo_decoder_pred = nn.ModuleDict({name: nn.Linear(_WIDTH, len(GROUPS[name])) for name in _STORED})
        self.dw_decoder_pred = nn.Linear(_WIDTH, ABSENT)
        self.channel_embeddings = channel_embeddings
        self.month_embed = nn.Embedding.from_pretrained(_year(rest), freeze=True)

    def _stamps(self, when: Tensor) -> Tensor:
        """Return the stamps of all tokens after that of the place, ``[B, L, width]``."""
        stamps = _stamps(when, self.month_embed.weight, self.channel_embeddings.weight, self.pos_embed)
        rest = self.pos_embed.shape[-1]
        parts = [
            _static(stamps, number, rest, rest) if name == _STATIC else stamps[:, number]
            for number, name in enumerate((*GROUPS, _LAND))
        ]
        return torch.cat(parts, dim=1)

    def forward(self, x: Tensor, kept: Tensor, removed: Tensor, when: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bands ``[B, T, 17]`` and the logits of Dynamic World ``[B, T, 9]``."""
        dates = when.shape[1]
        x = self.decoder_embed(x)
        hidden = self.mask_token.expand(*removed.shape, -1)
        place = torch.argsort(torch.cat([kept, removed], dim=1), dim=1)[..., None].expand(-1, -1, _WIDTH)
        ordered = torch.cat([x[:, 1:], hidden], dim=1).gather(1, place) + self._stamps(when)
        x = torch.cat([x[:, :1], ordered], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        sizes = [1 if name == _STATIC else dates for name in GROUPS]
        *groups, land = self.decoder_norm(x)[:, 1:].split([*sizes, dates], dim=1)
        bands = [
            self.eo_decoder_pred[name](one).expand(-1, dates, -1)
            for name, one in zip(GROUPS, groups, strict=True)
        ]
        return torch.cat(bands, dim=-1), self.dw_decoder_pred(land)


class Presto(nn.Module):
    """``x [B, T, 17]``, ``dynamic_world [B, T]``, ``latlons [B, 2]`` in degrees -> what it makes of hidden bands.

    ``mask`` is shaped as ``x``, 1 where a band is hidden; ``month`` is the first month, 0 to 11. `encoder` gives the
    embedding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.decoder = _Decoder(self.encoder.channel_embed)

    def forward(
        self,
        x: Tensor,
        dynamic_world: Tensor,
        latlons: Tensor,
        mask: Tensor | None = None,
        month: Tensor | int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the bands ``[B, T, 17]`` and the logits of Dynamic World ``[B, T, 9]``."""
        tokens, kept, removed = self.encoder.kept(x, dynamic_world, latlons, mask, month)
        when = _months(month, x.shape[0], x.shape[1], x.device)
        found: tuple[Tensor, Tensor] = self.decoder(tokens, kept, removed, when)
        return found
