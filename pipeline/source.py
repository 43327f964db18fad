"""Where the engine reads from: a `Source` gives the pixels of a window, and for each invalid one the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .grid import Grid, Window

__all__ = ["Block", "Layer", "Reason", "Source"]


class Reason(IntEnum):
    """Why a pixel has no value; the codes of every `reason` layer. The highest code of several dates wins."""

    VALID = 0
    """The pixel was measured."""
    NODATA = 1
    """The source marks it as nodata, or holds no finite number."""
    NO_SCENE = 2
    """No scene of the period covers it."""
    CLOUD = 3
    """Masked: cloud, shadow, cirrus, saturated, layover or whatever the mask was told to exclude."""
    READ_ERROR = 4
    """Reading failed after the retries, and the run was told to go on."""
    OUTSIDE = 5
    """Outside the region that was asked for."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What a source holds for one input of a kernel."""

    bands: tuple[str, ...]
    """Band names, in the order of the channels."""
    times: tuple[np.datetime64 | None, ...]
    """Acquisition times (UTC), oldest first; None where unknown."""
    dtype: str
    """Numpy name of the type in which pixels come."""
    units: str | None = None
    """Physical units of the pixels, once read."""


@dataclass(frozen=True, slots=True)
class Block:
    """The pixels of a window as they were read: harmonised, neither normalised nor filled."""

    window: Window
    """Where, in the grid's pixels; inside the grid."""
    data: Mapping[str, NDArray[Any]]
    """Input name -> ``[T, C, rows, columns]``; the value of an invalid pixel means nothing."""
    reason: Mapping[str, NDArray[np.uint8]]
    """Input name -> ``[T, 1, rows, columns]`` of `Reason` codes; 0 is valid."""
    bytes_read: int = 0
    """Bytes of decoded source pixels that were read for it."""


class Source(Protocol):
    """A stack of pixels on one grid. `read` may be called from several threads at once."""

    @property
    def grid(self) -> Grid:
        """The grid of all inputs."""
        ...

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Input name -> what there is for it."""
        ...

    def read(self, window: Window) -> Block:
        """Return the pixels of ``window``, which lies inside the grid; raises `ReadError`.

        The same pixel has the same bits in every window that holds it.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the pixels depend on, as plain data: items or files with sizes and times, band rules.

        It goes into the fingerprint of a run, the ledger and the report's ``inputs``.
        """
        ...
