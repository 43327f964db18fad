"""A piece of work in a process of its own, and what it took: wall, processor seconds, peak memory.

`measured("peers:by_loop", raster="a.tif")` starts a Python of its own, calls ``benchmarks.peers.by_loop(clock,
raster="a.tif")`` there and returns what the function returned beside what its clock saw. The function imports and
opens what it needs first and then does the measured part inside ``with clock:``; so the import of torch is in no
time, and its memory is told apart from that of the work.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Self

__all__ = ["ChildFailed", "Clock", "measured"]

ROOT = Path(__file__).resolve().parents[1]


class ChildFailed(RuntimeError):
    """The process of a piece of work ended with an error; its last lines are the message."""


class Clock:
    """Measures what is done inside ``with clock:``, in this process and all its children."""

    def __init__(self) -> None:
        self.alone = True
        """False where the work starts processes whose memory shall count in `peak_tree`: looking for them walks the
        table of all processes, which takes up to half a core."""
        self.wall = 0.0
        """Seconds from start to end."""
        self.cpu = 0.0
        """Processor seconds, user and system, of this process and of the children that ended within."""
        self.base = 0
        """Resident bytes of this process at the start: the interpreter and its libraries."""
        self.peak = 0
        """Most resident bytes of this process (the kernel's own high-water mark, set back at the start)."""
        self.peak_tree = 0
        """Most resident bytes of this process and its children together, seen every 0.05 s; shared pages count
        in each."""

    def __enter__(self) -> Self:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS; proc(5)
        self.base = _status("VmRSS")
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        if not self.alone:
            self._watch.start()
        self._cpu, self._wall = _cpu_seconds(), perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = perf_counter() - self._wall, _cpu_seconds() - self._cpu
        self.peak = _status("VmHWM")
        self._stop.set()
        if not self.alone:
            self._watch.join()
        self.peak_tree = max(self.peak, self.peak_tree)

    def _sample(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(0.05):
            total = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_tree = max(self.peak_tree, total)

    def as_plain(self) -> dict[str, float]:
        """Return what was measured: seconds and bytes."""
        return {
            "wall": round(self.wall, 4),
            "cpu": round(self.cpu, 4),
            "base": self.base,
            "peak": self.peak,
            "peak_tree": self.peak_tree,
        }


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(
    function: str, /, *, omp: int | None = None, env: dict[str, str] | None = None, **arguments: Any
) -> dict[str, Any]:
    """Call ``module:function`` of this folder with a `Clock` and ``arguments`` (plain data) in a new process.

    ``omp`` bounds what OpenMP and BLAS libraries start with. Returns ``wall``, ``cpu``, ``base``, ``peak`` and
    ``peak_tree`` (see `Clock`) with the keys that the function returned, if any. Raises `ChildFailed`.
    """
    surroundings = dict(os.environ) | (env or {})
    if omp is not None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        surroundings |= dict.fromkeys(names, str(omp))
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        order = json.dumps({"function": function, "arguments": arguments, "answer": str(answer)}, default=str)
        command = [sys.executable, "-m", "benchmarks.child", order]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=surroundings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode or not answer.exists():
            tail = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise ChildFailed(f"{function} ended with status {done.returncode}\n{tail}")
        found: dict[str, Any] = json.loads(answer.read_text())
    return found


def main() -> None:
    """Carry out the order that `measured` wrote."""
    order = json.loads(sys.argv[1])
    module, _, name = order["function"].partition(":")
    clock = Clock()
    found = getattr(importlib.import_module(f"benchmarks.{module}"), name)(clock, **order["arguments"])
    Path(order["answer"]).write_text(json.dumps({**(found or {}), **clock.as_plain()}, default=float))


if __name__ == "__main__":
    main()
