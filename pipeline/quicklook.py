"""One picture of a result: a panel per output with legend or colour bar, scale bar, north, and what is missing.

Drawn from an overview level with matplotlib's Agg canvas and no pyplot: nothing global is touched, so it can
be made in any thread of any program.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cog import class_colours
from .grid import Window
from .mapmarks import ground_size, nice_length, north
from .reduce import quantisation
from .source import Reason
from .store import REASON
from .zarrmeta import fill_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from tilewright.kernels.contract import OutputSpec

    from .store import ResultStore

__all__ = ["quicklook"]

DPI = 100
MOST_PANELS = 4
LARGEST = (1400, 1000)
"""Most pixels ``(width, height)`` that all panels take together, legends and margins not counted."""
MARGIN, HEAD, FOOT, PANEL_HEAD, PANEL_FOOT = 28, 58, 92, 28, 62
"""Pixels around the panels, above them, below them, above one, and below one."""
INK, FAINT = "#222222", "#6b6b6b"

REASON_LOOK: dict[Reason, tuple[str, str, str]] = {
    Reason.NODATA: ("no data", "#cfcfcf", "#b2b2b2"),
    Reason.NO_SCENE: ("no scene", "#e3dccf", "#c4b79c"),
    Reason.CLOUD: ("masked (cloud, shadow)", "#eef3f7", "#bccbd8"),
    Reason.READ_ERROR: ("read error", "#f4d9d6", "#cf6a5f"),
    Reason.OUTSIDE: ("outside the region", "#ffffff", "#ffffff"),
}
"""Words, ground colour and stripe colour of each reason why a pixel has no result."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """One map, ready to draw."""

    title: str
    image: NDArray[np.uint8]
    """``[rows, columns, 3]``."""
    labels: tuple[tuple[str, str], ...] = ()
    """``(name, colour)`` of each class; empty for values."""
    colours: tuple[str, float, float] | None = None
    """Colour map with the values at its ends; None for classes and colour composites."""
    units: str = ""


def quicklook(
    store: ResultStore,
    path: str | Path,
    title: str,
    *,
    outputs: Sequence[str] | None = None,
    attribution: str = "",
) -> Path:
    """Draw the first four outputs of a finished store into one PNG of at most about 1,400 px.

    Parameters
    ----------
    store
        A store after `ResultStore.finish`.
    path
        The PNG; written whole or not at all.
    title
        Heading of the picture.
    outputs
        Which outputs, in this order; all unless given.
    attribution
        Line at the foot: where the imagery comes from, and its licence.

    Returns
    -------
    Path
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(outputs or store.outputs)[:MOST_PANELS]
    height, width = ground_size(store.grid)
    shape = store.grid.shape[0] * height, store.grid.shape[1] * width  # metres
    rows, cols, panel = _layout(len(names), shape[0] / shape[1])
    level = _level(store, max(panel))
    reason = _whole(store, REASON, level)
    panels = [_panel(store, name, level, reason) for name in names]

    size = (
        max(2 * MARGIN + cols * panel[1] + (cols - 1) * MARGIN, 600),
        HEAD + FOOT + rows * (panel[0] + PANEL_HEAD + PANEL_FOOT),
    )
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    left = (size[0] - cols * panel[1] - (cols - 1) * MARGIN) / 2
    fits = 14 * (size[0] - 2 * MARGIN) / (11.5 * max(len(title), 1))
    look: dict[str, Any] = {"size": min(14, max(8, fits)), "weight": "bold", "color": INK, "va": "top"}
    figure.text(min(left, MARGIN) / size[0], 1 - 20 / size[1], title, **look)
    for i, item in enumerate(panels):
        x = left + (i % cols) * (panel[1] + MARGIN)
        y = HEAD + (i // cols) * (panel[0] + PANEL_HEAD + PANEL_FOOT) + PANEL_HEAD
        box = (x / size[0], 1 - (y + panel[0]) / size[1], panel[1] / size[0], panel[0] / size[1])
        _draw_panel(figure, box, item, store, size)
    _draw_foot(figure, size, left, shape[1] / panel[1], store, _missing(reason), attribution)

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.partial")
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.savefig(unfinished, format="png", dpi=DPI, metadata={"Software": None, "Title": title})
    os.replace(unfinished, target)  # noqa: PTH105
    return target


# -- what is drawn -------------------------------------------------------------------------------------------


def _layout(count: int, aspect: float) -> tuple[int, int, tuple[int, int]]:
    """Return rows and columns of panels and the ``(height, width)`` in pixels that makes them largest."""
    best: tuple[int, int, tuple[int, int]] = (1, 1, (0, 0))
    aspect = min(max(aspect, 1 / 8), 8)
    for cols in range(count, 0, -1):
        rows = -(-count // cols)
        width = (LARGEST[0] - 2 * MARGIN - (cols - 1) * MARGIN) / cols
        height = (LARGEST[1] - (rows - 1) * (PANEL_HEAD + PANEL_FOOT)) / rows
        width = min(width, height / aspect, 900)
        if width > best[2][1] * 1.1:  # side by side unless the other way is clearly larger
            best = rows, cols, (max(round(width * aspect), 1), max(round(width), 1))
    return best


def _level(store: ResultStore, side: int) -> int:
    """Return the coarsest level that is not coarser than the panel."""
    level = store.levels - 1
    while level and max(store.shape(level)) < side:
        level -= 1
    return level


def _whole(store: ResultStore, name: str, level: int) -> NDArray[Any]:
    rows, cols = store.shape(level)
    return store.read(name, Window(0, rows, 0, cols), level)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _missing(reason: NDArray[np.uint8]) -> list[Reason]:
    present = set(np.unique(reason).tolist())
    return [code for code in REASON_LOOK if code in present]


def _striped(reason: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``[rows, columns, 3]``: the striped ground that shows where there is no result."""
    rows, cols = reason.shape
    period = max(4, round(max(rows, cols) / 90))
    stripe = (np.arange(rows)[:, None] + np.arange(cols)) % period < max(1, period // 4)
    table = np.full((2, 256, 3), 207, dtype=np.uint8)
    for code, (_, ground, line) in REASON_LOOK.items():
        table[0, code], table[1, code] = _rgb(ground), _rgb(line)
    striped: NDArray[np.uint8] = table[stripe.astype(np.uint8), reason]
    return striped


def _panel(store: ResultStore, name: str, level: int, reason: NDArray[np.uint8]) -> _Panel:
    spec = store.outputs[name]
    stored = _whole(store, name, level)
    bands = stored if stored.ndim == 3 else stored[None]
    nodata = fill_value(spec)
    valid = ~(np.isnan(bands) if np.isnan(nodata) else bands == nodata).any(axis=0)
    image = _striped(np.where((reason == Reason.VALID) & ~valid, np.uint8(Reason.NODATA), reason))
    if spec.kind == "class":
        return _class_panel(name, spec, bands[0], valid, image)
    scale, offset = quantisation(spec)
    values = bands.astype(np.float32) * np.float32(scale) + np.float32(offset)
    if len(values) == 3:
        image[valid] = _stretched(values, valid)[valid]
        return _Panel(f"{name}: {', '.join(_band_names(spec))}", image)
    title = name if len(values) == 1 else f"{name}: {_band_names(spec)[0]}, the first of {len(values)} bands"
    return _value_panel(title, spec, values[0], valid, image)


def _band_names(spec: OutputSpec) -> list[str]:
    return [f"band {i + 1}" for i in range(spec.bands)] if isinstance(spec.bands, int) else list(spec.bands)


def _class_panel(
    name: str, spec: OutputSpec, codes: NDArray[Any], valid: NDArray[np.bool_], image: NDArray[np.uint8]
) -> _Panel:
    present = np.unique(codes[valid]).astype(int).tolist()
    names = spec.classes or tuple(str(code) for code in range(max(present, default=1) + 1))
    colours = class_colours(max(len(names), max(present, default=0) + 1))
    table = np.array(colours, dtype=np.uint8)
    image[valid] = table[codes[valid].astype(int)]
    shown = range(len(names)) if len(names) <= 10 else [code for code in present if code < len(names)]
    labels = tuple((names[code], "#{:02x}{:02x}{:02x}".format(*colours[code])) for code in shown)
    return _Panel(name, image, labels=labels)


def _value_panel(
    title: str, spec: OutputSpec, values: NDArray[np.float32], valid: NDArray[np.bool_], image: NDArray[Any]
) -> _Panel:
    from matplotlib import colormaps

    finite = values[valid & np.isfinite(values)]
    # A score fills its range by meaning; a value may fill a hundredth of it, and would look blank.
    low, high = spec.range if spec.range is not None else (0.0, 1.0)
    if (spec.kind == "value" or spec.range is None) and finite.size:
        low, high = np.percentile(finite, (2, 98)).tolist()
    if spec.range is not None and spec.range[0] == -spec.range[1]:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    high = high if high > low else low + 1.0
    # All three have even steps for the eye; the diverging one where zero is the middle of the range.
    name = "magma" if spec.kind == "score" else "RdBu_r" if low == -high else "viridis"
    steps = np.nan_to_num((values - low) / (high - low)).clip(0, 1)
    image[valid] = (colormaps[name](steps[valid])[:, :3] * 255).round().astype(np.uint8)
    return _Panel(title, image, colours=(name, low, high), units=spec.units or "")


def _stretched(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return three bands as colours ``[rows, columns, 3]``, each stretched between its 2nd and 98th percentile."""
    channels = []
    for band in values:
        low, high = np.percentile(band[valid], (2, 98)) if valid.any() else (0.0, 1.0)
        steps = np.nan_to_num((band - low) / max(high - low, 1e-12)).clip(0, 1)
        channels.append((steps * 255).round().astype(np.uint8))
    return np.stack(channels, axis=-1)


# -- drawing -------------------------------------------------------------------------------------------------


def _draw_panel(
    figure: Figure,
    box: tuple[float, float, float, float],
    panel: _Panel,
    store: ResultStore,
    size: tuple[int, int],
) -> None:
    axes = figure.add_axes(box)
    enlarged = box[2] * size[0] > panel.image.shape[1]
    axes.imshow(
        panel.image,
        extent=(0, store.grid.shape[1], store.grid.shape[0], 0),
        aspect="auto",
        interpolation="nearest" if enlarged else "antialiased",
    )
    axes.set(xticks=[], yticks=[], xlim=(0, store.grid.shape[1]), ylim=(store.grid.shape[0], 0))
    axes.set_title(panel.title, loc="left", size=11, color=INK, pad=6)
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color=FAINT)
    _draw_region(axes, store)
    x, bottom, width = box[0], box[1], box[2]
    if panel.colours is not None:
        below = (x, bottom - 22 / size[1], min(width, 320 / size[0]), 10 / size[1])
        _draw_colour_bar(figure, below, panel)
    elif panel.labels:
        _draw_labels(axes, panel.labels, width * size[0])


def _draw_colour_bar(figure: Figure, box: tuple[float, float, float, float], panel: _Panel) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    name, low, high = panel.colours or ("viridis", 0.0, 1.0)
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), name), cax=figure.add_axes(box), orientation="horizontal"
    )
    bar.outline.set(linewidth=0.4, edgecolor=FAINT)
    bar.locator = MaxNLocator(nbins=4)
    bar.update_ticks()
    bar.ax.tick_params(labelsize=8.5, width=0.5, length=3, color=FAINT, labelcolor=INK)
    if panel.units and panel.units != "1":
        bar.ax.text(1.03, 0.5, panel.units, transform=bar.ax.transAxes, size=9, va="center", color=INK)


