"""Any source on a coarser grid: means of blocks of valid pixels, made as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import Grid, Window
from .source import Block, Layer, Reason, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CoarseSource"]

READ_SIDE = 2048
"""Finer pixels a side that are read at a time, unless one coarse pixel is larger."""


@dataclass(frozen=True)
class CoarseSource:
    """A source seen from ``factor`` times farther away, where nothing stores it so.

    A coarse pixel is the mean of the valid pixels beneath it, as overviews of COGs and the levels of our Zarr are;
    it is invalid where none is valid, and then has the highest of their reasons. Blocks start at the corner of the
    grid, so a pixel has the same bits in every window. Reading costs what the finer pixels cost.
    """

    source: Source
    """What is read."""
    factor: int
    """Pixels of the source along the side of one of these."""

    @cached_property
    def grid(self) -> Grid:
        """The coarser grid; its last row and column may reach beyond the finer one by a part of a pixel."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        fine = self.source.grid
        rows, cols = (-(-n // self.factor) for n in fine.shape)
        return Grid(
            GeoBox((rows, cols), fine.geobox.affine * Affine.scale(self.factor), fine.geobox.crs), fine.region
        )

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Those of the source."""
        return self.source.layers

    @property
    def failures(self) -> Any:
        """Reads that failed and were tolerated, of the source."""
        return getattr(self.source, "failures", ())

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``; raises what the source does.

        Finer pixels are read in squares, so memory does not grow with the factor.
        """
        data: dict[str, NDArray[Any]] = {}
        reason: dict[str, NDArray[np.uint8]] = {}
        for name, layer in self.layers.items():
            data[name] = np.empty((len(layer.times), len(layer.bands), *window.shape), layer.dtype)
            reason[name] = np.empty((len(layer.times), 1, *window.shape), np.uint8)
        count, side = 0, max(1, READ_SIDE // self.factor)
        for row in range(window.row0, window.row1, side):
            for col in range(window.col0, window.col1, side):
                part = Window(row, min(row + side, window.row1), col, min(col + side, window.col1))
                fine = part.times(self.factor).overlap(self.source.grid.window)
                assert fine is not None
                block = self.source.read(fine)
                at = part.slices(window)
                for name, pixels in block.data.items():
                    means, codes = self._means(pixels, block.reason[name], part.shape)
                    data[name][..., *at], reason[name][..., *at] = means, codes
                count += block.bytes_read
        return Block(window, data, reason, count)

    def _means(
        self, pixels: NDArray[Any], codes: NDArray[np.uint8], shape: tuple[int, int]
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        k = self.factor
        valid = codes == Reason.VALID
        count = _blocks(valid.astype(np.float64), k, shape)
        real = np.where(valid, pixels, 0).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = _blocks(real, k, shape) / count
        mean = np.where(count > 0, mean, 0)
        if pixels.dtype.kind in "iu":
            mean = np.rint(mean)
        worst = _blocks(codes, k, shape, np.maximum).astype(np.uint8)
        return mean.astype(pixels.dtype), np.where(count > 0, np.uint8(Reason.VALID), worst)

    def describe(self) -> Mapping[str, Any]:
        """Return the source and the factor."""
        return {"kind": "coarse", "factor": self.factor, "source": dict(self.source.describe())}


def _blocks(values: NDArray[Any], k: int, shape: tuple[int, int], join: np.ufunc = np.add) -> NDArray[Any]:
    """Join ``[T, C, rows, columns]`` over blocks of ``k`` squared; the last ones may be smaller."""
    rows = join.reduceat(values, np.arange(0, values.shape[-2], k), axis=-2)
    joined: NDArray[Any] = join.reduceat(rows, np.arange(0, values.shape[-1], k), axis=-1)
    assert joined.shape[-2:] == shape
    return joined
