"""Is a kernel what it says it is? `check_kernel` tries it, as the engine would call it; `receptive_radius` measures.

For authors of kernels: run it in your tests, before a map of a continent shows the seams.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from tilewright.errors import KernelError, nearest_name

from ._check.bench import Bench, choose_tile
from ._check.probes import Reaches, check_alignment, check_radius, check_stride, measure_reach
from ._check.report import Finding, Report
from ._check.rules import check_batch, check_concurrent, check_forward, check_random, check_range, check_valid

if TYPE_CHECKING:
    from torch import Tensor

    from tilewright.kernels.contract import Kernel

__all__ = ["Finding", "Report", "check_kernel", "receptive_radius"]

_CHECKS = ("range", "random", "batch", "concurrent", "valid", "radius", "alignment", "stride")
_LARGEST = 1024


def check_kernel(
    kernel: Kernel,
    *,
    tile: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    inputs: Mapping[str, Tensor] | None = None,
    skip: Collection[str] = (),
) -> Report:
    """Try a kernel against its description and report what is wrong.

    Shapes and channels; the range; randomness; dependence on the batch; calls side by side; NaN and invalid pixels;
    the receptive radius (one row or column of pixels is changed at every phase of the stride: to random values, to
    large ones, and to NaN); misalignment; the stride. Kernels with global context or records get the checks that
    apply.

    Parameters
    ----------
    kernel
        What `tilewright.kernel` or `load_kernel` returns.
    tile
        Side in pixels of the tiles to try; None takes one in which the declared radius can be seen to end.
    device
        Torch device, such as ``"cuda"``.
    seed
        Seed of the random pixels.
    inputs
        Name -> ``[T, C, H, W]`` of real pixels as the kernel sees them (normalised), for kernels whose response
        to noise tells little; None draws pixels by the declared units.
    skip
        Names of checks to leave out: range, random, batch, concurrent, valid, radius, alignment, stride.

    Returns
    -------
    Report
        True where all is well; ``report.raise_for_findings()`` for tests, ``print(report)`` for people.

    Raises
    ------
    KernelError
        The tile does not fit the kernel's rule, or ``skip`` names no check.
    """
    for name in skip:
        if name not in _CHECKS:
            raise KernelError(f"no check {name!r}", remedy=nearest_name(name, _CHECKS))
    started = time.perf_counter()
    bench = Bench(kernel, choose_tile(kernel, tile), device, seed, inputs)
    if check_forward(bench):
        _all_checks(bench, [c for c in _CHECKS if c not in skip])
    order = {"error": 0, "note": 1}
    findings = tuple(sorted(bench.findings, key=lambda f: order[f.severity]))
    seconds = time.perf_counter() - started
    return Report(kernel.spec.name, bench.tile, tuple(bench.checks), findings, bench.radius, seconds)


def _all_checks(bench: Bench, wanted: list[str]) -> None:
    raster = bench.kernel.spec.mapping == "map_pixels"
    if raster and "range" in wanted:
        check_range(bench)
    if not check_random(bench):
        return  # nothing else can be told apart from the noise
    alone = check_batch(bench)
    if bench.kernel.spec.concurrent and bench.device == "cpu" and "concurrent" in wanted:
        check_concurrent(bench)
    if not raster:
        return
    found = _reaches(bench, together=alone)
    reach = None if found.bound.edge else found.bound.pixels
    if reach is not None and "stride" in wanted:
        check_stride(bench, reach)
        if bench.stride > max(bench.kernel.spec.stride, 8):
            found = _reaches(bench, together=alone)
    if "radius" in wanted:
        check_radius(bench, found)
    if "alignment" in wanted:
        check_alignment(bench, found)
    if "valid" in wanted:
        declared = bench.kernel.spec.radius
        check_valid(bench, None if declared is None or reach is None else max(declared, reach))


def _reaches(bench: Bench, *, together: bool) -> Reaches:
    if bench.kernel.spec.radius is None:
        # One phase whose influence reaches the edge tells that it is global: all phases of a network whose stride is
        # 32 are 512 forwards.
        found = measure_reach(bench, 1, together=together)
        if found.bound.edge:
            return found
    # Eight phases at least: an undeclared stride of 2, 4 or 8 must not hide a part of the radius.
    return measure_reach(bench, max(8, bench.stride), together=together)


def receptive_radius(
    kernel: Kernel, *, largest_tile: int = _LARGEST, device: str = "cpu", seed: int = 0
) -> int | None:
    """Measure how far, in pixels (Chebyshev), an output pixel of ``kernel`` depends on its input.

    The declared radius is not looked at; the declared stride should be right. Tiles grow until the influence is
    seen to end. None where it does not end within ``largest_tile``: global context.
    """
    spec = kernel.spec
    side = choose_tile(kernel, None, reach=24)
    while True:
        bench = Bench(kernel, side, device, seed)
        bench.fit()
        bound = measure_reach(bench, max(8, spec.stride)).bound
        if not bound.edge:
            return bound.pixels
        limit = min(largest_tile, spec.tile.maximum or largest_tile)
        if spec.tile.fixed or 2 * side > limit:
            return None
        side *= 2