def _draw_labels(axes: Axes, labels: tuple[tuple[str, str], ...], width: float) -> None:
    from matplotlib.patches import Patch

    longest = max(len(name) for name, _ in labels)
    axes.legend(
        handles=[
            Patch(facecolor=colour, edgecolor=FAINT, linewidth=0.4, label=name) for name, colour in labels
        ],
        loc="upper left",
        bbox_to_anchor=(0, -6 / max(axes.bbox.height, 1)),
        ncols=max(1, min(len(labels), int(width / (longest * 6.5 + 44)))),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderpad=0.2,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1.4,
    )


def _draw_region(axes: Axes, store: ResultStore) -> None:
    """Draw the outline of the wanted region, if there is one."""
    if store.grid.region is None:
        return
    import shapely
    from matplotlib.patheffects import Normal, Stroke

    inverse = ~store.grid.geobox.affine
    tolerance = max(store.grid.shape) / 2000 * store.grid.resolution
    for line in shapely.get_parts(shapely.boundary(store.grid.region)):
        xy = shapely.get_coordinates(shapely.simplify(line, tolerance))
        cols = inverse.a * xy[:, 0] + inverse.b * xy[:, 1] + inverse.c
        rows = inverse.d * xy[:, 0] + inverse.e * xy[:, 1] + inverse.f
        halo = [Stroke(linewidth=2.4, foreground="white", alpha=0.8), Normal()]
        axes.plot(cols, rows, color=INK, linewidth=0.9, path_effects=halo, solid_joinstyle="round")


