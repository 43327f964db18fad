"""From a recipe to a result: search, grid, cube, kernel, job, run, announce. The Prefect flow wraps these steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import GridError, InputError, ResumeError

if TYPE_CHECKING:
    import pystac

    from tilewright.catalogs.criteria import Searched
    from tilewright.catalogs.region import Region
    from tilewright.catalogs.search import SearchResult
    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.cube_source import CubeSource
    from tilewright.pipeline.grid import Grid
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.run import Progress, Request

    from .recipe import Recipe

__all__ = [
    "PreparedRun",
    "Sought",
    "announce",
    "as_recipe",
    "choose_grids",
    "cube_of",
    "find_items",
    "load_kernel",
    "plan_runs",
    "prepare_runs",
    "run",
    "seek",
]

type RegionLike = str | Path | Mapping[str, Any] | Sequence[float] | Region | None

SNAPSHOT = "items.json"
"""The exact Items of a run, written beside its results."""


@dataclass(frozen=True)
class Sought:
    """A recipe with all that a search tells: the kernel is loaded, and no file is opened."""

    recipe: Recipe
    """What was asked."""
    kernel: Kernel
    """The recipe's kernel."""
    weights: str | None
    """Weights instead of the recipe's."""
    bands: Sequence[str] | None
    """Bands instead of the recipe's."""
    region: Region
    """The ground that was asked for."""
    found: tuple[SearchResult, ...]
    """What was found, a period each."""
    grids: tuple[Grid, ...]
    """One result each."""


@dataclass(frozen=True)
class PreparedRun:
    """A recipe over one grid: everything is decided, and no pixel is read."""

    recipe: Recipe
    """What was asked."""
    job: Job
    """Kernel over cube."""
    request: Request
    """Where the result goes."""
    items: tuple[pystac.Item, ...]
    """The Items of all periods."""
    found: tuple[SearchResult, ...]
    """What was found, a period each."""


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    region: RegionLike = None,
    out: str | Path = "out",
    weights: str | None = None,
    bands: Sequence[str] | None = None,
    only: Literal["cog", "zarr"] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    cluster: Any = None,
    progress: Progress | None = None,
    say: Callable[[str], Any] | None = None,
    **wishes: Any,
) -> list[Report]:
    """Run a recipe and return its report, or several where the region needs several grids.

    Parameters
    ----------
    recipe
        A `Recipe`, a YAML file, or plain data.
    region
        Instead of the recipe's: a file, GeoJSON, ``"W,S,E,N"`` or four numbers in degrees.
    out
        Folder of the run, or ``s3://bucket/prefix`` (``gs://``, ``az://``); parts of a region that needs
        several grids go to ``part-1``, ``part-2``, ... in it. The same call resumes.
    weights, bands, only, fresh
        Instead of what the recipe says.
    retry_failed
        Compute again the shards of which a read had failed under ``on_error="reason"``.
    cluster
        Where shards are computed, as in `tilewright.apply`.
    progress
        Called with a `Status` whenever a shard is durable, and before each step of the end.
    say
        Called with sentences for the user.
    **wishes
        Fields of `tilewright.pipeline.settings.Settings`, instead of what the recipe says.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change.
    """
    from tilewright.api import run_job

    reports = []
    prepared = prepare_runs(
        recipe,
        region=region,
        out=out,
        weights=weights,
        bands=bands,
        only=only,
        fresh=fresh,
        retry_failed=retry_failed,
        cluster=cluster,
        say=say,
        **wishes,
    )
    for one in prepared:
        report = run_job(one.job, one.request, progress)
        announce(one)
        reports.append(report)
    return reports


def prepare_runs(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    region: RegionLike = None,
    out: str | Path = "out",
    weights: str | None = None,
    bands: Sequence[str] | None = None,
    only: Literal["cog", "zarr"] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    cluster: Any = None,
    say: Callable[[str], Any] | None = None,
    **wishes: Any,
) -> list[PreparedRun]:
    """Search and decide everything that a run needs; reads headers only. Parameters are those of `run`."""
    sought = seek(recipe, region=region, weights=weights, bands=bands, say=say, out=None if fresh else out)
    return plan_runs(
        sought, out=out, only=only, fresh=fresh, retry_failed=retry_failed, cluster=cluster, **wishes
    )


