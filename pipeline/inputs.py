"""Several named inputs of a kernel, each a source of its own on one grid: pictures and a map, radar and optical."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

from .source import Block, Layer, Source

if TYPE_CHECKING:
    from tilewright.kernels.contract import KernelSpec

    from .grid import Grid, Window

__all__ = ["Inputs", "join_inputs", "select_bands"]


def select_bands(source: Source, wanted: int | tuple[str, ...]) -> Source:
    """Return the source with the bands that a kernel names, where it has them among others.

    A pixel of a date is valid where all bands of the source are, so a band that nobody asked for would mask
    pixels, and cost reading.
    """
    select = getattr(source, "select", None)
    layers = list(source.layers.values())
    if select is None or len(layers) != 1 or not isinstance(wanted, tuple):
        return source
    if len(layers[0].bands) > len(wanted) and set(wanted) <= set(layers[0].bands):
        narrowed: Source = select(wanted)
        return narrowed
    return source


@dataclass(frozen=True)
class Inputs:
    """A source made of several, each of which has one layer.

    Raises
    ------
    InputError
        One of them lies on another grid than the first.
    """

    sources: Mapping[str, Source]
    """Name of the kernel's input -> what feeds it."""

    def __post_init__(self) -> None:
        (first, one), *others = self.sources.items()
        for name, other in others:
            if other.grid.geobox != one.grid.geobox:
                raise InputError(
                    f"input {name!r} lies on another grid than {first!r}",
                    place="inputs",
                    remedy="bring it onto that grid first, by gdalwarp or rioxarray",
                )
        shared: list[Any] = []
        for source in self.sources.values():  # one list for all, which a run may empty
            if hasattr(source, "failures"):
                source.failures = shared

    @property
    def grid(self) -> Grid:
        """The grid of all of them."""
        return next(iter(self.sources.values())).grid

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Name of the input -> its layer."""
        return {name: next(iter(source.layers.values())) for name, source in self.sources.items()}

    @property
    def failures(self) -> Any:
        """Reads that failed and were tolerated, of all of them."""
        return getattr(next(iter(self.sources.values())), "failures", ())

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``."""
        blocks = {name: source.read(window) for name, source in self.sources.items()}
        return Block(
            window,
            {name: next(iter(block.data.values())) for name, block in blocks.items()},
            {name: next(iter(block.reason.values())) for name, block in blocks.items()},
            sum(block.bytes_read for block in blocks.values()),
        )

    def describe(self) -> Mapping[str, Any]:
        """Return what the pixels depend on, by the name of the input."""
        return {
            "kind": "inputs",
            "inputs": {n: dict(source.describe()) for n, source in self.sources.items()},
        }


def join_inputs(spec: KernelSpec, sources: Mapping[str, Source]) -> Inputs:
    """Return sources by the name of the kernel's input as one, each with the bands that the kernel names."""
    return Inputs({name: select_bands(one, spec.inputs[name].bands) for name, one in sources.items()})
