"""The command line. Each command is a few lines: it reads arguments, calls the library, and prints."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from tilewright.errors import InputError, TilewrightError

if TYPE_CHECKING:
    from tilewright.pipeline.report import Report

app = typer.Typer(
    name="tilewright",
    help="Satellite archives to maps: STAC, lazy cubes, torch kernels over chunks without seams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(soft_wrap=True)

RegionOption = Annotated[
    str | None, typer.Option(help="File (GeoJSON, GeoPackage, ...) or W,S,E,N in degrees.")
]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the run.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")]
Batch = Annotated[int | None, typer.Option(help="Tiles a forward.")]
Threads = Annotated[
    int | None, typer.Option(help="Intra-op threads of torch; the same number gives the same bits.")
]
MemoryOption = Annotated[str | None, typer.Option(help="Most memory, such as 8GiB.")]
Weights = Annotated[str | None, typer.Option(help="Weights: a path or hf://owner/name@revision.")]
Bands = Annotated[str | None, typer.Option(help="Bands by name or number, a,b,c.")]
Boundary = Annotated[str | None, typer.Option(help="Beyond the edge of the data: reflect or fill.")]
Only = Annotated[str | None, typer.Option(help="Write just cog or zarr.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over in the output folder.")]
Tile = Annotated[int | None, typer.Option(help="Pixels a side that the kernel sees.")]
ShardOption = Annotated[int | None, typer.Option(help="Pixels a side of a shard, the unit of writing.")]
Stitch = Annotated[str | None, typer.Option(help="cut or blend.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> NoReturn:
    """Run the command line: a wrong request ends with one line and status 2, a failed run with status 1."""
    from click.exceptions import Abort, ClickException, Exit

    try:
        status = app(standalone_mode=False)
    except TilewrightError as error:
        _fail(str(error), 2 if _disk_is_full(error) else error.exit_code)
    except ClickException as error:
        _fail(error.format_message(), 2)
    except Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, Abort):
        _fail("interrupted; finished shards are kept, the same command goes on", 130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"{error.filename or 'output'}: the disk is full; free some space and repeat the command", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"tilewright: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        error = error.__cause__
    return False


@app.command()
def demo(out: OutOption = None) -> None:
    """Make two maps of real imagery that lies in the checkout: no network, no server."""
    from tilewright.demo import run_demo

    for report in run_demo(out or Path("out"), say=console.print, progress=_progress):
        _print_report(report)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    region: RegionOption = None,
    table: Annotated[bool, typer.Option("--table", help="Compare tiles and batches.")] = False,
    as_json: AsJson = False,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    memory: MemoryOption = None,
    tile: Tile = None,
    shard: ShardOption = None,
    stitch: Stitch = None,
) -> None:
    """Say what a recipe would read, compute, hold and write. Opens headers only."""
    from tilewright.flows.runs import prepare_runs
    from tilewright.pipeline.plan import compare_tiles, make_plan

    wishes = _wishes(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        memory=memory,
        tile=tile,
        shard=shard,
        stitch=stitch,
    )
    shown = []
    for prepared in prepare_runs(_recipe(recipe), region=region, out=Path("out"), **wishes):
        made = make_plan(prepared.job)
        choices = compare_tiles(prepared.job) if table else []
        if as_json:
            shown.append(
                {**made.as_dict(), "items": len(prepared.items), "table": [_plain(c) for c in choices]}
            )
            continue
        _print_plan(prepared.request.title, len(prepared.items), made)
        if table:
            _print_choices(choices)
        made.check()
    if as_json:
        print(json.dumps(shown if len(shown) > 1 else shown[0], indent=2, default=str))  # noqa: T201


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    region: RegionOption = None,
    out: OutOption = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    memory: MemoryOption = None,
    weights: Weights = None,
    bands: Bands = None,
    boundary: Boundary = None,
    only: Only = None,
    fresh: Fresh = False,
    tile: Tile = None,
    shard: ShardOption = None,
    stitch: Stitch = None,
) -> None:
    """Run a recipe: search, line up, map, stitch, write, announce. The same command resumes."""
    from tilewright.flows.runs import run as run_recipe

    wishes = _wishes(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        memory=memory,
        boundary=boundary,
        tile=tile,
        shard=shard,
        stitch=stitch,
    )
    loaded = _recipe(recipe)
    with _progress() as progress:
        reports = run_recipe(
            loaded,
            region=region,
            out=out or Path("out") / loaded.name,
            weights=weights,
            bands=_split(bands),
            only=_only(only),
            fresh=fresh,
            progress=progress,
            say=console.print,
            **wishes,
        )
    for report in reports:
        _print_report(report)


@app.command()
def apply(
    kernel: Annotated[
        str, typer.Argument(help="Kernel: a name, package.module:name, file.py:name, model.pt2.")
    ],
    inputs: Annotated[list[str], typer.Argument(help="One a date, oldest first; files of a date by commas.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Option of the kernel, key=value.")] = None,
    stitch: Stitch = None,
    tile: Tile = None,
    shard: ShardOption = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    memory: MemoryOption = None,
    weights: Weights = None,
    bands: Bands = None,
    boundary: Boundary = None,
    only: Only = None,
    fresh: Fresh = False,
) -> None:
    """Map a kernel over rasters, with no catalog. The same command resumes."""
    from tilewright.api import apply as apply_kernel

    wishes = _wishes(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        memory=memory,
        boundary=boundary,
        tile=tile,
        shard=shard,
        stitch=stitch,
    )
    with _progress() as progress:
        report = apply_kernel(
            kernel,
            inputs,
            out=out,
            weights=weights,
            options=_options(set_ or []),
            bands=_split(bands),
            only=_only(only),
            fresh=fresh,
            progress=progress,
            **wishes,
        )
    _print_report(report)


@app.command()
def kernels(
    name: Annotated[str | None, typer.Argument(help="One kernel, in full.")] = None, as_json: AsJson = False
) -> None:
    """List the kernels that are installed, or describe one. Loads no weights."""
    from tilewright.kernels.load import kernel_entry, list_kernels

    entries = [kernel_entry(name)] if name else list_kernels()
    if as_json:
        shown = [
            {
                "name": e.name,
                "target": e.target,
                "options": dict(e.options or {}),
                "problem": e.problem,
                **({"spec": e.spec.model_dump(mode="json")} if e.spec else {}),
            }
            for e in entries
        ]
        print(json.dumps(shown[0] if name else shown, indent=2))  # noqa: T201
    elif name:
        _print_kernel(entries[0])
    else:
        _print_kernels(entries)


@app.command()
def recipe(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes.")] = False,
    file: Annotated[Path | None, typer.Argument(help="A recipe to check.")] = None,
) -> None:
    """Print the schema of recipes, or check one."""
    from tilewright.flows.recipe import Recipe

    if file is not None:
        print(json.dumps(_recipe(file).model_dump(mode="json"), indent=2))  # noqa: T201
    elif schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))  # noqa: T201
    else:
        raise InputError("nothing to do", place="recipe", remedy="give a file, or --schema")


@app.command(context_settings={"ignore_unknown_options": True})
def why(
    out: Annotated[Path, typer.Argument(help="Folder of a run.")],
    at: Annotated[
        str, typer.Argument(metavar="X,Y", help="A place, in the result's CRS or as longitude,latitude.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say what is behind one pixel: items, baseline, mask, tile, weights and ledger line."""
    from tilewright.why import explain_pixel

    x, _, y = at.partition(",")
    try:
        place = float(x), float(y)
    except ValueError as error:
        raise InputError(
            f"{at!r} is no place", place="X,Y", remedy="write two numbers with a comma"
        ) from error
    facts = explain_pixel(out, *place)
    if as_json:
        print(json.dumps(facts, indent=2, default=str))  # noqa: T201
    else:
        _print_facts(facts)


