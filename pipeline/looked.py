"""One picture of where an answer comes from: the image from far away, what was read of it, and the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError
from tilewright.kernels.ask import Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .ask import Outcome
    from .pyramid import Level, Pyramid

__all__ = ["look_of", "picture_of"]

SIDE = 1000
"""Longest side of the picture's map, in pixels."""
LEVEL_COLOURS = ("#d7301f", "#fc8d59", "#fdcc8a", "#7fcdbb", "#2c7fb8", "#253494")
"""Outlines of windows: the finest level first."""
EVIDENCE = "#ffe600"
MOST_LABELS = 8
"""Boxes that are numbered."""


def look_of(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return ``[C, rows, columns]`` as a colour picture ``[rows, columns, 3]``.

    The first three bands, or the first one in grey; eight-bit values as they are, others stretched from their 2nd to
    their 98th percentile, and light grey where nothing is valid.
    """
    shown = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    values = shown.astype(np.float32)
    if pixels.dtype != np.uint8 and valid.any():
        low, high = np.percentile(values[:, valid], (2, 98), axis=1)[..., None, None]
        values = (values - low) / np.maximum(high - low, 1e-9) * 255
    picture = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    picture[~valid] = 225
    return picture


def picture_of(outcome: Outcome, pyramid: Pyramid, path: Path) -> Path:
    """Draw where an answer comes from, as a PNG of about 1,000 px; raises `StoreError`.

    The map is read from the coarsest stored level that is still large enough, beside the account of the answer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = _level(pyramid)
    level = pyramid.levels[number]
    rows, cols = level.shape
    picture = _read(pyramid, number)
    scale = min(1.0, SIDE / max(rows, cols))
    width, height = max(360.0, cols * scale), max(240.0, rows * scale)
    figure = Figure(figsize=((width + 40) / 100, (height + 110) / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (20 / (width + 40), 40 / (height + 110), width / (width + 40), height / (height + 110))
    )
    axes.imshow(picture, extent=(0, cols * level.factor, rows * level.factor, 0), interpolation="antialiased")
    axes.set_axis_off()
    drawn = _draw_windows(axes, outcome, pyramid, number)
    _draw_evidence(axes, outcome)
    share = outcome.account.bytes_read / outcome.total_bytes
    figure.text(0.02, 0.985, _cut(outcome.question, 110), va="top", fontsize=10, weight="bold")
    figure.text(0.02, 0.985 - 22 / (height + 110), _cut(outcome.answer.text, 130), va="top", fontsize=9)
    figure.text(
        0.02,
        10 / (height + 110),
        f"{share:.3%} of the bytes read, {outcome.seconds:.1f} s; {drawn}",
        fontsize=8,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise StoreError(f"cannot be written: {error}", place=str(path)) from error
    return path


def _level(pyramid: Pyramid) -> int:
    """The coarsest level of at least `SIDE`; where none is, full resolution, which then is small."""
    large = [n for n, level in enumerate(pyramid.levels) if max(level.shape) >= SIDE]
    return large[-1] if large else 0


def _read(pyramid: Pyramid, number: int) -> NDArray[np.uint8]:
    level: Level = pyramid.levels[number]
    (view,) = pyramid.read([Request(number, 0, 0, *level.shape)])
    return look_of(view.pixels, view.valid)


def _draw_windows(axes: Axes, outcome: Outcome, pyramid: Pyramid, shown: int) -> str:
    """Outline the windows that are finer than the map; return how many of which level there are, in words."""
    from matplotlib.patches import Rectangle

    counts: dict[int, int] = {}
    for step in outcome.account.windows:
        for window in step:
            counts[window.level] = counts.get(window.level, 0) + 1
            if window.level >= shown and shown:
                continue
            factor = pyramid.levels[window.level].factor
            colour = LEVEL_COLOURS[min(window.level, len(LEVEL_COLOURS) - 1)]
            at = (window.col0 * factor, window.row0 * factor)
            size = ((window.col1 - window.col0) * factor, (window.row1 - window.row0) * factor)
            axes.add_patch(Rectangle(at, *size, fill=False, edgecolor=colour, linewidth=0.8))
    words = [f"{count} of level {level}" for level, count in sorted(counts.items())]
    return "windows: " + ", ".join(words)


def _draw_evidence(axes: Axes, outcome: Outcome) -> None:
    from matplotlib.patches import Rectangle

    for rank, found in reversed(list(enumerate(outcome.answer.evidence, start=1))):
        col0, row0, col1, row1 = found.box
        axes.add_patch(
            Rectangle((col0, row0), col1 - col0, row1 - row0, fill=False, edgecolor=EVIDENCE, linewidth=1.6)
        )
        if rank <= MOST_LABELS:
            axes.annotate(
                str(rank), (col0, row0), (2, -2), textcoords="offset points", color="black", fontsize=8, va="top",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": EVIDENCE, "edgecolor": "none"},
            )  # fmt: skip


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
