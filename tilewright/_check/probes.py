"""Checks of geometry: how far a pixel's influence reaches, where it lands, and by which shifts it repeats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .bench import TOLERANCE, Bench, Rasters, differs, relative, spread
from .rules import context_layers

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reach", "check_alignment", "check_radius", "check_stride", "measure_reach"]

_PHASES = 32
_SEEDS = 3


@dataclass(slots=True)
class Reach:
    """How far one column (or row) of input pixels is felt, over all phases, axes and seeds."""

    before: list[int]
    """Per axis (rows, columns): farthest output pixel before the changed one, in input pixels; -1 for none."""
    after: list[int]
    """The same behind it."""
    edge: bool = False
    """True where the influence reaches the edge of the tile, so that its end is not seen."""
    largest: float = 0.0
    """Largest change, in parts of the output's unit."""

    @property
    def pixels(self) -> int:
        """The radius: the farthest of both sides and axes."""
        return max(0, *self.before, *self.after)

    def add(self, other: Reach) -> None:
        """Widen this by another one."""
        self.before = [max(a, b) for a, b in zip(self.before, other.before, strict=True)]
        self.after = [max(a, b) for a, b in zip(self.after, other.after, strict=True)]
        self.edge |= other.edge
        self.largest = max(self.largest, other.largest)


@dataclass(slots=True)
class Reaches:
    """The probes side by side."""

    material: Reach
    """Changes above `TOLERANCE`, by random and by large changes of the pixels."""
    exact: Reach
    """Changes of any bit."""
    nan: Reach
    """Outputs that turn NaN with the pixels. Sees the smallest influence, and taps of weight zero too; sees
    nothing behind a maximum or comparison that swallows NaN."""
    beyond: float = 0.0
    """Largest change beyond the declared radius, in parts of the output's unit."""

    @property
    def bound(self) -> Reach:
        """The reach to trust: that of any bit, or of what is not rounding where rounding goes everywhere (FFT),
        widened by NaN where that one ends inside the tile."""
        felt = self.material if self.exact.edge and not self.material.edge else self.exact
        return self.nan if not self.nan.edge and self.nan.pixels >= felt.pixels and not felt.edge else felt


def _nothing() -> Reach:
    return Reach([-1, -1], [-1, -1])


def measure_reach(bench: Bench, phases: int, *, together: bool = True) -> Reaches:
    """Change one row, then one column, at each of ``phases`` positions, and see how far the output changes.

    ``together`` runs all positions as one batch; False runs them one by one, for kernels that mix a batch.
    """
    found = Reaches(_nothing(), _nothing(), _nothing())
    for axis in (0, 1):
        for seed in range(_SEEDS):
            _probe(bench, found, axis, phases, ("draw", "large")[seed % 2], seed, together)
        _probe(bench, found, axis, phases, "nan", _SEEDS, together)
    return found


