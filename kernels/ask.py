"""`ask`: a question to an image of any size, answered by a policy that reads coarse to fine, only where it must.

A *policy* is a generator. It is given the question and a `Scene` (which levels there are, nothing of their pixels),
yields lists of `Request`, is sent the `View` of each, and returns an `Answer`:

    def ask(question, scene):
        views = yield [Request(scene.coarsest, 0, 0, *scene.levels[scene.coarsest].shape)]
        ...
        return Answer("two", evidence)

It knows no files, no CRS and no bytes: `tilewright.pipeline.ask` owns the loop, reads the windows, keeps the account of
bytes and turns boxes into world coordinates. So a policy can be tested with arrays, and the same one runs over a COG, a
Zarr hierarchy or a cube.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tilewright.errors import KernelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

__all__ = [
    "Answer",
    "AskKernel",
    "Asking",
    "BudgetSpentError",
    "Evidence",
    "Exchange",
    "LevelInfo",
    "Request",
    "Scene",
    "View",
]


class BudgetSpentError(KernelError):
    """Raised inside a policy in place of views that would cost more bytes than it may read: answer, or let it out."""


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level of the pyramid."""

    factor: float
    """Full-resolution pixels along the side of a pixel of this level; 1 for level 0."""
    shape: tuple[int, int]
    """Rows and columns."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a policy knows of the image before it has read any of it."""

    levels: tuple[LevelInfo, ...]
    """Level 0 is full resolution; each further one is coarser."""
    bands: tuple[str, ...]
    """Names of the channels of every view."""
    resolution: float | None = None
    """Side of a full-resolution pixel in metres; None where unknown."""
    dates: int = 1
    """Dates of every view, oldest first; their channels follow each other, date by date."""
    history: tuple[Exchange, ...] = ()
    """What was asked of it before and answered, oldest first. A policy that has no use for it leaves it alone."""
    units: str | None = None
    """Physical units of the pixels; None where the image does not say."""
    areas: Callable[[Request], NDArray[np.float64]] | None = field(default=None, compare=False, repr=False)
    """Square metres on the ellipsoid of each pixel of a window, ``[rows, columns]``; None where the image does not say
    where on Earth it is."""
    locate: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = field(
        default=None, compare=False, repr=False
    )
    """From ``[n, 2]`` (row, column) at full resolution to ``[n, 2]`` (longitude, latitude); None as for `areas`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at full resolution."""
        return self.levels[0].shape

    @property
    def coarsest(self) -> int:
        """Number of the coarsest level."""
        return len(self.levels) - 1

    def level_for(self, factor: float) -> int:
        """Return the coarsest level that is at least as fine as ``factor`` full-resolution pixels a pixel."""
        fitting = [n for n, level in enumerate(self.levels) if level.factor <= factor * (1 + 1e-6)]
        return fitting[-1] if fitting else 0

    def by_date(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return the pixels of a view ``[C, rows, columns]`` as ``[dates, bands, rows, columns]``."""
        return pixels.reshape(self.dates, len(self.bands), *pixels.shape[1:])


@dataclass(frozen=True, slots=True)
class Request:
    """A window of one level that a policy wants to see, in that level's pixels; half open."""

    level: int
    """Which level."""
    row0: int
    """First row."""
    col0: int
    """First column."""
    row1: int
    """End of the rows."""
    col1: int
    """End of the columns."""

    def __post_init__(self) -> None:
        if not (0 <= self.row0 < self.row1 and 0 <= self.col0 < self.col1 and self.level >= 0):
            raise KernelError(
                f"a policy asked for the window {self}", place="ask", remedy="windows are not empty"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.row1 - self.row0, self.col1 - self.col0


@dataclass(frozen=True, slots=True)
class View:
    """The pixels of a request."""

    request: Request
    """What was asked for."""
    pixels: NDArray[Any]
    """``[C, rows, columns]`` in the type and the units of the source."""
    valid: NDArray[np.bool_]
    """``[rows, columns]``: True where all channels were measured."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A place on which an answer rests."""

    box: tuple[float, float, float, float]
    """``(col0, row0, col1, row1)`` in full-resolution pixels, edges not centres."""
    score: float
    """How much it counts; larger is more. Its scale is the policy's."""
    label: str = ""
    """What was seen there."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """Further values for the GeoJSON."""
    outline: BaseGeometry | None = None
    """Its outline in (column, row) at full resolution, where it is more than its box."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy returns."""

    text: str
    """The answer in words."""
    evidence: Sequence[Evidence] = ()
    """Where it rests, the most important first."""
    trace: Mapping[str, Any] = field(default_factory=dict)
    """What the policy counted on its way, as plain data: tokens kept of how many, steps, thresholds."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn of a dialogue that is over."""

    question: str
    """What was asked."""
    answer: Answer
    """What the policy returned."""


type Asking = Generator[list[Request], list[View], Answer]
"""A policy at work: yields requests, is sent their views in the same order, returns the answer."""


class AskKernel(Protocol):
    """A policy."""

    @property
    def name(self) -> str:
        """Its name in traces."""
        ...

    def ask(self, question: str, scene: Scene) -> Asking:
        """Begin to answer ``question``; raises `KernelError` where the scene cannot be asked."""
        ...
