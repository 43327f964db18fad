"""The bench that a kernel is tried on: seeded inputs of the declared shape, and calls as the engine makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError
from tilewright.kernels.contract import Context, InputSpec

from .report import Finding, Severity

if TYPE_CHECKING:
    from torch import Tensor

    from tilewright.kernels.contract import Kernel

__all__ = ["ROUNDING", "TOLERANCE", "Bench", "Rasters", "choose_tile", "differs", "relative", "spread"]

TOLERANCE = 2e-6
"""Differences below this share of the output's spread are rounding: cutting is promised to 1e-6, for two sides."""
ROUNDING = 1e-5
"""The same for batches of another size or order, whose matrix products are added up in another order: up to 4.4e-6 was
seen (mamba-fcs). What statistics of the batch do is thousands of times more."""

Rasters = dict[str, "Tensor"]
"""Input name -> ``[N, T, C, H, W]``."""

_DAY = 86_400 * 10**9


@dataclass
class Bench:
    """A kernel, its inputs, and what was found so far."""

    kernel: Kernel
    """The kernel."""
    tile: int
    """Side of the tiles in pixels."""
    device: str
    """Where the kernel runs."""
    seed: int
    """Seed of all inputs."""
    given: Mapping[str, Tensor] | None = None
    """The user's own pixels, ``[T, C, H, W]`` an input, as the kernel sees them; None draws random ones."""
    findings: list[Finding] = field(default_factory=list)
    """What was found."""
    checks: list[str] = field(default_factory=list)
    """The checks that ran."""
    needed_stride: int | None = None
    """The measured stride, where it is another than the declared one."""
    radius: int | None = None
    """The measured radius."""
    watch: bool = False
    """True while calls are watched for changes of their input."""
    mutated: str | None = None
    """Name of an input that a watched call changed in place."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """What `fit` made of the random pixels."""

    def note(self, check: str, severity: Severity, message: str, **more: Any) -> None:
        """Record a finding."""
        self.findings.append(Finding(check, severity, message, **more))

    @property
    def stride(self) -> int:
        """The stride by which the kernel really repeats, as far as known."""
        return self.needed_stride or self.kernel.spec.stride

    @property
    def dates(self) -> dict[str, int]:
        """Dates of each input: the fewest that the kernel takes, or as many as the user's own pixels have."""
        if self.given is not None:
            return {name: int(x.shape[-4]) for name, x in self.given.items()}
        return {name: spec.date_range[0] for name, spec in self.kernel.spec.inputs.items()}

    def pixels(
        self, count: int, side: int | None = None, *, seed: int = 0, amplitude: float = 1.0
    ) -> Rasters:
        """Return ``count`` seeded rasters of ``side`` pixels (the tile's), in the units the kernel sees."""
        import torch

        side = side or self.tile
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + seed)
        made: Rasters = {}
        for name, spec in self.kernel.spec.inputs.items():
            if name not in self.dates:
                continue
            shape = (count, self.dates[name], spec.band_count, side, side)
            if self.given is not None:
                made[name] = _sampled(self.given[name], shape, generator)
            else:
                made[name] = _drawn(spec, shape, generator)
            if amplitude != 1:
                made[name] = made[name] * amplitude
        return made

    def fit(self) -> None:
        """Make the statistics that the kernel asks for, from random pixels."""
        if self.kernel.fit is None:
            return
        sample = {
            name: x.permute(0, 3, 4, 1, 2).reshape(-1, *x.shape[1:3]).double().numpy()
            for name, x in self.pixels(1, max(64, self.tile), seed=11).items()
        }
        self.statistics = self.kernel.fit(sample)

    def run(
        self,
        inputs: Rasters,
        valid: Rasters | None = None,
        origin: tuple[int, int] | list[tuple[int, int]] = (0, 0),
    ) -> dict[str, Any]:
        """Call the kernel as the engine does and return its outputs on the CPU."""
        import torch

        count = next(iter(inputs.values())).shape[0]
        if valid is None:
            valid = {n: torch.ones_like(x[:, :, :1], dtype=torch.bool) for n, x in inputs.items()}
        origins = [origin] * count if isinstance(origin, tuple) else origin
        steps = max(self.dates.values())
        times = torch.arange(steps, dtype=torch.int64) * 12 * _DAY + 18_000 * _DAY
        resolution = next((s.resolution for s in self.kernel.spec.inputs.values() if s.resolution), 10.0)
        context = Context(
            origin=torch.tensor(origins, dtype=torch.int64).to(self.device),
            times=times.expand(count, steps).to(self.device),
            lonlat=torch.tensor([[11.0, 47.0]], dtype=torch.float64).expand(count, 2).to(self.device),
            resolution=resolution,
            statistics=self.statistics,
            seed=self.kernel.spec.seed or 0,
        )
        moved = {n: x.to(self.device, copy=True) for n, x in inputs.items()}
        masks = {n: x.to(self.device, copy=True) for n, x in valid.items()}
        with torch.no_grad():
            outputs = self.kernel.apply(moved, masks, context)
        if self.watch:
            self.mutated = next((n for n, x in moved.items() if not torch.equal(x.cpu(), inputs[n])), None)
        return {n: y.detach().cpu() if isinstance(y, torch.Tensor) else y for n, y in outputs.items()}

    def filled(self, inputs: Rasters, valid: Rasters) -> Rasters:
        """Put the declared ``fill`` where ``valid`` is False, as the engine does before the kernel is called."""
        import torch

        fills = {n: self.kernel.spec.inputs[n].fill for n in inputs}
        return {n: torch.where(valid[n], x, torch.full((), fills[n])) for n, x in inputs.items()}


