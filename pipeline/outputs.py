"""The end of a run: pyramid, COGs, quicklook, Item, and the moment at which all of it becomes visible.

Order matters: every file is written under a scratch name and renamed, the Zarr is renamed next to last, and
the report, which marks the run as finished, is written by the caller after this.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.catalogs.outputs import (
    ClassInfo,
    InputInfo,
    ItemRef,
    ModelInfo,
    OutputAsset,
    OutputBand,
    OutputInfo,
    ProjInfo,
)
from tilewright.catalogs.publish import publish as publish_item
from tilewright.errors import StoreError

from .cog import CogWriter, class_colours
from .digest import Leaves
from .handles import is_local
from .quicklook import quicklook
from .report import versions
from .sweep import Consumer, Piece, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pystac

    from tilewright.kernels.contract import OutputSpec

    from .grid import Grid
    from .job import Job
    from .run import Request
    from .store import ResultStore

__all__ = ["RECORDS", "ZARR", "Published", "Step", "publish", "write_item"]

type Step = Callable[[str, int, int], None]
"""Called with the name of a step of the end, the number of steps before it, and of steps in all."""

ZARR = "result.zarr"
RECORDS = "records.parquet"
COG_MEDIA = "image/tiff; application=geotiff; profile=cloud-optimized"
ZARR_MEDIA = "application/vnd.zarr; version=3"
TASKS = {
    "score": "segmentation",
    "class": "classification",
    "value": "regression",
    "vector": "similarity-search",
    "boxes": "object-detection",
    "text": "image-captioning",
}


@dataclass(frozen=True, slots=True)
class Published:
    """What stands in the folder now."""

    files: dict[str, str]
    """Name -> file or folder, relative to the run's folder."""
    digest: str
    """Merkle root over the decoded pixels."""


def publish(job: Job, request: Request, store: ResultStore, started: datetime, step: Step) -> Published:
    """Build the pyramid and write COGs, quicklook and Item beside it; repeating it after a crash is harmless.

    One sweep over level 0 gives the digest, the tiles of all COGs, and the comparison of the Zarr's pyramid with
    its own pixels. Without a Zarr to keep, no pyramid is built but what the quicklook needs.
    """
    out = request.out
    cogs = [] if request.only == "zarr" else list(job.kernel.spec.outputs)
    steps = len(cogs) + 4
    files: dict[str, str] = {}
    leaves = Leaves()
    step("pyramid", 0, steps)
    if request.only == "cog":
        pyramid: Consumer = _coarse(store)
    else:
        store.finish()
        pyramid = partial(_compare, store)
    step("digest", 1, steps)
    with ExitStack() as stack:
        writers = {n: stack.enter_context(CogWriter(store, n, out / f"{n}.tif")) for n in cogs}
        sweep(store, store.names, (leaves, pyramid, *writers.values()))
        for i, (name, writer) in enumerate(writers.items()):
            step(f"COG of {name}", 2 + i, steps)
            writer.finish()
            files[name] = f"{name}.tif"
    digest = leaves.root()
    step("quicklook", steps - 2, steps)
    quicklook(store, out / "quicklook.png", request.title)
    files["quicklook"] = "quicklook.png"
    if request.only == "cog":
        shutil.rmtree(store.place, ignore_errors=True)
    else:
        store.publish({"tilewright:digest": digest})
        files["zarr"] = ZARR
    step("Item", steps - 1, steps)
    write_item(job, request, list(_assets(job, files, request.remote)), digest, started)
    files["item"] = "item.json"
    return Published(files, digest)


def _coarse(store: ResultStore) -> Consumer:
    """Return what writes the small levels of a store that has no others."""
    levels = store.make_coarse()

    def write(piece: Piece) -> None:
        if piece.level in levels:
            store.write_coarse(piece.level, piece.window, piece.arrays)

    return write


def _compare(store: ResultStore, piece: Piece) -> None:
    """Read a piece of the Zarr's pyramid back; raises `StoreError` where it is not what follows from level 0."""
    for name, expected in piece.arrays.items() if piece.level else ():
        found = store.read(name, piece.window, piece.level)
        if not np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"):
            told = f"the pyramid of {name} is damaged at level {piece.level}, {piece.window}"
            raise StoreError(told, place=store.place, remedy="repeat the command: the end is made anew")


def write_item(job: Job, request: Request, assets: list[OutputAsset], digest: str, started: datetime) -> None:
    """Write the validated ``item.json`` of a run whose ``assets`` stand in its folder."""
    grid = job.output_grid
    geometry, bbox = footprint(grid)
    times = [t for layer in job.source.layers.values() for t in layer.times if t is not None]
    span = (_utc(min(times)), _utc(max(times))) if times else (started, started)
    publish_item(
        request.out,
        model=_model(job),
        item_id=request.item_id,
        geometry=geometry,
        bbox=bbox,
        datetime_range=span,
        created=datetime.now(UTC),
        proj=ProjInfo(
            code=grid.crs if grid.crs.startswith("EPSG:") else None,
            shape=grid.shape,
            transform=grid.transform,
            wkt2=None if grid.crs.startswith("EPSG:") else grid.crs,
        ),
        assets=assets,
        derived_from=[_reference(item, request.remote) for item in request.items],
        lineage=f"{request.title}: kernel {job.kernel.spec.name} over {len(request.items) or 'local'} inputs",
        software=versions(),
        digest=digest,
        properties={} if times else {"tilewright:datetime_is": "the time of processing; inputs state none"},
    )