def seek(
    recipe: Recipe | str | Path | Mapping[str, Any],
    *,
    region: RegionLike = None,
    weights: str | None = None,
    bands: Sequence[str] | None = None,
    say: Callable[[str], Any] | None = None,
    out: str | Path | None = None,
) -> Sought:
    """Load the kernel, search, and choose the grids: the first half of `prepare_runs`.

    Where ``out`` holds a run of the same recipe and region, its snapshot stands for the search: what is
    resumed or repeated is that run, whatever has come into the archive since.
    """
    say = say or _silent
    loaded = as_recipe(recipe)
    kernel = load_kernel(loaded, weights, bands)
    where = _region(loaded, region)
    found = (None if out is None else _snapshot_of(loaded, where, out)) or find_items(loaded, where)
    for result in found:
        for note in (*where.notes, *result.notes):
            say(f"note: {note}")
    grids = choose_grids(loaded, where, found)
    if len(grids) > 1:
        names = ", ".join(grid.crs for grid in grids)
        say(f"note: the region needs {len(grids)} grids ({names}); each becomes a result of its own")
    return Sought(loaded, kernel, weights, bands, where, found, grids)


def plan_runs(
    sought: Sought,
    *,
    out: str | Path = "out",
    only: Literal["cog", "zarr"] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    cluster: Any = None,
    **wishes: Any,
) -> list[PreparedRun]:
    """Decide everything that is still open, one run a grid: the second half of `prepare_runs`."""
    runs = []
    for i, grid in enumerate(sought.grids):
        place = str(out) if len(sought.grids) == 1 else f"{str(out).rstrip('/')}/part-{i + 1}"
        one = _prepare(sought, grid, place, only, fresh, wishes)
        request = replace(one.request, retry_failed=retry_failed, cluster=cluster)
        runs.append(replace(one, request=request))
    return runs