def _drawn(spec: InputSpec, shape: tuple[int, ...], generator: Any) -> Tensor:
    """Normal numbers for an input that is normalised, decibels where declared, else numbers in (0.02, 1)."""
    import torch

    if spec.mean is not None:
        return torch.randn(shape, generator=generator)
    if spec.units in ("dB", "decibel"):
        return -12 + 4 * torch.randn(shape, generator=generator)
    return 0.02 + 0.98 * torch.rand(shape, generator=generator)


def _sampled(source: Tensor, shape: tuple[int, ...], generator: Any) -> Tensor:
    """Mirror the user's pixels to the wanted size, and roll each copy by another random shift."""
    import torch

    x = source if source.ndim == 4 else source[0]
    rows, cols = (
        torch.from_numpy(
            np.pad(np.arange(side), (0, max(0, shape[-1] - side)), mode="symmetric")[: shape[-1]]
        )
        for side in x.shape[-2:]
    )
    x = x[..., rows, :][..., cols].float()
    shifts = torch.randint(0, shape[-1], (shape[0], 2), generator=generator).tolist()
    return torch.stack([torch.roll(x, tuple(s), (-2, -1)) for s in shifts])


def choose_tile(kernel: Kernel, wish: int | None, reach: int | None = None) -> int:
    """Return a tile side in which influence can be seen beyond the radius on both sides."""
    spec = kernel.spec
    rule = spec.tile
    if rule.fixed:
        return rule.fixed
    step = math.lcm(spec.stride, rule.multiple)
    if wish is not None:
        if wish % step:
            raise KernelError(f"tile {wish} is not a multiple of {step}", place=spec.name)
        return wish
    radius = spec.radius if spec.radius is not None else (spec.radius_at.px if spec.radius_at else 16)
    room = reach if reach is not None else radius + 8
    grain = math.lcm(step, 8)
    side = math.ceil(max(48, 2 * room + 2 * spec.stride) / grain) * grain
    return min(side, rule.maximum // step * step) if rule.maximum else side


def differs(a: Tensor, b: Tensor) -> Tensor:
    """Bool, True where two outputs differ in any bit that counts; two NaN are equal."""
    return (a != b) & ~(a.isnan() & b.isnan())


def spread(outputs: Mapping[str, Tensor], kernel: Kernel) -> dict[str, float]:
    """The unit of differences of each output: its declared range, or the largest magnitude that was seen."""
    units: dict[str, float] = {}
    for name, y in outputs.items():
        declared = kernel.spec.outputs[name].range
        finite = y[y.isfinite()] if y.is_floating_point() else y.float()
        seen = float(finite.abs().max()) if finite.numel() else 1.0
        units[name] = (declared[1] - declared[0]) if declared else (seen or 1.0)
    return units


def relative(a: Tensor, b: Tensor, unit: float) -> Tensor:
    """|a - b| in parts of ``unit``, float64; infinite where only one of them is finite."""
    import torch

    gap = (a.double() - b.double()).abs() / unit
    return torch.where(gap.isfinite(), gap, torch.where(differs(a, b), math.inf, 0.0))
