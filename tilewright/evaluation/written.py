"""What an evaluation leaves in its folder: numbers as JSON and CSV, the matrix and the worst pictures as plots."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .layout import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from .evaluate import Evaluation
    from .tally import Shown

__all__ = ["Judged", "write_evaluation", "write_pictures", "write_scores"]

DPI = 100
INK = "#222222"
_COLOURS = ("#f2f2f2", "#4477aa", "#228833", "#ccbb44", "#ee6677", "#66ccee", "#aa3377", "#bb5500", "#777777")
"""Of the classes; more of them begin again, lighter. Paul Tol's bright scheme, which colour-blind readers can tell."""
_ABSENT = "#000000"
_RIGHT, _EXTRA, _MISSED, _NOTHING = "#ffffff", "#ee3377", "#33bbee", "#30343b"
"""Of two classes: hit, false alarm, miss, rightly nothing."""
_MOST_NAMES = 40


class Judged(Protocol):
    """What every evaluation says, of kernels over pixels and of embedders."""

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        ...

    @property
    def untrained(self) -> bool:
        """True where it had no weights."""
        ...

    @property
    def dataset(self) -> str:
        """The folder."""
        ...

    @property
    def split(self) -> str | None:
        """The split."""
        ...

    @property
    def images(self) -> int:
        """Pictures."""
        ...

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of the whole set, the first of them the one to look at."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """Rows are labels, columns predictions; empty where there is no matrix."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return all as plain data for JSON."""
        ...


