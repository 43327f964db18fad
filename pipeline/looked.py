"""One picture of where an answer, or hits, come from: the image from far away, what was read of it, the evidence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import StoreError
from tilewright.kernels.ask import Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from .ask import Outcome
    from .pyramid import Level, Pyramid
    from .search import Hit

    Box = tuple[float, float, float, float]

__all__ = ["limits_of", "look_of", "map_of_hits", "picture_of"]

SIDE = 1000
"""Longest side of the picture's map, in pixels."""
LEVEL_COLOURS = ("#d7301f", "#fc8d59", "#fdcc8a", "#7fcdbb", "#2c7fb8", "#253494")
"""Outlines of windows: the finest level first."""
EVIDENCE = "#ffe600"
MOST_LABELS = 20
"""Boxes that are numbered."""


def look_of(
    pixels: NDArray[Any], valid: NDArray[np.bool_], limits: Sequence[Sequence[float]] | None = None
) -> NDArray[np.uint8]:
    """Return ``[C, rows, columns]`` as a colour picture ``[rows, columns, 3]``.

    The first three bands, or the first one in grey; eight-bit values as they are, others stretched from black to white
    between ``limits`` (``[2, C]``; None: their 2nd and their 98th percentile), and light grey where nothing is valid.
    """
    shown = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    values = shown.astype(np.float32)
    if pixels.dtype != np.uint8 and valid.any():
        ends = np.percentile(values[:, valid], (2, 98), axis=1) if limits is None else np.array(limits)[:, :3]
        low, high = ends.astype(np.float32)[..., None, None]
        values = (values - low) / np.maximum(high - low, 1e-9) * 255
    picture = np.clip(np.rint(np.nan_to_num(values)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    picture[~valid] = 225
    return picture


def limits_of(pyramid: Pyramid, made_for: Any) -> NDArray[np.float64] | None:
    """Return what is black and white in all pictures of an image, ``[2, bands]``: one look, whatever part is shown.

    ``made_for`` ``[2, bands]`` is what an embedder was made for, and is widened where the image, by the 2nd and the
    98th percentile of its coarsest level, goes beyond: bright desert is no white page, and the noise of calm water no
    pattern. None for an image of which nothing is valid.
    """
    number = len(pyramid.levels) - 1
    (view,) = pyramid.read([Request(number, 0, 0, *pyramid.levels[number].shape)])
    if not view.valid.any():
        return None
    own: NDArray[np.float64] = np.percentile(view.pixels[:, view.valid].astype(float), (2, 98), axis=1)
    if made_for is None:
        return own
    low, high = np.array(made_for, float)
    return np.stack([np.minimum(own[0], low), np.maximum(own[1], high)])


def picture_of(outcome: Outcome, pyramid: Pyramid, path: Path) -> Path:
    """Draw where an answer comes from, as a PNG of about 1,000 px, whole or not at all; raises `StoreError`.

    The map is read from the coarsest stored level that is still large enough, beside the account of the answer.
    """
    number = _level(pyramid)
    figure, axes, height = _map_of(pyramid, number, None)
    drawn = _draw_windows(axes, outcome, pyramid, number)
    _draw_boxes(axes, {rank: found.box for rank, found in enumerate(outcome.answer.evidence, start=1)})
    share = outcome.account.bytes_read / outcome.total_bytes
    _write_above(figure, height, outcome.question, outcome.answer.text)
    below = f"{share:.3%} of the bytes read, {outcome.seconds:.1f} s; {drawn}"
    figure.text(0.02, 10 / height, below, fontsize=8)
    return _saved(figure, path)


def map_of_hits(
    hits: Sequence[Hit], part: str, pyramid: Pyramid, path: Path, title: str, limits: Any = None
) -> Path:
    """Draw where the hits of one part lie in it, as a PNG like `picture_of`'s; numbers are ranks among all hits."""
    figure, axes, height = _map_of(pyramid, _level(pyramid), limits_of(pyramid, limits))
    boxes = {rank: hit.box for rank, hit in enumerate(hits, start=1) if hit.part == part}
    _draw_boxes(axes, boxes)
    names = {hit.item for hit in hits if hit.part == part}
    _write_above(figure, height, title, f"{len(boxes)} of {len(hits)} hits lie in {', '.join(sorted(names))}")
    return _saved(figure, path)


def _map_of(pyramid: Pyramid, number: int, limits: Any) -> tuple[Figure, Axes, float]:
    """Return a figure of one level in the coordinates of full resolution, with room above and below, and its height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    level = pyramid.levels[number]
    rows, cols = level.shape
    scale = min(1.0, SIDE / max(rows, cols))
    inner = max(360.0, cols * scale), max(240.0, rows * scale)
    width, height = inner[0] + 40, inner[1] + 110
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((20 / width, 40 / height, inner[0] / width, inner[1] / height))
    axes.imshow(
        _read(pyramid, number, limits),
        extent=(0, cols * level.factor, rows * level.factor, 0),
        interpolation="antialiased",
    )
    axes.set_axis_off()
    return figure, axes, height


def _write_above(figure: Figure, height: float, first: str, second: str) -> None:
    figure.text(0.02, 0.985, _cut(first, 110), va="top", fontsize=10, weight="bold")
    figure.text(0.02, 0.985 - 22 / height, _cut(second, 130), va="top", fontsize=9)


def _saved(figure: Figure, path: Path) -> Path:
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        raise StoreError(f"cannot be written: {error}", place=str(path)) from error
    return path


def _level(pyramid: Pyramid) -> int:
    """The coarsest level of at least `SIDE`; where none is, full resolution, which then is small."""
    large = [n for n, level in enumerate(pyramid.levels) if max(level.shape) >= SIDE]
    return large[-1] if large else 0


def _read(pyramid: Pyramid, number: int, limits: Any) -> NDArray[np.uint8]:
    level: Level = pyramid.levels[number]
    (view,) = pyramid.read([Request(number, 0, 0, *level.shape)])
    return look_of(view.pixels, view.valid, limits)


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


def _draw_boxes(axes: Axes, boxes: Mapping[int, Box]) -> None:
    """Draw boxes ``(col0, row0, col1, row1)`` with their ranks, the best on top."""
    from matplotlib.patches import Rectangle

    for rank, (col0, row0, col1, row1) in reversed(list(boxes.items())):
        axes.add_patch(
            Rectangle((col0, row0), col1 - col0, row1 - row0, fill=False, edgecolor=EVIDENCE, linewidth=1.6)
        )
        if rank <= MOST_LABELS:
            axes.annotate(
                str(rank), (col0, row0), (0, 3), textcoords="offset points", color="black", fontsize=8, va="bottom",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": EVIDENCE, "edgecolor": "none"},
            )  # fmt: skip


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
