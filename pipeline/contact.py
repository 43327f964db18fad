"""A contact sheet: the best hits of a search as small pictures, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import StoreError, TilewrightError
from tilewright.kernels.ask import Request

from .looked import limits_of, look_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .pyramid import Pyramid
    from .search import Hit

__all__ = ["contact_sheet"]

ACROSS = 5
SIDE = 180
"""Pixels of a picture on the sheet."""
GAP, HEAD, LINE = 12, 40, 36
"""Pixels between pictures, above them all, and below each."""


def contact_sheet(
    hits: Sequence[Hit],
    open_part: Callable[[str], Pyramid | None],
    path: Path,
    title: str,
    *,
    limits: Mapping[str, Any] | None = None,
) -> Path:
    """Draw hits into a PNG, five in a row.

    Parameters
    ----------
    hits
        What `VectorIndex.search` returned.
    open_part
        From a part's id to its pixels; None where they cannot be had any more, and the picture stays empty.
    path
        The file.
    title
        Written above.
    limits
        Id of a part -> the values that its embedder was made for, ``[2, bands]``; see `limits_of`.

    Raises
    ------
    StoreError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    down = max(1, -(-len(hits) // ACROSS))
    width = ACROSS * (SIDE + GAP) + GAP
    height = HEAD + down * (SIDE + LINE + GAP)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    figure.text(GAP / width, 1 - 12 / height, title, va="top", fontsize=11, weight="bold")
    opened: dict[str, tuple[Pyramid | None, Any]] = {}
    for place, hit in enumerate(hits):
        if hit.part not in opened:
            opened[hit.part] = _opened(open_part(hit.part), (limits or {}).get(hit.part))
        left = GAP + place % ACROSS * (SIDE + GAP)
        top = HEAD + place // ACROSS * (SIDE + LINE + GAP)
        axes = figure.add_axes((left / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height))
        axes.set_axis_off()
        picture = _thumbnail(hit, *opened[hit.part])
        if picture is None:
            axes.text(0.5, 0.5, "no pixels at hand", ha="center", va="center", fontsize=8)
        else:
            axes.imshow(picture, interpolation="antialiased")
        words = (
            f"{place + 1}   {hit.score:.3f}   level {hit.level}\n{_short(hit.item)}  {(hit.date or '')[:10]}"
        )
        figure.text(left / width, 1 - (top + SIDE + 4) / height, words, va="top", fontsize=7)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise StoreError(f"cannot be written: {error}", place=str(path)) from error
    return path


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _opened(pyramid: Pyramid | None, made_for: Any) -> tuple[Pyramid | None, Any]:
    """Return a part with what is black and white in its pictures, or nothing where it cannot be read."""
    try:
        return pyramid, None if pyramid is None else limits_of(pyramid, made_for)
    except TilewrightError:
        return None, None


def _thumbnail(hit: Hit, pyramid: Pyramid | None, limits: Any) -> NDArray[np.uint8] | None:
    """Return the pixels of a hit at its own level, or None where they cannot be read."""
    if pyramid is None or hit.level >= len(pyramid.levels):
        return None
    level = pyramid.levels[hit.level]
    rows, cols = (full / own for full, own in zip(pyramid.grid.shape, level.shape, strict=True))
    row0, col0 = round(hit.box[1] / rows), round(hit.box[0] / cols)
    row1 = min(max(row0 + 1, round(hit.box[3] / rows)), level.shape[0])
    col1 = min(max(col0 + 1, round(hit.box[2] / cols)), level.shape[1])
    try:
        (view,) = pyramid.read([Request(hit.level, row0, col0, row1, col1)])
    except TilewrightError:
        return None
    return look_of(view.pixels, view.valid, limits)