def as_recipe(recipe: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
    """Return a recipe from a file or plain data."""
    from .recipe import Recipe

    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.parse(recipe) if isinstance(recipe, Mapping) else Recipe.read(recipe)


def find_items(recipe: Recipe, region: Region, *, may_be_empty: bool = False) -> tuple[SearchResult, ...]:
    """Search the recipe's catalog for each of its spans; raises `CatalogError` where one holds nothing.

    With ``may_be_empty`` the last span may: a monitor waits for what is to come.
    """
    from tilewright.catalogs.search import search

    wanted = recipe.search
    return tuple(
        search(
            recipe.catalog,
            region=region,
            datetime=span,
            collections=recipe.collections,
            filter=wanted.filter,
            query=wanted.query,
            cloud_cover=wanted.cloud_cover,
            ids=wanted.ids,
            max_items=wanted.max_items,
            may_be_empty=may_be_empty and i == len(recipe.spans) - 1,
        )
        for i, span in enumerate(recipe.spans)
    )


def _snapshot_of(recipe: Recipe, region: Region, out: str | Path) -> tuple[SearchResult, ...] | None:
    """Return the Items of the run that ``out`` holds, by span, if it is a run of this recipe and region."""
    from tilewright.catalogs.search import SearchResult
    from tilewright.catalogs.snapshot import read_snapshot
    from tilewright.catalogs.times import Interval
    from tilewright.pipeline.ledger import Ledger
    from tilewright.pipeline.objects import run_place

    folders = (run_place(place)[0] for place in (str(out), f"{str(out).rstrip('/')}/part-1"))
    folder = next((f for f in folders if (f / SNAPSHOT).exists()), None)
    if folder is None:
        return None
    try:
        request = Ledger.read(folder).header["request"]
    except (ResumeError, KeyError):
        return None
    asked = recipe.model_dump(mode="json"), region.geometry.wkt
    if (request.get("recipe"), request.get("asked_region")) != asked:
        return None
    snapshot = read_snapshot(folder / SNAPSHOT)
    note = f"the Items are those of the snapshot {folder / SNAPSHOT}; --fresh searches again"
    spans = [Interval.parse(span) for span in recipe.spans]
    return tuple(
        SearchResult(
            tuple(item for item in snapshot.items if span is None or span.holds(item)),
            dropped=(),
            searched=snapshot.searched,
            matched=None,
            notes=(note,) if i == 0 else (),
        )
        for i, span in enumerate(spans)
    )


def write_items(folder: Path, items: Sequence[pystac.Item], searched: Searched) -> None:
    """Write the snapshot of the exact Items into a run's folder, unless it stands there."""
    from tilewright.catalogs.snapshot import write_snapshot

    if not (folder / SNAPSHOT).exists():
        write_snapshot(folder / SNAPSHOT, items, searched)


def announce(
    prepared: PreparedRun,
    properties: Mapping[str, Any] | None = None,
    assets: Mapping[str, pystac.Asset] | None = None,
) -> None:
    """Append the Item of a finished run to the recipe's local catalog, if it names one.

    Parameters
    ----------
    prepared
        The run.
    properties, assets
        What the catalog's copy of the Item says besides.
    """
    catalog = prepared.recipe.outputs.catalog
    if catalog is None:
        return
    import pystac

    from tilewright.catalogs.static import append_to_catalog

    item = pystac.Item.from_file(str((prepared.request.out / "item.json").resolve()))
    if prepared.request.remote is not None:
        item.set_self_href(f"{prepared.request.remote}/item.json")
        item.make_asset_hrefs_absolute()
    item.properties.update(properties or {})
    for key, asset in (assets or {}).items():
        item.add_asset(key, asset)
    append_to_catalog(
        catalog, item, collection=prepared.recipe.name, description=prepared.recipe.description or None
    )


def _silent(_: str) -> None:
    return None


def load_kernel(recipe: Recipe, weights: str | None = None, bands: Sequence[str] | None = None) -> Kernel:
    """Load the recipe's kernel; first of all, because a misspelt name should not cost a search."""
    from tilewright.api import bound_kernel

    named = bands or recipe.bands or ()
    return bound_kernel(recipe.kernel.name, named, weights or recipe.kernel.weights, recipe.kernel.options)


def _region(recipe: Recipe, given: RegionLike) -> Region:
    from tilewright.catalogs.region import Region

    chosen = given if given is not None else recipe.region
    if chosen is None:
        raise InputError(
            "no region is given",
            place=f"recipe {recipe.name}",
            remedy="name one by --region, or in the recipe",
        )
    return Region.parse(chosen)


def choose_grids(recipe: Recipe, region: Region, found: Sequence[SearchResult]) -> tuple[Grid, ...]:
    """Return the grids of the results: one, or several where the region needs them."""
    from tilewright.pipeline.grid import Grid

    items = [item for result in found for item in result.items]
    wanted = recipe.grid
    crs = wanted.crs
    if crs == "items":
        codes = Counter(code for item in items if (code := _code(item)))
        if not codes:
            raise GridError("no Item states its CRS", place="grid.crs", remedy="name a CRS, or utm")
        crs = codes.most_common(1)[0][0]
    grids = Grid.split(region, wanted.resolution, crs)
    if wanted.anchor == "zero":
        return grids
    if isinstance(wanted.anchor, tuple):
        return Grid.split(region, wanted.resolution, crs, wanted.anchor)
    return tuple(_anchored(grid, region, wanted.resolution, items) for grid in grids)


def _code(item: pystac.Item) -> str | None:
    code = item.properties.get("proj:code")
    if code is None and (epsg := item.properties.get("proj:epsg")):
        code = f"EPSG:{epsg}"
    return str(code) if code else None


def _anchored(grid: Grid, region: Region, resolution: float, items: Sequence[pystac.Item]) -> Grid:
    """Return the grid on the pixel corners of the Items that share its CRS and resolution, if any do."""
    from tilewright.pipeline.grid import Grid

    corners = Counter(
        corner
        for item in items
        if _code(item) == grid.crs and (corner := _corner(item, resolution)) is not None
    )
    if not corners:
        return grid
    anchor = corners.most_common(1)[0][0]
    same = [g for g in Grid.split(region, resolution, grid.crs, anchor) if g.crs == grid.crs]
    moved = min(same, key=lambda g: abs(g.transform[2] - grid.transform[2]))
    return Grid(moved.geobox, grid.region) if grid.region is not None else moved


def _corner(item: pystac.Item, resolution: float) -> tuple[float, float] | None:
    """Return the phase of an Item's pixel corners, where it states a transform of this resolution."""
    transforms = [item.properties.get("proj:transform")]
    transforms += [asset.extra_fields.get("proj:transform") for asset in item.assets.values()]
    for t in transforms:
        if t and len(t) >= 6 and abs(abs(t[0]) - resolution) < 1e-9 and not t[1]:
            return round(t[2] % resolution, 6), round(t[5] % resolution, 6)
    return None


def cube_of(
    sought: Sought, grid: Grid, *, on_error: Literal["raise", "reason"] | None = None
) -> tuple[CubeSource, Sequence[str] | None]:
    """Return the cube of a recipe on a grid, for its kernel, and the bands if recipe, user or kernel name them.

    Reads headers only.
    """
    from tilewright.pipeline.cube_source import CubeSource

    recipe, found = sought.recipe, sought.found
    items = tuple(item for result in found for item in result.items)
    periods: Any = [list(result.items) for result in found] if recipe.periods or recipe.composite else items
    name, spec = next(iter(sought.kernel.spec.inputs.items()))
    named = sought.bands or recipe.bands or (spec.bands if isinstance(spec.bands, tuple) else None)
    source = CubeSource(
        periods,
        grid,
        bands=named,
        reader=recipe.cube.reader,
        groupby=recipe.cube.groupby,
        mask=None if recipe.cube.mask == "none" else recipe.cube.mask,
        resampling=recipe.cube.resampling,
        composite=_composite(recipe),
        offsets=recipe.cube.offsets,
        nodata=recipe.cube.nodata,
        on_error=on_error or recipe.run.on_error,
        signer=_signer(found),
        name=name,
    )
    return source, named


def _prepare(
    sought: Sought,
    grid: Grid,
    out: str,
    only: Literal["cog", "zarr"] | None,
    fresh: bool,
    wishes: Mapping[str, Any],
) -> PreparedRun:
    from tilewright.api import asked_kernel, item_id, make_settings
    from tilewright.pipeline.job import prepare
    from tilewright.pipeline.objects import run_place
    from tilewright.pipeline.run import Request

    folder, remote = run_place(out)
    recipe, kernel, found = sought.recipe, sought.kernel, sought.found
    items = tuple(item for result in found for item in result.items)
    source, named = cube_of(sought, grid, on_error=wishes.get("on_error"))
    if named is None:  # a kernel for any bands, and nobody names them: those that all Items have
        (layer,) = source.layers.values()
        kernel = load_kernel(recipe, sought.weights, layer.bands)
    chosen = {k: v for k, v in recipe.run.model_dump().items() if v is not None} | dict(wishes)
    job = prepare(kernel, source, make_settings(**chosen))
    request = Request(
        folder,
        recipe.name,
        only=only or recipe.outputs.only,
        fresh=fresh,
        extra={
            "recipe": recipe.model_dump(mode="json"),
            "asked_region": sought.region.geometry.wkt,
            "region": None if grid.region is None else grid.region.wkt,
            "dropped": [str(d) for r in found for d in r.dropped],
            "kernel": asked_kernel(
                recipe.kernel.name, sought.weights or recipe.kernel.weights, recipe.kernel.options
            ),
        },
        item_id=item_id(f"{recipe.name}-{_stamp(job)}"),
        items=items,
        remote=remote,
        begin=partial(write_items, items=items, searched=found[0].searched),
    )
    return PreparedRun(recipe, job, request, items, found)


def _composite(recipe: Recipe) -> Any:
    from tilewright.pipeline.composite import Composite

    if recipe.composite is None:
        return Composite() if recipe.periods else None
    q = recipe.composite.percentile if recipe.composite.method == "percentile" else None
    return Composite(recipe.composite.method, q)


def _signer(found: Sequence[SearchResult]) -> Any:
    from tilewright.catalogs.endpoints import endpoint
    from tilewright.catalogs.signing import signer_for

    return signer_for(endpoint(found[0].searched.url))


def _stamp(job: Job) -> str:
    """Name a result by its last date and its grid: the same request has the same name, another place another."""
    from tilewright.pipeline.ledger import fingerprint_digest

    times = [t for layer in job.source.layers.values() for t in layer.times if t is not None]
    day = str(max(times))[:10].replace("-", "") if times else "undated"
    return f"{day}-{fingerprint_digest(job.fingerprint['grid'])[:8]}"