def write_scores(found: Judged, folder: Path) -> None:
    """Write ``metrics.json``, ``confusion.csv`` and ``confusion.png``, each whole or not at all.

    What does not exist is not written, and one of an earlier evaluation goes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "metrics.json", (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    if found.confusion:
        _write(folder / "confusion.csv", _csv(found).encode())
        _draw(folder / "confusion.png", _matrix_figure(found))
        return
    for name in ("confusion.csv", "confusion.png"):
        (folder / name).unlink(missing_ok=True)


def write_evaluation(found: Evaluation, folder: Path) -> None:
    """Write ``metrics.json``, ``confusion.csv``, ``confusion.png`` and ``worst-tiles.png``, each whole or not at all.

    What does not exist is not written, and one of an earlier evaluation goes: no matrix for pictures, no worst
    pictures where all were right.
    """
    write_scores(found, folder)
    if found.worst:
        _draw(folder / "worst-tiles.png", _worst_figure(found))
    else:
        (folder / "worst-tiles.png").unlink(missing_ok=True)


def write_pictures(found: Judged, pictures: Sequence[tuple[str, NDArray[Any]]], path: Path) -> None:
    """Draw pictures ``[bands, rows, columns]`` beside each other, each under its text; none of them: no file."""
    from matplotlib.figure import Figure

    if not pictures:
        path.unlink(missing_ok=True)
        return
    columns = min(3, len(pictures))
    rows, panel = math.ceil(len(pictures) / columns), 2.1
    wide, high = max(columns * (panel + 0.12) + 0.12, 4.6), 0.5 + rows * (panel + 0.27) + 0.12
    figure = Figure(figsize=(wide, high), dpi=DPI, facecolor="white")
    _head(figure, found, (wide, high))
    for n, (text, picture) in enumerate(pictures):
        row, column = divmod(n, columns)
        left, bottom = 0.12 + column * (panel + 0.12), high - 0.5 - (row + 1) * (panel + 0.27) + 0.05
        axes = figure.add_axes((left / wide, bottom / high, panel / wide, panel / high))
        shown = picture if len(picture) >= 3 else picture[:1].repeat(3, axis=0)
        axes.imshow(_plain(shown), interpolation="nearest")
        axes.set_xticks(())
        axes.set_yticks(())
        axes.set_title(text, fontsize=7, loc="left", pad=2, color=INK)
    _draw(path, figure)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.partial")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)  # noqa: PTH105


def _draw(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_canvas(FigureCanvasAgg(figure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    _write(path, buffer.getvalue())


def _csv(found: Judged) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label \\ prediction", *found.classes])
    for name, row in zip(found.classes, found.confusion, strict=True):
        writer.writerow([name, *row])
    return text.getvalue()


def _matrix_figure(found: Judged) -> Figure:
    """Draw the matrix: each row as shares of its label, numbers in the cells where they can be read."""
    from matplotlib.figure import Figure

    counts = np.asarray(found.confusion, float)
    labelled = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, labelled, out=np.zeros_like(counts), where=labelled > 0)
    count, longest = len(counts), max(len(name) for name in found.classes)
    cell = 0.95 if count <= 8 else max(0.3, 7.6 / count)
    slanted = longest > 9 or count > 8
    side, room = cell * count, 0.7 + 0.085 * longest
    below = 0.55 + 0.062 * longest if slanted else 0.6
    width, height = max(side + room + 1.2, 4.6), side + below + 0.75
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes: Axes = figure.add_axes((room / width, below / height, side / width, side / height))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares) if cell >= 0.6 else ():
        number = f"{share:.1%}\n{_short(int(counts[row, column]))}" if labelled[row] else "-"
        colour = "white" if share > 0.55 else INK
        axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(count), found.classes, fontsize=8, **(slant if slanted else {}))
    axes.set_yticks(range(count), found.classes, fontsize=8)
    axes.set_xlabel("prediction", fontsize=9)
    axes.set_ylabel("label", fontsize=9)
    bar = figure.add_axes(((room + 0.15 + side) / width, below / height, 0.12 / width, side / height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7)
    bar.set_title("share\nof label", fontsize=7, loc="left")
    _head(figure, found, (width, height))
    return figure


def _head(figure: Figure, found: Judged, size: tuple[float, float]) -> None:
    look: dict[str, Any] = {"fontsize": 9, "weight": "bold", "color": INK, "va": "top"}
    figure.text(0.12 / size[0], 1 - 0.1 / size[1], _title(found), **look)


def _title(found: Judged) -> str:
    where = Path(found.dataset).name + (f", {found.split}" if found.split else "")
    name, value = next(iter(found.scores.items()))
    untrained = " (UNTRAINED)" if found.untrained else ""
    score = "-" if math.isnan(value) else f"{value:.4f}"
    count = f"{found.images} image{'s' if found.images != 1 else ''}"
    return f"{found.kernel}{untrained} on {where}\n{name} {score}, {count}"


def _short(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _worst_figure(found: Evaluation) -> Figure:
    """Draw the worst pictures: a row each, with its dates, its label, and what the kernel made of it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [_panels(shown, found) for shown in found.worst]
    wide, panel = max(len(row) for row in rows), 2.1
    tall = panel * min(2.5, max(picture.shape[0] / picture.shape[1] for row in rows for _, picture in row))
    patches = [Patch(facecolor=colour, edgecolor="#888888", label=name) for name, colour in _legend(found)]
    across = max(wide * (panel + 0.12) + 0.12, 4.6)
    columns = min(len(patches), max(2, int(across / 1.5)))
    head, foot = 0.5, 0.12 + 0.19 * (math.ceil(len(patches) / columns) if patches else 0)
    high = head + foot + len(rows) * (tall + 0.27)
    figure = Figure(figsize=(across, high), dpi=DPI, facecolor="white")
    _head(figure, found, (across, high))
    for i, (shown, row) in enumerate(zip(found.worst, rows, strict=True)):
        bottom = high - head - (i + 1) * (tall + 0.27) + 0.05
        for j, (title, picture) in enumerate(row):
            left = 0.12 + j * (panel + 0.12)
            axes = figure.add_axes((left / across, bottom / high, panel / across, tall / high))
            axes.imshow(picture, interpolation="nearest")
            axes.set_xticks(())
            axes.set_yticks(())
            axes.spines[:].set(color="#888888", linewidth=0.5)
            heading = f"{_named(shown)}: {title}" if j == 0 else title
            axes.set_title(heading, fontsize=7, loc="left", pad=2, color=INK)
    if patches:
        figure.legend(
            handles=patches, loc="lower left", ncols=columns, fontsize=7, frameon=False, borderaxespad=0.2
        )
    return figure


