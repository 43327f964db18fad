"""What the command line prints: tables, reports and progress."""

from __future__ import annotations

import json
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from tilewright.pipeline.progress import Progress, Status
    from tilewright.pipeline.report import Report

__all__ = [
    "ShardProgress",
    "console",
    "print_choices",
    "print_facts",
    "print_kernel",
    "print_kernels",
    "print_plan",
    "print_report",
]

console = Console(soft_wrap=True)


class ShardProgress:
    """A bar on a terminal; in a log a line a tenth of the shards, and between them one every ten seconds at most."""

    QUIET = 10.0
    """Seconds between two lines of a log within a tenth; a fiftieth of the time so far where that is longer."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent

    def __enter__(self) -> Progress:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            SpinnerColumn(),
            TimeElapsedColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("reading", total=None)
        self.began = self.told = monotonic()
        self.last: tuple[str, int] | None = None
        if console.is_terminal and not self.silent:
            self.bar.start()
        return self._tick

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self.bar.stop()

    def _tick(self, status: Status) -> None:
        if self.silent:
            return
        self.bar.update(self.task, completed=status.done, total=status.total, description=str(status))
        now = monotonic()
        mark = (status.phase, 10 * status.done // status.total)
        quiet = max(self.QUIET, (now - self.began) / 50)
        if not console.is_terminal and (mark != self.last or now - self.told >= quiet):
            self.last, self.told = mark, now
            console.print(str(status), highlight=False)


def print_report(report: Report) -> None:
    """Print what a run made and what it took."""
    size = f"{report.pixels / 1e6:,.2f} Mpx" if report.pixels >= 1e5 else f"{report.pixels:,} px"
    console.print(f"[bold]{report.title}[/bold]  {size}, {report.pixels_valid / report.pixels:.0%} valid")
    for name, file in report.outputs.items():
        console.print(f"  {name}: {file}", highlight=False)
    reused = f" ({report.shards_reused} kept from before)" if report.shards_reused else ""
    console.print(
        f"  {report.seconds:.1f} s, {report.shards} shards{reused}, {report.tiles_run} tiles of {report.tile} px"
        f" (halo {report.halo}, {report.stitch}), work factor {report.work_factor:.2f},"
        f" peak {max(report.peak_rss_bytes, report.peak_worker_bytes) / 2**20:,.0f} of"
        f" {report.projected_memory_bytes / 2**20:,.0f} MiB projected"
        + (f" a process, {report.workers} workers" if report.workers else ""),
        highlight=False,
    )
    for name, seam in ((n, s) for n, s in (report.seam or {}).items() if s["pixels"]):
        console.print(
            f"  seam of {name}: mean {seam['mean']:.3g}, p99 {seam['p99']:.3g}, max {seam['max']:.3g}"
        )
    for note in report.notes:
        console.print(f"  note: {note}", highlight=False)


def print_plan(title: str, items: int, made: Any) -> None:
    """Print a plan, a line a fact."""
    from rich.table import Table

    table = Table(title=title, show_header=False, box=None, title_justify="left")
    mib = 2**20
    rows = {
        "items": f"{items}",
        "pixels": f"{made.shape[0]} x {made.shape[1]}",
        "tiles": f"{made.tiles} of {made.tile} px, core {made.core}, halo {made.halo}, stride {made.stride}, "
        f"{made.stitch}",
        "computed per kept pixel": f"{made.waste:.2f}",
        "shards": f"{made.shards} of {made.shard_size} px",
        "read": f"{made.bytes_read / mib:,.1f} MiB decoded, passes {made.passes}",
        "written": f"{made.bytes_written / mib:,.1f} MiB before compression,"
        f" scratch {made.scratch_bytes / mib:,.1f} MiB",
        "memory": f"{made.memory.total / mib:,.0f} MiB of {made.memory_allowed / mib:,.0f} MiB allowed",
        "inference": f"{made.seconds_forward:,.1f} s on {made.device}, "
        f"{made.lanes} x batch {made.batch}, {made.threads} intra-op threads",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    console.print(table)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False)


def print_choices(choices: list[Any]) -> None:
    """Print the comparison of tiles and batches."""
    from rich.table import Table

    table = Table("tile", "batch", "computed per kept", "memory MiB", "inference s", "")
    for c in choices:
        mark = "best" if c.best else ("" if c.fits else "does not fit")
        table.add_row(
            str(c.tile), str(c.batch), f"{c.waste:.2f}", f"{c.memory / 2**20:,.0f}", f"{c.seconds:.2f}", mark
        )
    console.print(table)


def print_kernels(entries: list[Any]) -> None:
    """Print the registry: each kernel with its inputs, radius, outputs, licence and citation."""
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("kernel", no_wrap=True), "what it does", box=None)
    for entry in entries:
        if entry.about is not None:
            table.add_row(entry.name, escape(entry.about) + "\n")
        elif entry.spec is None:
            table.add_row(entry.name, f"not usable here: {escape(str(entry.problem))}\n")
        elif entry.name != entry.spec.name:
            table.add_row(entry.name, f"another name of {entry.spec.name}\n")
        else:
            table.add_row(entry.name, escape("\n".join(_about_kernel(entry.spec))) + "\n")
    console.print(table)


def _about_kernel(spec: Any) -> list[str]:
    taken = []
    for name, given in spec.inputs.items():
        bands = ", ".join(given.bands) if isinstance(given.bands, tuple) else "any bands"
        dates = "1 date" if given.dates == 1 else f"{given.dates} dates"
        taken.append(f"{name}: {dates} of {bands}")
    radius = "radius global" if spec.radius is None else f"radius {spec.radius} px"
    lines = [spec.description, f"{'; '.join(taken)} -> {', '.join(spec.outputs)}; {radius}"]
    return lines + [line for line in (spec.licence, spec.citation) if line]


def print_kernel(entry: Any) -> None:
    """Print one kernel in full: target, options, description."""
    import yaml

    console.print(f"{entry.name}  ({entry.target})", highlight=False)
    if entry.problem:
        console.print(f"not usable here: {entry.problem}", highlight=False)
    for option, text in (entry.options or {}).items():
        console.print(f"  --set {option}: {text}", highlight=False, markup=False)
    if entry.spec:
        console.print(
            yaml.safe_dump(entry.spec.model_dump(mode="json"), sort_keys=False), highlight=False, markup=False
        )


def print_facts(facts: dict[str, Any]) -> None:
    """Print nested facts as YAML, the innermost of them on one line."""
    import yaml

    console.print(
        yaml.safe_dump(
            json.loads(json.dumps(facts, default=str)),
            sort_keys=False,
            default_flow_style=None,
            width=110,
            allow_unicode=True,
        ).rstrip(),
        highlight=False,
        markup=False,
    )
