"""The command line. Each command is a few lines: it reads arguments, calls the library, and prints."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tilewright.cli_ask import ask
from tilewright.cli_eval import evaluate
from tilewright.cli_flows import deploy, run_via_prefect
from tilewright.cli_options import (
    PLACE,
    AsJson,
    Bands,
    Batch,
    Boundary,
    ClusterOption,
    Coregister,
    Cores,
    Device,
    Fresh,
    InputOption,
    KernelArgument,
    MemoryOption,
    OnError,
    Only,
    OutOption,
    PlaceOption,
    Precision,
    RegionOption,
    RetryFailed,
    SetOption,
    ShardOption,
    Stitch,
    Threads,
    Tile,
    Untrained,
    Weights,
    layers_of,
    options_of,
    split_names,
    wishes_of,
)
from tilewright.cli_search import index, search
from tilewright.cli_train import train_embedder
from tilewright.cli_vector import areas, vectorise
from tilewright.errors import InputError, TilewrightError
from tilewright.interrupts import Stop, clean_stop
from tilewright.show import (
    ShardProgress,
    console,
    print_choices,
    print_facts,
    print_kernel,
    print_kernels,
    print_plan,
    print_report,
)

app = typer.Typer(
    name="tilewright",
    help="Satellite archives to maps: STAC, lazy cubes, torch kernels over chunks without seams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# typer brings a click of its own in some versions and uses the installed one in others.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app.command()(deploy)
app.command("eval")(evaluate)
app.command()(train_embedder)
app.command()(vectorise)
app.command()(areas)
app.command()(index)
app.command()(search)
app.command()(ask)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def main() -> NoReturn:
    """Run the command line: a wrong request ends with one line and status 2, a failed run with status 1."""
    stop = Stop()
    try:
        with clean_stop(stop):
            status = app(standalone_mode=False)
    except TilewrightError as error:
        _fail(str(error), 2 if _disk_is_full(error) else error.exit_code)
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        _fail(f"{error.format_message().rstrip('.')}{hint}", 2)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = stop.status
    except OSError as error:
        if error.errno in _FULL:
            _fail(
                f"{error.filename or 'output'}: the disk is full; free some space and repeat the command", 2
            )
        if error.errno not in _DENIED:
            raise
        _fail(f"{error.filename or 'files'}: {error.strerror}; check the path and its permissions", 2)
    if status == Stop.status or stop.raised is not None:  # typer makes a status of a KeyboardInterrupt
        _fail(stop.message, stop.status)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"tilewright: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    sys.exit(status)


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


@app.command()
def demo(out: OutOption = None) -> None:
    """Make two maps of real imagery that lies in the checkout: no network, no server."""
    from tilewright.demo import run_demo

    for report in run_demo(out or Path("out"), say=console.print, progress=ShardProgress):
        print_report(report)


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
    cores: Cores = None,
    memory: MemoryOption = None,
    tile: Tile = None,
    shard: ShardOption = None,
    stitch: Stitch = None,
    coregister: Coregister = False,
    cluster: ClusterOption = None,
) -> None:
    """Say what a recipe would read, compute, hold and write. Opens headers, and looks at a few windows."""
    from tilewright.flows.runs import prepare_runs
    from tilewright.pipeline.cluster import plan_for
    from tilewright.pipeline.inspection import inspect_inputs
    from tilewright.pipeline.plan import compare_tiles

    wishes = wishes_of(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        cores=cores,
        memory=memory,
        tile=tile,
        shard=shard,
        stitch=stitch,
        untrained=True,
        coregister=coregister or None,
    )
    shown = []
    for prepared in prepare_runs(_recipe(recipe), region=region, out=Path("out"), **wishes):
        job = inspect_inputs(prepared.job)
        made = plan_for(job, cluster)
        choices = compare_tiles(job) if table else []
        if as_json:
            shown.append(
                {**made.as_dict(), "items": len(prepared.items), "table": [asdict(c) for c in choices]}
            )
            continue
        print_plan(prepared.request.title, len(prepared.items), made)
        if table:
            print_choices(choices)
        made.check()
    if as_json:
        print(json.dumps(shown if len(shown) > 1 else shown[0], indent=2, default=str))  # noqa: T201


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    region: RegionOption = None,
    out: PlaceOption = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    cores: Cores = None,
    memory: MemoryOption = None,
    weights: Weights = None,
    bands: Bands = None,
    boundary: Boundary = None,
    only: Only = None,
    fresh: Fresh = False,
    on_error: OnError = None,
    retry_failed: RetryFailed = False,
    tile: Tile = None,
    shard: ShardOption = None,
    stitch: Stitch = None,
    untrained: Untrained = False,
    coregister: Coregister = False,
    cluster: ClusterOption = None,
    via: Annotated[
        str | None, typer.Option(help="prefect: let a worker of the Prefect server do it.")
    ] = None,
    deployment: Annotated[str, typer.Option(help="Of --via prefect.")] = "region/region",
) -> None:
    """Run a recipe: search, line up, map, stitch, write, announce. The same command resumes."""
    from tilewright.flows.runs import run as run_recipe

    wishes = wishes_of(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        cores=cores,
        memory=memory,
        boundary=boundary,
        on_error=on_error,
        untrained=untrained or None,
        coregister=coregister or None,
        tile=tile,
        shard=shard,
        stitch=stitch,
    )
    loaded = _recipe(recipe)
    given: dict[str, Any] = {
        "region": region,
        "out": out or str(Path("out") / loaded.name),
        "weights": weights,
        "bands": split_names(bands),
        "only": _only(only),
        "fresh": fresh,
        "retry_failed": retry_failed,
        "cluster": cluster,
    }
    if via is not None:
        if via != "prefect":
            raise InputError(f"unknown way {via!r}", place="--via", remedy="known: prefect")
        run_via_prefect(loaded, deployment, {**given, "wishes": wishes})
        return
    with ShardProgress() as progress:
        reports = run_recipe(loaded, **given, progress=progress, say=console.print, **wishes)
    for report in reports:
        print_report(report)


@app.command()
def apply(
    kernel: KernelArgument,
    inputs: Annotated[list[str], typer.Argument(help="One a date, oldest first; files of a date by commas.")],
    out: Annotated[str, typer.Option(help=PLACE)],
    set_: SetOption = None,
    further: InputOption = None,
    stitch: Stitch = None,
    tile: Tile = None,
    shard: ShardOption = None,
    device: Device = None,
    precision: Precision = None,
    batch: Batch = None,
    threads: Threads = None,
    cores: Cores = None,
    memory: MemoryOption = None,
    weights: Weights = None,
    bands: Bands = None,
    boundary: Boundary = None,
    only: Only = None,
    fresh: Fresh = False,
    on_error: OnError = None,
    retry_failed: RetryFailed = False,
    untrained: Untrained = False,
    coregister: Coregister = False,
    cluster: ClusterOption = None,
) -> None:
    """Map a kernel over rasters, with no catalog. The same command resumes."""
    from tilewright.api import apply as apply_kernel

    wishes = wishes_of(
        device=device,
        precision=precision,
        batch=batch,
        threads=threads,
        cores=cores,
        memory=memory,
        boundary=boundary,
        on_error=on_error,
        untrained=untrained or None,
        coregister=coregister or None,
        tile=tile,
        shard=shard,
        stitch=stitch,
    )
    with ShardProgress() as progress:
        report = apply_kernel(
            kernel,
            inputs,
            out=out,
            weights=weights,
            options=options_of(set_ or []),
            bands=split_names(bands),
            layers=layers_of(further or []),
            only=_only(only),
            fresh=fresh,
            retry_failed=retry_failed,
            cluster=cluster,
            progress=progress,
            **wishes,
        )
    print_report(report)


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
                **({"about": e.about} if e.about else {}),
                **({"spec": e.spec.model_dump(mode="json")} if e.spec else {}),
            }
            for e in entries
        ]
        print(json.dumps(shown[0] if name else shown, indent=2))  # noqa: T201
    elif name:
        print_kernel(entries[0])
    else:
        print_kernels(entries)


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
        print_facts(facts)


@app.command()
def verify(
    out: Annotated[str, typer.Argument(help=PLACE)],
    sample: Annotated[int, typer.Option(help="Shards to check, chosen at random.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Check all shards.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the choice, to repeat it.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compute again although inputs, kernel or torch have changed.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> int:
    """Compute shards of a run again, read them back, and compare both with the ledger.

    Status 0: all equal. 1: a mismatch. 2: nothing could be computed again.
    """
    from tilewright.rebuild import run_folders
    from tilewright.show_checks import print_verification
    from tilewright.verification import verify as verify_run

    found = []
    for folder in run_folders(out):
        with ShardProgress(silent=as_json) as tick:
            found.append(
                verify_run(
                    folder,
                    sample=None if every else sample,
                    seed=seed,
                    anyway=anyway,
                    device=device,
                    progress=tick,
                )
            )
    if as_json:
        shown = [{**asdict(one), "equal": one.equal} for one in found]
        print(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))  # noqa: T201
    else:
        for one in found:
            print_verification(one)
    statuses = {one.exit_code for one in found}
    return 1 if 1 in statuses else max(statuses)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="Folder of a run, .zarr or .tif; a path or an address.")],
    b: Annotated[str, typer.Argument(help="What it is compared with.")],
    tolerance: Annotated[float, typer.Option(help="Differences up to this do not count.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="A GeoTIFF to write, of absolute differences.")] = None,
    as_json: AsJson = False,
) -> int:
    """Say where and by how much two results differ.

    Status 0: equal. 1: different. 2: not comparable.
    """
    from tilewright.pipeline.compare import diff as compare
    from tilewright.show_checks import print_difference

    found = compare(a, b, tolerance=tolerance, out=out)
    if as_json:
        print(json.dumps({**asdict(found), "equal": found.equal}, indent=2))  # noqa: T201
    else:
        print_difference(found)
    return found.exit_code


def _recipe(path: Path) -> Any:
    from tilewright.flows.recipe import Recipe

    return Recipe.read(path)


def _only(text: str | None) -> Any:
    if text not in (None, "cog", "zarr"):
        raise InputError(f"unknown form {text!r}", place="--only", remedy="known: cog, zarr")
    return text
