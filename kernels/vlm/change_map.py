"""The tool ``change``: any kernel that compares dates, run over the windows that a policy has been shown.

The engine maps kernels over whole rasters; a policy has seen only parts of one, and on a level of its own choice. So
the tool cuts what was read into the tiles that the kernel takes, with its halo, and gives a map of change, how strong
it is, and, of kernels that map classes too, what was there before and is there now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import KernelError

from ..contract import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilewright.kernels.ask import Scene
    from tilewright.kernels.contract import InputSpec, Kernel, OutputSpec

__all__ = ["ChangeMap", "Changed", "spread_of", "stratified"]

SIDE = 256
"""Side of the tiles of kernels that take any."""
TOGETHER = 4
"""Tiles of one call."""
STRENGTHS = ("score", "magnitude", "chi2", "ratio")
"""Outputs that say how strong a change is, the first one that a kernel has; without one every change counts 1."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What a kernel says of a window."""

    change: NDArray[np.bool_]
    """``[rows, columns]``: True where it says change; False where nothing was measured."""
    strength: NDArray[np.float32]
    """``[rows, columns]``: its score or magnitude, of several bands the largest; NaN where nothing was measured."""
    kinds: NDArray[np.int64] | None = None
    """``[rows, columns]``: class before times the number of classes, plus class after; None where it maps none."""

    def part(self, rows: slice, cols: slice) -> Changed:
        """Return a window of it."""
        kinds = None if self.kinds is None else self.kinds[rows, cols]
        return Changed(self.change[rows, cols], self.strength[rows, cols], kinds)


