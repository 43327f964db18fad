"""How a run is carried out: what the user may turn, and what it becomes for a kernel and a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tilewright.errors import GridError, InputError

from .grid import Tiling
from .intraop import usable_cores

if TYPE_CHECKING:
    from tilewright.kernels.contract import KernelSpec

__all__ = ["Settings", "choose_tiling", "parse_size"]

DEFAULT_TILE = 512
LARGEST_DEFAULT_TILE = 1024
READ_BYTES = 256 << 20
"""Bytes of one read window that the default shard aims at."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The wishes of a user for a run; None is "choose for me"."""

    stitch: Literal["cut", "blend"] | None = None
    """None cuts where the kernel declares a radius and blends otherwise."""
    tile: int | None = None
    """Pixels a side that the kernel sees."""
    shard: int | None = None
    """Pixels a side of a shard, rounded up to a multiple of the core and of 16."""
    batch: int | None = None
    """Tiles a forward; every batch has this many, the last one padded."""
    threads: int | None = None
    """Intra-op threads of torch; the same number gives the same bits. None is 1, so that no machine has bits of its
    own; all cores for a kernel that is not ``concurrent``."""
    cores: int | None = None
    """Most cores that the kernel may keep busy on a CPU: ``cores // threads`` batches are computed side by side, fewer
    where they would not fit into the memory. It changes no bit. None: all cores of the process."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` takes a GPU where torch sees one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward (autocast)."""
    boundary: Literal["reflect", "fill"] | None = None
    """What stands beyond the edge of the data; None: what the kernel declares."""
    memory: int | None = None
    """Bytes that the run may use; None: what the machine has free."""
    allow_clipping: bool = False
    """True allows values outside of a declared range to be clipped when blending; they are counted."""
    on_error: Literal["raise", "reason"] = "raise"
    """What a read that failed after all retries does: end the run, or leave nodata, a reason and an entry."""
    coregister: bool = False
    """True measures the shift of later dates against the first in a few windows, and moves them onto it."""
    untrained: bool = False
    """True maps a kernel that needs weights without them, to see what it costs; its results mean nothing."""

    def __post_init__(self) -> None:
        for name in ("tile", "shard", "batch", "threads", "cores", "memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(
                    f"{name} is {value}", place=f"--{name}", remedy="give a number of at least 1"
                )
        choices = {
            "stitch": ("cut", "blend", None),
            "precision": ("fp32", "bf16", "fp16"),
            "boundary": ("reflect", "fill", None),
            "on_error": ("raise", "reason"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                names = ", ".join(k for k in known if k)
                raise InputError(
                    f"unknown {name} {getattr(self, name)!r}", place=f"--{name}", remedy=f"known: {names}"
                )

    def resolve(self, spec: KernelSpec, tiling: Tiling, shape: tuple[int, int]) -> Settings:
        """Return the settings with every None but ``tile``, ``shard``, ``cores`` and ``memory`` decided.

        Nothing here depends on the number of workers, so their number can not change a bit of the result.
        """
        device = resolve_device(self.device)
        if self.precision != "fp32" and not spec.autocast:
            raise InputError(
                f"kernel {spec.name} does not allow {self.precision}", place="--precision", remedy="use fp32"
            )
        pixels = 1 << (18 if device == "cpu" else 22)
        tiles = math.prod(tiling.count(length) for length in shape)
        batch = self.batch or max(1, min(32, pixels // tiling.tile**2, tiles))
        return replace(
            self,
            stitch=self.stitch or ("blend" if spec.radius is None and spec.radius_at is None else "cut"),
            batch=batch,
            threads=self.threads or (1 if spec.concurrent or device != "cpu" else usable_cores()),
            device=device,
            boundary=self.boundary or spec.boundary,
        )


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda:N``; raises `InputError` for a device that torch does not see."""
    import torch

    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"unknown device {name!r}", place="--device", remedy="use auto, cpu or cuda:N"
        ) from error
    if device.type == "cpu":
        return "cpu"
    if (
        device.type != "cuda"
        or not torch.cuda.is_available()
        or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise InputError(
            f"torch sees no device {name!r}", place="--device", remedy="use --device cpu or auto"
        )
    return f"cuda:{device.index or 0}"


def parse_size(text: str | int) -> int:
    """Return bytes for ``"8GiB"``, ``"512 MB"`` or a number; raises `InputError`."""
    if isinstance(text, int):
        return text
    units = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20}
    units |= {"g": 10**9, "gb": 10**9, "gib": 2**30, "t": 10**12, "tb": 10**12, "tib": 2**40}
    body = text.strip().lower()
    digits = body.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = body[len(digits) :].strip()
    try:
        return int(float(digits) * units[unit])
    except (ValueError, KeyError) as error:
        raise InputError(f"{text!r} is no size", place="--memory", remedy="write it like 8GiB") from error


def choose_tiling(
    spec: KernelSpec,
    settings: Settings,
    shape: tuple[int, int],
    bytes_per_pixel: int,
) -> Tiling:
    """Return the tiling of a kernel over a grid of ``shape``.

    With a radius the halo is the radius rounded up to the stride. Without one, an eighth of the tile on each
    side is only context, half of it blended; ``radius_at`` replaces the unblended part. The default shard is
    such that a read window holds about 256 MiB (``bytes_per_pixel`` counts all dates and bands of the input).
    """
    stitch = settings.stitch or ("blend" if spec.radius is None and spec.radius_at is None else "cut")
    exact = spec.radius if spec.radius is not None else (spec.radius_at.px if spec.radius_at else None)
    tile = _tile(spec, settings, shape, exact, stitch)
    if exact is not None:
        lead = math.ceil(exact / spec.stride) * spec.stride
        room = (tile - 2 * lead) // 4  # the taper fits twice into the core that it leaves
        taper = _multiple(min(tile // 16, room), spec.stride) if stitch == "blend" else 0
    elif stitch == "blend":
        taper = _multiple(tile // 16, spec.stride)
        lead = taper
    else:
        taper, lead = 0, _multiple(tile // 8, spec.stride)
    shard = settings.shard or _default_shard(shape, bytes_per_pixel)
    tiling = Tiling.choose(tile=tile, radius=lead, stride=spec.stride, taper=taper, shard=shard)
    if spec.tile.fixed is not None and tiling.tile != spec.tile.fixed:
        raise GridError(
            f"kernel {spec.name} takes tiles of {spec.tile.fixed} px, which stride {spec.stride} does not divide",
            place="tiling",
        )
    return tiling


def _multiple(pixels: int, stride: int) -> int:
    return max(1, pixels // stride) * stride


def _default_shard(shape: tuple[int, int], bytes_per_pixel: int) -> int:
    fits = math.isqrt(READ_BYTES // max(1, bytes_per_pixel))
    return max(256, min(2048, fits, max(shape)))


def _tile(
    spec: KernelSpec, settings: Settings, shape: tuple[int, int], radius: int | None, stitch: str
) -> int:
    rule = spec.tile
    step = math.lcm(rule.multiple, spec.stride)
    if settings.tile is not None:
        wrong = (
            (rule.fixed is not None and settings.tile != rule.fixed)
            or settings.tile % rule.multiple
            or (rule.maximum is not None and settings.tile > rule.maximum)
        )
        if wrong:
            sides = f"only {rule.fixed}" if rule.fixed else f"multiples of {rule.multiple}"
            upto = f" up to {rule.maximum}" if rule.maximum else ""
            raise GridError(
                f"a tile of {settings.tile} px does not suit kernel {spec.name}",
                place="--tile",
                remedy=f"it takes {sides}{upto} px",
            )
        # Rounded here, by the rule and the stride at once: rounding the core alone may leave the rule.
        if rule.fixed is None and settings.tile < step:
            raise GridError(
                f"a tile of {settings.tile} px holds no multiple of {step} px (stride {spec.stride}, sides in"
                f" multiples of {rule.multiple})",
                place="--tile",
                remedy=f"use a tile of at least {step} px",
            )
        return settings.tile if rule.fixed is not None else settings.tile // step * step
    if rule.fixed is not None:
        return rule.fixed
    if math.lcm(step, 16) <= (rule.maximum or math.inf):
        step = math.lcm(step, 16)
    wanted = rule.default or max(DEFAULT_TILE, min(8 * (radius or 0), LARGEST_DEFAULT_TILE))
    lead = math.ceil((radius or 0) / spec.stride) * spec.stride
    extra = lead + (wanted // 16 if stitch == "blend" else 0)
    if radius is not None:  # a raster smaller than a tile is not padded to a whole one
        wanted = min(wanted, max(shape) + 2 * extra)
        wanted = max(wanted, 2 * lead + 4 * step if stitch == "blend" else 2 * lead + step)
    tile = math.ceil(wanted / step) * step
    if rule.maximum:
        tile = min(tile, rule.maximum // step * step)
    # A core that 16 divides keeps the shard, a multiple of both, near what it shall be (radius 5: 2,480 px
    # instead of 4,016).
    if stitch == "cut":
        snug = (tile - 2 * lead) // 16 * 16 + 2 * lead
        if snug > 2 * lead and snug % math.lcm(rule.multiple, spec.stride) == 0:
            return snug
    return tile
