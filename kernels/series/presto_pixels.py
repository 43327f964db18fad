"""Presto over rasters: units to what the network was trained on, pixels in chunks of one size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tilewright.errors import KernelError

from ..nets.presto import ABSENT, BANDS, Presto

if TYPE_CHECKING:
    from ..contract import Context

__all__ = ["TOKENS_A_CHUNK", "embedding_of_pixels", "network_input"]

_PLACE = "presto"

TOKENS_A_CHUNK = 32_768
"""Most tokens that go through the network at a time: they bound its memory at about 0.2 GB, whatever the tile."""

_SENSORS = {
    "s1": ("S1",),
    "s2": ("S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "NDVI"),
    "era5": ("ERA5",),
    "srtm": ("SRTM",),
}
"""Input -> its groups of bands."""
_COLUMNS = {"s1": slice(0, 2), "s2": slice(2, 12), "era5": slice(12, 14), "srtm": slice(14, 16)}
_RED, _NIR, _NDVI = 4, 8, 16
# (value + shift) / scale, as the network was trained. The published shift of the temperature is -272.15.
_SHIFT = {"s1": (25.0, 25.0), "era5": (-272.15, 0.0)}
_SCALE = {"s1": (25.0, 25.0), "era5": (35.0, 0.03), "srtm": (2000.0, 50.0)}


def _scaled(name: str, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return one input ``[P, T, C]`` as the network takes it, 0 where unseen, and ``[P, T]`` where it was seen."""
    seen = seen & torch.isfinite(values).all(-1)
    if name == "s1":
        seen = seen & (values > 0).all(-1)
        values = 10 * torch.log10(torch.where(seen[..., None], values, 1.0))
    shift = values.new_tensor(_SHIFT.get(name, 0.0))
    scale = values.new_tensor(_SCALE.get(name, 1.0))
    return torch.where(seen[..., None], (values + shift) / scale, 0.0), seen


def network_input(
    pixels: Mapping[str, Tensor], seen: Mapping[str, Tensor], dates: int
) -> tuple[Tensor, Tensor]:
    """Return bands ``[P, T, 17]`` and what is hidden of them, 1 or 0, of pixels ``[P, T, C]`` and ``[P, T]`` an input.

    Reflectance is 0 to 1, radar linear power, temperature kelvin, precipitation metres a month, elevation metres,
    slope degrees. The NDVI is that of the reflectance, 0 where red and near infrared add up to nothing.
    """
    first = next(iter(pixels.values()))
    x, hidden = first.new_zeros(len(first), dates, BANDS), first.new_ones(len(first), dates, BANDS)
    for name, values in pixels.items():
        scaled, known = _scaled(name, values, seen[name])
        x[..., _COLUMNS[name]] = scaled
        hidden[..., _COLUMNS[name]] = (~known)[..., None].to(x)
        if name == "s2":
            red, nir = x[..., _RED], x[..., _NIR]
            total = red + nir
            x[..., _NDVI] = torch.where(total > 0, (nir - red) / torch.where(total > 0, total, 1.0), 0.0)
            hidden[..., _NDVI] = hidden[..., _NIR]
    return x, hidden


def _months(context: Context, month: int | None, count: int, dates: int) -> Tensor:
    """Return the months 0 to 11 of the dates of each sample, ``[N, T]``."""
    times = context.times[:, :dates]
    if month is not None:
        steps = torch.arange(dates, device=times.device) + (month - 1)
        return steps.remainder(12).expand(count, dates)
    if bool((times == 0).any()):
        raise KernelError(
            "the input does not say when its dates were acquired",
            place=_PLACE,
            remedy="give the month of the first one, such as month=1",
        )
    months = times.cpu().numpy().astype("datetime64[ns]").astype("datetime64[M]").astype("int64") % 12
    return torch.from_numpy(months).to(times.device)


def _latlons(context: Context, place: tuple[float, float] | None, height: int, width: int) -> Tensor:
    """Return latitude and longitude of each pixel in degrees, ``[N, H * W, 2]``."""
    if place is not None:
        here = torch.tensor([place[1], place[0]], dtype=torch.float32, device=context.origin.device)
        return here.expand(len(context.origin), height * width, 2)
    lonlat = context.pixel_lonlat(height, width)
    if bool(lonlat.isnan().any()):
        raise KernelError(
            "the input has no coordinates",
            place=_PLACE,
            remedy="give the place of all pixels, such as place=11.5,47.2",
        )
    return lonlat.flip(1).flatten(2).transpose(1, 2).float()


def _dates(inputs: Mapping[str, Tensor]) -> int:
    counts = {name: values.shape[1] for name, values in inputs.items() if name != "srtm"}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise KernelError(
            f"inputs differ in their dates: {told}", place=_PLACE, remedy="give the same months of each"
        )
    return next(iter(counts.values()))


def embedding_of_pixels(
    network: Presto,
    inputs: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    context: Context,
    month: int | None,
    place: tuple[float, float] | None,
) -> dict[str, Tensor]:
    """Return the embedding ``[N, 128, H, W]``, NaN where no date of any input but the terrain is valid.

    Every call of the network has as many pixels, the last one repeated, so that the bits of a pixel do not follow
    from how a raster is cut.
    """
    dates = _dates(inputs)
    first = next(iter(inputs.values()))
    count, (height, width) = len(first), first.shape[-2:]
    groups = [group for name in inputs for group in _SENSORS[name]]
    tokens = 1 + sum(1 if group == "SRTM" else dates for group in groups)
    size = math.ceil(height * width / math.ceil(height * width * tokens / TOKENS_A_CHUNK))
    months = _months(context, month, count, dates)
    places = _latlons(context, place, height, width)
    images = []
    for i in range(count):
        pixels = {name: values[i].flatten(2).permute(2, 0, 1) for name, values in inputs.items()}
        seen = {name: valid[name][i, :, 0].flatten(1).t() for name in inputs}
        parts = []
        for start in range(0, height * width, size):
            index = torch.arange(start, start + size, device=first.device).clamp(max=height * width - 1)
            x, hidden = network_input(
                {name: values[index] for name, values in pixels.items()},
                {name: known[index] for name, known in seen.items()},
                dates,
            )
            land = torch.full(x.shape[:2], ABSENT, device=x.device)
            found = network.encoder(x, land, places[i, index], hidden, months[i].expand(size, -1), groups)
            observed = (hidden[..., [*range(14), _NDVI]] == 0).any(-1).any(-1)
            parts.append(torch.where(observed[:, None], found, torch.nan))
        images.append(torch.cat(parts)[: height * width].t().unflatten(1, (height, width)))
    return {"embedding": torch.stack(images)}