def _probe(
    bench: Bench, found: Reaches, axis: int, phases: int, kind: str, seed: int, together: bool
) -> None:
    import torch

    count = min(phases, _PHASES)
    start = (bench.tile // 2 - count // 2) // bench.stride * bench.stride
    positions = [start + round(i * (phases - 1) / max(1, count - 1)) for i in range(count)]
    base = bench.pixels(1, seed=20 + seed)
    fresh = bench.pixels(1, seed=40 + seed, amplitude=20.0 if kind == "large" else 1.0)
    still = {n: x.repeat(count, 1, 1, 1, 1) for n, x in base.items()}
    changed = {n: x.clone() for n, x in still.items()}
    for n, x in changed.items():
        for i, at in enumerate(positions):
            line = x[i].select(-2 + axis, at)
            line.copy_(
                fresh[n][0].select(-2 + axis, at) if kind != "nan" else torch.full_like(line, math.nan)
            )
    # The unchanged tiles run in the same batch and place: the last bits may depend on both.
    before, after = _run(bench, still, together), _run(bench, changed, together)
    for name, y in after.items():
        unit = max(spread(o, bench.kernel)[name] for o in (before, after))
        for i, at in enumerate(positions):
            _record(bench, found, axis, at, y[i], before[name][i], unit, kind)


def _run(bench: Bench, inputs: Rasters, together: bool) -> dict[str, Tensor]:
    import torch

    if together:
        return bench.run(inputs)
    count = next(iter(inputs.values())).shape[0]
    runs = [bench.run({n: x[i : i + 1] for n, x in inputs.items()}) for i in range(count)]
    return {n: torch.cat([r[n] for r in runs]) for n in runs[0]}


def _record(
    bench: Bench, found: Reaches, axis: int, at: int, y: Tensor, still: Tensor, unit: float, kind: str
) -> None:
    across = (0, 2 - axis)
    if kind == "nan":
        if y.is_floating_point():
            found.nan.add(_extent(bench, axis, at, (y.isnan() & ~still.isnan()).any(across[0]).any(1 - axis)))
        return
    share = relative(y, still, unit).amax(across)
    found.exact.add(_extent(bench, axis, at, differs(y, still).any(across[0]).any(1 - axis)))
    found.material.add(_extent(bench, axis, at, share > TOLERANCE))
    found.material.largest = max(found.material.largest, float(share.max()))
    radius = bench.kernel.spec.radius
    if radius is not None:
        scale = bench.kernel.spec.scale
        share[max(0, at - radius) * scale : (at + radius + 1) * scale] = 0
        found.beyond = max(found.beyond, float(share.max()))


def _extent(bench: Bench, axis: int, at: int, changed: Tensor) -> Reach:
    """The first and last changed pixel along ``axis`` around ``at``, in input pixels."""
    reach = _nothing()
    where = changed.nonzero().ravel()
    if where.numel():
        scale = bench.kernel.spec.scale
        first, last = int(where[0]) // scale, int(where[-1]) // scale
        reach.before[axis], reach.after[axis] = at - first, last - at
        reach.edge = first <= 0 or last >= bench.tile - 1
    return reach


def check_radius(bench: Bench, found: Reaches) -> None:
    """Compare the declared radius with the measured one."""
    bench.checks.append("radius")
    spec = bench.kernel.spec
    bound, material = found.bound, found.material
    bench.radius = None if bound.edge else bound.pixels
    declared = spec.radius
    if declared is None:
        if not bound.edge:
            bench.note(
                "radius", "note", f"no influence beyond {bound.pixels} px was found, but the radius is null",
                measured=bound.pixels, remedy=f"declare radius: {bound.pixels}, and tiles are cut without any seam",
            )  # fmt: skip
        if spec.radius_at is not None:
            _check_radius_at(bench)
    elif material.pixels > declared:
        _too_small(bench, found, declared)
    elif found.exact.pixels > declared:
        bench.note(
            "radius", "note", f"pixels up to {found.exact.pixels} px away still change the output, by"
            f" {found.beyond:.0e} of it at most; the radius is {declared}",
            measured=found.exact.pixels,
        )  # fmt: skip
    elif bound.pixels > declared:
        bench.note(
            "radius", "note", f"NaN spreads {bound.pixels} px, beyond the radius of {declared}: taps of weight zero,"
            " or influence too small to see", measured=bound.pixels,
        )  # fmt: skip
    elif bound.edge and declared > 0:
        bench.note(
            "radius", "note", f"a tile of {bench.tile} px is too small to see the radius of {declared} end",
            remedy="check with a larger tile, if the kernel takes one",
        )  # fmt: skip
    elif bound.pixels < declared and not bound.edge:
        bench.note(
            "radius", "note", f"declared {declared}, but no influence beyond {bound.pixels} px was found",
            measured=bound.pixels, remedy=f"radius: {bound.pixels} computes less",
        )  # fmt: skip


def _too_small(bench: Bench, found: Reaches, declared: int) -> None:
    layers = context_layers(bench)
    if found.material.edge and 2 * declared + 1 < bench.tile:
        why = f" ({', '.join(layers[:3])})" if layers else ""
        bench.note(
            "radius", "error", f"declared {declared}, but influence reaches the edge of a tile of {bench.tile} px{why}",
            measured=found.material.pixels,
            remedy="a kernel with global context has radius: null; else try a larger tile",
        )  # fmt: skip
    else:
        bench.note(
            "radius", "error", f"declared {declared}, measured {found.bound.pixels}; pixels beyond the radius change"
            f" the output by {found.beyond:.1e} of it", measured=found.bound.pixels,
            remedy=f"declare radius: {found.bound.pixels}",
        )  # fmt: skip


def _check_radius_at(bench: Bench) -> None:
    """Change every pixel farther than ``px`` from a block in the middle: its results move by at most ``eps``."""
    limit = bench.kernel.spec.radius_at
    assert limit is not None
    start = bench.tile // 2 // bench.stride * bench.stride
    low, high = start - limit.px, start + bench.stride + limit.px
    if low < 8 or high > bench.tile - 8:
        bench.note("radius", "note", f"radius_at {limit.px} px cannot be seen in a tile of {bench.tile} px")
        return
    worst = 0.0
    scale = bench.kernel.spec.scale
    middle = slice(start * scale, (start + bench.stride) * scale)
    for seed in range(_SEEDS):
        base, other = bench.pixels(1, seed=60 + seed), bench.pixels(1, seed=80 + seed)
        for n, x in other.items():
            x[..., low:high, low:high] = base[n][..., low:high, low:high]
        before, after = bench.run(base), bench.run(other)
        for name, y in after.items():
            gap = relative(y, before[name], spread(before, bench.kernel)[name])
            worst = max(worst, float(gap[..., middle, middle].max()))
    if worst > limit.eps:
        bench.note(
            "radius", "error", f"pixels beyond {limit.px} px change the output by {worst:.1e}, not {limit.eps:.0e}",
            measured=worst, remedy="declare a larger px, or a larger eps",
        )  # fmt: skip


def check_alignment(bench: Bench, found: Reaches) -> None:
    """A changed pixel must be felt as far on one side as on the other."""
    reach = found.bound
    if reach.edge or max(reach.after) < 0:
        return
    bench.checks.append("alignment")
    shifts = [(b - a) / 2 for a, b in zip(reach.before, reach.after, strict=True)]
    worst = max(shifts, key=abs)
    if worst == 0:
        return
    text = f"the output lies {shifts[0]:+g} rows and {shifts[1]:+g} columns off the input"
    if abs(worst) > (bench.stride - 1) / 2:
        bench.note(
            "alignment", "error", text, measured=worst,
            remedy="centre the padding and the resampling (align_corners=False); skip this check for a kernel that"
            " looks one way on purpose",
        )  # fmt: skip
    else:
        bench.note(
            "alignment", "note", f"{text}, as strided convolutions do that are not centred", measured=worst
        )


def check_stride(bench: Bench, reach: int) -> None:
    """Shifted input must give shifted output, by the declared stride; and not by a smaller one as well."""
    spec = bench.kernel.spec
    side = _stride_tile(bench, reach)
    room = side - 2 * reach - 4
    if spec.stride > room:
        return
    bench.checks.append("stride")
    gap = _shifted_gap(bench, side, spec.stride, reach)
    if gap <= TOLERANCE:
        divisors = [d for d in range(1, spec.stride) if spec.stride % d == 0]
        smaller = next((d for d in divisors if _shifted_gap(bench, side, d, reach) <= TOLERANCE), None)
        if smaller is not None:
            bench.note(
                "stride", "note", f"declared {spec.stride}, but it repeats by {smaller} already", measured=smaller,
                remedy=f"stride: {smaller} wastes less",
            )  # fmt: skip
        return
    wanted = [d for d in (*range(2, 17), 24, 32, 64) if d <= room and d != spec.stride]
    needed = next((d for d in wanted if _shifted_gap(bench, side, d, reach) <= TOLERANCE), None)
    text = f"input shifted by {spec.stride} px changes the output by {gap:.1e} of it, beside the shift"
    if needed is None:
        bench.note(
            "stride", "error", f"{text}, and so does every shift up to {wanted[-1] if wanted else spec.stride} px",
            measured=gap,
            remedy="it depends on the place in the tile: coordinate channels, positional encodings, noise that is"
            " not from context.noise, or resampling with align_corners=True",
        )  # fmt: skip
    else:
        bench.needed_stride = needed
        bench.note("stride", "error", text, measured=needed, remedy=f"declare stride: {needed}")


def _stride_tile(bench: Bench, reach: int) -> int:
    rule = bench.kernel.spec.tile
    if rule.fixed:
        return rule.fixed
    step = math.lcm(bench.kernel.spec.stride, rule.multiple, 16)
    side = math.ceil((2 * reach + 48) / step) * step
    return min(side, rule.maximum // step * step or bench.tile) if rule.maximum else side


def _shifted_gap(bench: Bench, side: int, shift: int, reach: int) -> float:
    """Largest difference between a tile and the same ground in a tile that starts ``shift`` px later."""
    ground = bench.pixels(1, side + shift, seed=90)
    here = bench.run({n: x[..., :side, :side] for n, x in ground.items()}, origin=(0, 0))
    there = bench.run({n: x[..., shift:, shift:] for n, x in ground.items()}, origin=(shift, shift))
    scale = bench.kernel.spec.scale
    a = slice((shift + reach) * scale, (side - reach) * scale)
    b = slice(reach * scale, (side - reach - shift) * scale)
    units = spread(here, bench.kernel)
    return max(float(relative(here[n][..., a, a], y[..., b, b], units[n]).max()) for n, y in there.items())
