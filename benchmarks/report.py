"""docs/benchmarks.md and its plot, from the results of the full forms: ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import RESULTS, ROOT, Benchmark, Goal, markdown
from .machine import machine_line

__all__ = ["main"]

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"


def main(benchmarks: Sequence[Benchmark], arguments: Sequence[str]) -> int:
    """Write each benchmark's section between its markers, the summary and the plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks report")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file with the markers")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args(list(arguments))
    found: dict[str, dict[str, Any]] = {}
    for benchmark in benchmarks:
        path = options.results / f"{benchmark.name}.json"
        if path.exists():
            found[benchmark.name] = json.loads(path.read_text())
    text = options.page.read_text()
    drawn = [b for b in benchmarks if b.plot and b.name in found]
    told = summary(benchmarks, found) if found else "No full form has been run yet."
    picture = f"\n\n![Results of the benchmarks](images/{options.plot.name})" if drawn else ""
    text = between(text, "summary", told + picture)
    text = between(text, "sections", "\n\n".join(section(b, found.get(b.name)) for b in benchmarks))
    options.page.write_text(text)
    draw(drawn, found, options.plot)
    print(f"{options.page}: {len(found)} of {len(benchmarks)} benchmarks; {options.plot}")
    return 0


def between(text: str, name: str, body: str) -> str:
    """Return ``text`` with ``body`` between ``<!-- NAME -->`` and the next ``<!-- end -->``."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not mark.search(text):
        raise ValueError(f"no marker <!-- {name} --> in the page")
    return mark.sub(lambda m: f"{m[1]}\n{body}\n{m[2]}", text)


def goals_of(result: dict[str, Any]) -> list[Goal]:
    """Return the goals as they were judged when the result was measured."""
    return [Goal(**goal) for goal in result["goals"]]


def summary(benchmarks: Sequence[Benchmark], found: dict[str, dict[str, Any]]) -> str:
    """Return a table of all goals."""
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = [
        (f"[{b.name}](#{anchor(b)})" if i == 0 else "", goal.text, goal.found, words[goal.met])
        for b in benchmarks
        if b.name in found
        for i, goal in enumerate(goals_of(found[b.name]))
    ]
    return markdown(("benchmark", "goal", "found", "met"), rows).replace("---:", "---")


def anchor(benchmark: Benchmark) -> str:
    """Return the anchor of a benchmark's heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", benchmark.title.lower()).replace(" ", "-")


def section(benchmark: Benchmark, result: dict[str, Any] | None) -> str:
    """Return heading, explanation, command, machine, table and goals of one benchmark."""
    minutes = f"{benchmark.minutes[0]:g} minutes, `--full` {benchmark.minutes[1]:g}"
    parts = [
        f"## {benchmark.title}",
        benchmark.about.strip(),
        f"`python -m benchmarks {benchmark.name}` takes about {minutes}.",
    ]
    if result is None:
        return "\n\n".join([*parts, "Its full form has not been run yet."])
    parts += [benchmark.table(result["data"])]
    parts += ["\n".join(f"- {goal.line()}" for goal in goals_of(result))]
    where = f"{result['form']} form, {result['date'][:10]}, {result['seconds'] / 60:.1f} minutes"
    parts += [f"`{result['command']}`, {where}. {machine_line(result['machine'])}."]
    return "\n\n".join(parts)


def draw(benchmarks: Sequence[Benchmark], found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw one axes a benchmark into one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    if not benchmarks:
        return
    columns = min(3, len(benchmarks))
    rows = -(-len(benchmarks) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.1 * rows), squeeze=False)
    for axes in grid.flat[len(benchmarks) :]:
        axes.set_visible(False)
    for axes, benchmark in zip(grid.flat, benchmarks, strict=False):
        axes.set_title(benchmark.name, fontsize=10, loc="left", fontweight="bold")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if benchmark.plot:
            benchmark.plot(axes, found[benchmark.name]["data"])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
