"""In-memory stand-ins for the seams of the house, used where files would only slow a test down."""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from tilewright.pipeline.grid import Grid, Window
from tilewright.pipeline.source import Block, Layer


class ArraySource:
    """A `Source` over arrays ``[T, C, rows, columns]`` by layer name; NaN is nodata."""

    def __init__(
        self,
        layers: dict[str, np.ndarray] | np.ndarray,
        reason: np.ndarray | None = None,
        grid: Grid | None = None,
        bands: tuple[str, ...] | None = None,
    ) -> None:
        self.arrays = layers if isinstance(layers, dict) else {"image": layers}
        first = next(iter(self.arrays.values()))
        self.grid = grid or Grid(
            GeoBox(first.shape[-2:], Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
        )
        self.layers = {
            name: Layer(
                bands or tuple(f"band_{i + 1}" for i in range(a.shape[1])),
                tuple(np.datetime64("2024-01-01") + np.timedelta64(12 * t, "D") for t in range(a.shape[0])),
                str(a.dtype),
            )
            for name, a in self.arrays.items()
        }
        self._reason = reason
        self.reads: list[Window] = []

    def read(self, window: Window) -> Block:
        self.reads.append(window)
        at = window.slices(self.grid.window)
        data = {name: a[..., *at] for name, a in self.arrays.items()}
        reason = {}
        for name, a in data.items():
            bad = ~np.isfinite(a).all(axis=1, keepdims=True)
            reason[name] = bad.astype(np.uint8)
            if self._reason is not None:
                reason[name] = np.maximum(reason[name], self._reason[..., *at])
        return Block(window, data, reason, sum(a.nbytes for a in data.values()))

    def describe(self) -> dict[str, Any]:
        return {name: list(a.shape) for name, a in self.arrays.items()}
