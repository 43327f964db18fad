"""``tilewright demo``: two recipes over the real imagery of the checkout, the way any recipe goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tilewright.pipeline.report import Report
    from tilewright.pipeline.run import Progress

__all__ = ["RECIPES", "run_demo"]

RECIPES = ("dist-s1", "landsat-mosaic")
"""Recipes of the folder ``examples``, in the order in which the demo runs them."""


def run_demo(
    out: Path, say: Callable[[str], Any], progress: Callable[[], AbstractContextManager[Progress]]
) -> Iterator[Report]:
    """Run the recipes into folders of ``out`` and yield their reports; what is finished is kept.

    Raises `InputError` where the checkout's imagery is not there: it is not part of the wheel.
    """
    from tilewright.flows.recipe import Recipe
    from tilewright.flows.runs import run

    home = Path(__file__).resolve().parents[1]
    if not (home / "data" / "catalog.json").exists():
        raise InputError(
            "the demo's imagery is not here",
            place=str(home),
            remedy="run it from a checkout of the repository",
        )
    for name in RECIPES:
        recipe = Recipe.read(home / "examples" / f"{name}.yaml")
        say(f"{name}: {recipe.description}")
        with progress() as tick:
            yield from run(recipe, out=out / name, progress=tick, say=say)
