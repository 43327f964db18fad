"""``python -m benchmarks`` runs the engine's in small form; ``NAME [--full]`` one; ``report`` writes the docs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from .common import Benchmark, run

ORDER = (
    "efficiency",
    "light",
    "memory",
    "peers",
    "scaling",
    "resume",
    "cube",
    "reprojection",
    "kernels",
    "seams",
    "ask",
    "pruning",
    "nearest",
)
"""As in the docs."""
ALONE = ("kernels", "seams", "ask", "pruning", "nearest")
"""Of the networks and of what is asked of them, not of the engine: run by name, and in the full form."""

USAGE = f"""python -m benchmarks                 those of the engine in small form
python -m benchmarks NAME [--full]   one of {", ".join(ORDER)}; --help names its options
python -m benchmarks full [NAME ...] the full form of all, or of those
python -m benchmarks report          write docs/benchmarks.md and its plot from the results of the full forms"""


def names() -> list[str]:
    """Return the benchmarks that are there."""
    return [name for name in ORDER if Path(__file__).with_name(f"{name}.py").exists()]


def load(name: str) -> Benchmark:
    """Return a benchmark by its name."""
    found: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return found


def run_all(chosen: list[str], arguments: list[str]) -> int:
    """Run each in a process of its own, so that one's memory is not another's; return 1 where one failed."""
    started = perf_counter()

    def one(name: str) -> int:
        return subprocess.run([sys.executable, "-m", "benchmarks", name, *arguments], check=False).returncode

    failed = [name for name in chosen if one(name)]
    minutes = (perf_counter() - started) / 60
    print(f"{len(chosen)} benchmarks in {minutes:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def main(arguments: list[str]) -> int:
    """Do what the command line says and return the status."""
    match arguments:
        case []:
            return run_all([name for name in names() if name not in ALONE], [])
        case ["full", *chosen]:
            return run_all(chosen or names(), ["--full"])
        case ["report", *options]:
            from .report import main as report

            return report([load(name) for name in names()], options)
        case [name, *options] if name in names():
            return run(load(name), options)
    print(USAGE)
    return 0 if arguments in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
