"""Checks that need no geometry: shapes, ranges, repeatability, independence of the batch, validity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .bench import ROUNDING, TOLERANCE, Bench, Rasters, differs, relative, spread

if TYPE_CHECKING:
    from torch import Tensor

    from tilewright.kernels.contract import OutputSpec

__all__ = [
    "check_batch",
    "check_concurrent",
    "check_forward",
    "check_random",
    "check_range",
    "check_valid",
    "context_layers",
]

_TRAINED = ("BatchNorm", "Dropout")
_GLOBAL = (
    "InstanceNorm",
    "GroupNorm",
    "LayerNorm",
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "MultiheadAttention",
)


def check_forward(bench: Bench) -> bool:
    """Call the kernel once and look at what comes back; False where nothing else can be checked."""
    bench.checks.append("forward")
    inputs = bench.pixels(2)
    try:
        bench.fit()
        bench.watch = True
        outputs = bench.run(inputs)
    except Exception as error:  # noqa: BLE001 -- a stranger's forward may raise anything, and that is the finding
        names = ", ".join(f"{n} {list(x.shape)}" for n, x in inputs.items())
        bench.note(
            "forward",
            "error",
            f"raised {type(error).__name__}: {error}",
            remedy=f"it was given {names} and must take it",
        )
        return False
    finally:
        bench.watch = False
    if bench.mutated:
        bench.note(
            "input",
            "error",
            f"it changes its input {bench.mutated!r} in place",
            remedy="work on a copy, without x.op_()",
        )
    bench.checks.append("output")
    shapes = [_check_output(bench, n, y) for n, y in outputs.items()]
    trained = [n for n, m in _modules(bench) if m.training and type(m).__name__.startswith(_TRAINED)]
    if trained:
        bench.note(
            "batch",
            "error",
            f"{', '.join(trained[:3])} and the like are in training mode",
            remedy="call .eval() on the module before it is made a kernel",
        )
    return all(shapes)


def _modules(bench: Bench) -> list[tuple[str, Any]]:
    named = getattr(bench.kernel.function, "named_modules", None)
    return [(name or type(m).__name__, m) for name, m in named()] if named else []


def context_layers(bench: Bench) -> list[str]:
    """Names of the layers whose output depends on the whole tile."""
    return [f"{n} ({type(m).__name__})" for n, m in _modules(bench) if type(m).__name__.startswith(_GLOBAL)]


def _check_output(bench: Bench, name: str, y: Any) -> bool:
    import torch

    spec = bench.kernel.spec.outputs[name]
    if not spec.is_raster:
        if len(y) != 2:
            bench.note("output", "error", f"{name}: {len(y)} records for 2 tiles", remedy="return one a tile")
        return len(y) == 2
    if not isinstance(y, torch.Tensor):
        bench.note("output", "error", f"{name}: a {type(y).__name__}, not a tensor")
        return False
    side = bench.tile * bench.kernel.spec.scale
    wanted = [[2, c, side, side] for c in spec.forward_channels]
    if list(y.shape) not in wanted:
        bench.note(
            "output", "error", f"{name}: shape {list(y.shape)}, declared {' or '.join(map(str, wanted))}",
            remedy=_shape_remedy(y, wanted[0], bench),
        )  # fmt: skip
        return False
    if y.is_complex() or (not y.is_floating_point() and spec.kind != "class"):
        bench.note("output", "error", f"{name}: dtype {y.dtype}", remedy="return float32")
        return not y.is_complex()
    if y.dtype == torch.float64:
        bench.note("output", "note", f"{name}: float64 takes twice the memory", remedy="return float32")
    return True


def _shape_remedy(y: Tensor, wanted: list[int], bench: Bench) -> str:
    if y.ndim == 3 and list(y.shape[1:]) == wanted[2:]:
        return "keep the channel axis: y[:, None]"
    if y.ndim != 4:
        return "return [N, C, H * scale, W * scale]"
    if list(y.shape[2:]) == wanted[2:]:
        return f"declare bands: {y.shape[1]}"
    if y.shape[2] == y.shape[3] and y.shape[2] % bench.tile == 0:
        return f"declare scale: {y.shape[2] // bench.tile}"
    lost = wanted[2] - y.shape[2]
    if lost > 0 and lost % 2 == 0:
        return f"it lacks {lost // 2} px on each side: pad in the network, so that the tile's size is kept"
    return "return one pixel an input pixel, times scale"


def check_range(bench: Bench) -> None:
    """Outputs lie in the declared range, labels among the classes."""
    bench.checks.append("range")
    trials = [bench.run(bench.pixels(2, seed=s)) for s in (1, 2)]
    wild = bench.run(bench.pixels(2, seed=3, amplitude=5.0))
    for name, spec in bench.kernel.spec.outputs.items():
        values = [t[name] for t in trials] + ([wild[name]] if spec.kind == "score" else [])
        _check_values(bench, name, spec, values)


def _check_values(bench: Bench, name: str, spec: OutputSpec, values: list[Tensor]) -> None:
    import torch

    seen = torch.cat([v.flatten() for v in values]).double()
    seen = seen[seen.isfinite()]
    if not seen.numel():
        return
    low, high = float(seen.min()), float(seen.max())
    if spec.kind == "class" and spec.classes and spec.threshold is None and values[0].shape[1] == 1:
        if low < 0 or high > len(spec.classes) - 1 or bool((seen != seen.round()).any()):
            bench.note(
                "range", "error", f"{name}: values from {low:g} to {high:g} are not 0 to {len(spec.classes) - 1}",
                measured=high, remedy="return labels 0, 1, ..., or one channel a class",
            )  # fmt: skip
    elif spec.range is not None:
        slack = 1e-6 * (spec.range[1] - spec.range[0])
        if low < spec.range[0] - slack or high > spec.range[1] + slack:
            bench.note(
                "range", "error", f"{name}: values from {low:g} to {high:g}, declared range {list(spec.range)}",
                measured=high if high > spec.range[1] else low,
                remedy="declare the range it has, or end with a sigmoid, softmax or clamp",
            )  # fmt: skip


def check_random(bench: Bench) -> bool:
    """Two calls give the same bits, whatever state the global generator is in; False where they do not."""
    import torch

    bench.checks.append("random")
    inputs = bench.pixels(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = bench.run(inputs)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        second = bench.run(inputs)
        drew = not torch.equal(before, torch.get_rng_state())
    gap = _gap(bench, first, second)
    if gap > 0:
        bench.note(
            "random", "error", "two calls with the same input differ", measured=gap,
            remedy="take noise from context.noise(H, W), which belongs to the ground, and declare seed;"
            " and call .eval() where dropout is on",
        )  # fmt: skip
    elif drew:
        bench.note(
            "random", "error", "it seeds torch's global generator itself, so its noise belongs to the tile",
            remedy="take noise from context.noise(H, W), which belongs to the ground",
        )  # fmt: skip
    return gap == 0


def _gap(bench: Bench, a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Largest difference of two results, in parts of the output's unit; infinite for records that differ."""
    import torch

    worst = 0.0
    for name, x in a.items():
        y = b[name]
        if isinstance(x, torch.Tensor):
            unit = (
                1.0
                if not bench.kernel.spec.outputs[name].is_raster
                else spread({name: x}, bench.kernel)[name]
            )
            worst = max(worst, float(relative(x, y, unit).max()))
        elif not _same(x, y):
            worst = float("inf")
    return worst