class ChangeMap:
    """A kernel with one input of several dates and a class output ``change``, for the views of one scene.

    Raises
    ------
    KernelError
        The kernel has no such output, wants other inputs, dates or bands than the scene has, or no weights were given.
    """

    def __init__(self, kernel: Kernel, scene: Scene) -> None:
        self.kernel, self.scene = kernel, scene
        spec = kernel.spec
        wanted = {name: one for name, one in spec.inputs.items() if not one.optional}
        output = spec.outputs.get("change")
        if len(wanted) != 1 or output is None or output.kind != "class" or spec.scale != 1:
            raise KernelError(
                "the kernel does not map change between dates of one image",
                place=spec.name,
                remedy="take one with an output named change, such as change-vector",
            )
        if kernel.untrained:
            raise KernelError("has no weights", place=spec.name, remedy="give them with --weights")
        ((self._name, self._input),) = wanted.items()
        self._output: OutputSpec = output
        self._dates = self._chosen_dates()
        self._channels = self._chosen_channels()
        self.statistics: Mapping[str, Any] = {}
        """What `fit` made of the scene."""
        tile = spec.tile
        side = tile.fixed or tile.default or SIDE
        side = min(-(-side // tile.multiple) * tile.multiple, tile.maximum or side * tile.multiple)
        reach = (
            spec.radius if spec.radius is not None else (spec.radius_at.px if spec.radius_at else side // 8)
        )
        self.side = side
        """Side of its tiles in pixels."""
        self.halo = min(-(-reach // spec.stride) * spec.stride, side // 4 // spec.stride * spec.stride)
        """Pixels around a window that it looks at; never more than a quarter of a tile."""

    @property
    def fits(self) -> bool:
        """True where the kernel draws its line through a sample of the scene: then it always finds some change."""
        return self.kernel.fit is not None

    @property
    def kinds(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Names of the classes before and after, of kernels that map them."""
        before, after = (self.kernel.spec.outputs.get(name) for name in ("before", "after"))
        if before is None or after is None or before.kind != "class" or after.kind != "class":
            return None
        return (before.classes, after.classes) if before.classes and after.classes else None

    @property
    def threshold(self) -> float | None:
        """Where the line lies: fitted, or the kernel's own; None where it has none by that name."""
        found = self.statistics.get("threshold", self._output.threshold)
        return None if found is None else float(found)

    def _chosen_dates(self) -> list[int]:
        low, high = self._input.date_range
        have = self.scene.dates
        if have < max(low, 2):
            raise KernelError(
                f"needs {low} dates, the image has {have}",
                place=self.kernel.spec.name,
                remedy="give the rasters of all dates, oldest first",
            )
        return (
            list(range(have))
            if have <= high
            else [0, have - 1]
            if high == 2
            else list(range(have - high, have))
        )

    def _chosen_channels(self) -> list[int]:
        """By name where the image has the names; in order where it has none, or the kernel wants only a number."""
        bands, have = self._input.bands, self.scene.bands
        if isinstance(bands, tuple):
            if set(bands) <= set(have):
                return [have.index(band) for band in bands]
            unnamed = all(band.startswith("band_") for band in have)
        else:
            unnamed = True
        if not unnamed or self._input.band_count != len(have):
            named = ", ".join(bands) if isinstance(bands, tuple) else str(bands)
            raise KernelError(
                f"wants the bands {named}, the image has {', '.join(have)}",
                place=self.kernel.spec.name,
                remedy="choose or name them by --bands",
            )
        return list(range(len(have)))

    def samples(
        self, pixels: NDArray[Any], valid: NDArray[np.bool_], share: float = 1.0
    ) -> NDArray[np.float64]:
        """Return a share of what was measured of a view, as a sample ``[n, T, C]``, the same one each time."""
        places = np.flatnonzero(valid)
        places = thinned(places, max(1, round(len(places) * share)))
        chosen = self._picked(pixels.reshape(len(pixels), 1, -1)[..., places])
        return np.moveaxis(chosen[:, :, 0], -1, 0).astype(np.float64)

    def same(self, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> bool:
        """Tell whether all dates are the same picture, through which no kernel can draw a line."""
        first, *others = self._picked(pixels)
        return all(bool((date == first)[:, valid].all()) for date in others)

    def fit(self, sample: NDArray[np.float64]) -> None:
        """Make the kernel's statistics from a sample ``[n, T, C]``; raises `KernelError` as its ``fit`` does."""
        spec = self.kernel.spec.statistics
        if self.kernel.fit is not None and spec is not None:
            self.statistics = self.kernel.fit({self._name: thinned(sample, spec.sample)})

    def _picked(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return ``[T, C, rows, columns]``: the kernel's dates and bands."""
        return self.scene.by_date(pixels)[np.ix_(self._dates, self._channels)]

    def __call__(
        self, pixels: NDArray[Any], valid: NDArray[np.bool_], *, level: int = 0, at: tuple[int, int] = (0, 0)
    ) -> Changed:
        """Return the change of a view.

        Parameters
        ----------
        pixels, valid
            As a `View` has them, ``[C, rows, columns]`` and ``[rows, columns]``.
        level
            Level of the scene.
        at
            Row and column of the first pixel on that level.
        """
        import torch

        rows, cols = valid.shape
        step, halo = self.side - 2 * self.halo, self.halo
        change, strength = np.zeros((rows, cols), bool), np.full((rows, cols), np.nan, np.float32)
        kinds = None if self.kinds is None else np.zeros((rows, cols), np.int64)
        corners = [(row, col) for row in range(0, rows, step) for col in range(0, cols, step)]
        with torch.inference_mode():
            for n in range(0, len(corners), TOGETHER):
                part = corners[n : n + TOGETHER]
                for (row, col), found in zip(part, self._tiles(pixels, valid, part, level, at), strict=True):
                    to = slice(row, min(row + step, rows)), slice(col, min(col + step, cols))
                    kept = found.part(
                        slice(halo, halo + to[0].stop - row), slice(halo, halo + to[1].stop - col)
                    )
                    change[to], strength[to] = kept.change, kept.strength
                    if kinds is not None and kept.kinds is not None:
                        kinds[to] = kept.kinds
        strength[~valid] = np.nan
        return Changed(change & valid, strength, kinds)

    def _cut(
        self, pixels: NDArray[Any], valid: NDArray[np.bool_], corner: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the tile whose core begins at a corner, ``[T, C, side, side]``, and what of it is valid."""
        rows, cols = (
            _mirrored(first - self.halo, self.side, length)
            for first, length in zip(corner, valid.shape, strict=True)
        )
        there = valid[np.ix_(rows[0], cols[0])]
        if self.kernel.spec.boundary == "fill":
            there = there & rows[1][:, None] & cols[1]
        tile = self._picked(pixels[:, rows[0][:, None], cols[0]])
        return _normalised(tile, there, self._input), there

    def _tiles(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_],
        corners: list[tuple[int, int]],
        level: int,
        at: tuple[int, int],
    ) -> Iterator[Changed]:
        """Yield what the kernel says of the whole tiles at ``corners``."""
        import torch

        function = self.kernel.function
        if isinstance(function, torch.nn.Module):
            function.eval()
        tiles = [self._cut(pixels, valid, corner) for corner in corners]
        batch, there = (torch.from_numpy(np.stack(one)) for one in zip(*tiles, strict=True))
        count, dates = len(corners), batch.shape[1]
        origin = [(at[0] + row - self.halo, at[1] + col - self.halo) for row, col in corners]
        context = Context(
            torch.tensor(origin, dtype=torch.int64),
            torch.zeros(count, dates, dtype=torch.int64),
            torch.full((count, 2), torch.nan, dtype=torch.float64),
            (self.scene.resolution or 1.0) * self.scene.levels[level].factor,
            self.statistics,
            self.kernel.spec.seed or 0,
        )
        ok = there[:, None, None].expand(-1, dates, 1, -1, -1)
        made = self.kernel.apply({self._name: batch}, {self._name: ok}, context)
        arrays = {name: np.asarray(made[name].float().cpu()) for name in made if hasattr(made[name], "cpu")}
        outputs = self.kernel.spec.outputs
        kinds = None
        if self.kinds is not None:
            before, after = (_labels(arrays[name], outputs[name]) for name in ("before", "after"))
            kinds = before * len(self.kinds[1]) + after
        change = _labels(arrays["change"], self._output) > 0
        strength = next((np.abs(arrays[name]).max(axis=1) for name in STRENGTHS if name in arrays), None)
        for n in range(count):
            own = change[n].astype(np.float32) if strength is None else strength[n]
            yield Changed(change[n], own, None if kinds is None else kinds[n])


def _normalised(image: NDArray[Any], valid: NDArray[np.bool_], spec: InputSpec) -> NDArray[np.float32]:
    """Return ``[T, C, rows, columns]`` as the forward sees it: normalised, and filled where nothing was measured."""
    values = image.astype(np.float32)
    if spec.mean is not None and spec.std is not None:
        mean, std = (
            np.broadcast_to(np.asarray(one, np.float32), values.shape[:2])[..., None, None]
            for one in (spec.mean, spec.std)
        )
        values = (values - mean) / std
    return np.where(valid, values, np.float32(spec.fill)).astype(np.float32)


def _mirrored(first: int, count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the places of ``count`` pixels from ``first`` on, mirrored at the edges of an axis (the edge itself not
    repeated), and which of them needed no mirror."""
    wanted = np.arange(first, first + count)
    inside = (wanted >= 0) & (wanted < length)
    period = max(2 * (length - 1), 1)
    folded = wanted % period
    return np.minimum(np.where(folded < length, folded, period - folded), length - 1), inside


def _labels(values: NDArray[np.float32], spec: OutputSpec) -> NDArray[np.int64]:
    """Return ``[N, C, rows, columns]`` of a class output as labels ``[N, rows, columns]``; 0 for NaN."""
    if values.shape[1] > 1:
        return np.asarray(values.argmax(axis=1), np.int64)
    one = np.nan_to_num(values[:, 0], nan=-np.inf if spec.threshold is not None else 0.0)
    if spec.threshold is not None:
        return np.asarray(one >= spec.threshold, np.int64)
    return np.asarray(np.rint(one), np.int64)


def thinned[Values: np.generic](values: NDArray[Values], most: int) -> NDArray[Values]:
    """Return at most ``most`` of the rows, drawn without replacement, the same ones each time, in their order."""
    if len(values) <= most:
        return values
    kept = np.random.default_rng(0).choice(len(values), most, replace=False)
    return values[np.sort(kept)]


def stratified[Values: np.generic](
    inside: NDArray[Values], outside: NDArray[Values], share: float, count: int
) -> NDArray[Values]:
    """Return a sample of a scene of which one part was read more densely than the rest.

    Parameters
    ----------
    inside, outside
        Rows from the part, and from the rest.
    share
        The part's share of the scene, which it has in the sample, too.
    count
        Most rows; fewer come back where one of the two has not enough for its share.
    """
    shares = (share, 1 - share)
    for values, part in zip((inside, outside), shares, strict=True):
        if part > 0 and len(values):
            count = min(count, max(1, int(len(values) / part)))
    drawn = [thinned(one, round(count * part)) for one, part in zip((inside, outside), shares, strict=True)]
    return np.concatenate(drawn)


def spread_of(values: NDArray[Any]) -> tuple[float, float]:
    """Return the median, and the robust standard deviation about it; (0, 0) of nothing."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 0.0
    middle = float(np.median(known))
    return middle, 1.4826 * float(np.median(np.abs(known - middle)))