def _draw_foot(
    figure: Figure,
    size: tuple[int, int],
    left: float,
    metres_per_px: float,
    store: ResultStore,
    missing: list[Reason],
    attribution: str,
) -> None:
    """Draw scale bar, north arrow, the reasons met and the attribution, in pixels of the figure."""
    axes = figure.add_axes((0, 0, 1, FOOT / size[1]))
    axes.set(xlim=(0, size[0]), ylim=(0, FOOT))
    axes.axis("off")
    metres = nice_length(metres_per_px * 180)
    length = metres / metres_per_px
    for start, colour in ((0.0, INK), (0.5, "white")):
        axes.barh(64, length / 2, 5, left=left + start * length, color=colour, edgecolor=INK, linewidth=0.7)
    text = f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"
    axes.text(left + length + 8, 64, text, size=9, va="center", color=INK)
    at = left + length + 86
    _draw_north(axes, at, 64, store)
    _draw_reasons(axes, at + 36, 64, size[0], missing)
    crs, side = str(store.grid.crs), math.hypot(store.grid.transform[0], store.grid.transform[3])
    note = f"{crs if len(crs) < 20 else 'own CRS'}, {side:g} {_unit(store)} pixels"
    axes.text(left, 16, "  |  ".join(t for t in (note, attribution) if t), size=8, va="center", color=FAINT)


