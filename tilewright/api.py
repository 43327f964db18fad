"""What `import tilewright` offers beyond names of the wings: kernels by name over rasters, cubes and recipes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewright.errors import InputError, nearest_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import geopandas
    import xarray as xr

    from tilewright.kernels.contract import Kernel
    from tilewright.pipeline.job import Job
    from tilewright.pipeline.report import Report
    from tilewright.pipeline.run import Progress, Request, Run
    from tilewright.pipeline.settings import Settings
    from tilewright.pipeline.source import Source

__all__ = ["apply", "bound_kernel", "make_settings", "map_pixels", "map_tiles", "raster_job"]


def make_settings(settings: Settings | None = None, **wishes: Any) -> Settings:
    """Return `Settings` from its fields; raises `InputError` for one that does not exist."""
    from tilewright.pipeline.settings import Settings, parse_size

    if settings is not None:
        return settings
    known = {f.name for f in fields(Settings)}
    for name in wishes:
        if name not in known:
            raise InputError(f"unknown setting {name!r}", place="settings", remedy=nearest_name(name, known))
    if isinstance(wishes.get("memory"), str):
        wishes["memory"] = parse_size(wishes["memory"])
    return Settings(**wishes)


def bound_kernel(
    kernel: Kernel | str | Path,
    bands: Sequence[str],
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Kernel:
    """Return a kernel, loaded by name where it is one.

    A kernel that works on any bands has an option ``bands``; unless the user sets it, it becomes ``bands``,
    those of the source; empty ``bands`` leave the option as it is.
    """
    from tilewright.kernels.contract import Kernel
    from tilewright.kernels.load import load_for_bands

    if isinstance(kernel, Kernel):
        if weights is not None or options:
            raise InputError(
                "weights and options belong to a kernel's name",
                place="kernel",
                remedy="give them to load_kernel",
            )
        return kernel
    return load_for_bands(kernel, bands, weights, options)


def asked_kernel(
    kernel: Kernel | str | Path, weights: Any, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what `bound_kernel` was asked for as plain data, so that the same can be loaded later.

    Paths become absolute. The name is None for a kernel, or weights, that were given as an object.
    """
    from tilewright.kernels.contract import Kernel

    plain = weights is None or isinstance(weights, (str, Path))
    if isinstance(kernel, Kernel) or not plain:
        return {"name": None, "weights": None, "options": {}}
    name = str(kernel)
    file, colon, attribute = name.rpartition(":") if ".py:" in name else (name, "", "")
    if Path(file).exists() and Path(file).suffix in (".py", ".pt2", ".yaml", ".yml"):
        name = f"{Path(file).resolve()}{colon}{attribute}"
    local = weights is not None and Path(weights).exists()
    where = str(Path(weights).resolve()) if local else weights
    return {"name": name, "weights": where, "options": dict(options or {})}


type Inputs = str | Path | Sequence[str | Path | Sequence[str | Path]]


def raster_job(
    kernel: Kernel | str | Path,
    inputs: Inputs,
    *,
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    layers: Mapping[str, Inputs] | None = None,
    settings: Settings | None = None,
    **wishes: Any,
) -> Job:
    """Return the job of a kernel over rasters; see `apply` for the parameters."""
    from tilewright.pipeline.job import prepare
    from tilewright.pipeline.rasters import raster_source

    chosen = make_settings(settings, **wishes)
    source = raster_source(_dates(inputs), bands=bands, on_error=chosen.on_error)
    (layer,) = source.layers.values()
    loaded = bound_kernel(kernel, layer.bands, weights, options)
    if layers:
        source = _with_layers(loaded, source, layers, chosen)
    return prepare(loaded, source, chosen)


def _with_layers(kernel: Kernel, main: Source, layers: Mapping[str, Inputs], settings: Settings) -> Source:
    """Return one source of the main raster and the further inputs, each with the bands that the kernel names."""
    from tilewright.pipeline.inputs import join_inputs
    from tilewright.pipeline.rasters import raster_source

    wanted = kernel.spec.inputs
    for name in layers:
        if name not in wanted:
            raise InputError(
                f"kernel {kernel.spec.name} has no input {name!r}",
                place="--input",
                remedy=nearest_name(name, wanted),
            )
    rest = [name for name in wanted if name not in layers]
    if not rest:
        raise InputError(
            "all inputs are named, and the first one too", place="--input", remedy="name all but the first"
        )
    found = {rest[0]: main}
    for name, files in layers.items():
        found[name] = raster_source(_dates(files), on_error=settings.on_error)
    return join_inputs(kernel.spec, found)