def _same(x: Any, y: Any) -> bool:
    import torch

    if isinstance(x, torch.Tensor):
        return isinstance(y, torch.Tensor) and x.shape == y.shape and not bool(differs(x, y).any())
    if isinstance(x, Mapping):
        return x.keys() == y.keys() and all(_same(v, y[k]) for k, v in x.items())
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(map(_same, x, y))
    return bool(x == y)


def check_batch(bench: Bench) -> bool:
    """A tile's result depends neither on its companions, nor its place, nor the size; False where it does."""
    bench.checks.append("batch")
    inputs = bench.pixels(3)
    origins = [(0, 0), (0, 7 * bench.tile), (3 * bench.tile, bench.tile)]
    whole = bench.run(inputs, origin=origins)
    order = [2, 0, 1]
    moved = bench.run({n: x[order] for n, x in inputs.items()}, origin=[origins[i] for i in order])
    loud = bench.pixels(3, seed=5, amplitude=10.0)
    other = bench.run({n: _join(x[:1], loud[n][1:]) for n, x in inputs.items()}, origin=origins)
    alone = bench.run({n: x[:1] for n, x in inputs.items()}, origin=origins[:1])
    gaps = {
        "its place in the batch": _gap(bench, _pick(whole, order), _pick(moved, [0, 1, 2])),
        "its companions": _gap(bench, _pick(whole, [0]), _pick(other, [0])),
        "the size of the batch": _gap(bench, _pick(whole, [0]), _pick(alone, [0])),
    }
    worst = max(gaps.values())
    what = " and ".join(name for name, gap in gaps.items() if gap > 0)
    if wrong := worst > ROUNDING or gaps["its companions"] > TOLERANCE:
        bench.note(
            "batch", "error", f"a tile's result depends on {what} (by {worst:.1e} of the output)", measured=worst,
            remedy="use no statistics of the batch: BatchNorm in eval mode, means over C, H and W only",
        )  # fmt: skip
    elif worst > 0:
        bench.note(
            "batch", "note", f"the last bits depend on {what} ({worst:.1e} of the output)", measured=worst,
            remedy="results repeat to the bit only at one batch size",
        )  # fmt: skip
    return not wrong