def _named(shown: Shown) -> str:
    name = shown.name if len(shown.name) <= _MOST_NAMES else f"...{shown.name[-_MOST_NAMES:]}"
    if "errors" in shown.facts:
        return f"{name} ({shown.badness:.1%} wrong)"
    return f"{name} ({shown.facts['psnr_y']:.2f} dB)"


def _panels(shown: Shown, found: Evaluation) -> list[tuple[str, NDArray[Any]]]:
    if len(shown.dates) == 1:
        panels: list[tuple[str, NDArray[Any]]] = [("image", shown.dates[0])]
    else:
        panels = [(f"date {i}", date) for i, date in enumerate(shown.dates, 1)]
    if found.task == "pictures":
        return [
            *panels,
            ("truth", _plain(shown.labels[0])),
            (f"kernel: {found.outputs[0]}", _plain(shown.maps[0])),
        ]
    for i, (label, one) in enumerate(zip(shown.labels, shown.maps, strict=True), 1):
        more = f" {i}" if len(shown.maps) > 1 else ""
        if len(found.classes) == 2:
            panels += [(f"label{more}", _coloured(label, 2)), (f"prediction{more}", _verdict(label, one))]
        else:
            panels += [
                (f"label{more}", _coloured(label, len(found.classes))),
                (f"prediction{more}", _coloured(one, len(found.classes))),
            ]
    return panels


def _plain(picture: NDArray[Any]) -> NDArray[Any]:
    values = np.moveaxis(picture[:3].astype(np.float32), 0, -1)
    return np.clip(values / (255 if values.max(initial=0) > 1.5 else 1), 0, 1)


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return float(red), float(green), float(blue)


def _colour(number: int, classes: int) -> tuple[float, float, float]:
    if classes == 2:
        return _rgb((_NOTHING, _RIGHT)[number])
    base, lighter = _rgb(_COLOURS[number % len(_COLOURS)]), number // len(_COLOURS)
    red, green, blue = (1 - (1 - part) * 0.6**lighter for part in base)
    return red, green, blue


def _coloured(plane: NDArray[Any], classes: int) -> NDArray[np.float32]:
    table = np.zeros((256, 3), np.float32)
    table[:] = _rgb(_ABSENT)
    for number in range(classes):
        table[number] = _colour(number, classes)
    coloured: NDArray[np.float32] = table[plane.astype(np.int64)]
    if classes == 2:
        coloured[plane == IGNORED] = _rgb("#999999")
    return coloured


def _verdict(label: NDArray[Any], one: NDArray[Any]) -> NDArray[np.float32]:
    """Return hits, false alarms and misses of two classes in colours."""
    verdict = _coloured(np.where(label == IGNORED, IGNORED, one), 2)
    verdict[(label == 0) & (one == 1)] = _rgb(_EXTRA)
    verdict[(label == 1) & (one == 0)] = _rgb(_MISSED)
    return verdict


def _legend(found: Evaluation) -> list[tuple[str, Any]]:
    if found.task == "pictures":
        return []
    if len(found.classes) == 2:
        nothing, something = found.classes
        return [
            (nothing, _NOTHING),
            (something, _RIGHT),
            ("false alarm", _EXTRA),
            ("missed", _MISSED),
            ("not counted", "#999999"),
        ]
    count = len(found.classes)
    return [*((name, _colour(i, count)) for i, name in enumerate(found.classes)), ("not counted", _ABSENT)]