def _unit(store: ResultStore) -> str:
    crs = store.grid.geobox.crs
    unit = str(crs.units[0]) if crs is not None else ""
    return "°" if unit.startswith("degree") else {"metre": "m"}.get(unit, unit)


def _draw_north(axes: Axes, x: float, y: float, store: ResultStore) -> None:
    up, right = north(store.grid)
    tail, tip = (x - 13 * right, y - 13 * up), (x + 13 * right, y + 13 * up)
    style = {"arrowstyle": "-|>,head_width=0.32,head_length=0.6", "color": INK, "linewidth": 1.1}
    axes.annotate("", xy=tip, xytext=tail, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})
    axes.text(x + 21 * right, y + 21 * up, "N", size=9, weight="bold", ha="center", va="center", color=INK)


def _draw_reasons(axes: Axes, left: float, y: float, right: float, missing: list[Reason]) -> None:
    from matplotlib.patches import Rectangle

    x = left
    for code in missing:
        name, ground, line = REASON_LOOK[code]
        if x > left and x + 24 + 7.3 * len(name) > right:
            x, y = left, y - 22
        axes.add_patch(
            Rectangle((x, y - 6), 18, 12, facecolor=ground, edgecolor=line, hatch="//////", linewidth=0)
        )
        axes.add_patch(Rectangle((x, y - 6), 18, 12, facecolor="none", edgecolor=FAINT, linewidth=0.5))
        axes.text(x + 24, y, name, size=9, va="center", color=INK)
        x += 44 + 7.3 * len(name)
