"""What `tilewright eval` prints."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from tilewright.show import console

if TYPE_CHECKING:
    from pathlib import Path

    from tilewright.evaluation.embedders import EmbedderEvaluation
    from tilewright.evaluation.evaluate import Evaluation

__all__ = ["PictureProgress", "print_embedder", "print_evaluation"]


class PictureProgress:
    """A bar over the pictures on a terminal; in a log a line every ten seconds at most."""

    QUIET = 10.0
    """Seconds between two lines of a log."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent

    def __enter__(self) -> Callable[[int, int, str], None]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.bar = Progress(
            TimeElapsedColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("reading", total=None)
        self.told = monotonic()
        if console.is_terminal and not self.silent:
            self.bar.start()
        return self._tick

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self.bar.stop()

    def _tick(self, done: int, total: int, name: str) -> None:
        if self.silent:
            return
        self.bar.update(self.task, completed=done, total=total, description=f"{done} of {total} pictures")
        if not console.is_terminal and monotonic() - self.told >= self.QUIET:
            self.told = monotonic()
            console.print(f"{done} of {total} pictures, {name}", highlight=False, markup=False)


def print_evaluation(found: Evaluation, out: Path | None = None) -> None:
    """Print scores of the set, of its classes, and what was left out."""
    from rich.table import Table

    where = f"{found.dataset} ({', '.join(filter(None, (found.layout, found.split)))})"
    size = f"{found.pixels / 1e6:,.2f} Mpx" if found.pixels >= 1e5 else f"{found.pixels:,} px"
    cut = f" at {found.threshold:g}" if found.threshold is not None else ""
    _say(f"{found.kernel} on {where}")
    count = f"{found.images} image{'s' if found.images != 1 else ''}"
    _say(f"  {count}, {size}, {', '.join(found.outputs)}{cut}, {found.seconds:.1f} s")
    scores = Table(*found.scores, box=None)
    scores.add_row(*(_number(value) for value in found.scores.values()))
    console.print(scores)
    if len(found.per_class) > 2:
        table = Table("class", "iou", "f1", "precision", "recall", "pixels", box=None)
        for name, row in zip(found.classes, found.per_class, strict=True):
            numbers = [_number(row[key]) for key in ("iou", "f1", "precision", "recall")]
            table.add_row(name, *numbers, f"{int(row['support']):,}")
        console.print(table)
    for note in _notes(found):
        _say(f"  note: {note}")
    if out is not None:
        _say(f"  written to {out}")


def print_embedder(found: EmbedderEvaluation, out: Path | None = None) -> None:
    """Print what an embedder is worth on pictures: scores of the set, and of its classes."""
    from rich.table import Table

    where = f"{found.dataset} ({', '.join(filter(None, (found.layout, found.split)))})"
    _say(f"{found.kernel} on {where}")
    texts = f", {found.texts:,} texts" if found.texts else ""
    _say(f"  {found.images:,} images{texts}, {found.seconds:.1f} s")
    for names in (list(found.scores)[start : start + 7] for start in range(0, len(found.scores), 7)):
        scores = Table(*names, box=None)
        scores.add_row(*(_number(found.scores[name]) for name in names))
        console.print(scores)
    if found.per_class:
        table = Table("class", "accuracy", "precision", "ap", "images", box=None)
        for name, row in zip(found.classes, found.per_class, strict=True):
            numbers = [_number(row[key]) for key in ("accuracy", "precision", "ap")]
            table.add_row(name, *numbers, f"{int(row['support']):,}")
        console.print(table)
        _say(f'  asked as "{found.prompts[found.classes[0]][0]}" and so on')
    if found.untrained:
        _say("  note: the network has no weights, so these numbers mean nothing")
    if out is not None:
        _say(f"  written to {out}")


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _notes(found: Evaluation) -> list[str]:
    notes = []
    if found.untrained:
        notes.append("the network has no weights, so these numbers mean nothing")
    if found.pixels_ignored:
        notes.append(f"{found.pixels_ignored:,} pixels do not count by their labels")
    if found.pixels_without_result:
        notes.append(f"{found.pixels_without_result:,} labelled pixels have no result, and are in no score")
    return notes