def check_concurrent(bench: Bench) -> None:
    """Calls that go on side by side give what they give one after another."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from tilewright.pipeline.intraop import torch_threads

    bench.checks.append("concurrent")
    benches = [bench, replace(bench, kernel=bench.kernel.twin())]
    tiles = [bench.pixels(1, seed=21), bench.pixels(1, seed=22, amplitude=2.0)]
    start = Barrier(2)

    def calls(place: int) -> float:
        worst = 0.0
        for _ in range(5):
            start.wait(60)
            with torch_threads(1):
                worst = max(worst, _gap(bench, expected[place], benches[place].run(tiles[place])))
        return worst

    with torch_threads(1):
        expected = [bench.run(pixels) for pixels in tiles]
    with ThreadPoolExecutor(2) as pool:
        gap = max(pool.map(calls, range(2)))
    if gap > 0:
        bench.note(
            "concurrent", "error", f"calls side by side disturb each other (by {gap:.1e} of the output)",
            measured=gap, remedy="declare concurrent: false, or keep nothing outside of the call",
        )  # fmt: skip


def _join(a: Tensor, b: Tensor) -> Tensor:
    import torch

    return torch.cat([a, b])


def _pick(outputs: Mapping[str, Any], which: list[int]) -> dict[str, Any]:
    import torch

    return {n: y[which] if isinstance(y, torch.Tensor) else [y[i] for i in which] for n, y in outputs.items()}


def check_valid(bench: Bench, reach: int | None) -> None:
    """Invalid pixels: no NaN where there is a result, no change beyond ``reach``, nothing made of nothing."""
    import torch

    bench.checks.append("valid")
    base = bench.pixels(1, seed=7)
    every = {n: torch.ones_like(x[:, :, :1], dtype=torch.bool) for n, x in base.items()}
    generator = torch.Generator().manual_seed(bench.seed)
    holes = torch.rand(bench.tile, bench.tile, generator=generator) > 0.1
    trials = {"all pixels are valid": every, "a tenth is invalid": {n: v & holes for n, v in every.items()}}
    for n, v in every.items():
        if v.shape[1] > 1:
            first = v.clone()
            first[:, 0] = False
            trials[f"the first date of {n} is invalid"] = {**every, n: first}
    for what, valid in trials.items():
        _check_finite(bench, what, valid, bench.run(bench.filled(base, valid), valid))
    if reach is not None:
        _check_far(bench, base, every, reach)
    nothing = {n: torch.zeros_like(v) for n, v in every.items()}
    for name, y in bench.run(bench.filled(base, nothing), nothing).items():
        if bench.kernel.spec.outputs[name].valid_rule == "own" and bool(y.isfinite().any()):
            bench.note(
                "valid", "error", f"{name}: values where no pixel is valid, though valid_rule is own",
                remedy="name the parameter valid and set NaN where there is nothing to compute from",
            )  # fmt: skip


def _has_result(bench: Bench, rule: str, valid: Rasters) -> Tensor:
    """``[H * scale, W * scale]``: True where the rule promises a result."""
    planes = [v[0, t, 0] for v in valid.values() for t in range(v.shape[1])]
    plane = planes[0].clone()
    for other in planes[1:]:
        plane = plane & other if rule == "all" else plane | other
    scale = bench.kernel.spec.scale
    return plane.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def _check_finite(bench: Bench, what: str, valid: Rasters, outputs: Mapping[str, Tensor]) -> None:
    for name, y in outputs.items():
        rule = bench.kernel.spec.outputs[name].valid_rule
        if rule == "own" or not y.is_floating_point():
            continue
        bad = ~y[0].isfinite().all(0) & _has_result(bench, rule, valid)
        if bool(bad.any()):
            bench.note(
                "valid", "error", f"{name}: {int(bad.sum())} pixels with a result are NaN or infinite where {what}",
                measured=float(bad.sum()),
                remedy="guard divisions and logarithms, or declare valid_rule: own",
            )  # fmt: skip


def _check_far(bench: Bench, base: Rasters, every: Rasters, reach: int) -> None:
    side, scale = bench.tile, bench.kernel.spec.scale
    low, high = side // 2 - 2, side // 2 + 2
    valid = {n: v.clone() for n, v in every.items()}
    for v in valid.values():
        v[..., low:high, low:high] = False
    before, after = bench.run(base), bench.run(bench.filled(base, valid), valid)
    for name, y in after.items():
        far = relative(y, before[name], spread(before, bench.kernel)[name])
        near = slice(max(0, low - reach) * scale, (high + reach) * scale)
        far[..., near, near] = 0
        worst = float(far.max())
        if worst > TOLERANCE:
            bench.note(
                "valid", "error",
                f"{name}: invalid pixels change results more than {reach} px away (by {worst:.1e} of the output)",
                measured=worst,
                remedy="use no count or mean of valid pixels over the tile, or declare radius: null",
            )  # fmt: skip