def _reference(item: pystac.Item, remote: str | None) -> ItemRef:
    """Return what the Item says of an input; from an object store no path of this machine can be followed."""
    ref = ItemRef.of(item)
    return replace(ref, href=None) if remote and ref.href and is_local(ref.href) else ref


def _assets(job: Job, files: dict[str, str], remote: str | None) -> Iterator[OutputAsset]:
    resolution = job.output_grid.resolution if not _is_geographic(job.output_grid) else None
    every: list[OutputBand] = []
    for name, spec in job.kernel.spec.outputs.items():
        bands = tuple(_bands(name, spec))
        every += bands
        if name in files:
            yield OutputAsset(
                name, files[name], COG_MEDIA, ("data",), spec.description or name, bands, None, resolution
            )
    if "zarr" in files:
        title, away = "All outputs and reason", remote is not None
        yield OutputAsset(
            "zarr", ZARR, ZARR_MEDIA, ("data",), title, tuple(every), None, resolution, elsewhere=away
        )
    yield OutputAsset("quicklook", files["quicklook"], "image/png", ("thumbnail", "overview"), "Quicklook")


def _bands(name: str, spec: OutputSpec) -> Iterator[OutputBand]:
    names = spec.bands if isinstance(spec.bands, tuple) and spec.kind != "class" else None
    for i in range(spec.band_count):
        yield OutputBand(
            names[i] if names else (name if spec.band_count == 1 else f"{name}_{i + 1}"),
            spec.stored_dtype,
            spec.stored_nodata,
            spec.units,
            spec.description or None,
            _classes(spec),
        )


def _classes(spec: OutputSpec) -> tuple[ClassInfo, ...]:
    if spec.kind != "class" or not spec.classes:
        return ()
    colours = class_colours(len(spec.classes))
    return tuple(
        ClassInfo(i, name, color="{:02X}{:02X}{:02X}".format(*colours[i]))
        for i, name in enumerate(spec.classes)
    )


def _model(job: Job) -> ModelInfo:
    import torch

    spec, kernel, s = job.kernel.spec, job.kernel, job.settings
    inputs = tuple(
        InputInfo(
            name,
            spec.inputs[name].bands if isinstance(spec.inputs[name].bands, tuple) else (),  # type: ignore[arg-type]
            (-1, binding.dates, len(binding.channels), job.tiling.tile, job.tiling.tile),
            units=spec.inputs[name].units,
            mean=_one_row(spec.inputs[name].mean),
            std=_one_row(spec.inputs[name].std),
        )
        for name, binding in job.bindings.items()
    )
    side = job.tiling.tile * spec.scale
    outputs = tuple(
        OutputInfo(
            name,
            "super-resolution" if spec.scale > 1 else TASKS.get(output.kind, "regression"),
            (-1, output.band_count, side, side) if output.is_raster else (-1, output.band_count),
            ("batch", "channel", "height", "width") if output.is_raster else ("batch", "channel"),
            classes=_classes(output),
        )
        for name, output in spec.outputs.items()
    )
    module = kernel.function if isinstance(kernel.function, torch.nn.Module) else None
    return ModelInfo(
        name=spec.name,
        architecture=type(module).__name__ if module is not None else spec.name,
        inputs=inputs,
        outputs=outputs,
        framework="PyTorch",
        framework_version=str(torch.__version__).split("+")[0],
        licence=_spdx(spec.licence),
        citation=spec.citation or None,
        weights_href=kernel.weights,
        weights_sha256=kernel.weights_sha256,
        artifact_type="safetensors" if (kernel.weights or "").endswith(".safetensors") else "torch.save",
        parameters=sum(p.numel() for p in module.parameters()) if module is not None else None,
        pretrained=kernel.weights is not None,
        accelerator="cuda" if s.device.startswith("cuda") else "amd64",
        hyperparameters={
            **{k: v for k, v in kernel.options.items() if isinstance(v, (str, int, float, bool))},
            "tile": job.tiling.tile,
            "halo": job.tiling.halo,
            "stitch": s.stitch,
            "precision": s.precision,
        },
    )


def _spdx(licence: str) -> str | None:
    """Return a licence as STAC wants it: one SPDX identifier, or ``other`` for a sentence."""
    return licence if re.fullmatch(r"[\w.+-]+", licence) else ("other" if licence else None)


def _one_row(values: Any) -> tuple[float, ...]:
    return tuple(values) if values and not isinstance(values[0], (tuple, list)) else ()


def footprint(grid: Grid) -> tuple[dict[str, Any], list[float]]:
    """Return GeoJSON geometry and bbox of a grid (of its region, where it has one) in WGS84."""
    import shapely
    from pyproj import Transformer

    area = grid.region if grid.region is not None else grid.geobox.extent.geom
    if grid.geobox.crs is not None:
        transformer = Transformer.from_crs(grid.crs, "OGC:CRS84", always_xy=True)
        dense = shapely.segmentize(area, max(grid.shape) * grid.resolution / 16)
        area = shapely.transform(dense, transformer.transform, interleaved=False)
    return shapely.geometry.mapping(area), [float(v) for v in area.bounds]


def _is_geographic(grid: Grid) -> bool:
    return bool(grid.geobox.crs is not None and grid.geobox.crs.geographic)


def _utc(moment: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(np.datetime64(moment, "s").astype(np.int64)), UTC)