def apply(
    kernel: Kernel | str | Path,
    inputs: Inputs,
    *,
    out: str | Path,
    weights: Any = None,
    options: Mapping[str, Any] | None = None,
    bands: Sequence[str | int] | None = None,
    layers: Mapping[str, Inputs] | None = None,
    only: Literal["cog", "zarr"] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    title: str | None = None,
    cluster: Any = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
    **wishes: Any,
) -> Report:
    """Map a kernel over rasters and write the result; no catalog is involved.

    Parameters
    ----------
    kernel
        A kernel, or what `load_kernel` takes.
    inputs
        One entry a date, oldest first (or a single one by itself): a path or URL (GeoTIFF, COG, VRT, Zarr), or
        several, in a list or joined by commas, whose bands are stacked. All on the grid of the first.
    out
        Folder of the run, or ``s3://bucket/prefix`` (``gs://``, ``az://``) with keys and endpoint from the
        environment. The same call resumes what was interrupted there.
    weights, options
        For a kernel by name.
    bands
        Names or 1-based numbers of the bands to take.
    layers
        Further inputs of the kernel, name -> as ``inputs``, on the same grid: ``{"map": "classes.tif"}``.
    only
        Write only COGs, or only Zarr.
    fresh
        Start over in ``out``.
    retry_failed
        Compute again the shards of which a read had failed under ``on_error="reason"``.
    title
        Shown in the quicklook and the Item; the kernel's name unless given.
    cluster
        Where shards are computed: ``"local:N"`` for N worker processes here, a scheduler's ``"tcp://host:port"``,
        a `distributed.Client`, or a `tilewright.pipeline.cluster.Cluster`. None is this process. It changes no
        bit.
    progress
        Called with a `Status` whenever a shard is durable, and before each step of the end.
    settings, **wishes
        `Settings`, or its fields: ``stitch``, ``tile``, ``shard``, ``batch``, ``threads``, ``device``,
        ``precision``, ``boundary``, ``memory``, ...

    Returns
    -------
    Report
        What ``report.json`` holds.

    Raises
    ------
    TilewrightError
        In one sentence that says what to change.
    """
    from tilewright.pipeline.objects import run_place
    from tilewright.pipeline.run import Request

    job = raster_job(
        kernel,
        inputs,
        weights=weights,
        options=options,
        bands=bands,
        layers=layers,
        settings=settings,
        **wishes,
    )
    name = title or job.kernel.spec.name
    folder, remote = run_place(out)
    request = Request(
        folder,
        name,
        only=only,
        fresh=fresh,
        retry_failed=retry_failed,
        extra={
            "inputs": _resolved(inputs),
            **({"layers": {name: _resolved(files) for name, files in layers.items()}} if layers else {}),
            "bands": None if bands is None else list(bands),
            "kernel": asked_kernel(kernel, weights, options),
        },
        item_id=item_id((remote or str(folder.resolve())).rpartition("/")[2] or name),
        remote=remote,
        cluster=cluster,
    )
    return run_job(job, request, progress)


def _dates(inputs: Inputs) -> Sequence[str | Path | Sequence[str | Path]]:
    return [inputs] if isinstance(inputs, (str, Path)) else inputs


def _resolved(inputs: Inputs) -> list[list[str]]:
    """Return the files of each date, local ones absolute, URLs without what may be a signature."""
    from tilewright.pipeline.handles import is_local, plain_href
    from tilewright.pipeline.rasters import input_files

    def resolve(href: str) -> str:
        local = is_local(href) and Path(href).exists()
        return str(Path(href).resolve()) if local else plain_href(href)

    return [[resolve(href) for href in input_files(entry)] for entry in _dates(inputs)]


def run_job(job: Job, request: Request, progress: Progress | None = None) -> Report:
    """Execute a job whose outputs are rasters, or records; see `tilewright.pipeline.run.execute`."""
    return open_run(job, request, progress).carry_out()


def open_run(job: Job, request: Request, progress: Progress | None = None) -> Run:
    """Return the run of a job whose outputs are rasters, or records; enter it to begin.

    A few windows of the inputs are looked at first, see `tilewright.pipeline.inspection`. See
    `tilewright.pipeline.run.Run` for ``progress``.
    """
    from tilewright.pipeline.inspection import inspect_inputs

    job = inspect_inputs(job)
    if job.kernel.spec.mapping == "map_tiles":
        from tilewright.pipeline.tiles import RecordRun

        return RecordRun(job, request, progress)
    from tilewright.pipeline.run import Run

    return Run(job, request, progress)


def item_id(text: str) -> str:
    """Return ``text`` with everything but letters, digits, ``.``, ``_`` and ``-`` replaced by ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "result"


def map_pixels(
    kernel: Kernel | str, cube: xr.DataArray | Mapping[str, xr.DataArray] | Source, **wishes: Any
) -> xr.Dataset:
    """Map a kernel over a cube, lazily: see `tilewright.pipeline.lazy.map_pixels`."""
    from tilewright.pipeline.lazy import as_source
    from tilewright.pipeline.lazy import map_pixels as lazily

    source = as_source(cube)
    bands = next(iter(source.layers.values())).bands
    return lazily(bound_kernel(kernel, bands), source, settings=make_settings(**wishes))


def map_tiles(
    kernel: Kernel | str, cube: xr.DataArray | Mapping[str, xr.DataArray] | Source, **wishes: Any
) -> geopandas.GeoDataFrame:
    """Map a kernel that gives records over a cube; see `tilewright.pipeline.tiles.map_tiles`."""
    from tilewright.pipeline.lazy import as_source
    from tilewright.pipeline.tiles import map_tiles as eagerly

    source = as_source(cube)
    bands = next(iter(source.layers.values())).bands
    return eagerly(bound_kernel(kernel, bands), source, settings=make_settings(**wishes))