def _recipe(path: Path) -> Any:
    from tilewright.flows.recipe import Recipe

    return Recipe.read(path)


def _wishes(**given: Any) -> dict[str, Any]:
    from tilewright.pipeline.settings import parse_size

    wishes = {name: value for name, value in given.items() if value is not None}
    if "memory" in wishes:
        wishes["memory"] = parse_size(wishes["memory"])
    return wishes


def _split(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",")] if text else None


def _only(text: str | None) -> Any:
    if text not in (None, "cog", "zarr"):
        raise InputError(f"unknown form {text!r}", place="--only", remedy="known: cog, zarr")
    return text


def _options(pairs: list[str]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{pair!r} is no option", place="--set", remedy="write key=value")
        options[key] = value
    return options


def _plain(choice: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(choice)


class _progress:  # noqa: N801 - used as a context manager
    """A bar on a terminal, a line a shard decile in a log."""

    def __enter__(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("shards"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("shards", total=None)
        self.last = -1
        if console.is_terminal:
            self.bar.start()
        return self._tick

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _tick(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
        tenth = 10 * done // total
        if not console.is_terminal and tenth > self.last:
            self.last = tenth
            console.print(f"{done} of {total} shards")


def _print_report(report: Report) -> None:
    mpx = report.pixels / 1e6
    console.print(
        f"[bold]{report.title}[/bold]  {mpx:.2f} Mpx, {report.pixels_valid / report.pixels:.0%} valid"
    )
    for name, file in report.outputs.items():
        console.print(f"  {name}: {file}", highlight=False)
    reused = f" ({report.shards_reused} kept from before)" if report.shards_reused else ""
    console.print(
        f"  {report.seconds:.1f} s, {report.shards} shards{reused}, {report.tiles_run} tiles of {report.tile} px"
        f" (halo {report.halo}, {report.stitch}), work factor {report.work_factor:.2f},"
        f" peak {report.peak_rss_bytes / 2**20:,.0f} of {report.projected_memory_bytes / 2**20:,.0f} MiB projected",
        highlight=False,
    )
    for name, seam in (report.seam or {}).items():
        console.print(
            f"  seam of {name}: mean {seam['mean']:.3g}, p99 {seam['p99']:.3g}, max {seam['max']:.3g}"
        )
    for note in report.notes:
        console.print(f"  note: {note}", highlight=False)


def _print_plan(title: str, items: int, made: Any) -> None:
    from rich.table import Table

    table = Table(title=title, show_header=False, box=None, title_justify="left")
    mib = 2**20
    rows = {
        "items": f"{items}",
        "pixels": f"{made.shape[0]} x {made.shape[1]}",
        "tiles": f"{made.tiles} of {made.tile} px, core {made.core}, halo {made.halo}, stride {made.stride}, {made.stitch}",
        "computed per kept pixel": f"{made.waste:.2f}",
        "shards": f"{made.shards} of {made.shard_size} px",
        "read": f"{made.bytes_read / mib:,.1f} MiB decoded, in {made.passes} pass{'es' if made.passes > 1 else ''}",
        "written": f"{made.bytes_written / mib:,.1f} MiB before compression, scratch {made.scratch_bytes / mib:,.1f} MiB",
        "memory": f"{made.memory.total / mib:,.0f} MiB of {made.memory_allowed / mib:,.0f} MiB allowed",
        "inference": f"{made.seconds_forward:,.1f} s on {made.device}, batch {made.batch}, {made.threads} threads",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    console.print(table)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False)


def _print_choices(choices: list[Any]) -> None:
    from rich.table import Table

    table = Table("tile", "batch", "computed per kept", "memory MiB", "inference s", "")
    for c in choices:
        mark = "best" if c.best else ("" if c.fits else "does not fit")
        table.add_row(
            str(c.tile), str(c.batch), f"{c.waste:.2f}", f"{c.memory / 2**20:,.0f}", f"{c.seconds:.2f}", mark
        )
    console.print(table)


def _print_kernels(entries: list[Any]) -> None:
    from rich.table import Table

    table = Table("kernel", "dates", "bands", "radius", "outputs", "what it does", box=None)
    for entry in entries:
        if entry.spec is None:
            table.add_row(entry.name, "", "", "", "", f"not usable here: {entry.problem}")
            continue
        spec = entry.spec
        first = next(iter(spec.inputs.values()))
        bands = ", ".join(first.bands) if isinstance(first.bands, tuple) else "any"
        radius = "global" if spec.radius is None else str(spec.radius)
        table.add_row(entry.name, str(first.dates), bands, radius, ", ".join(spec.outputs), spec.description)
    console.print(table)


def _print_kernel(entry: Any) -> None:
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


def _print_facts(facts: dict[str, Any]) -> None:
    import yaml

    console.print(
        yaml.safe_dump(json.loads(json.dumps(facts, default=str)), sort_keys=False),
        highlight=False,
        markup=False,
    )
