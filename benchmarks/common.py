"""What the benchmarks share: a description of each, the command line, restartable rows, goals and results.

A benchmark is a module with a `Benchmark` named ``BENCHMARK``. ``python -m benchmarks NAME`` runs its small form,
``--full`` the one whose numbers are in docs/benchmarks.md. The result goes as JSON, with machine, date and
command, into ``benchmarks/results`` (full) or ``build/benchmarks`` (small), and the docs are rendered from there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from .machine import machine_facts

__all__ = ["RESULTS", "SCRATCH", "Bench", "Benchmark", "Goal", "markdown", "run", "worst"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
"""Where results of the full forms lie, in the repository."""
SCRATCH = ROOT / "build" / "benchmarks"
"""Where results of the small forms go, out of the repository."""


@dataclass(frozen=True)
class Goal:
    """What was hoped for, and what was found."""

    text: str
    """The goal with its number, such as ``"at least 0.97 of the limit"``."""
    found: str
    """What was measured, as it is shown."""
    met: bool | None
    """None where it could not be measured here."""
    promise: bool = False
    """True where a miss is a defect (a wrong bit) and not a matter of speed: the program then ends with status 1."""

    def line(self) -> str:
        """Return it as one line of text."""
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[self.met]
        return f"{self.text}: {self.found} ({verdict})"


@dataclass
class Bench:
    """One execution of a benchmark: its parameters, its scratch folder, and the rows that it has already."""

    parameters: dict[str, Any]
    """As the form and the command line say."""
    folder: Path
    """Scratch; with ``--keep`` it stays, and a repeated command goes on where the last one stopped."""
    _saved: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "rows.json"
        if path.exists():
            self._saved = json.loads(path.read_text())

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"   {datetime.now():%H:%M:%S} {text}", flush=True)

    def once[T](self, key: str, make: Callable[[], T]) -> T:
        """Return ``make()``, plain data, or what it gave in an earlier start of this folder."""
        if key in self._saved:
            self.say(f"{key}: taken from {self.folder}")
            return self._saved[key]  # type: ignore[no-any-return]
        value = make()
        self._saved[key] = value
        path = self.folder / "rows.json"
        path.with_suffix(".new").write_text(json.dumps(self._saved, indent=1))
        path.with_suffix(".new").rename(path)
        return value


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is called with, and how its result is shown."""

    name: str
    """Name of its module, of its result and of its section."""
    title: str
    """Heading in the docs."""
    about: str
    """Markdown under the heading: what is the same work, what is measured, and why."""
    small: Mapping[str, Any]
    """Parameters of the small form."""
    full: Mapping[str, Any]
    """Parameters of the full form; the same keys."""
    measure: Callable[[Bench], dict[str, Any]]
    """Does it; returns plain data."""
    table: Callable[[dict[str, Any]], str]
    """Data -> a Markdown table."""
    goals: Callable[[dict[str, Any]], Sequence[Goal]]
    """Data -> goals with what was found."""
    minutes: tuple[float, float]
    """Expected minutes of the small and of the full form on 2 cores."""
    plot: Callable[[Any, dict[str, Any]], None] | None = None
    """Draws the data into a matplotlib axes; None where there is nothing to see."""


def run(benchmark: Benchmark, arguments: Sequence[str] = ()) -> int:
    """Carry out a benchmark as its command line says; return 1 where a promise was broken."""
    options = _options(benchmark, arguments)
    form = "full" if options.full else "small"
    parameters = dict(benchmark.full if options.full else benchmark.small)
    parameters |= {key: value for key in parameters if (value := getattr(options, key)) is not None}
    minutes = benchmark.minutes[options.full]
    print(f"== {benchmark.name}, {form} form, about {minutes:g} minutes on 2 cores", flush=True)
    facts, started = machine_facts(), perf_counter()
    folder = options.keep or Path(
        tempfile.mkdtemp(prefix=f"tilewright-{benchmark.name}-", dir=options.scratch)
    )
    bench = Bench(parameters, folder)
    _same_parameters(bench, benchmark.name)
    try:
        data = benchmark.measure(bench)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    result = {
        "benchmark": benchmark.name,
        "form": form,
        "command": shlex.join(["python", "-m", "benchmarks", benchmark.name, *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(perf_counter() - started, 1),
        "machine": facts,
        "parameters": parameters,
        "data": data,
        "goals": [asdict(goal) for goal in benchmark.goals(data)],
    }
    target = (options.results or (RESULTS if options.full else SCRATCH)) / f"{benchmark.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(benchmark.table(data))
    for goal in benchmark.goals(data):
        print(f"-- {goal.line()}")
    print(f"== {benchmark.name}: {result['seconds']:.0f} s, written to {_shown(target)}\n", flush=True)
    return int(any(goal.promise and goal.met is False for goal in benchmark.goals(data)))


def _options(benchmark: Benchmark, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {benchmark.name}", description=benchmark.title
    )
    parser.add_argument("--full", action="store_true", help="the form whose numbers are in the docs")
    parser.add_argument(
        "--keep", type=Path, help="scratch folder that stays, and from which a repeat goes on"
    )
    parser.add_argument("--scratch", type=Path, help="where the scratch folder is made; the system's default")
    parser.add_argument("--results", type=Path, help="folder of the JSON file")
    for key, value in benchmark.full.items():
        several = isinstance(value, list | tuple)
        kind = type(value[0]) if several else type(value)
        parser.add_argument(
            f"--{key.replace('_', '-')}",
            type=_boolean if kind is bool else kind,
            nargs="+" if several else None,
            help=f"small {benchmark.small[key]}, full {value}",
        )
    return parser.parse_args(list(arguments))


def _boolean(text: str) -> bool:
    return text.lower() in ("1", "true", "yes")


def _same_parameters(bench: Bench, name: str) -> None:
    """Refuse a kept folder of other parameters: its rows would be mixed with new ones."""
    wanted = json.loads(json.dumps(bench.parameters, default=str))
    found = (
        bench.once("parameters", lambda: wanted)
        if "parameters" not in bench._saved
        else bench._saved["parameters"]
    )
    if found != wanted:
        sys.exit(f"{bench.folder} holds {name} with {found}, and not with {wanted}; name another --keep")


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return (
            f"{value:,.3g}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def worst(values: Iterable[float | None]) -> float | None:
    """Return the least of the values that there are; None of none."""
    return min((v for v in values if v is not None), default=None)
